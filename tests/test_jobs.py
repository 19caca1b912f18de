"""Sweeps submitted to a cluster as Ray jobs: from the head's folder, with `--working-dir .`, on local disk and in S3.

One head serves all cases. It is started in a copy of the repository, as in an image whose WORKDIR is the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_head import MARK, ROOT, Head, metadata, plain_environment, ray_head

from bench.core import identity
from bench.core.storage import Folder
from bench.leaderboard import check_board
from bench.records.record import Record, read_records
from clusters import own_processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = ["--trials", "1", "--subjects", "1", "--test-images", "8", "--exact-images", "0"]
CONTROLS = {"mean-image", "chance", "shuffled", "oracle"}
LIMIT_S = 600


@dataclass(frozen=True)
class Place:
    """A head and the folders of its jobs.

    Attributes:
        head: The head.
        repository: Copy of the repository that the head was started in.
        data: Where its first job puts data.
        runs: Where its first job puts results.
    """

    head: Head
    repository: Path
    data: Path
    runs: Path

    def sweep(self, *extra: str) -> list[str]:
        """The literal command of every cluster file, at its smallest."""
        return ["python", "bench/sweep.py", "--preset", "tiny", "--recipes", "tiny-ridge", *SIZE, *extra]

    def local(self) -> list[str]:
        """The command of the first job."""
        return self.sweep("--data", str(self.data), "--runs", str(self.runs))


def copy_repository(target: Path) -> Path:
    """A copy such as a clone gives: the packages and the files beside them, no caches, no `.git`."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in ("bench", "encoders", "eval", "clusters"):
        shutil.copytree(ROOT / package, target / package, ignore=ignored)
    for name in ("pyproject.toml", ".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, target / name)
    return target


def digest_of(repository: Path) -> str:
    """The source digest of a copy, computed by the copy."""
    code = "from bench.core import identity; print(identity.source_digest())"
    environment = {**plain_environment(), "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def place(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    del s3_server  # its address is in the environment, which the head and its jobs inherit
    base = tmp_path_factory.mktemp("jobs")
    repository = copy_repository(base / "repository")
    with ray_head(repository, cpus=2, environment={"RECONBENCH_HOME": str(base / "home")}) as head:
        yield Place(head, repository, base / "data", base / "runs")


@pytest.fixture(scope="module")
def first(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The place after its first job: the literal command, given in a folder that holds nothing."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    job = place.head.submit(metadata({"commit": COMMIT}), place.local(), elsewhere, LIMIT_S)
    assert job.returncode == 0, (job.stdout + job.stderr)[-5000:]
    assert "succeeded" in job.stdout
    return place


def checked(runs: Folder, digest: str, commit: str | None) -> list[Record]:
    """The records of a runs folder, after checking them, the board and what they say of the source."""
    board = check_board(runs, runs)
    records = read_records(runs)
    assert {r.control for r in records} == {None, *CONTROLS}
    assert all(r.status == "ok" for r in records)
    assert {r.source_digest for r in records} == {digest}
    assert {r.commit for r in records} == {commit}
    assert "tiny-ridge" in str(board)
    return records


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Each file's sha256 and time of writing, but for the clock's own."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_literal_command_runs_in_the_heads_folder(first):
    assert digest_of(first.repository) == identity.source_digest()
    records = checked(Folder.at(first.runs), identity.source_digest(), COMMIT)
    assert len(records) == 1 + len(CONTROLS)
    packages = next(iter(records)).packages
    assert packages["ray"]
    assert packages["torch"]


def test_the_same_sweep_with_a_working_directory_finds_everything_done(first):
    kept = ("fits", "predictions", "images", "scores", "precompute")
    before, board = files(first.runs), (first.runs / "leaderboard.json").read_bytes()
    job = first.head.submit(["--working-dir", "."], first.local(), first.repository, LIMIT_S)
    assert job.returncode == 0, (job.stdout + job.stderr)[-5000:]
    after = files(first.runs)
    assert before.keys() == after.keys()
    done = {name for name in before if name.split("/")[0] in kept}
    assert {name.split("/")[0] for name in done} >= {"fits", "predictions", "images", "scores"}
    assert {name: before[name] for name in done} == {name: after[name] for name in done}
    assert (first.runs / "leaderboard.json").read_bytes() == board


def test_a_shipped_folder_is_what_runs_and_shards_and_runs_may_lie_in_s3(first, s3_bucket, tmp_path):
    changed = copy_repository(tmp_path / "changed")
    # A recipe that only the shipped folder has: the head's own copy does not know it.
    recipes = changed / "bench" / "recipes"
    text = (recipes / "tiny-ridge.yaml").read_text().replace("alpha: 1.0e+4", "alpha: 2.0e+4")
    (recipes / "own-ridge.yaml").write_text(text)
    data = Folder.at(f"s3://{s3_bucket}/data")
    for folder in (path for path in first.data.iterdir() if path.name != "raw"):
        (data / folder.name).upload(folder)
    (shards,) = {path.parent for path in first.data.glob("*/*/manifest.json") if list(path.parent.glob("subject=*"))}
    runs = Folder.at(f"s3://{s3_bucket}/runs")
    given = ["--shards", f"{data}/{shards.relative_to(first.data).as_posix()}", "--runs", str(runs)]
    entrypoint = ["python", "bench/sweep.py", "--recipes", "own-ridge", *SIZE, *given]

    job = first.head.submit(["--working-dir", "."], entrypoint, changed, LIMIT_S)
    assert job.returncode == 0, (job.stdout + job.stderr)[-5000:]
    digest = digest_of(changed)
    assert digest != identity.source_digest()
    board = check_board(runs, runs)
    assert "own-ridge" in str(board)
    records = read_records(runs)
    assert {r.control for r in records} == {None, *CONTROLS}
    assert {r.source_digest for r in records} == {digest}
    assert {r.commit for r in records} == {None}


def test_a_job_that_cannot_run_says_why_and_fails(first, tmp_path):
    job = first.head.submit([], first.sweep("--runs", str(tmp_path / "runs"), "--recipes", "tiny-rigde"), tmp_path, 120)
    assert job.returncode != 0
    assert "unknown recipe 'tiny-rigde'" in job.stdout.replace("\n", " ")
    assert "Did you mean 'tiny-ridge'?" in job.stdout.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_a_head_ends_with_all_it_started_and_touches_no_other(place, tmp_path):
    others = len(place.head.processes())
    assert others > 5
    with pytest.raises(ValueError, match="on purpose"), ray_head(tmp_path, cpus=1, environment={}) as head:
        assert len(head.processes()) > 5
        raise ValueError("on purpose")
    assert own_processes.own(MARK, head.mark) == set()
    assert len(place.head.processes()) == others
    assert place.head.mark != head.mark
    assert MARK not in os.environ
