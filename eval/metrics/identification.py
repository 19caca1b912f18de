"""Two-way identification: is a reconstruction closer to its own truth than to another picture?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from eval.metrics._correlation import cross_correlation
from eval.metrics.base import Formula, Readout

Ties = Literal["zero", "half"]

TOLERANCE = 1e-12
"""Correlations this close tie: equal features may differ in the last bit, by where they fell in a matrix product."""


@dataclass(frozen=True)
class Identification(Readout):
    """Which comparisons are made, and what a tie counts.

    By default the comparisons of Ozcelik & VanRullen 2023 and of MindEye's code: for each reconstruction, its
    correlation with its own truth against that with every *other truth*.

    Constant features have no correlation (NaN in NumPy, whose comparisons are false): each comparison that involves
    them counts as lost, as published, under either rule for ties.

    Attributes:
        transpose: Compare with other reconstructions instead of other truths: for each truth, its correlation with its
            own reconstruction against that with every *other reconstruction* (Takagi & Nishimoto 2023, and the text of
            MindEye2's appendix).
        ties: A tie counts "zero", as published (a strict <), or "half", which leaves chance at 0.5.
    """

    across_images: ClassVar[bool] = True
    averages_comparisons: ClassVar[bool] = True
    transpose: bool = False
    ties: Ties = "zero"

    def __post_init__(self) -> None:
        if self.ties not in ("zero", "half"):
            raise ValueError(f"ties must be 'zero' or 'half', got {self.ties!r}")

    def conclude(self, comparison: Tensor) -> Tensor:
        """Return `(N,)` shares of comparisons won from `(N, N)` correlations, NaN where undefined.

        Args:
            comparison: `[i, j]` = truth i with reconstruction j.

        Raises:
            ValueError: If the matrix is not square or N < 2.
        """
        n = len(comparison)
        if comparison.shape != (n, n) or n < 2:
            raise ValueError(f"identification needs at least 2 images, got correlations {tuple(comparison.shape)}")
        others = comparison.T if self.transpose else comparison  # one column a trial, compared with its diagonal entry
        # Comparisons with NaN are false, here as in NumPy: what is undefined is neither won nor tied.
        margin = others.diagonal() - others
        won = (margin > TOLERANCE).sum(0).double()
        if self.ties == "half":
            tied = (margin.abs() <= TOLERANCE).fill_diagonal_(False)
            won += tied.sum(0) / 2
        return won / (n - 1)

    @property
    def chance(self) -> float:
        """One half, apart from ties that count nothing."""
        return 0.5

    @property
    def least_images(self) -> int:
        """Two: a comparison takes another picture."""
        return 2

    def describe(self) -> str:
        """Return the direction and what ties count."""
        return f"other {'reconstructions' if self.transpose else 'truths'}, ties {self.ties}"


def _truth_first(reconstructions: Tensor, truth: Tensor) -> Tensor:
    return cross_correlation(truth, reconstructions)  # [i, j] = truth i with reconstruction j


TWO_WAY_IDENTIFICATION = Formula("two-way-identification", "identification", "features", _truth_first, Identification())
"""Share of two-way comparisons won: the mean is the table value, chance 0.5."""
