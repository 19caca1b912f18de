"""A fit that several workers share: Ray Train starts them, splits their epochs and joins their gradients.

Every worker runs the same fit on its own share of each epoch's batches; the first one writes state and record. Starting
a team takes some ten seconds, so a stage that names no `workers` is fitted by the Tune trial itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.util
import torch
from ray import PlacementGroupID, train
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup

from bench.core.errors import BadDataError, ReconbenchError
from bench.core.storage import Folder
from bench.data.stream.turns import in_turn, turns
from bench.fitting.inputs import FitInputs
from bench.fitting.plan import FitPlan
from bench.fitting.subject_stream import SubjectStream
from bench.fitting.trial import FIT_RECORD, FitRecord, Report, Team, failed, fitted, read_fit, run_fit

PLACES = "places"
"""Key of a report's metrics that names the places of the team in the cluster."""


class TeamError(ReconbenchError):
    """A worker's fit raised; it left a failed record itself."""


@dataclass(frozen=True)
class TeamFit:
    """What each worker of a team is told.

    Attributes:
        plan: The fit.
        runs: The runs folder.
        fetch: Returns the fit's data from the node's shared memory.
    """

    plan: FitPlan
    runs: Folder
    fetch: Callable[[], FitInputs]


def run_team(fit: TeamFit, metric: str, gpus: bool) -> FitRecord:
    """Make a fit with `plan.workers` workers, inside a Tune trial; the trial gets the first worker's reports.

    Args:
        fit: What to fit.
        metric: Name of the reported metric that Tune's scheduler looks at.
        gpus: Whether each worker gets a GPU. Several workers cannot share one: NCCL refuses that.

    Returns:
        The record.

    Raises:
        BadDataError: If a subject has fewer batches than there are workers.
        TeamError: If a worker's fit raised.
        ray.train.TrainingFailedError: If a worker was killed; there is no record then.
    """
    # Ray Train's own account of a failure would come before the one line that the sweep prints.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"fit": fit, "metric": metric},
        datasets=_epochs(fit),
        dataset_config=in_turn(),
        scaling_config=train.ScalingConfig(num_workers=fit.plan.workers, use_gpu=gpus),
        run_config=train.RunConfig(
            name="team",
            # Nothing is kept here: checkpoints and records are the fit's own.
            storage_path=_team_folder(fit).path,
            storage_filesystem=None if fit.runs.is_local else fit.runs.filesystem,
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError:
        record = read_fit(fit.runs, fit.plan.id)
        if record is None or record.error is None:
            raise
        raise TeamError(f"{record.error['type']}: {record.error['message']}") from None
    finally:
        _team_folder(fit).delete()
    record = read_fit(fit.runs, fit.plan.id)
    if record is None:
        raise RuntimeError(f"the workers of fit {fit.plan.id} ended without a record")
    return record


def release(result: Mapping[str, Any]) -> None:
    """Free the places of a team whose trial has ended, where they are not free already.

    Ray Train frees them when the fit ends. When Tune kills the trial, Ray Train's cleaner asks the dashboard whether
    its controller is dead, and where there is no dashboard the places would be lost for the rest of the sweep.

    Args:
        result: The trial's last result.
    """
    if PLACES in result:
        group = PlacementGroupID(bytes.fromhex(result[PLACES]))
        ray.util.remove_placement_group(PlacementGroup(group))


def _team_folder(fit: TeamFit) -> Folder:
    """Return where Ray Train keeps its own books of a fit."""
    return fit.runs / "fits" / fit.plan.id / "team"


def _epochs(fit: TeamFit) -> dict[str, ray.data.Dataset]:
    """Return for each subject the numbers of an epoch's batches, to be split among the workers."""
    size, found = fit.plan.options["batch_size"], {}
    for subject, trials in fit.fetch().subjects.items():
        samples = SubjectStream(trials, {}, averaging=fit.plan.averaging).n_trials("train")
        if math.ceil(samples / size) < fit.plan.workers:
            raise BadDataError(
                f"subject {subject} has {samples} training samples: batches of {size} are too few for "
                f"{fit.plan.workers} workers"
            )
        found[str(subject)] = turns(samples, size)
    return found


def _work(given: dict[str, Any]) -> None:
    """Run one worker's part of the fit; write a failed record where it raises."""
    fit: TeamFit = given["fit"]
    torch.set_num_threads(1)
    context = train.get_context()
    shares = {subject: train.get_dataset_shard(str(subject)) for subject in fit.plan.subjects}
    team = Team(context.get_world_rank(), context.get_world_size(), _mean, shares)

    places = ray.util.get_current_placement_group()

    def report(step: int, metrics: Mapping[str, float]) -> None:
        score = {given["metric"]: metrics[given["metric"]], "step": step}
        train.report(score if places is None else {**score, PLACES: places.id.hex()})

    try:
        _take_part(fit, team, report)
    except (ReconbenchError, ValueError, RuntimeError) as error:
        (fit.runs / "fits" / fit.plan.id).write_json(FIT_RECORD, failed(fit.plan, error))
        raise


def _take_part(fit: TeamFit, team: Team, report: Report) -> None:
    """Fit; the first worker also saves and measures."""
    inputs, device = fit.fetch(), get_device()
    if team.rank == 0:
        run_fit(fit.plan, inputs, fit.runs, device, report, team)
        return
    with fitted(fit.plan, inputs, fit.runs, device, report, team):
        pass


def _mean(tensor: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over the workers.

    Raises:
        ConnectionError: If one of them is gone.
    """
    total = tensor.detach().clone()
    try:
        torch.distributed.all_reduce(total)
    except RuntimeError as error:
        # Not what this worker's fit did wrong: without a record the fit is made again from its checkpoint.
        raise ConnectionError(f"another worker of the fit is gone: {error}") from error
    return total / torch.distributed.get_world_size()
