"""Two-way identification: is a reconstruction closer to its own truth than to another picture?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from eval.metrics._base import PerImageMetric, check_pairs, cross_correlation
from eval.metrics._readout import Readout

Ties = Literal["zero", "half"]

TOLERANCE = 1e-12
"""Correlations this close tie: equal features may differ in the last bit, by where they fell in a matrix product."""


def two_way_identification(
    reconstructions: Tensor, truth: Tensor, *, transpose: bool = False, ties: Ties = "zero"
) -> Tensor:
    """Share of two-way comparisons won, for each image.

    By default the comparisons of Ozcelik & VanRullen 2023 and of MindEye's code: for each reconstruction, its
    correlation with its own truth against that with every *other truth*. With `transpose`, Takagi & Nishimoto 2023
    (and the text of MindEye2's appendix): for each truth, against every *other reconstruction*.

    Constant features have no correlation (NaN in NumPy, whose comparisons are false): each comparison that involves
    them counts as lost, as published, under either rule for ties.

    Args:
        reconstructions: Features `(N, ...)`, flattened per image; N >= 2.
        truth: The same shape.
        transpose: Compare with other reconstructions instead of other truths.
        ties: A tie counts "zero", as published (a strict <), or "half", which leaves chance at 0.5.

    Returns:
        `(N,)` float64 in [0, 1]; the mean is the table value, chance 0.5.

    Raises:
        ValueError: If the shapes differ, N < 2, or `ties` is unknown.
    """
    check_pairs(reconstructions, truth)
    return identification_from_correlations(cross_correlation(truth, reconstructions), transpose=transpose, ties=ties)


def identification_from_correlations(correlations: Tensor, *, transpose: bool = False, ties: Ties = "zero") -> Tensor:
    """Share of two-way comparisons won, from correlations that are already there (or averaged over samples).

    Args:
        correlations: `(N, N)`, `[i, j]` = truth i with reconstruction j; NaN where undefined.
        transpose: See `two_way_identification`.
        ties: See `two_way_identification`.

    Returns:
        `(N,)` float64.

    Raises:
        ValueError: If the matrix is not square, N < 2, or `ties` is unknown.
    """
    if ties not in ("zero", "half"):
        raise ValueError(f"ties must be 'zero' or 'half', got {ties!r}")
    n = len(correlations)
    if correlations.shape != (n, n) or n < 2:
        raise ValueError(f"identification needs at least 2 images, got correlations {tuple(correlations.shape)}")
    others = correlations.T if transpose else correlations  # one column a trial, compared with its own diagonal entry
    # Comparisons with NaN are false, here as in NumPy: what is undefined is neither won nor tied.
    margin = others.diagonal() - others
    won = (margin > TOLERANCE).sum(0).double()
    if ties == "half":
        tied = (margin.abs() <= TOLERANCE).fill_diagonal_(False)
        won += tied.sum(0) / 2
    return won / (n - 1)


@dataclass(frozen=True)
class Identification(Readout):
    """`identification_from_correlations` with its options, see `two_way_identification`."""

    averages_comparisons: ClassVar[bool] = True
    transpose: bool = False
    ties: Ties = "zero"

    def conclude(self, comparison: Tensor) -> Tensor:
        """Return `(N,)` shares of comparisons won from `(N, N)` correlations, `[i, j]` = truth i, reconstruction j."""
        return identification_from_correlations(comparison, transpose=self.transpose, ties=self.ties)

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


class TwoWayIdentification(PerImageMetric):
    """`two_way_identification` over batches: every image is compared with all images of all batches and processes."""

    higher_is_better = True
    truth: list[Tensor]

    def __init__(self, *, transpose: bool = False, ties: Ties = "zero") -> None:
        super().__init__()
        self.transpose = transpose
        self.ties = ties
        self.add_state("truth", default=[], dist_reduce_fx="cat")

    def update(self, reconstructions: Tensor, truth: Tensor) -> None:
        """Add features: `(B, ...)` each."""
        check_pairs(reconstructions, truth)
        self.values.append(reconstructions.flatten(1))
        self.truth.append(truth.flatten(1))

    def _values(self) -> Tensor:
        features = super()._values()
        with torch.no_grad():
            return two_way_identification(features, dim_zero_cat(self.truth), transpose=self.transpose, ties=self.ties)
