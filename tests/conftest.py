"""Fixtures shared by the test files: a small local Ray, an S3 server in a process of its own, a prepared tiny NSD."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.fs as pafs
import pytest
import ray
import small_checkpoints

from bench.core import cluster
from bench.core.storage import Folder
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.prepare import prepare
from bench.simulate import simulate

if TYPE_CHECKING:
    from tiny_system import Tiny


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """Where the S3 server will listen. The environment says so before Ray starts, so that its workers know it too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    patch = pytest.MonkeyPatch()
    for key, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(key, value)
    yield address
    patch.undo()


@pytest.fixture(scope="session")
def s3_server(s3_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running S3 server."""
    port = s3_address.rpartition(":")[2]
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _wait_for(int(port), server, log)
            yield s3_address
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no S3 server on port {port}: {log.read_text()}")


_BUCKETS = itertools.count(1)


@pytest.fixture
def s3_bucket(s3_server: str) -> str:
    """The name of a new, empty bucket."""
    name = f"bucket-{os.getpid()}-{next(_BUCKETS)}"
    host = s3_server.removeprefix("http://")
    client = pafs.S3FileSystem(endpoint_override=host, scheme="http", region="us-east-1", allow_bucket_creation=True)
    client.create_dir(name)
    return name


@pytest.fixture(scope="session")
def ray_session(s3_address: str) -> Iterator[None]:
    """A local Ray of two CPUs, as a stage on its own would start it."""
    del s3_address
    cluster.connect(cpus=2, object_store_bytes=300 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_nsd(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the simulated NSD of the tiny preset. Never change what is in it."""
    return simulate("tiny", tmp_path_factory.mktemp("tiny") / "nsd-sim", seed=0)


@pytest.fixture(scope="session")
def tiny_shards(tiny_nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of the tiny preset's trial shards; stimuli lie beside it. Never change what is in it."""
    return prepare(Nsd(NsdOptions(root=str(tiny_nsd))), Folder.at(tmp_path_factory.mktemp("tiny-data")))


@pytest.fixture(scope="module")
def tiny(tiny_shards: Folder) -> Tiny:
    """The tiny preset opened, its targets made. A module's own: what it puts into Ray's memory goes with it."""
    from tiny_system import open_tiny  # here, since most tests need neither fits nor generators

    return open_tiny(tiny_shards)


@pytest.fixture(scope="module")
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint of the generator that a module's NAME names. Never change what is in it."""
    return small_checkpoints.saved(request.module.NAME, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A runs folder that a module fills: fits, predictions and pictures, each under its own address."""
    return Folder.at(tmp_path_factory.mktemp("module") / "runs")
