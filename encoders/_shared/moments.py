"""Streaming means and standard deviations, and the check that every encoder makes on its inputs."""

from __future__ import annotations

import torch


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


class RunningMoments:
    """Mean and variance of each column over batches, by the pairwise update of Chan, Golub & LeVeque 1983.

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
        total = self.count + rows.shape[0]
        delta = mean - self._mean
        self._mean = self._mean + delta * (rows.shape[0] / total)
        self._squares = self._squares + squares + delta.square() * (self.count * rows.shape[0] / total)
        self.count = total

    @property
    def mean(self) -> torch.Tensor:
        """`(D,)` float64 mean of each column.

        Raises:
            ValueError: If nothing was added.
        """
        self._require_rows()
        return self._mean

    def variance(self, ddof: int = 0) -> torch.Tensor:
        """Return the variance of each column.

        Args:
            ddof: Subtracted from the count in the divisor; 0 as scikit-learn's `StandardScaler`, 1 as Brain-Diffuser.

        Returns:
            `(D,)` float64.

        Raises:
            ValueError: If no more than `ddof` rows were added.
        """
        self._require_rows(ddof)
        return self._squares / (self.count - ddof)

    def constant(self) -> torch.Tensor:
        """Return which columns do not vary.

        A column counts as constant where its deviation is below the float32 rounding of its mean, so that a voxel
        outside the brain is not taken for one whose signal is the rounding errors.

        Returns:
            `(D,)` bool.
        """
        return self.variance().sqrt() <= 1e-7 * self.mean.abs()

    def scale(self, ddof: int = 0) -> torch.Tensor:
        """Return what to divide by: the standard deviation, and 1 for constant columns.

        Args:
            ddof: See `variance`.

        Returns:
            `(D,)` float64, all positive.
        """
        deviation = self.variance(ddof).sqrt()
        # Divided by 1, a constant column becomes zeros once its mean is off; by its own deviation it would be NaN.
        return torch.where(self.constant(), torch.ones_like(deviation), deviation)

    def _require_rows(self, ddof: int = 0) -> None:
        """Raise unless more than `ddof` rows were added."""
        if self.count <= ddof:
            raise ValueError(f"moments of {self.count} rows with ddof {ddof}: more than {ddof} rows are needed")
