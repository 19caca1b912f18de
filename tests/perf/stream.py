"""First and later epochs of the stream against bare Ray tasks and `numpy.copyto`, in one run.

python tests/perf/stream.py [--subjects 4] [--sessions 4] [--voxels 4000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from bench import cluster
from bench.data import shards
from bench.data.columns import from_column
from bench.data.splits import Split
from bench.data.stream import Query, load
from bench.fit.subject_stream import SubjectStream
from bench.storage import Folder

TRIALS, BATCH = 750, 256


def write(folder: Folder, subjects: int, sessions: int, voxels: int) -> None:
    """Write trial shards of random betas."""
    rng, files = np.random.default_rng(0), []
    for subject in range(1, subjects + 1):
        table = shards.voxels_table(np.zeros((voxels, 3), np.int32), np.ones(voxels, np.float32), {})
        size, sha256 = folder.write_table(shards.voxels_path(subject), table)
        files.append(shards.FileEntry(shards.voxels_path(subject), voxels, size, sha256, subject))
        for session in range(1, sessions + 1):
            first = (session - 1) * TRIALS
            betas = rng.integers(-3000, 3000, (TRIALS, voxels)).astype("<i2")
            trial = np.arange(first, first + TRIALS)
            rows = shards.trials_table(trial, trial, np.zeros(TRIALS), betas)
            path = shards.session_path(subject, session)
            size, sha256 = folder.write_table(path, rows)
            files.append(shards.FileEntry(path, TRIALS, size, sha256, subject, session))
    counts = {str(subject): voxels for subject in range(1, subjects + 1)}
    ordered = tuple(sorted(files, key=lambda entry: entry.path))
    shards.Manifest("trials", "perf", "perf", {}, ordered, "<i2", 1 / 300, (), counts, "none").write(folder)


@ray.remote(num_cpus=1)
def bare(path: str, voxels: int) -> int:
    """Read one session file and decode it, as plainly as possible."""
    table = pq.read_table(path, partitioning=None)
    return int(from_column(table["betas"], np.dtype("<i2"), (voxels,)).sum(dtype=np.int64))


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of some work."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def loaded(query: Query) -> dict[int, object]:
    """Read all subjects into shared memory and wait for the last."""
    refs = load(query, np.array([], int))
    ray.wait(list(refs.values()), num_returns=len(refs), fetch_local=False)
    return refs


def epoch(stream: SubjectStream) -> int:
    """Go through a shuffled epoch of z-scored float32 batches."""
    return sum(len(batch.stimuli) for batch in stream.batches("train", 0, BATCH))


def main() -> None:
    """Print the two ratios."""
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--subjects", type=int, default=4)
    cli.add_argument("--sessions", type=int, default=4)
    cli.add_argument("--voxels", type=int, default=8000)
    given = cli.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    cluster.connect(cpus=2)
    subjects = tuple(range(1, given.subjects + 1))
    with tempfile.TemporaryDirectory(prefix="reconbench-perf-") as scratch:
        folder = Folder.at(scratch)
        write(folder, given.subjects, given.sessions, given.voxels)
        query = Query(folder, subjects, Split(), ("train", "validation"))
        paths = [f"{scratch}/{shards.session_path(s, n)}" for s in subjects for n in range(1, given.sessions + 1)]
        megabytes = given.subjects * given.sessions * TRIALS * given.voxels * 2 / 1e6
        for _ in range(2):  # the first round starts the workers
            tasks = seconds(lambda: ray.get([bare.remote(path, given.voxels) for path in paths]))
            first = seconds(lambda: loaded(query))
        print(f"{megabytes:.0f} MB: bare tasks {tasks:.2f} s, first epoch {first:.2f} s, ratio {tasks / first:.2f}")
        stream = SubjectStream(ray.get(loaded(query)[1]), {})
        rows = stream.n_trials("train")
        source = np.random.default_rng(0).integers(-3000, 3000, (rows, given.voxels)).astype("<i2")
        target = np.empty(source.shape, np.float32)
        copy = min(seconds(lambda: np.copyto(target, source)) for _ in range(5))
        later = min(seconds(lambda: epoch(stream)) for _ in range(5))
        print(f"later epochs {later:.3f} s, numpy.copyto {copy:.3f} s, ratio {copy / later:.2f}")


if __name__ == "__main__":
    main()
