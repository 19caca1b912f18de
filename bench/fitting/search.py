"""The Tune search: every configuration of every recipe over every subject, each fit at most once.

Configurations are drawn before anything runs, by a seeded generator, so a rerun draws the same ones; fits whose record
exists are not started again. Tune places the fits, shares GPUs among them and stops poor ones; it is not asked for
results.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from bench.core import cluster
from bench.core.console import Advance
from bench.core.errors import ReconbenchError
from bench.core.storage import Folder
from bench.fitting.candidates import Candidate
from bench.fitting.inputs import FitInputs
from bench.fitting.plan import FitPlan
from bench.fitting.schedule import GroupedScheduler
from bench.fitting.team import TeamError, TeamFit, release, run_team
from bench.fitting.trial import FIT_RECORD, FitRecord, failed, read_fit, run_fit

METRIC = "validation_correlation"
MAX_EPOCHS = 10_000
ATTEMPTS = 3


@dataclass(frozen=True)
class DataRefs:
    """References to what fits read.

    Attributes:
        subjects: Training and validation trials, by data key and subject.
        targets: Target tables, by `<generator>.<target>`.
        label_names: Label numbers by atlas and name.
    """

    subjects: Mapping[str, Mapping[int, Any]]
    targets: Mapping[str, Any]
    label_names: Mapping[str, Mapping[str, int]]


def run_candidates(chosen: Sequence[Candidate], refs: DataRefs, runs: Folder, advance: Advance) -> list[FitRecord]:
    """Make every fit that has no record yet, stage by stage, and return the records of all.

    Failed fits are tried again: what failed may have passed (memory, a lost disk). A fit whose process was killed is
    made again at once, a few times. A fit whose parent was stopped or failed cannot start: it is left out, and has no
    record.

    Args:
        chosen: The fits.
        refs: What they read.
        runs: The runs folder.
        advance: Called with a count and a note as fits end.

    Raises:
        ReconbenchError: If every fit of a recipe failed; the message gives the first error.
    """
    # Stage by stage: a fit starts from the saved state of its parent.
    for stage in sorted({candidate.stage for candidate in chosen}):
        wave = {c.plan.id: c for c in chosen if c.stage == stage}
        todo = [c for c in wave.values() if not _ended(c.plan, runs) and _can_start(c.plan, runs)]
        if len(todo) < len(wave):
            advance(len(wave) - len(todo), "already recorded")
        for _ in range(ATTEMPTS):
            for together in (False, True):
                if some := [candidate for candidate in todo if (candidate.plan.workers > 1) is together]:
                    _tune(some, refs, runs, advance)
            # No record at all: the fit's process was killed. Without it another fit would be selected.
            todo = [candidate for candidate in todo if read_fit(runs, candidate.plan.id) is None]
        _record_lost(todo, runs, advance)
    records = [read_fit(runs, candidate.plan.id) for candidate in chosen]
    _refuse_all_failed(chosen, records)
    return [record for record in records if record is not None]


def _record_lost(lost: Sequence[Candidate], runs: Folder, advance: Advance) -> None:
    """Record fits whose processes were killed each time as failed."""
    for candidate in lost:
        reason = f"the process of fit {candidate.plan.id} was killed {ATTEMPTS} times (out of memory?)"
        (runs / "fits" / candidate.plan.id).write_json(FIT_RECORD, failed(candidate.plan, ReconbenchError(reason)))
        advance(1, "killed")


def _ended(plan: FitPlan, runs: Folder) -> bool:
    """Say whether a fit has a record that stands."""
    record = read_fit(runs, plan.id)
    return record is not None and record.status != "failed"


def _can_start(plan: FitPlan, runs: Folder) -> bool:
    """Say whether the fit that a plan starts from, if any, has ended well."""
    parent = read_fit(runs, plan.parent) if plan.parent else None
    return plan.parent is None or (parent is not None and parent.status == "ok")


def _tune(todo: Sequence[Candidate], refs: DataRefs, runs: Folder, advance: Advance) -> None:
    """Run fits as plain Tune function trials, then record those the scheduler stopped."""
    by_id = {candidate.plan.id: candidate for candidate in todo}
    # References, not arrays: a trial's arguments are pickled, and the data lie in shared memory already.
    trainable = tune.with_parameters(_trial, refs=refs, runs=runs, candidates=by_id)
    gpus = cluster.gpus() > 0
    resources = tune.with_resources(
        trainable, lambda config: tune.PlacementGroupFactory([_resources(by_id[config["fit"]], gpus)])
    )
    # A failed fit has its own record and ends the sweep with one message; Tune's log would repeat it for every trial.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="reconbench-tune-", ignore_cleanup_errors=True) as books:
        _tuner(resources, by_id, _Progress(by_id, runs, advance), books).fit()


def _tuner(
    trainable: Any,  # noqa: ANN401 - what `tune.with_resources` returns
    by_id: Mapping[str, Candidate],
    callback: _Progress,
    books: str,
) -> tune.Tuner:
    """Return the tuner of a wave.

    Args:
        trainable: The trial function with its resources.
        by_id: The fits.
        callback: Told of every trial that ends.
        books: Where Tune keeps its own books; temporary, since nothing is read back from them.
    """
    workers = max(candidate.plan.workers for candidate in by_id.values())
    return tune.Tuner(
        trainable,
        # By group: with fewer places than fits the configurations of one subject run side by side, as ASHA compares.
        param_space={"fit": tune.grid_search(sorted(by_id, key=lambda i: (by_id[i].group, by_id[i].config)))},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=_scheduler(by_id),
            # A team lives as long as the trial that started it: one that the scheduler stops must not be used again.
            reuse_actors=workers == 1,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            max_concurrent_trials=None if workers == 1 else cluster.places(workers),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=books,
            callbacks=[callback],
            verbose=0,
        ),
    )


def _resources(candidate: Candidate, gpus: bool) -> dict[str, float]:
    """Return what one fit takes: one CPU, and its share of a GPU where there are any.

    The trial of a team only waits for its workers, who ask for places of their own; Tune wants it to take something.
    """
    if candidate.plan.workers > 1:
        return {"memory": 1}
    return {"CPU": 1, "GPU": candidate.gpus} if gpus and candidate.gpus else {"CPU": 1}


def _scheduler(by_id: Mapping[str, Candidate]) -> TrialScheduler:
    """Return ASHA among the rivals of each recipe that asks for it."""
    searches = {candidate.rivals: candidate.search for candidate in by_id.values()}

    def make(rivals: str) -> TrialScheduler:
        search = searches[rivals]
        if search.scheduler == "none":
            return FIFOScheduler()
        return AsyncHyperBandScheduler(
            time_attr="training_iteration",
            max_t=MAX_EPOCHS,
            grace_period=search.grace,
            reduction_factor=search.reduction,
        )

    return GroupedScheduler(lambda config: by_id[config["fit"]].rivals, make)


def _trial(config: dict[str, Any], refs: DataRefs, runs: Folder, candidates: Mapping[str, Candidate]) -> None:
    """Run one fit inside Tune; write a failed record where it raises.

    Raises:
        Exception: Whatever the fit raised, after the record was written.
    """
    candidate = candidates[config["fit"]]
    # What Ray gave this fit, not what the machine has: a fit that asked for no GPU must not sit on another's.
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    torch.set_num_threads(1)
    plan = candidate.plan

    def report(step: int, metrics: Mapping[str, float]) -> None:
        tune.report({METRIC: metrics[METRIC], "step": step})

    try:
        if plan.workers > 1:
            inputs = functools.partial(fetch, plan, candidate.data, refs)
            record = run_team(TeamFit(plan, runs, inputs), METRIC, gpus=cluster.gpus() > 0 and candidate.gpus > 0)
        else:
            record = run_fit(plan, fetch(plan, candidate.data, refs), runs, device, report)
    except TeamError:
        raise
    except (ReconbenchError, ValueError, RuntimeError) as error:
        (runs / "fits" / plan.id).write_json(FIT_RECORD, failed(plan, error))
        raise
    tune.report({METRIC: record.validation_correlation or 0.0, "step": -1})


def fetch(plan: FitPlan, data: str, refs: DataRefs) -> FitInputs:
    """Return what a fit reads; arrays are views of the node's shared memory."""
    targets = {spec.target: ray.get(refs.targets[spec.target]) for spec in plan.heads.values()}
    subjects = {subject: ray.get(refs.subjects[data][subject]) for subject in plan.subjects}
    return FitInputs(subjects, targets, refs.label_names)


