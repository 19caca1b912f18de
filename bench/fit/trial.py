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

import numpy as np
import torch

from bench import options, registry
from bench.data import roi
from bench.data.stream_resident import resident
from bench.data.stream_trials import SubjectTrials
from bench.errors import BadDataError, MissingDataError
from bench.fit.plan import FitPlan
from bench.fit.precompute import precomputed
from bench.fit.subject_stream import SubjectStream, TargetTable
from bench.storage import Folder
from encoders.base import Encoder, Head, Runtime
from encoders.correlation import validation_correlation

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


@dataclass(frozen=True)
class FitInputs:
    """What a fit reads, fetched from shared memory.

    Attributes:
        subjects: Training and validation trials by subject; never a test trial.
        targets: Target tables by `<generator>.<target>`.
        label_names: For each atlas its label numbers by name, for ROI expressions.
    """

    subjects: Mapping[int, SubjectTrials]
    targets: Mapping[str, TargetTable]
    label_names: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def read_fit(runs: Folder, fit_id: str) -> FitRecord | None:
    """Return a fit's record, or None where it has not ended."""
    folder = runs / "fits" / fit_id
    if not folder.exists(FIT_RECORD):
        return None
    return options.build(FitRecord, folder.read_json(FIT_RECORD), f"{folder}/{FIT_RECORD}")


def run_fit(plan: FitPlan, inputs: FitInputs, runs: Folder, device: torch.device, report: Report) -> FitRecord:
    """Fit, save the state, measure it on validation trials, and write the record last.

    Args:
        plan: What to fit.
        inputs: Its data.
        runs: The runs folder.
        device: Where to compute.
        report: Called at each of the encoder's reports; may not return when a scheduler ends the fit there.

    Returns:
        The record, also of an earlier process that ended the same fit without failing.

    Raises:
        BadDataError: If test trials are among the inputs.
    """
    done = read_fit(runs, plan.id)
    if done is not None and done.status != "failed":
        return done
    folder = runs / "fits" / plan.id
    folder.write_json("plan.json", plan)
    encoder = build_encoder(plan)
    heads = make_heads(plan, inputs)
    data = _streams(plan, inputs, device)
    clock, steps = _Clock(), _Counter(report)
    with tempfile.TemporaryDirectory() as scratch, _checkpoints(folder, Path(scratch)) as (kept, push):
        runtime = Runtime(
            device=device,
            seed=plan.seed,
            checkpoint_dir=kept,
            initial=_parent_state(plan, runs, Path(scratch)),
            precomputed=precomputed(encoder, plan, data, heads, runs),
            report=steps.counted(push),
        )
        encoder.fit(data, heads, runtime)
        state = Path(scratch) / "state"
        state.mkdir()
        encoder.save(state)
        (folder / "state").upload(state)
        size = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
        # Inside the block: an encoder may keep large arrays in its checkpoint directory while it predicts.
        score = _selection_score(encoder, _single_trials(plan, inputs, data), heads)
    record = FitRecord(
        id=plan.id,
        status="ok",
        validation_correlation=score,
        steps=steps.made,
        costs={
            **clock.costs(device),
            "parameters": float(encoder.n_parameters),
            "state_bytes": float(size),
            "train_trials": float(sum(stream.n_trials("train") for stream in data.values())),
        },
    )
    folder.write_json(FIT_RECORD, record)
    (folder / "checkpoint").delete()
    return record


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


def make_heads(plan: FitPlan, inputs: FitInputs) -> list[Head]:
    """Return the plan's heads with their shapes and, where a head has a ROI, each subject's voxel columns.

    Raises:
        UnknownNameError: If a ROI expression names an unknown atlas or label.
        BadDataError: If a ROI holds no voxel of a subject.
    """
    heads = []
    for name, spec in plan.heads.items():
        take = tuple(spec["take"]) if spec["take"] else None
        columns = _columns(name, spec["roi"], inputs) if spec["roi"] else None
        table = inputs.targets[spec["target"]].sliced(take)
        heads.append(Head(name=name, shape=table.values.shape[1:], columns=columns))
    return heads


def _columns(head: str, expression: str, inputs: FitInputs) -> dict[int, np.ndarray]:
    """Return each subject's voxel columns of a ROI."""
    found = {}
    for subject, trials in inputs.subjects.items():
        found[subject] = roi.columns(expression, trials.labels, inputs.label_names)
        if not len(found[subject]):
            raise BadDataError(f"head {head!r}: ROI {expression!r} holds no voxel of subject {subject}")
    return found


def _streams(plan: FitPlan, inputs: FitInputs, device: torch.device) -> dict[int, SubjectStream]:
    """Return the batches of each subject, joined with the heads' targets.

    Raises:
        BadDataError: If test trials are among the inputs: fitting never sees them.
    """
    targets = {
        name: inputs.targets[spec["target"]].sliced(tuple(spec["take"]) if spec["take"] else None)
        for name, spec in plan.heads.items()
    }
    subjects = {subject: inputs.subjects[subject] for subject in plan.subjects}
    for subject, trials in subjects.items():
        if len(trials.rows("test")):
            raise BadDataError(f"subject {subject}: {len(trials.rows('test'))} test trials were handed to a fit")
    place = resident(device, subjects.values(), [table.values for table in targets.values()])
    shuffle = plan.seed if plan.control == "shuffled" else None
    return {
        subject: SubjectStream(trials, targets, shuffle, inputs.label_names, plan.averaging, place)
        for subject, trials in subjects.items()
    }


def _single_trials(plan: FitPlan, inputs: FitInputs, data: Mapping[int, SubjectStream]) -> Mapping[int, SubjectStream]:
    """Return the subjects' batches with each trial by itself: those of the fit, unless it averages.

    Validation samples are averaged as training samples are, and means correlate better than single trials: a fit on
    means would win a search for the lower noise of what it is measured on.
    """
    if plan.averaging == "single":
        return data
    return _streams(replace(plan, averaging="single"), inputs, torch.device("cpu"))


def _selection_score(encoder: Encoder, data: Mapping[int, SubjectStream], heads: list[Head]) -> float | None:
    """Return what tuning selects on: the mean per-target validation correlation over heads and subjects.

    Computed here from `predict`, the same way for every encoder, never taken from its own reports. None for stages
    without heads or without validation trials.

    Args:
        encoder: The fitted encoder.
        data: The subjects' single trials.
        heads: The heads of the fit.
    """
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
def _checkpoints(folder: Folder, scratch: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give a local checkpoint directory, and a function that makes it survive this machine.

    On a local runs folder the directory lies in it. On S3 it is a copy that is pushed at every report.
    """
    kept = folder / "checkpoint"
    if kept.is_local:
        Path(kept.path).mkdir(parents=True, exist_ok=True)
        yield Path(kept.path), lambda: None
        return
    local = scratch / "checkpoint"
    local.mkdir()
    kept.download(local)
    yield local, lambda: kept.upload(local)


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

    def costs(self, device: torch.device) -> dict[str, float]:
        """Return seconds and the process's peak memory so far."""
        wall = time.monotonic() - self._wall
        on_gpu = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
        return {
            "wall_seconds": wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "gpu_seconds": wall if on_gpu else 0.0,
            "peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
            "peak_gpu_memory_bytes": float(peak),
        }


def failed(plan: FitPlan, error: BaseException) -> FitRecord:
    """Return the record of a fit that raised: a record, never a score."""
    message = {"type": type(error).__name__, "message": str(error)}
    return FitRecord(id=plan.id, status="failed", validation_correlation=None, steps=0, error=message)
