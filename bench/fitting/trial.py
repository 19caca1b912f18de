"""One trial of a sweep: one fit, its state and its own record, written atomically under the fit's address.

The record (`fit.json`, written last) is the truth of the sweep: a start skips what is recorded, whatever Tune
remembers. `fits/<id>/` holds `plan.json`, `state/`, `checkpoint/` while it runs, and `fit.json`.
"""

from __future__ import annotations

import contextlib
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from ray.data import DataIterator

from bench.core import options, registry
from bench.core.errors import MissingDataError
from bench.core.storage import Folder
from bench.fitting.inputs import FitInputs, make_heads, streams
from bench.fitting.plan import FitPlan
from bench.fitting.precompute import precomputed
from bench.fitting.subject_stream import SubjectStream
from encoders._shared.correlation import validation_correlation
from encoders.base import Encoder, Head, Runtime

FIT_RECORD = "fit.json"
Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class FitRecord:
    """What became of a fit.

    Attributes:
        id: Its address.
        status: `ok`; `stopped` by the scheduler, which is never selected; `failed` with `error`.
        validation_correlation: Mean over targets and heads of the Pearson correlation over single validation trials.
        steps: Reports made.
        costs: wall_seconds, cpu_seconds, gpu_seconds, peak_memory_bytes, parameters, state_bytes, train_trials.
        error: For failed fits `{type, message}`.
    """

    id: str
    status: Literal["ok", "stopped", "failed"]
    validation_correlation: float | None
    steps: int
    costs: dict[str, float] = field(default_factory=dict)
    error: dict[str, str] | None = None


def read_fit(runs: Folder, fit_id: str) -> FitRecord | None:
    """Return a fit's record, or None where it has not ended."""
    folder = runs / "fits" / fit_id
    if not folder.exists(FIT_RECORD):
        return None
    return options.build(FitRecord, folder.read_json(FIT_RECORD), f"{folder}/{FIT_RECORD}")


@dataclass(frozen=True)
class Team:
    """The data-parallel workers that share a fit, as one of them sees them.

    Attributes:
        rank: This worker's number; the first one writes the state and the record.
        size: How many they are.
        reduce: Mean of a tensor over all of them.
        shares: By subject this worker's share of the training epochs; empty for a worker alone, who has them all.
    """

    rank: int = 0
    size: int = 1
    reduce: Callable[[torch.Tensor], torch.Tensor] = Runtime.reduce
    shares: Mapping[int, DataIterator] = field(default_factory=dict)


ALONE = Team()


def run_fit(
    plan: FitPlan, inputs: FitInputs, runs: Folder, device: torch.device, report: Report, team: Team = ALONE
) -> FitRecord:
    """Fit, save the state, measure it on validation trials, and write the record last.

    Args:
        plan: What to fit.
        inputs: Its data.
        runs: The runs folder.
        device: Where to compute.
        report: Called at each of the encoder's reports; may not return when a scheduler ends the fit there.
        team: The workers that share the fit, this one the first of them.

    Returns:
        The record, also of an earlier process that ended the same fit without failing.

    Raises:
        BadDataError: If test trials are among the inputs.
    """
    done = read_fit(runs, plan.id)
    # A failed one is tried again: what failed may have passed, such as a full disk.
    if done is not None and done.status != "failed":
        return done
    folder = runs / "fits" / plan.id
    # Before the fit: a fit that is killed leaves what it was.
    folder.write_json("plan.json", plan)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        state.mkdir()
        with fitted(plan, inputs, runs, device, report, team) as (encoder, data, heads, steps):
            encoder.save(state)
            (folder / "state").upload(state)
            # Inside the block: an encoder may keep large arrays in its checkpoint directory while it predicts.
            score = _selection_score(encoder, _single_trials(plan, inputs, data), heads)
        size = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
    record = FitRecord(
        id=plan.id,
        status="ok",
        validation_correlation=score,
        steps=steps,
        costs={
            **clock.costs(device, team.size),
            "parameters": float(encoder.n_parameters),
            "state_bytes": float(size),
            "train_trials": float(sum(stream.n_trials("train") for stream in data.values())),
        },
    )
    folder.write_json(FIT_RECORD, record)
    # Only now: a kill before the record would need it again.
    (folder / "checkpoint").delete()
    return record


@contextlib.contextmanager
def fitted(
    plan: FitPlan, inputs: FitInputs, runs: Folder, device: torch.device, report: Report, team: Team
) -> Iterator[tuple[Encoder, dict[int, SubjectStream], list[Head], int]]:
    """Fit as one of a team, and give the encoder, its data, its heads and the number of reports; nothing is written.

    What the encoder keeps on disk is gone after the block. For arguments and errors see `run_fit`.
    """
    encoder = build_encoder(plan)
    heads = make_heads(plan, inputs)
    data = streams(plan, inputs, device, team.shares)
    steps = _Counter(report)
    folder = runs / "fits" / plan.id
    with tempfile.TemporaryDirectory() as scratch, _checkpoints(folder, Path(scratch), team.rank) as (kept, push):
        runtime = Runtime(
            device=device,
            seed=plan.seed,
            rank=team.rank,
            world_size=team.size,
            reduce=team.reduce,
            checkpoint_dir=kept,
            initial=_parent_state(plan, runs, Path(scratch)),
            precomputed=precomputed(encoder, plan, data, heads, runs),
            report=steps.counted(push),
        )
        encoder.fit(data, heads, runtime)
        yield encoder, data, heads, steps.made


