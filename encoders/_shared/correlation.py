"""The score that steers every fit: the mean over targets of Pearson's correlation over trials.

Tuning, early stopping and schedulers all read this one number (`validation_correlation`), whatever the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from encoders._shared.moments import merge_factors, require_finite
from encoders.base import Block, Head, SubjectData


class TargetCorrelation:
    """Pearson's correlation of each target over trials, streamed over batches of rows and blocks of targets.

    Co-moments are merged around running means in float64. Counts are kept for each target, since blocks of targets may
    come in any order; `RunningMoments` has one count and no products.
    """

    def __init__(self, size: int) -> None:
        """Start with no trials.

        Args:
            size: D, the number of targets.
        """
        self._count = torch.zeros(size, dtype=torch.float64)
        self._means = torch.zeros(2, size, dtype=torch.float64)
        self._moments = torch.zeros(3, size, dtype=torch.float64)

    def update(self, predictions: torch.Tensor, targets: torch.Tensor, start: int = 0) -> None:
        """Add trials for a run of targets.

        Args:
            predictions: `(B, width)` predicted targets `start ... start + width - 1`.
            targets: `(B, width)` true ones.
            start: First target.

        Raises:
            ValueError: If the shapes differ or the run leaves the targets.
        """
        stop = start + predictions.shape[1]
        if predictions.shape != targets.shape or stop > self._count.numel():
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} at {start}: they must have "
                f"one shape (trials, width) within {self._count.numel()} targets"
            )
        if predictions.shape[0] == 0:
            return
        # In float64 on the CPU: many GPUs compute it at a small fraction of their speed.
        pair = torch.stack([predictions.detach().double().cpu(), targets.detach().double().cpu()])
        added = float(pair.shape[1])
        mean = pair.mean(dim=1)
        centred = pair - mean[:, None]
        moments = torch.stack(
            [centred[0].square().sum(0), centred[1].square().sum(0), (centred[0] * centred[1]).sum(0)]
        )
        # What two parts add to each co-moment because their means differ.
        run = slice(start, stop)
        step, weight = merge_factors(self._count[run], added)
        delta = mean - self._means[:, run]
        between = torch.stack([delta[0].square(), delta[1].square(), delta[0] * delta[1]]) * weight
        self._means[:, run] += delta * step
        self._moments[:, run] += moments + between
        self._count[run] += added

    def per_target(self) -> torch.Tensor:
        """Return the correlation of each target.

        Returns:
            `(D,)` float64. NaN where the true target does not vary (no correlation exists). 0 where only the prediction
            does not vary: a constant prediction knows nothing, and leaving it out would reward it.
        """
        predicted, true, shared = self._moments
        # Below this the variation is the rounding of float64 sums around the mean.
        noise = 1e-24 * self._count * self._means.square()
        flat = predicted <= noise[0]
        value = shared / (predicted * true).sqrt().clamp_min(1e-300)
        # Rounding can carry a perfect correlation past 1.
        value = torch.where(flat, torch.zeros_like(value), value.clamp(-1.0, 1.0))
        undefined = (true <= noise[1]) | (self._count < 2)
        return torch.where(undefined, torch.full_like(value, math.nan), value)

    def mean(self) -> float:
        """Return the mean over the targets that vary, NaN if none does."""
        return float(self.per_target().nanmean())


class CorrelationMeter:
    """Mean over subjects and heads of the mean per-target correlation, each subject and head weighing the same."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, str], TargetCorrelation] = {}

    def update(
        self, subject: int, head: str, size: int, predictions: torch.Tensor, targets: torch.Tensor, start: int = 0
    ) -> None:
        """Add trials of one subject for a run of targets of one head.

        Args:
            subject: Whose trials.
            head: Name of the head.
            size: D, the number of targets of the head.
            predictions: `(B, width)`.
            targets: `(B, width)`.
            start: First target of the run.
        """
        part = self._parts.setdefault((subject, head), TargetCorrelation(size))
        part.update(predictions, targets, start)

    def mean(self) -> float:
        """Return the mean over subjects and heads whose targets vary, NaN if there is none."""
        # Heads weigh the same whatever their size: else one of 91,168 targets would outvote one of 768.
        values = [value for value in (part.mean() for part in self._parts.values()) if not math.isnan(value)]
        # NaN rather than 0: a fit without a score must differ from one that predicts nothing.
        return sum(values) / len(values) if values else math.nan


def mean_target_correlation(
    pairs: Iterable[tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]],
) -> float:
    """Return the mean per-target correlation of batches of predictions of one subject.

    Pearson's correlation over trials for each target, averaged over the targets of a head and then over heads. Targets
    that do not vary over the trials are left out; a prediction that does not vary counts as 0.

    Args:
        pairs: Batches of `(predictions, targets)`, each mapping a head to `(B, ...)`.

    Returns:
        The mean, within [-1, 1]; NaN where no target varies or there are no trials.

    Raises:
        ValueError: If predictions and targets have different heads or shapes.
    """
    meter = CorrelationMeter()
    for predictions, targets in pairs:
        if set(predictions) != set(targets):
            raise ValueError(f"predictions of heads {sorted(predictions)} against targets of {sorted(targets)}")
        for name, values in predictions.items():
            flat = values.flatten(1)
            meter.update(0, name, flat.shape[1], flat, targets[name].flatten(1))
    return meter.mean()


def validation_correlation(
    predict: Callable[[torch.Tensor, int, int], Iterator[Mapping[str, Block]]],
    data: Mapping[int, SubjectData],
    heads: Sequence[Head],
    size: int | None = None,
) -> float:
    """Return the mean per-target correlation of a fitted encoder on the validation trials.

    Args:
        predict: The encoder's `predict`.
        data: The subjects; those without validation trials are left out.
        heads: The heads of the fit.
        size: Trials a batch; None leaves it to bench.

    Returns:
        The mean over subjects and heads; NaN where no subject has validation trials.

    Raises:
        ValueError: If a validation voxel is not finite.
    """
    meter = CorrelationMeter()
    sizes = {head.name: head.size for head in heads}
    for subject, trials in data.items():
        if trials.n_trials("validation") == 0:
            continue
        # Predictions come block by block, and so do the correlations: a head of 91,168 targets is never whole here.
        for batch in trials.batches("validation", seed=-1, size=size):
            require_finite(batch.voxels, f"validation voxels of subject {subject}")
            for part in predict(batch.voxels, subject, 0):
                for name, block in part.items():
                    stop = block.start + block.values.shape[1]
                    true = batch.targets[name].flatten(1)[:, block.start : stop]
                    meter.update(subject, name, sizes[name], block.values, true, block.start)
    return meter.mean()
