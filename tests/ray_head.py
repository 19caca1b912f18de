"""A Ray head for tests that need one of their own: free ports, its own session folder, token, and processes.

It never touches another Ray on the machine: what it ends are the processes marked by it, and their descendants.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from clusters import own_processes  # noqa: E402 - `clusters` is not an installed package
from clusters.local_autoscaling import free_ports  # noqa: E402

MARK = "RECONBENCH_TEST_HEAD"
RAY = str(Path(sys.executable).with_name("ray"))
_START_LIMIT_S = 120
_OBJECT_STORE_BYTES = 300 << 20


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: Of the control store.
        dashboard: Of the dashboard and of job submission, with `http://`.
        client: Environment of a client: addresses and token, and the rest of this process's environment.
        mark: Value of `MARK` in the environments of its processes.
    """

    address: str
    dashboard: str
    client: Mapping[str, str]
    mark: str

    def submit(
        self, options: Sequence[str], entrypoint: Sequence[str], cwd: Path, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `ray job submit OPTIONS -- ENTRYPOINT` in a folder and wait for the job.

        Args:
            options: Options of `ray job submit`.
            entrypoint: The job's command.
            cwd: Folder that the command is given in.
            timeout_s: Seconds after which the submission is given up (the job ends with the head).
        """
        command = [RAY, "job", "submit", *options, "--", *entrypoint]
        return subprocess.run(
            command, cwd=cwd, env=self.client, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def processes(self) -> set[own_processes.Process]:
        """Return the head's living processes."""
        return own_processes.own(MARK, self.mark)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without Ray's variables, which a local Ray of another test may have set.

    But for the niceness of workers: tests wait for them, and should not wait for the tests beside them as well.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"RAY_worker_niceness": "0"}


@contextlib.contextmanager
def ray_head(cwd: Path, cpus: int, environment: Mapping[str, str]) -> Iterator[Head]:
    """Start a head in a folder, and end it and everything it started, also when the test fails.

    Args:
        cwd: Working folder of the head, and so of jobs without a working directory.
        cpus: CPUs it offers.
        environment: Variables of the head and of its jobs, beside those of this process.

    Raises:
        RuntimeError: If Ray does not start.
    """
    gcs, dashboard, client, *metrics = free_ports(5)
    mark, token = secrets.token_hex(8), secrets.token_hex(32)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    served = {
        **plain_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "AUTOSCALER_METRIC_PORT": str(metrics[0]),
        "DASHBOARD_METRIC_PORT": str(metrics[1]),
        **environment,
        **auth,
        MARK: mark,
    }
    address, url = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    # Directly below the system's folder: a socket's path has at most 107 characters.
    temp_dir = tempfile.mkdtemp(prefix="rh-")
    try:
        _start([*ports, f"--num-cpus={cpus}", f"--temp-dir={temp_dir}"], cwd, served)
        clients = {**plain_environment(), **auth, "RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": url}
        yield Head(address, url, clients, mark)
    finally:
        own_processes.end(MARK, mark)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _start(options: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
    """Run `ray start --head`; it returns when the head is up."""
    command = [RAY, "start", "--head", "--disable-usage-stats", "--num-gpus=0", *options]
    command += ["--dashboard-host=127.0.0.1", "--dashboard-agent-listen-port=0"]
    command += [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_START_LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ray start failed: {(done.stdout + done.stderr)[-3000:]}")


def metadata(values: Mapping[str, str]) -> list[str]:
    """Return the options of `ray job submit` that give a job metadata."""
    return ["--metadata-json", json.dumps(dict(values))]
