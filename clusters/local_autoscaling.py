"""An autoscaling Ray cluster on one machine: `python clusters/local_autoscaling.py up | status | env | down`.

It starts a head without CPUs and lets Ray's autoscaler add and remove workers, each a raylet of its own, as the work
asks for them; `local-autoscaling.yaml` beside this file says which. Everything listens on 127.0.0.1 and asks for a
token. Several clusters, each with its own `--state` file, live side by side, and ending one touches no other Ray.
Linux only: processes are found through `/proc`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, only `clusters/` is on the path
    sys.path.insert(0, str(ROOT))

from clusters import own_processes  # noqa: E402 - needs the path above

CONFIG = Path(__file__).with_name("local-autoscaling.yaml")
MARK = "RECONBENCH_CLUSTER_MARK"
CPU_TYPE, GPU_TYPE = "cpu.worker", "gpu.worker"
_RAY = str(Path(sys.executable).with_name("ray"))
_HERE = "clusters/local_autoscaling.py"
_UPDATE_INTERVAL_S = 1
_HEAD_OBJECT_STORE_BYTES = 200_000_000
# Of Ray's name for it, only the value matters here: "0" makes nodes and clients find each other at 127.0.0.1.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

log = logging.getLogger("local_autoscaling")


@dataclass(frozen=True)
class Cluster:
    """A running cluster, as its state file holds it.

    Attributes:
        address: Of the control store, `127.0.0.1:port`.
        dashboard: Of the dashboard and of job submission, with `http://`.
        token: The secret every client must present.
        mark: Value of the environment variable that marks the cluster's processes.
        temp_dir: Ray's session folder: logs and sockets.
    """

    address: str
    dashboard: str
    token: str
    mark: str
    temp_dir: str

    def client_environment(self) -> dict[str, str]:
        """Return the variables a client needs: addresses and authentication."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            **_LOOPBACK,
        }


@dataclass(frozen=True)
class Size:
    """How far the cluster may grow, and when it shrinks.

    Attributes:
        cpu_workers: Most workers with one CPU.
        gpu_workers: Most workers with one CPU and one GPU.
        idle_minutes: Minutes without work after which a worker is removed.
    """

    cpu_workers: int
    gpu_workers: int
    idle_minutes: float


def configuration(size: Size, address: str) -> dict[str, Any]:
    """Return the autoscaler's configuration: the YAML beside this file with the size and the address filled in.

    Args:
        size: Limits asked for.
        address: Of the control store; without it workers look for it at Ray's default port.

    Raises:
        ValueError: If no worker could ever start, or a limit is negative.
    """
    if min(size.cpu_workers, size.gpu_workers) < 0 or size.cpu_workers + size.gpu_workers == 0:
        raise ValueError(
            f"--cpu-workers {size.cpu_workers} and --gpu-workers {size.gpu_workers}: both at least 0 and one more"
        )
    if not size.idle_minutes > 0:
        raise ValueError(f"--idle-minutes {size.idle_minutes}: must be more than 0")
    config = yaml.safe_load(CONFIG.read_text())
    config["max_workers"] = size.cpu_workers + size.gpu_workers
    config["idle_timeout_minutes"] = size.idle_minutes
    config["available_node_types"][CPU_TYPE]["max_workers"] = size.cpu_workers
    config["available_node_types"][GPU_TYPE]["max_workers"] = size.gpu_workers
    config["provider"]["gcs_address"] = address
    return dict(config)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def up(state: Path, size: Size) -> Cluster:
    """Start the cluster, or return the one the state file holds when it still runs.

    Raises:
        ValueError: If the size makes no sense.
        RuntimeError: If Ray does not start; nothing of it is left.
    """
    held = load(state)
    if held and own_processes.own(MARK, held.mark):
        log.info("already up (%s)", state)
        return held
    gcs, dashboard, client, *metrics = free_ports(5)
    address = f"127.0.0.1:{gcs}"
    config = configuration(size, address)
    # Not under the state file: a socket's path has at most 107 characters, and Ray's own part takes 65 of them.
    temp_dir = tempfile.mkdtemp(prefix="reconbench-")
    Path(temp_dir, "autoscaling.json").write_text(json.dumps(config))
    cluster = Cluster(address, f"http://127.0.0.1:{dashboard}", secrets.token_hex(32), secrets.token_hex(8), temp_dir)
    save(state, cluster)
    ports = {"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": client}
    try:
        _start_head(cluster, ports, metrics, config)
    except BaseException:  # also on Ctrl-C: a half-started head must not stay behind
        down(state)
        raise
    return cluster


