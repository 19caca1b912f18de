"""Streaming means and standard deviations, and the check that every encoder makes on its inputs."""

from __future__ import annotations

from typing import TypeVar

import torch

Count = TypeVar("Count", float, torch.Tensor)


def require_finite(values: torch.Tensor, what: str) -> None:
    """Refuse values that hold NaN or infinity.

    Args:
        values: `(B, V)` values.
        what: What they are, for the message ("voxels of subject 1").

    Raises:
        ValueError: If a value is not finite; says how many columns and which is the first.
    """
    # A sum is finite only if every term is (an overflow of finite float32 terms falls through to the exact test).
    if torch.isfinite(values.sum()):
        return
    bad = (~torch.isfinite(values)).flatten(1).any(dim=0)
    if not bad.any():
        return
    first = int(bad.nonzero()[0])
    raise ValueError(
        f"{what}: {int(bad.sum())} of {bad.numel()} columns hold NaN or infinite values (the first is column {first}); "
        "only finite numbers are allowed, leave such columns out of the voxel set"
    )


def merge_factors(before: Count, added: float) -> tuple[Count, Count]:
    """Return how rows that are added move the moments of the rows before (Chan, Golub & LeVeque 1983).

    Args:
        before: How many rows, one number or one a column, were summed before.
        added: How many are added.

    Returns:
        What the step from the old mean to that of the added rows is multiplied with in the new mean, and what its
        square (or product with another variable's step) is multiplied with in the new sum of squares (or products).
    """
    total = before + added
    return added / total, before * added / total


def divisors(deviation: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return what to divide columns by: the standard deviation, and 1 where a column does not vary.

    Args:
        deviation: `(D,)`.
        mean: `(D,)`.

    Returns:
        `(D,)`, all positive.
    """
    # Divided by 1, a constant column becomes zeros once its mean is off; by its own deviation it would be NaN.
    return torch.where(_constant(deviation, mean), torch.ones_like(deviation), deviation)


def _constant(deviation: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return `(D,)` bool, which columns do not vary."""
    # Up to the float32 rounding of the mean: a voxel outside the brain is not one whose signal is rounding errors.
    return deviation <= 1e-7 * mean.abs()


class RunningMoments:
    """Mean and variance of each column over batches.

    Sums are kept in float64 around the running mean, so that a large offset costs no digits and the result does not
    depend on the batch size beyond rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._squares = torch.zeros(0, dtype=torch.float64)

    def update(self, values: torch.Tensor) -> None:
        """Add a batch.

        Args:
            values: `(B, V, ...)`; the trailing axes are flattened into columns.
        """
        # Betas of hundreds beside deviations of a few: float32 sums would lose the deviations.
        rows = values.flatten(1).double()
        if rows.shape[0] == 0:
            return
        mean = rows.mean(dim=0)
        squares = (rows - mean).square().sum(dim=0)
        if self.count == 0:
            self.count, self._mean, self._squares = rows.shape[0], mean, squares
            return
        step, weight = merge_factors(self.count, rows.shape[0])
        delta = mean - self._mean
        self._mean = self._mean + delta * step
        self._squares = self._squares + squares + delta.square() * weight
        self.count += rows.shape[0]

    @property
    def mean(self) -> torch.Tensor:
        """`(D,)` float64 mean of each column.

        Raises:
            ValueError: If nothing was added.
        """
        self._require_rows()
        return self._mean

    @property
    def variance(self) -> torch.Tensor:
        """`(D,)` float64 variance of each column, divisor n as in scikit-learn's `StandardScaler`.

        Raises:
            ValueError: If nothing was added.
        """
        self._require_rows()
        return self._squares / self.count

    @property
    def constant(self) -> torch.Tensor:
        """`(D,)` bool, which columns do not vary: their deviation is below the float32 rounding of their mean."""
        return _constant(self.variance.sqrt(), self.mean)

    @property
    def scale(self) -> torch.Tensor:
        """`(D,)` float64 what to divide by: the standard deviation, and 1 for constant columns."""
        return divisors(self.variance.sqrt(), self.mean)

    def _require_rows(self) -> None:
        """Raise unless rows were added."""
        if self.count == 0:
            raise ValueError("moments of 0 rows: at least one must be added")
