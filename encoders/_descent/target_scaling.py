"""Standardisation of targets: networks learn targets of mean 0 and deviation 1, and predictions are scaled back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from encoders._shared.moments import RunningMoments, divisors, require_finite
from encoders.base import Head, Runtime, SubjectData


@dataclass(frozen=True)
class TargetScaling:
    """Statistics of the training targets: networks learn standardised targets and predictions are scaled back.

    Attributes:
        mean: For each head `(D,)` float32.
        scale: For each head `(D,)` float32, 1 where a target is constant.
    """

    mean: Mapping[str, torch.Tensor]
    scale: Mapping[str, torch.Tensor]

    def standardise(self, name: str, targets: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)` standardised targets of a head from `(B, *shape)`."""
        return (targets.flatten(1) - self.mean[name]) / self.scale[name]

    def restore(self, name: str, predictions: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)` predictions in the units of the targets."""
        return predictions * self.scale[name] + self.mean[name]


def scale_targets(data: Mapping[int, SubjectData], heads: Sequence[Head], runtime: Runtime) -> TargetScaling:
    """Return mean and standard deviation of every target over the training trials of all subjects and workers.

    Raises:
        ValueError: If a training voxel or target is not finite.
    """
    moments = {head.name: RunningMoments() for head in heads}
    for subject, trials in data.items():
        for batch in trials.batches("train", seed=-1):
            require_finite(batch.voxels, f"voxels of subject {subject}")
            # All subjects together: one scale a target, for a trunk that subjects share.
            for name, moment in moments.items():
                require_finite(batch.targets[name].flatten(1), f"targets of head {name!r}, subject {subject}")
                moment.update(batch.targets[name])
    mean, scale = {}, {}
    for name, moment in moments.items():
        # Workers hold equally many trials, so the mean of their means is the mean; variance within plus between.
        own = moment.mean.to(runtime.device)
        centre = runtime.reduce(own)
        deviation = runtime.reduce(moment.variance.to(own) + (own - centre).square()).sqrt()
        mean[name], scale[name] = centre.float(), divisors(deviation, centre).float()
    return TargetScaling(mean, scale)
