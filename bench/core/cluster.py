"""How a stage joins Ray: an existing cluster where there is one, else a local one; authentication always explicit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from bench.core.errors import OptionError

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent.parent
EXCLUDED = [".git", ".venv", ".reconbench", "tests", "**/__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"]

SETTINGS: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1.0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    # Tune's own handler turns a Ctrl-C into a search cut short, which would be taken up again; and it stays in place
    # after the search, so that the next Ctrl-C, in whichever stage, is lost.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_memory_monitor_refresh_ms": "250",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Settings of Ray the harness owns; a value set by the user wins. They are printed into the record."""

CHATTY = ("ray.data", "ray.serve", "ray.tune")
"""Loggers that tell of every step; the stages show their own progress."""


def apply_settings() -> dict[str, str]:
    """Set what the user left unset and return what is in force."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    if not ray.is_initialized():
        # `import ray` has read the environment already; Ray itself rereads it so after it sets RAY_AUTH_MODE. Without
        # this the head process sees the mode, this process does not, and a first start finds no token.
        ray._raylet.Config.initialize("")
    return {key: os.environ[key] for key in SETTINGS}


def in_job() -> bool:
    """Say whether this process is the driver of a submitted Ray job, whose runtime environment is already set."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(cpus: int | None = None, object_store_bytes: int | None = None) -> None:
    """Join the cluster named by `RAY_ADDRESS` or the job, else start a local one. Idempotent within a process.

    Args:
        cpus: CPUs of a local cluster; None for all of this machine's.
        object_store_bytes: Shared memory of a local cluster; None for Ray's choice.
    """
    apply_settings()
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if not in_job():
        workers_path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": workers_path}}
        if os.environ.get("RAY_ADDRESS"):
            options["runtime_env"] = {"working_dir": str(ROOT), "excludes": EXCLUDED}
        else:
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            options["object_store_memory"] = object_store_bytes
    ray.init(**options)
    quieten()


def quieten() -> None:
    """Keep Ray's libraries to warnings; each sets its own logger up again when it starts."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def largest_node_cpus() -> int:
    """Return the CPUs of the largest node that is up: the most one task can ask for and still be placed."""
    return max([1, *(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])])


def gpus() -> int:
    """Return how many GPUs the cluster has, or can grow to.

    A cluster that scales from zero has none until something asks for one, so it must say what it can grow to: the
    cluster files set `RECONBENCH_GPUS`.

    Raises:
        OptionError: If `RECONBENCH_GPUS` is not a number.
    """
    given = os.environ.get("RECONBENCH_GPUS", "0")
    if not given.isdigit():
        raise OptionError(f"RECONBENCH_GPUS is {given!r}: the number of GPUs that the cluster can grow to is needed")
    return max(int(ray.cluster_resources().get("GPU", 0)), int(given))


def places(workers: int) -> int:
    """Return how many fits of some workers have a place at once: one GPU a worker, or one CPU where there are no GPUs.

    Raises:
        OptionError: If a local cluster cannot hold even one. A cluster that others started may still grow: what waits
            for it is said in a warning.
    """
    unit, count = ("GPU", gpus()) if gpus() else ("CPU", int(ray.cluster_resources().get("CPU", 0)))
    if workers > count:
        if not (in_job() or os.environ.get("RAY_ADDRESS")):
            raise OptionError(f"a stage wants {workers} workers; there are {count} {unit}s to place them on")
        logger.warning("a stage wants %d workers, the cluster has %d %ss: its fits wait for more", workers, count, unit)
    return max(1, count // workers)