def _start_head(cluster: Cluster, ports: Mapping[str, int], metrics: Sequence[int], config: Mapping[str, Any]) -> None:
    """Run `ray start --head`; it returns when the head's processes are up.

    Raises:
        RuntimeError: If it fails, with the end of what it wrote.
    """
    command = [
        *(_RAY, "start", "--head", "--disable-usage-stats"),
        *("--dashboard-host=127.0.0.1", "--dashboard-agent-listen-port=0"),
        *(f"--{name}={port}" for name, port in ports.items()),
        f"--num-cpus={config['available_node_types'][config['head_node_type']]['resources']['CPU']}",
        f"--object-store-memory={_HEAD_OBJECT_STORE_BYTES}",
        f"--autoscaling-config={cluster.temp_dir}/autoscaling.json",
        f"--temp-dir={cluster.temp_dir}",
    ]
    environment = _head_environment(cluster, metrics, config["provider"]["head_node_id"])
    # With no GPU worker up, nothing else would tell a sweep that it may ask for one.
    environment["RECONBENCH_GPUS"] = str(config["available_node_types"][GPU_TYPE]["max_workers"])
    # In the repository, so that the job's command may name `bench/sweep.py`.
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ray start failed ({done.returncode}): {(done.stdout + done.stderr)[-2000:]}")


def _head_environment(cluster: Cluster, metrics: Sequence[int], node_id: str) -> dict[str, str]:
    """Return the environment of the head, which workers and jobs inherit."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    autoscaler = {
        "AUTOSCALER_UPDATE_INTERVAL_S": str(_UPDATE_INTERVAL_S),
        "AUTOSCALER_METRIC_PORT": str(metrics[0]),
        "DASHBOARD_METRIC_PORT": str(metrics[1]),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
        "RAY_CLOUD_INSTANCE_ID": node_id,
    }
    # A job's `python` must be this one, also where the environment was not activated.
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p),
    }
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token, MARK: cluster.mark}
    return {**inherited, **autoscaler, **paths, **auth, **_LOOPBACK}


def down(state: Path) -> int:
    """End the cluster's processes, remove its session folder and state file; return how many processes ended.

    Raises:
        TimeoutError: If a process outlives being killed; the state file stays, so that `down` can be tried again.
    """
    cluster = load(state)
    if cluster is None:
        return 0
    ended = own_processes.end(MARK, cluster.mark)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    state.unlink(missing_ok=True)
    return ended


def save(state: Path, cluster: Cluster) -> None:
    """Write the state file, readable by its owner only: it holds the token."""
    state.parent.mkdir(parents=True, exist_ok=True)
    state.unlink(missing_ok=True)  # an older file may be readable by others
    with os.fdopen(os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(cluster), file)


def load(state: Path) -> Cluster | None:
    """Return the cluster of a state file; None where there is no file.

    Raises:
        ValueError: If the file is not a state file.
    """
    if not state.exists():
        return None
    try:
        return Cluster(**json.loads(state.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{state} is not the state of a local cluster: {error}") from None


def exports(cluster: Cluster) -> str:
    """Return the shell lines that make a shell a client of the cluster, then comments that say what to do with it."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in cluster.client_environment().items()]
    lines += ["# submit:  ray job submit -- python bench/sweep.py --preset tiny"]
    lines += [
        f"# watch:   python {_HERE} status    (dashboard: {cluster.dashboard})",
        f"# stop:    python {_HERE} down",
    ]
    return "\n".join(lines) + "\n"


def status(state: Path) -> int:
    """Print `ray status` of the cluster and its number of processes; return 1 when it is not up."""
    cluster = load(state)
    count = len(own_processes.own(MARK, cluster.mark)) if cluster else 0
    if cluster is None or count == 0:
        log.info("not up (%s)", state)
        return 1
    done = subprocess.run([_RAY, "status"], env={**os.environ, **cluster.client_environment()}, check=False)
    log.info("%d processes, address %s", count, cluster.address)
    return done.returncode


def _parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    home = Path(os.environ.get("RECONBENCH_HOME", ROOT / ".reconbench"))
    parser = argparse.ArgumentParser(
        description="An autoscaling Ray cluster on this machine.",
        epilog=f'example:\n  eval "$(python {_HERE} up)"\n  ray job submit -- python bench/sweep.py',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=("up", "status", "env", "down"), help="env prints what up printed")
    parser.add_argument("--state", type=Path, default=home / "local-cluster.json", help="default: %(default)s")
    parser.add_argument("--cpu-workers", type=int, default=2, help="most one-CPU workers (default: %(default)s)")
    parser.add_argument("--gpu-workers", type=int, default=0, help="most one-GPU workers (default: %(default)s)")
    parser.add_argument("--idle-minutes", type=float, default=0.5, help="a worker's idle time (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parser().parse_args(argv)
    state = options.state.expanduser().absolute()
    try:
        if options.verb == "status":
            return status(state)
        if options.verb == "down":
            log.info("ended %d processes", down(state))
            return 0
        size = Size(options.cpu_workers, options.gpu_workers, options.idle_minutes)
        cluster = up(state, size) if options.verb == "up" else load(state)
    except (ValueError, RuntimeError, TimeoutError, FileNotFoundError) as error:
        log.error("error: %s", error)
        return 2
    if cluster is None:
        log.error("error: no cluster in %s; start one with `up`", state)
        return 1
    sys.stdout.write(exports(cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
