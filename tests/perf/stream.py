"""The stream at NSD's full size against its bounds: bare Ray tasks, `numpy.copyto`, a step without input; in one run.

python tests/perf/stream.py [--data shards-folder] [--sessions 40] [--rounds 5] [--store 9] [--cpus 2]

Without `--data` the simulated NSD of 213,000 trials (6.2 GB) is laid out in a temporary folder first. Both sides of a
ratio take turns, and the best of each counts; CPU seconds, too, as the machine may be busy with other things.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
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

from bench.core import cluster
from bench.core.storage import Folder
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import FileEntry, read_manifest
from bench.data.splits import Split
from bench.data.stream.load import Query, load
from bench.data.stream.resident import Resident
from bench.data.stream.trials import SubjectTrials
from bench.fitting.subject_stream import SubjectStream
from bench.simulate import simulate_shards

BATCH, WIDTH, STEPS = 256, 1024, 8
I2 = np.dtype("<i2")


def seconds(work: Callable[[], Any], cpu: Callable[[], float] = time.process_time) -> tuple[float, float]:
    """Return the wall and the CPU seconds of some work."""
    started, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - started, cpu() - used


def tree_seconds() -> float:
    """Return the CPU seconds of this process and its descendants so far."""
    ticks = 0
    for pid in tree():
        with contextlib.suppress(OSError):
            # After the name, which ends with the last bracket: state, parent, ..., user and system time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def in_turns(
    rounds: int, cpu: Callable[[], float] = time.process_time, **works: Callable[[], Any]
) -> dict[str, tuple[float, float]]:
    """Return the best wall and CPU seconds of each work, all taking turns."""
    best = dict.fromkeys(works, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            wall, used = seconds(work, cpu)
            best[name] = min(best[name][0], wall), min(best[name][1], used)
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
            for held in map(status, tree()):
                private += held.get("RssAnon", 0)
                shared.append(held.get("RssShmem", 0))
            # Every process maps the one store: the largest share that one of them has touched is what it holds.
            self.private, self.shared = max(self.private, private), max(self.shared, *shared)

    def __str__(self) -> str:
        return f"{self.private / 1e6:.2f} GB private, {self.shared / 1e6:.2f} GB in the object store"


def status(pid: int) -> dict[str, int]:
    """Return the numbers of a process's status by name, memory in kB; empty where it has ended."""
    with contextlib.suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return {words[0][:-1]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    return {}


def tree() -> set[int]:
    """Return this process and all below it."""
    parents = {int(folder.name): status(int(folder.name)).get("PPid") for folder in Path("/proc").glob("[0-9]*")}
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return mine


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
        fresh, _ = seconds(lambda: loaded(query))
    best = in_turns(
        rounds,
        tree_seconds,
        bare=lambda: run_all(bare, *given),
        kept=lambda: run_all(bare_kept, *given),
        load=lambda: loaded(query),
    )
    print(f"first epoch, {len(entries)} files, {gigabytes:.2f} GB:")
    for name, what in {"bare": "bare Ray tasks", "kept": "... that keep the betas", "load": "load"}.items():
        wall, used = best[name]
        print(f"  {what:24} {wall:6.2f} s wall {gigabytes / wall:5.2f} GB/s, {used:6.2f} s CPU")
    for name, what in {"bare": "bare tasks", "kept": "those that keep the betas"}.items():
        wall, used = (theirs / ours for theirs, ours in zip(best[name], best["load"], strict=True))
        print(f"  {what} / load: {wall:.2f} wall, {used:.2f} CPU")
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
    print(f"later epochs, {rows} trials x {trials.n_voxels} voxels, {threads} threads:")
    for clock, copy, epoch in zip(("wall", "CPU"), best["copy"], best["epoch"], strict=True):
        copy *= share
        print(f"  numpy.copyto {copy:.3f} s, z-scored batches {epoch:.3f} s {clock}: ratio {copy / epoch:.2f}")
    torch.set_num_threads(1)


def input_wait(trials: SubjectTrials, rounds: int) -> None:
    """Print which share of a step's time a network of one hidden layer waits for its batches.

    On a CPU betas are resident in shared memory; the device's way of gathering them is measured there beside it.
    """
    streams = {
        "shared memory": SubjectStream(trials, {}),
        "device tensors": SubjectStream(trials, {}, resident=Resident(torch.device("cpu"))),
    }
    network = torch.nn.Sequential(torch.nn.Linear(trials.n_voxels, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, 768))
    optimiser = torch.optim.SGD(network.parameters(), 1e-4)
    fixed = next(streams["shared memory"].batches("train", 0, BATCH)).voxels.clone()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        network(fixed).square().mean().backward()
        optimiser.step()

    def gathered(stream: SubjectStream) -> None:
        for _, batch in zip(range(STEPS), stream.batches("train", 0, BATCH), strict=False):
            del batch

    works = {name: lambda stream=stream: gathered(stream) for name, stream in streams.items()}
    best = in_turns(rounds, step=lambda: [step() for _ in range(STEPS)], **works)
    step_s = best["step"][1] / STEPS
    print(f"resident batches of {BATCH}, a step of {WIDTH} hidden units takes {step_s * 1e3:.0f} ms CPU:")
    for name in streams:
        gather_s = best[name][1] / STEPS
        print(f"  from {name} {gather_s * 1e3:.1f} ms: input wait {100 * gather_s / (step_s + gather_s):.1f} %")


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