def build_encoder(plan: FitPlan) -> Encoder:
    """Return the plan's encoder, not fitted."""
    cls = registry.load("encoder", plan.encoder[0])
    encoder: Encoder = cls(options.build(cls.Options, plan.options, f"options of encoder {plan.encoder[0]!r}"))
    return encoder


@contextlib.contextmanager
def loaded_encoder(plan: FitPlan, runs: Folder) -> Iterator[Encoder]:
    """Give the plan's encoder with its saved state; large states are read from disk while it predicts.

    Raises:
        MissingDataError: If the fit has no saved state.
    """
    folder = runs / "fits" / plan.id / "state"
    if not folder.exists():
        raise MissingDataError(f"fit {plan.id} has no state in {folder}; run the sweep first")
    cls = registry.load("encoder", plan.encoder[0])
    chosen = options.build(cls.Options, plan.options, f"options of encoder {plan.encoder[0]!r}")
    with tempfile.TemporaryDirectory() as scratch:
        folder.download(Path(scratch))
        yield cls.load(chosen, Path(scratch))


def _single_trials(plan: FitPlan, inputs: FitInputs, data: Mapping[int, SubjectStream]) -> Mapping[int, SubjectStream]:
    """Return the subjects' batches with each trial by itself: those of the fit, unless it averages.

    Validation samples are averaged as training samples are, and means correlate better than single trials: a fit on
    means would win a search for the lower noise of what it is measured on.
    """
    if plan.averaging == "single":
        return data
    return streams(replace(plan, averaging="single"), inputs, torch.device("cpu"), {})


def _selection_score(encoder: Encoder, data: Mapping[int, SubjectStream], heads: list[Head]) -> float | None:
    """Return what tuning selects on: the mean per-target validation correlation over heads and subjects.

    Computed here from `predict`, the same way for every encoder, never taken from its own reports. None for stages
    without heads or without validation trials.

    Args:
        encoder: The fitted encoder.
        data: The subjects' single trials.
        heads: The heads of the fit.
    """
    # JSON has no NaN, and None sorts below any score.
    value = validation_correlation(encoder.predict, data, heads) if heads else math.nan
    return None if math.isnan(value) else value


def _parent_state(plan: FitPlan, runs: Folder, scratch: Path) -> Path | None:
    """Return a local copy of the parent fit's state.

    Raises:
        MissingDataError: If the parent has none.
    """
    if plan.parent is None:
        return None
    held = runs / "fits" / plan.parent / "state"
    if not held.exists():
        raise MissingDataError(f"fit {plan.id} starts from fit {plan.parent}, which has no state in {held}")
    target = scratch / "initial"
    target.mkdir()
    held.download(target)
    return target


@contextlib.contextmanager
def _checkpoints(folder: Folder, scratch: Path, rank: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give a local checkpoint directory, and a function that makes it survive this machine.

    On a local runs folder the directory lies in it. On S3 it is a copy that is pushed at every report, by the first of
    the workers: all of them read it, and it alone writes.
    """
    kept = folder / "checkpoint"
    if kept.is_local:
        Path(kept.path).mkdir(parents=True, exist_ok=True)
        yield Path(kept.path), lambda: None
        return
    local = scratch / "checkpoint"
    local.mkdir()
    kept.download(local)
    yield local, (lambda: None) if rank else (lambda: kept.upload(local))


class _Counter:
    """Counts an encoder's reports and passes them on."""

    def __init__(self, report: Report) -> None:
        self.made = 0
        self._report = report

    def counted(self, push: Callable[[], None]) -> Report:
        """Return a report function that keeps the checkpoint first, then reports."""

        def report(step: int, metrics: Mapping[str, float]) -> None:
            self.made += 1
            push()
            self._report(step, metrics)

        return report


class _Clock:
    """Measures what a fit costs from its construction on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def costs(self, device: torch.device, workers: int) -> dict[str, float]:
        """Return seconds and the process's peak memory so far; GPU seconds are those of all workers."""
        wall = time.monotonic() - self._wall
        on_gpu = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
        return {
            "wall_seconds": wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "gpu_seconds": wall * workers if on_gpu else 0.0,
            "peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
            "peak_gpu_memory_bytes": float(peak),
        }


def failed(plan: FitPlan, error: BaseException) -> FitRecord:
    """Return the record of a fit that raised: a record, never a score."""
    message = {"type": type(error).__name__, "message": str(error)}
    return FitRecord(id=plan.id, status="failed", validation_correlation=None, steps=0, error=message)
