"""What a ridge regression needs from a block of targets: one pass over the training rows, then small products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from encoders.gram import Factorisation
from encoders.penalties import folds_by_stimulus, gcv_errors, heldout_errors, kfold_errors, loo_errors
from encoders.standardize import RunningMoments, require_finite
from encoders.training_rows import Piece, TrainingRows

Method = Literal["gcv", "loo", "kfold", "validation"]


@dataclass(frozen=True)
class Selection:
    """What selecting an alpha needs besides the factorisation, the same for all blocks of targets.

    Attributes:
        method: How alphas are compared.
        left: `(n, r)` orthonormal coordinates of the training rows ("loo", "kfold").
        folds: Row numbers of each fold ("kfold").
        projected: `(N, r)` coordinates of the validation trials ("validation").
    """

    method: Method
    left: torch.Tensor | None = None
    folds: tuple[torch.Tensor, ...] = ()
    projected: torch.Tensor | None = None


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


@dataclass(frozen=True)
class PieceErrors:
    """What is kept of a piece to choose its alphas once its whole head is solved.

    Attributes:
        piece: Which targets.
        mean: `(width,)` over the rows.
        variance: `(width,)` over the rows.
        errors: `(A, width)` held-out error of each alpha, `(0, width)` where alpha is fixed.
    """

    piece: Piece
    mean: torch.Tensor
    variance: torch.Tensor
    errors: torch.Tensor


def prepare_selection(method: Method, factor: Factorisation, rows: TrainingRows, folds: int, seed: int) -> Selection:
    """Prepare the comparison of alphas.

    Args:
        method: How.
        factor: The factorisation.
        rows: Its training rows.
        folds: Number of folds of "kfold".
        seed: Which stimuli share a fold.
    """
    if method == "gcv":
        return Selection(method)
    if method == "validation":
        parts = []
        for batch in rows.data.batches("validation", seed=-1):
            require_finite(batch.voxels, f"validation voxels of subject {rows.data.subject}")
            parts.append(factor.project(batch.voxels))
        return Selection(method, projected=torch.cat(parts))
    left = factor.left
    if left is None:
        coordinates = torch.cat([factor.project(voxels) for voxels, _ in rows.chunks([])])
        left = coordinates * factor.inverse_roots()
    if method == "loo":
        return Selection(method, left=left)
    numbers = tuple(fold.to(rows.device) for fold in folds_by_stimulus(rows.stimuli, folds, seed))
    return Selection(method, left=left, folds=numbers)


def solve(
    factor: Factorisation,
    rows: TrainingRows,
    pieces: Sequence[Piece],
    selection: Selection | None,
    alphas: Sequence[float],
) -> Iterator[tuple[PieceErrors, torch.Tensor]]:
    """Yield each piece's errors and `(r, width)` cross-products, all from one pass over the training rows.

    Args:
        factor: The factorisation.
        rows: Its training rows.
        pieces: Runs of targets that are in memory together.
        selection: What compares alphas; None where alpha is fixed.
        alphas: The grid.
    """
    sums = sum_targets(factor, rows, pieces, selection.left if selection else None)
    errors = sums.cross.new_zeros(0, sums.mean.numel())
    if selection is not None:
        errors = compare_alphas(factor, rows, pieces, sums, selection, alphas)
    start = 0
    for piece in pieces:
        run = slice(start, start + piece.stop - piece.start)
        start = run.stop
        yield PieceErrors(piece, sums.mean[run], sums.variance[run], errors[:, run]), sums.cross[:, run]


def sum_targets(
    factor: Factorisation, rows: TrainingRows, pieces: Sequence[Piece], left: torch.Tensor | None
) -> TargetSums:
    """Sum a run of targets over one pass of the training rows.

    Args:
        factor: The factorisation.
        rows: Its training rows.
        pieces: Which targets, side by side.
        left: `(n, r)` orthonormal coordinates of the rows where targets are to be kept, else None: then the primal
            form holds no more targets than one batch.
    """
    if factor.form == "primal" and left is None:
        return _accumulate(factor, rows, pieces)
    targets = torch.cat([values for _, values in rows.chunks(pieces)])
    moments = RunningMoments()
    moments.update(targets)
    centred = targets - moments.mean.to(targets)
    # In the dual form C = U'Y; in the primal E'X' = S^(1/2) U', so the same product is scaled.
    rotation = factor.left if factor.left is not None else left
    assert rotation is not None
    cross = rotation.T @ centred
    if factor.form == "primal":
        cross *= factor.eigenvalues.sqrt()[:, None]
    return TargetSums(cross, *_mean_and_variance(moments, targets), centred)


def _accumulate(factor: Factorisation, rows: TrainingRows, pieces: Sequence[Piece]) -> TargetSums:
    """Return the sums of the primal form, `E' X' Y`, holding one batch of targets at a time."""
    width = sum(piece.stop - piece.start for piece in pieces)
    cross = factor.mean.new_zeros(factor.mean.numel(), width)
    total = factor.mean.new_zeros(factor.mean.numel())
    moments, shift = RunningMoments(), factor.mean.new_zeros(width)
    for voxels, targets in rows.chunks(pieces):
        if moments.count == 0:
            shift = targets.mean(dim=0)  # takes a common offset out of the sums before it can cost digits
        centred = factor.centre(voxels)
        cross.addmm_(centred.T, targets - shift)
        total += centred.sum(dim=0)
        moments.update(targets)
    mean, variance = _mean_and_variance(moments, cross)
    # Centred voxels sum to zero but for rounding; this removes what the shift leaves of it.
    cross -= total[:, None] * (mean - shift)
    return TargetSums(factor.basis.T @ cross, mean, variance, None)


def _mean_and_variance(moments: RunningMoments, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance in the arithmetic of `like`, the variance of constant targets exactly 0."""
    variance = torch.where(moments.constant(), torch.zeros_like(moments.mean), moments.variance())
    return moments.mean.to(like), variance.to(like)


def compare_alphas(
    factor: Factorisation,
    rows: TrainingRows,
    pieces: Sequence[Piece],
    sums: TargetSums,
    selection: Selection,
    alphas: Sequence[float],
) -> torch.Tensor:
    """Return the `(A, width)` held-out error of each alpha and target.

    Args:
        factor: The factorisation.
        rows: Its training rows.
        pieces: Which targets.
        sums: What `sum_targets` returned for them.
        selection: What `prepare_selection` returned for the factorisation.
        alphas: The grid.
    """
    if selection.method == "validation":
        batches = rows.data.batches("validation", seed=-1)
        parts = [torch.cat([piece.select(batch) for piece in pieces], dim=1) for batch in batches]
        targets = torch.cat(parts).to(sums.mean) - sums.mean
        assert selection.projected is not None
        return heldout_errors(factor.eigenvalues, selection.projected, sums.cross, targets, alphas)
    if selection.method == "gcv":
        # GCV works in orthonormal coordinates of the rows, which the dual form has already.
        roots = 1.0 if factor.form == "dual" else factor.inverse_roots()[:, None]
        return gcv_errors(factor.eigenvalues, sums.cross * roots, sums.variance, factor.rows, alphas)
    assert selection.left is not None and sums.centred is not None
    if selection.method == "loo":
        return loo_errors(factor.eigenvalues, selection.left, sums.centred, alphas)
    return kfold_errors(factor.eigenvalues, selection.left, sums.centred, selection.folds, alphas)
