"""Fixtures shared by the test files: a small local Ray, an S3 server in a process of its own, a prepared tiny NSD.

Also which tests one worker of pytest-xdist takes (`make test` has two of them); without it nothing here matters.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: networks this small take three times the time where two threads share a step of theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nice to everything else: beside a worker of pytest that computes, tests would wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")

import pyarrow.fs as pafs
import pytest
import ray
import small_checkpoints
import small_sweep
from browser import CHROMIUM, Page
from filelock import FileLock

from bench.core import cluster
from bench.core.storage import Folder
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.prepare import prepare
from bench.simulate import simulate

if TYPE_CHECKING:
    from tiny_system import Tiny


TOGETHER = {"cluster": "mark.cluster", "browser": "(browser"}
"""Groups of files that one worker takes, one after the other, by words that such a file holds.

Two Ray heads with their jobs at once would want four times the machine; a browser is started once.
"""
LONG = ("mark.cluster", "ray_session", "tiny", "runs: Folder")
"""Words of files that take long: these begin, so that no worker is left with a long one at the end."""


@functools.cache
def _holds(path: Path, words: str) -> bool:
    return words in path.read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give the tests of a file to one worker, so that what its fixtures make is made once, and some files together.

    Not `--dist loadgroup`: it loses its groups under pytest 9.2 (pytest-xdist 3.8).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            path = config.rootpath / file
            return next((name for name, words in TOGETHER.items() if _holds(path, words)), file)

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return Grouped(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the long files begin where several workers share them."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next((n for n, words in enumerate(LONG) if _holds(item.path, words)), len(LONG)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str]) -> str:
    """Return what `make` returns for a folder that it fills; of several workers the first that needs it makes it.

    Never change what is in it.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make(factory.mktemp(name))
    folder = factory.getbasetemp().parent / name
    whole = folder.with_name(f"{name}.whole")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            whole.write_text(make(folder))
        return whole.read_text()


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
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A headless browser, whose page each test opens anew and at its own size."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium), so the page cannot be opened")
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


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
    return Path(made_once(tmp_path_factory, "tiny", lambda folder: str(simulate("tiny", folder / "nsd-sim", seed=0))))


@pytest.fixture(scope="session")
def tiny_shards(tiny_nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of the tiny preset's trial shards; stimuli lie beside it. Never change what is in it."""
    source = Nsd(NsdOptions(root=str(tiny_nsd)))
    return Folder.at(made_once(tmp_path_factory, "tiny-data", lambda folder: prepare(source, Folder.at(folder)).uri))


@pytest.fixture(scope="session")
def finished(tiny_shards: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished, undisturbed sweep: `small_sweep.arguments`. Never change what is in it."""
    from bench import sweep

    def run(folder: Path) -> str:
        runs = folder / "runs"
        assert sweep.main(small_sweep.arguments(tiny_shards, runs)) == 0
        return str(runs)

    return Path(made_once(tmp_path_factory, "sweep", run))


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