class _Progress(tune.Callback):
    """Tells the sweep of every ended trial, and records those the scheduler stopped."""

    def __init__(self, by_id: Mapping[str, Candidate], runs: Folder, advance: Advance) -> None:
        self._by_id = by_id
        self._runs = runs
        self._advance = advance

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks into its own books, which are never read back."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Record a stopped fit (it left no record of its own) and move the display on."""
        release(trial.last_result or {})
        candidate = self._by_id[trial.config["fit"]]
        if not _ended(candidate.plan, self._runs):
            last = trial.last_result or {}
            stopped = FitRecord(candidate.plan.id, "stopped", last.get(METRIC), int(last.get("training_iteration", 0)))
            (self._runs / "fits" / candidate.plan.id).write_json(FIT_RECORD, stopped)
        self._advance(1, f"{candidate.recipe} subject {candidate.plan.subjects} configuration {candidate.config}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Move the display on past a failed fit; one whose process was killed has no record and is made again."""
        release(trial.last_result or {})
        candidate = self._by_id[trial.config["fit"]]
        ended = read_fit(self._runs, candidate.plan.id) is not None
        note = "FAILED" if ended else "KILLED, made again"
        self._advance(int(ended), f"{candidate.recipe} subject {candidate.plan.subjects} {note}")


def _refuse_all_failed(chosen: Sequence[Candidate], records: Sequence[FitRecord | None]) -> None:
    """Stop where a recipe has no fit left to select from, for some subject and stage."""
    for group in sorted({candidate.group for candidate in chosen}):
        mine = [r for c, r in zip(chosen, records, strict=True) if c.group == group]
        if not any(record is not None and record.status == "ok" for record in mine):
            errors = [r.error for r in mine if r is not None and r.error]
            reason = f"{errors[0]['type']}: {errors[0]['message']}" if errors else "no fit finished"
            raise ReconbenchError(f"every fit of {group} failed; the first: {reason}")
