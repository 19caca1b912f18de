"""Which alpha a ridge regression uses: held-out error of every alpha from one factorisation, and the choice.

All errors are exact for the factorised voxels: nothing is refitted. `d = s / (s + alpha)` are the shrinkage factors,
`U` (n, r) the orthonormal coordinates of the training rows, `w = U'Y` (r, D) and the hat matrix with intercept is
`H = 1/n + U diag(d) U'`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

Scope = Literal["global", "per-target"]
Method = Literal["gcv", "loo", "kfold", "validation"]


def gcv_errors(
    eigenvalues: torch.Tensor, coordinates: torch.Tensor, variance: torch.Tensor, rows: int, alphas: Sequence[float]
) -> torch.Tensor:
    """Return generalised cross-validation scores (Golub, Heath & Wahba 1979).

    `GCV = |Y - H Y|^2 / n / (1 - tr(H) / n)^2`, with the intercept in H.

    Args:
        eigenvalues: `(r,)`.
        coordinates: `(r, D)` w.
        variance: `(D,)` of the targets over the rows, divisor n.
        rows: n.
        alphas: A penalties.

    Returns:
        `(A, D)`, comparable with a mean squared error.
    """
    energy = coordinates.square()
    # Energy of the targets that no voxel pattern of the training rows can reach, whatever alpha.
    outside = (variance * rows - energy.sum(dim=0)).clamp_min(0)
    scores = []
    for alpha in alphas:
        kept = alpha / (eigenvalues + alpha)
        residual = outside + kept.square() @ energy
        # The 1 in brackets is the intercept.
        freedom = 1 - (1 + (1 - kept).sum()) / rows
        scores.append(residual / rows / freedom.clamp_min(torch.finfo(freedom.dtype).eps).square())
    return torch.stack(scores)


def loo_errors(
    eigenvalues: torch.Tensor, left: torch.Tensor, targets: torch.Tensor, alphas: Sequence[float]
) -> torch.Tensor:
    """Return the mean squared error of leaving out each row, from `(y - Hy)_i / (1 - H_ii)` (Allen 1974).

    Args:
        eigenvalues: `(r,)`.
        left: `(n, r)` U.
        targets: `(n, D)` centred targets.
        alphas: A penalties.

    Returns:
        `(A, D)`.
    """
    coordinates = left.T @ targets
    energy = left.square()
    scores = []
    for alpha in alphas:
        shrink = eigenvalues / (eigenvalues + alpha)
        residual = targets - left @ (shrink[:, None] * coordinates)
        rest = usable_rest(1 - 1 / left.shape[0] - energy @ shrink)
        scores.append((residual / rest[:, None]).square().mean(dim=0))
    return torch.stack(scores)


def usable_rest(rest: torch.Tensor) -> torch.Tensor:
    """Return `(n,)` values of 1 - h_ii, NaN where they are lost in rounding: an alpha too small for the arithmetic."""
    return torch.where(rest > 10 * torch.finfo(rest.dtype).eps, rest, torch.nan)


def solve_positive(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the solution for a positive definite matrix, NaN where rounding made it lose that property.

    Args:
        matrix: `(f, f)` I - H of the rows of a fold.
        right: `(f, width)`.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        return torch.full_like(right, torch.nan)
    # Folds are small and right sides wide: one product is faster than two triangular solves.
    return torch.cholesky_inverse(lower) @ right


def kfold_errors(
    eigenvalues: torch.Tensor,
    left: torch.Tensor,
    targets: torch.Tensor,
    folds: Sequence[torch.Tensor],
    alphas: Sequence[float],
) -> torch.Tensor:
    """Return the mean squared error over held-out folds, from `(I - H_FF)^-1 (y - Hy)_F`.

    This equals refitting slope and intercept without fold F; only the voxels' scale comes from all training rows.

    Args:
        eigenvalues: `(r,)`.
        left: `(n, r)` U.
        targets: `(n, D)` centred targets.
        folds: Row numbers of each fold.
        alphas: A penalties.

    Returns:
        `(A, D)`.
    """
    coordinates = left.T @ targets
    scores = torch.zeros(len(alphas), targets.shape[1], dtype=targets.dtype, device=targets.device)
    for fold in folds:
        part = left[fold]
        identity = torch.eye(len(fold), dtype=left.dtype, device=left.device)
        for index, alpha in enumerate(alphas):
            shrink = eigenvalues / (eigenvalues + alpha)
            hat = 1 / left.shape[0] + (part * shrink) @ part.T
            residual = targets[fold] - part @ (shrink[:, None] * coordinates)
            scores[index] += solve_positive(identity - hat, residual).square().sum(dim=0)
    return scores / left.shape[0]


def heldout_errors(
    eigenvalues: torch.Tensor,
    projected: torch.Tensor,
    cross: torch.Tensor,
    targets: torch.Tensor,
    alphas: Sequence[float],
) -> torch.Tensor:
    """Return the mean squared error on other trials.

    Args:
        eigenvalues: `(r,)`.
        projected: `(N, r)` coordinates of those trials.
        cross: `(r, D)` C.
        targets: `(N, D)` their targets minus the training mean.
        alphas: A penalties.

    Returns:
        `(A, D)`.
    """
    return torch.stack(
        [(targets - (projected / (eigenvalues + alpha)) @ cross).square().mean(dim=0) for alpha in alphas]
    )


def folds_by_stimulus(stimuli: torch.Tensor, folds: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield the row numbers of each fold; all rows of a stimulus fall into one fold.

    Repeats of a picture on both sides of a split would make small alphas look better than they are.

    Args:
        stimuli: `(n,)` stimulus of each row; negative ones stand alone.
        folds: How many.
        seed: Which stimuli go together.

    Raises:
        ValueError: If there are fewer stimuli than folds.
    """
    # Rows without a stimulus get a negative number of their own, which no stimulus has.
    alone = -1 - torch.arange(stimuli.numel())
    groups, members = torch.unique(torch.where(stimuli < 0, alone, stimuli), return_inverse=True)
    if groups.numel() < folds:
        raise ValueError(f"{folds} folds of {groups.numel()} training stimuli; at most one fold a stimulus is possible")
    order = torch.randperm(groups.numel(), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty_like(order)
    fold[order] = torch.arange(order.numel()) % folds
    for number in range(folds):
        yield (fold[members] == number).nonzero()[:, 0]


def best_rows(errors: torch.Tensor, variance: torch.Tensor, scope: Scope) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which row of errors is the smallest, and its error relative to the target's variance.

    Args:
        errors: `(A, D)` held-out errors; one that is not finite (an alpha too small for the arithmetic) never wins.
        variance: `(D,)` of the targets over training rows. A head's row minimises the mean of error / variance, so
            that it maximises the mean R2 and no target counts more for its unit.
        scope: One row a head, or one a target.

    Returns:
        `(D,)` int64 rows and `(D,)` float64 relative errors; -1 and infinity where nothing can be chosen, because a
        target (or, with one row a head, every target) does not vary.
    """
    count, varies = errors.shape[1], variance > 0
    rows = torch.full((count,), -1, dtype=torch.int64, device=errors.device)
    values = torch.full((count,), torch.inf, dtype=torch.float64, device=errors.device)
    if not varies.any():
        return rows, values
    relative = errors[:, varies].double() / variance[varies].double()
    relative = torch.where(torch.isfinite(relative), relative, torch.inf)
    if scope == "global":
        lowest = relative.mean(dim=1).min(dim=0)
        return torch.full_like(rows, int(lowest.indices)), torch.full_like(values, float(lowest.values))
    lowest = relative.min(dim=0)
    rows[varies], values[varies] = lowest.indices, lowest.values
    return rows, values
