"""prepare under fire: workers killed at random moments, two runs at once, and the memory a task may take."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import prepare_faults
import pytest
from prepare_faults import slow
from ray import cloudpickle
from ray.exceptions import RayError

from bench.core.storage import Folder
from bench.data.shards.manifest import MANIFEST, read_manifest
from bench.prepare import COPIES, TASK_MEMORY, prepare, verify

KILLS = 20
cloudpickle.register_pickle_by_value(prepare_faults)  # Ray's workers do not know the tests' folder


class Killer(threading.Thread):
    """Kills, without warning, one of the processes that left a trace, at random moments."""

    def __init__(self, traces: Path, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.traces, self.left, self.done = traces, kills, 0
        self.random, self.stopped = random.Random(seed), threading.Event()

    def run(self) -> None:
        while self.done < self.left and not self.stopped.wait(self.random.uniform(0.02, 0.4)):
            traces = sorted(self.traces.iterdir())
            if not traces:
                continue
            victim = self.random.choice(traces)
            victim.unlink()
            try:
                os.kill(int(victim.name), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it had ended by itself
            self.done += 1


def run_until_done(dataset, data: Folder) -> int:
    """Rerun the same command until it ends well, as a user would; return how many runs it took."""
    for run in range(1, 50):
        try:
            prepare(dataset, data, advance=lambda units, note: None)
        except RayError:
            continue  # one task's worker was killed more often than Ray tries again
        return run
    raise AssertionError("prepare never ended")


def test_workers_killed_twenty_times_end_in_the_same_manifests(tiny_nsd, tiny_shards, tmp_path, ray_session):
    killed, round_ = 0, 0
    while killed < KILLS:
        round_ += 1
        traces, data = tmp_path / f"traces-{round_}", Folder.at(tmp_path / f"data-{round_}")
        dataset = slow(tiny_nsd, traces)
        killer = Killer(traces, KILLS - killed, seed=round_)
        killer.start()
        try:
            run_until_done(dataset, data)
        finally:
            killer.stopped.set()
            killer.join()
        killed += killer.done
        assert killer.done > 0, "a whole round without a kill proves nothing"
        made = data / "nsd-sim" / tiny_shards.name
        assert made.read_bytes(MANIFEST) == tiny_shards.read_bytes(MANIFEST)
        stimuli = read_manifest(made).stimuli
        expected = Folder.at(Path(tiny_shards.uri).parent / stimuli)
        assert (data / "nsd-sim" / stimuli).read_bytes(MANIFEST) == expected.read_bytes(MANIFEST)
        assert verify(dataset, data, advance=lambda units, note: None) > 0
    assert killed == KILLS


def test_only_the_session_that_is_missing_is_made_again(tiny_nsd, tmp_path, ray_session):
    """A killed worker loses its own session and no other: files that are whole keep their very bytes."""
    traces, data = tmp_path / "traces", Folder.at(tmp_path / "data")
    prepare(slow(tiny_nsd, traces, 0.0), data, advance=lambda units, note: None)
    shards = next(data / "nsd-sim" / name for name in (data / "nsd-sim").names() if name.startswith("betas"))
    (Path(shards.uri) / MANIFEST).unlink()
    sessions = sorted(Path(shards.uri).rglob("part-0.parquet"))
    before = {path: path.stat().st_mtime_ns for path in sessions}
    sessions[1].unlink()
    prepare(slow(tiny_nsd, traces, 0.0), data, advance=lambda units, note: None)
    assert [p for p in sessions if p != sessions[1] and p.stat().st_mtime_ns != before[p]] == []
    assert sessions[1].exists()


def test_two_runs_at_once_do_not_disturb_each_other(tiny_nsd, tiny_shards, tmp_path, ray_session):
    data, errors = Folder.at(tmp_path / "data"), []

    def run(number: int) -> None:
        try:
            prepare(slow(tiny_nsd, tmp_path / f"traces-{number}"), data, advance=lambda units, note: None)
        except Exception as error:  # noqa: BLE001 - whatever a thread raises belongs to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == []
    assert (data / "nsd-sim" / tiny_shards.name).read_bytes(MANIFEST) == tiny_shards.read_bytes(MANIFEST)
    assert verify(slow(tiny_nsd, tmp_path / "traces-0"), data, advance=lambda units, note: None) > 0
    assert not list(tmp_path.rglob("*.part"))


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from bench.data.shards.trials import write_session
from bench.data.datasets.base import BetaUnit, Dataset, SessionTrials, Trials, VoxelTable
from bench.core.storage import Folder

class Wide(Dataset):
    dtype, scale, unit = "<i2", 1 / 300, BetaUnit("percent signal change", 0.3, 30.0, "drawn so")
    def trials(self, subject, session):
        return Trials(np.arange(750), np.arange(750), np.zeros(750, int))
    def read_session(self, subject, session, voxels):
        betas = np.random.default_rng(0).integers(-300, 300, (750, len(voxels.coordinates)), dtype="<i2")
        return SessionTrials(np.arange(750), np.arange(750), np.zeros(750, int), betas, betas.nbytes)
    source = stimuli_source = label = sessions = reads = voxels = stimuli = None

def peak():  # not ru_maxrss: a child begins with what its parent held
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

Wide.__abstractmethods__ = frozenset()
count = int(sys.argv[2])
table = VoxelTable(np.zeros((count, 3), np.int32), np.zeros(count, np.float32), {})
small = VoxelTable(table.coordinates[:10], table.ncsnr[:10], {})
write_session(Wide(None), Folder.at(sys.argv[1] + "/small"), 1, 1, small)
before = peak()
write_session(Wide(None), Folder.at(sys.argv[1] + "/wide"), 1, 1, table)
print(json.dumps([before, peak()]))
"""


@pytest.mark.parametrize("voxels", [20_000, 60_000])
def test_a_task_takes_no_more_memory_than_it_asks_ray_for(tmp_path, voxels):
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(voxels)]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    before, peak = json.loads(said.stdout.splitlines()[-1])
    betas = 750 * voxels * np.dtype("<i2").itemsize
    assert peak - before <= COPIES * betas + (8 << 20)  # allocators keep a few megabytes
    assert before <= TASK_MEMORY * 1.5
