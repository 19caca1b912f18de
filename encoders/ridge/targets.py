"""What a ridge regression needs from a block of targets: one pass over the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoders._shared.moments import RunningMoments
from encoders.ridge.gram import Factorisation
from encoders.ridge.rows import Piece, TrainingRows


@dataclass(frozen=True)
class TargetSums:
    """All that the training rows say about a run of targets.

    Attributes:
        cross: `(r, width)` C of the factorisation.
        mean: `(width,)` over the rows.
        variance: `(width,)` over the rows, divisor n; exactly 0 where a target is constant.
        centred: `(n, width)` targets minus their mean, where they were kept.
    """

    cross: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    centred: torch.Tensor | None


def sum_targets(factor: Factorisation, rows: TrainingRows, pieces: Sequence[Piece], keep: bool) -> TargetSums:
    """Sum a run of targets over one pass of the training rows, `E' X' Y` (primal) or `U' Y` (dual).

    Args:
        factor: The factorisation, on the device of the rows.
        rows: Its training rows.
        pieces: Which targets, side by side.
        keep: Whether to return the targets too; otherwise no more of them than one batch are held.
    """
    width = sum(piece.stop - piece.start for piece in pieces)
    size = factor.mean.numel() if factor.form == "primal" else factor.rows
    cross, total = factor.mean.new_zeros(size, width), factor.mean.new_zeros(size)
    moments, shift = RunningMoments(), factor.mean.new_zeros(width)
    kept: list[torch.Tensor] = []
    for voxels, targets in rows.chunks(pieces):
        if moments.count == 0:
            # Takes a common offset out of the sums before it can cost digits.
            shift = targets.mean(dim=0)
        sides = _left_side(factor, voxels, moments.count)
        cross.addmm_(sides.T, targets - shift)
        total += sides.sum(dim=0)
        moments.update(targets)
        if keep:
            kept.append(targets)
    mean, variance = _mean_and_variance(moments, cross)
    # Removes what the shift leaves of the mean; in the primal form centred voxels sum to zero but for rounding.
    cross -= total[:, None] * (mean - shift)
    if factor.form == "primal":
        cross = factor.basis.T @ cross
    return TargetSums(cross, mean, variance, torch.cat(kept) - mean if keep else None)


def _left_side(factor: Factorisation, voxels: torch.Tensor, first: int) -> torch.Tensor:
    """Return what the targets of the rows from `first` on are multiplied with: their voxels, or their rows of U.

    Raises:
        ValueError: If the factorisation is dual and holds no coordinates of the training rows.
    """
    if factor.form == "primal":
        return factor.centre(voxels)
    if factor.left is None:
        raise ValueError("this dual factorisation was stored for predicting; it has no coordinates of training rows")
    return factor.left[first : first + voxels.shape[0]]


def _mean_and_variance(moments: RunningMoments, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance in the arithmetic of `like`, the variance of constant targets exactly 0."""
    variance = torch.where(moments.constant, torch.zeros_like(moments.mean), moments.variance)
    return moments.mean.to(like), variance.to(like)
