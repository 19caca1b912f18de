"""The stream at NSD's full size against its bounds: bare Ray tasks, `numpy.copyto`, a step without input; in one run.

python tests/perf/stream.py [--data shards-folder] [--sessions 40] [--rounds 5] [--store 9] [--cpus 2]

Without `--data` the simulated NSD of 213,000 trials (6.2 GB) is laid out in a temporary folder first. Both sides of a
ratio take turns, and the best of each counts, as the machine may be busy with other things.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from bench import cluster
from bench.data.columns import from_column
from bench.data.shards import FileEntry, read_manifest
from bench.data.splits import Split
from bench.data.stream import Query, load
from bench.data.stream_resident import Resident
from bench.data.stream_trials import SubjectTrials
from bench.fit.subject_stream import SubjectStream
from bench.simulate import simulate_shards
from bench.storage import Folder

BATCH, WIDTH, STEPS = 256, 1024, 8
I2 = np.dtype("<i2")


def seconds(work: Callable[[], Any]) -> float:
    """Return the wall time of some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(rounds: int, **works: Callable[[], Any]) -> dict[str, float]:
    """Return the best time of each work, all taking turns."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            best[name] = min(best[name], seconds(work))
    return best


class Memory:
    """The most memory of this process and its descendants together: private, and in Ray's object store."""

    def __init__(self) -> None:
        self.private = self.shared = 0
        self._done = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch while the block runs."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._done.set()
            watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            private, shared = 0, [0]
            for status in statuses():
                private += status["RssAnon"]
                shared.append(status["RssShmem"])
            # Every process maps the one store: the largest share that one of them has touched is what it holds.
            self.private, self.shared = max(self.private, private), max(self.shared, *shared)

    def __str__(self) -> str:
        return f"{self.private / 1e6:.2f} GB private, {self.shared / 1e6:.2f} GB in the object store"


