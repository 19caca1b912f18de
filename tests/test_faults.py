"""Kills at work: a driver, a fit's process. The same command goes on, and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch
from ray_head import MARK, ROOT, own_processes, plain_environment
from small_sweep import arguments, values
from tiny_system import LATENT

from bench import sweep
from bench.core.storage import Folder
from bench.fitting.candidates import Candidate
from bench.fitting.search import DataRefs, run_candidates
from bench.fitting.trial import FIT_RECORD, read_fit
from bench.recipes.parts import HeadSpec, Search, Stage
from encoders._descent.training import PROGRESS

LIMIT_S = 120
# Long enough to be killed in the middle: epochs are a few hundredths of a second.
SLOW = Stage(
    "braid-mlp",
    options={"epochs": 150, "hidden": [64, 64], "patience": 150},
    heads={"latent": HeadSpec(LATENT)},
)


def wait_until(what: Callable[[], object], process: subprocess.Popen[bytes] | None = None, log: Path | None = None):
    """Look until something is there; return it."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := what()):
        assert process is None or process.poll() is None, log and log.read_text()[-3000:]
        assert time.monotonic() < deadline, log and log.read_text()[-3000:]
        time.sleep(0.01)
    return found


def fits(runs: Path) -> dict[str, str]:
    """Every finished fit: which control it is for, by address."""
    plans = [path.with_name("plan.json") for path in runs.glob(f"fits/*/{FIT_RECORD}")]
    return {path.parent.name: json.loads(path.read_text())["control"] for path in plans}


@contextlib.contextmanager
def own_sweep(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the sweep as a user does, with a Ray of its own; end everything it started."""
    mark = secrets.token_hex(8)
    temporary = tempfile.mkdtemp(prefix="rf-")  # short: a socket's path has at most 107 characters
    environment = {**plain_environment(), MARK: mark, "RAY_TMPDIR": temporary}
    seen: set[own_processes.Process] = set()
    with log.open("wb") as output:
        command = [sys.executable, str(ROOT / "bench" / "sweep.py"), *argv]
        # A shell that runs the tests in the background leaves them deaf to Ctrl-C, and so what they start.
        hearing = ["env", "--default-signal=INT", *command]
        process = subprocess.Popen(hearing, env=environment, stdout=output, stderr=output, cwd=ROOT)
        try:
            yield process
            # Before the driver is gone: its workers are found as its descendants only.
            seen = own_processes.own(MARK, mark)
        finally:
            seen |= own_processes.own(MARK, mark)
            process.kill()
            process.wait()
            own_processes.end(MARK, mark)
            for pid, _ in own_processes.alive(seen):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.cluster
def test_a_killed_sweep_goes_on_and_ends_like_an_undisturbed_one(finished, tiny_shards, tmp_path):
    runs, log = tmp_path / "runs", tmp_path / "sweep.log"
    # The undisturbed sweep has made the targets before: this one is killed in its fits, not while it makes them.
    with own_sweep(arguments(tiny_shards, runs), log) as driver:
        wait_until(lambda: list(runs.glob(f"fits/*/{FIT_RECORD}")), driver, log)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait(10) == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in runs.glob(f"fits/*/{FIT_RECORD}")}
    assert done
    assert not (runs / "scores").exists()
    assert all(json.loads(path.read_text())["status"] == "ok" for path in done)
    assert sweep.main(arguments(tiny_shards, runs)) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert values(runs) == values(finished)
    assert fits(runs) == fits(finished)
    searched = {name for name, control in fits(runs).items() if control == "none"}
    assert {path.parent.name for path in done} < searched  # it was killed while fits were running


@pytest.mark.cluster
def test_one_interrupt_after_the_search_ends_the_sweep_in_one_line(tiny, tiny_shards, tmp_path):
    """Ray Tune's handler would stay in place after the search and take the first Ctrl-C of a later stage."""
    runs, log = tmp_path / "runs", tmp_path / "sweep.log"
    with own_sweep(arguments(tiny_shards, runs, "--subjects", "1", "--recipes", "tiny-knn"), log) as driver:
        wait_until(lambda: list(runs.glob("predictions/*")), driver, log)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(60) == 130
    said = log.read_text()
    assert [line for line in said.splitlines() if "interrupt" in line.lower() or "signal" in line.lower()] == [
        "interrupted; rerun the same command to continue"
    ]
    assert "Traceback" not in said
    assert not (runs / "scores").exists()


@dataclass
class Running:
    """A search in a thread of its own, and what it ended with."""

    thread: threading.Thread
    notes: list[tuple[int, str]]
    records: list[object]


def started(chosen: list[Candidate], refs: DataRefs, runs: Folder) -> Running:
    search = Running(threading.Thread(), [], [])

    def work() -> None:
        search.records += run_candidates(chosen, refs, runs, lambda n=1, note="": search.notes.append((n, note)))

    search.thread = threading.Thread(target=work, daemon=True)
    search.thread.start()
    return search


def fit_processes() -> set[int]:
    """Processes below this one that are executing a trial."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
                if title.startswith("ray::ImplicitFunc") and os.getpid() in _ancestors(int(entry.name)):
                    found.add(int(entry.name))
    return found


def _ancestors(pid: int) -> list[int]:
    line = []
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
        line.append(pid)
    return line


@pytest.mark.cluster
def test_a_killed_fit_is_made_again_from_its_checkpoint(tiny, tmp_path):
    plan = tiny.plan(SLOW)
    chosen = [Candidate("mine", 0, {}, 0, ":session", plan, 0.0, Search())]
    refs = DataRefs({":session": tiny.train}, tiny.targets, tiny.data.label_names)
    runs, other = Folder.at(tmp_path / "runs"), Folder.at(tmp_path / "undisturbed")
    progress = Path((runs / "fits" / plan.id / "checkpoint").path) / PROGRESS
    search = started(chosen, refs, runs)
    wait_until(progress.is_file)
    (pid,) = fit_processes()
    os.kill(pid, signal.SIGKILL)
    assert read_fit(runs, plan.id) is None
    search.thread.join(LIMIT_S)
    assert not search.thread.is_alive()
    (record,) = search.records
    assert record == read_fit(runs, plan.id)
    assert (record.status, record.costs["train_trials"]) == ("ok", float(len(ray.get(tiny.train[1]).rows("train"))))
    assert any("KILLED" in note for _, note in search.notes)
    assert sum(count for count, _ in search.notes) == 1
    assert not progress.exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a trial: another number of threads sums in another order
    try:
        undisturbed = tiny.fit(plan, other)
    finally:
        torch.set_num_threads(threads)
    assert record.validation_correlation == pytest.approx(undisturbed.validation_correlation, abs=1e-6)
    assert record.steps < undisturbed.steps  # it went on from an epoch, not from the beginning


def test_a_fit_that_is_killed_every_time_is_a_failed_record(tiny, tmp_path, monkeypatch):
    plan, runs, tried = tiny.plan(SLOW), Folder.at(tmp_path), []
    chosen = [Candidate("mine", 0, {}, 0, ":session", plan, 0.0, Search())]
    refs = DataRefs({":session": tiny.train}, tiny.targets, tiny.data.label_names)
    monkeypatch.setattr("bench.fitting.search._tune", lambda todo, *rest: tried.append(len(todo)))
    with pytest.raises(Exception, match=rf"every fit of .* failed; .*process of fit {plan.id} was killed 3 times"):
        run_candidates(chosen, refs, runs, lambda units=1, note="": None)
    assert tried == [1, 1, 1]
    assert read_fit(runs, plan.id).status == "failed"
