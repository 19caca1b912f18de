"""What a fit reads, as its encoder sees it: heads with their voxel columns, and each subject's batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from ray.data import DataIterator

from bench.core.errors import BadDataError
from bench.data import roi
from bench.data.shards.targets import TargetTable
from bench.data.stream.resident import resident
from bench.data.stream.trials import SubjectTrials
from bench.fitting.plan import FitPlan
from bench.fitting.subject_stream import SubjectStream
from encoders.base import Head


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


def make_heads(plan: FitPlan, inputs: FitInputs) -> list[Head]:
    """Return the plan's heads with their shapes and, where a head has a ROI, each subject's voxel columns.

    Raises:
        UnknownNameError: If a ROI expression names an unknown atlas or label.
        BadDataError: If a ROI holds no voxel of a subject.
    """
    heads = []
    for name, spec in plan.heads.items():
        columns = _columns(name, spec.roi, inputs) if spec.roi else None
        table = inputs.targets[spec.target].sliced(spec.take)
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


def streams(
    plan: FitPlan, inputs: FitInputs, device: torch.device, shares: Mapping[int, DataIterator]
) -> dict[int, SubjectStream]:
    """Return the batches of each subject, joined with the heads' targets.

    Args:
        plan: The fit.
        inputs: Its data.
        device: Where it computes.
        shares: By subject this worker's share of the training epochs; empty where one worker has them all.

    Raises:
        BadDataError: If test trials are among the inputs: fitting never sees them.
    """
    targets = {name: inputs.targets[spec.target].sliced(spec.take) for name, spec in plan.heads.items()}
    subjects = {subject: inputs.subjects[subject] for subject in plan.subjects}
    for subject, trials in subjects.items():
        # Looked at here, where every fit passes, and not trusted to who loaded the data.
        if len(trials.rows("test")):
            raise BadDataError(f"subject {subject}: {len(trials.rows('test'))} test trials were handed to a fit")
    place = resident(device, subjects.values(), [table.values for table in targets.values()])
    shuffle = plan.seed if plan.control == "shuffled" else None
    return {
        subject: SubjectStream(trials, targets, shuffle, inputs.label_names, plan.averaging, place, shares.get(subject))
        for subject, trials in subjects.items()
    }