def statuses() -> list[dict[str, int]]:
    """Return kB by name for this process and all below it."""
    found: dict[int, dict[str, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = [line.split() for line in (folder / "status").read_text().splitlines()]
            found[int(folder.name)] = {w[0][:-1]: int(w[1]) for w in lines if len(w) > 1 and w[1].isdigit()}
    mine = {int(Path("/proc/self").readlink().name)}
    while more := {pid for pid, status in found.items() if status.get("PPid") in mine} - mine:
        mine |= more
    return [found[pid] for pid in mine if "RssAnon" in found.get(pid, {})]


@ray.remote(num_cpus=1)
def bare(path: str, voxels: int) -> int:
    """Read one session file and decode it, as plainly as possible."""
    table = pq.read_table(path, partitioning=None)
    return int(from_column(table["betas"], I2, (voxels,)).sum(dtype=np.int64))


@ray.remote(num_cpus=1)
def bare_kept(path: str, voxels: int) -> np.ndarray:
    """The same, and hand the betas over through the object store."""
    return from_column(pq.read_table(path, partitioning=None)["betas"], I2, (voxels,))


def run_all(task: Any, folder: Folder, entries: list[FileEntry], voxels: dict[str, int]) -> None:
    """Run a task for every session file and wait for the last."""
    refs = [task.remote(f"{folder.path}/{entry.path}", voxels[str(entry.subject)]) for entry in entries]
    ray.wait(refs, num_returns=len(refs), fetch_local=False)


def loaded(query: Query) -> list[dict[int, Any]]:
    """Read all subjects into shared memory and wait for the last."""
    parts = load(query, np.array([], int))
    refs = [ref for part in parts for ref in part.values()]
    ray.wait(refs, num_returns=len(refs), fetch_local=False)
    return parts


def first_epoch(query: Query, rounds: int) -> SubjectTrials:
    """Print the first epoch's ratios and memory; return the first subject's trials."""
    manifest = read_manifest(query.shards)
    entries = [e for s in query.subjects for e in manifest.sessions(s) if e.session in (query.sessions or [e.session])]
    gigabytes = sum(entry.size for entry in entries) / 1e9
    given = query.shards, entries, manifest.voxels
    run_all(bare, query.shards, entries[:8], manifest.voxels)  # starts the workers
    memory = Memory()
    with memory.watched():
        fresh = seconds(lambda: loaded(query))
    best = in_turns(
        rounds,
        bare=lambda: run_all(bare, *given),
        kept=lambda: run_all(bare_kept, *given),
        load=lambda: loaded(query),
    )
    print(f"first epoch, {len(entries)} files, {gigabytes:.2f} GB:")
    print(f"  bare Ray tasks           {best['bare']:6.2f} s  {gigabytes / best['bare']:5.2f} GB/s")
    print(f"  ... that keep the betas  {best['kept']:6.2f} s  {gigabytes / best['kept']:5.2f} GB/s")
    print(f"  load                     {best['load']:6.2f} s  {gigabytes / best['load']:5.2f} GB/s")
    print(f"  ratio {best['bare'] / best['load']:.2f} (to those that keep the betas {best['kept'] / best['load']:.2f})")
    print(f"  load into a store whose memory was never touched {fresh:.2f} s; peak {memory}")
    return ray.get(loaded(query)[0][query.subjects[0]])


def copied(trials: SubjectTrials, target: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> None:
    """Copy all blocks into a target that is used again, as float32, by some threads."""
    for block in trials.betas.blocks:
        shares = np.array_split(np.arange(len(block)), threads)
        list(pool.map(lambda s, b=block: np.copyto(target[s[0] : s[-1] + 1], b[s[0] : s[-1] + 1]), shares))


def later_epochs(trials: SubjectTrials, rounds: int, threads: int) -> None:
    """Print the later epochs' ratio: shuffled, z-scored float32 batches of all training trials."""
    torch.set_num_threads(threads)
    stream, rows = SubjectStream(trials, {}), len(trials.rows("train"))
    target = np.empty((max(map(len, trials.betas.blocks)), trials.n_voxels), np.float32)
    share = rows / len(trials.trial)  # the copy is of validation trials too
    with ThreadPoolExecutor(threads) as pool:
        best = in_turns(
            rounds,
            copy=lambda: copied(trials, target, pool, threads),
            epoch=lambda: sum(len(batch.stimuli) for batch in stream.batches("train", 0, BATCH)),
        )
    copy, epoch = best["copy"] * share, best["epoch"]
    print(f"later epochs, {rows} trials x {trials.n_voxels} voxels, {threads} threads:")
    print(f"  numpy.copyto {copy:.3f} s, shuffled z-scored batches {epoch:.3f} s, ratio {copy / epoch:.2f}")
    torch.set_num_threads(1)


def input_wait(trials: SubjectTrials, rounds: int) -> None:
    """Print which share of a step's time a network of one hidden layer waits for resident batches."""
    stream = SubjectStream(trials, {}, resident=Resident(torch.device("cpu")))
    network = torch.nn.Sequential(torch.nn.Linear(trials.n_voxels, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, 768))
    optimiser = torch.optim.SGD(network.parameters(), 1e-4)
    fixed = next(stream.batches("train", 0, BATCH)).voxels

    def step(voxels: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        network(voxels).square().mean().backward()
        optimiser.step()

    def gathered() -> None:
        for _, batch in zip(range(STEPS), stream.batches("train", 0, BATCH), strict=False):
            del batch

    best = in_turns(rounds, steps=lambda: [step(fixed) for _ in range(STEPS)], gathered=gathered)
    wait = best["gathered"] / (best["steps"] + best["gathered"])
    print(f"resident batches of {BATCH}: gathered in {best['gathered'] / STEPS * 1e3:.1f} ms,")
    print(f"  a step of {WIDTH} hidden units takes {best['steps'] / STEPS * 1e3:.0f} ms: input wait {100 * wait:.1f} %")


def measure(folder: Folder, given: argparse.Namespace) -> None:
    """Print all ratios of a set of shards."""
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    cluster.connect(cpus=given.cpus, object_store_bytes=int(given.store * 2**30))
    subjects = tuple(read_manifest(folder).subjects)[: given.subjects]
    sessions = None if given.sessions is None else tuple(range(1, given.sessions + 1))
    trials = first_epoch(Query(folder, subjects, Split(), sessions=sessions), given.rounds)
    for threads in (1, given.cpus):
        later_epochs(trials, given.rounds, threads)
    input_wait(trials, given.rounds)


def main() -> None:
    """Lay out the shards where none are given, and measure."""
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--data", help="a folder of trial shards that is there already")
    cli.add_argument("--subjects", type=int, default=8)
    cli.add_argument("--sessions", type=int, help="the first sessions of each subject only")
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--store", type=float, default=9, help="GiB of Ray's object store; less than the data spills")
    cli.add_argument("--cpus", type=int, default=2)
    given = cli.parse_args()
    if given.data:
        measure(Folder.at(given.data), given)
        return
    with tempfile.TemporaryDirectory(prefix="reconbench-perf-") as scratch:
        cluster.connect(cpus=given.cpus, object_store_bytes=int(given.store * 2**30))
        started = time.perf_counter()
        folder = simulate_shards("full", Folder.at(scratch))
        print(f"simulate --preset full: {time.perf_counter() - started:.1f} s")
        measure(folder, given)


if __name__ == "__main__":
    main()
