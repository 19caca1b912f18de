"""Uncertainty of one subject's scores, random pairings, and scores relative to floor and ceiling.

Everything is seeded and vectorised: a resample is a row of counts, and all its means are one matrix product. What
spans several subjects stands in `crossed`, tests in `paired`, ranks in `ranking`.

Shape legend: N images, M metrics, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean.
        standard_error: Standard deviation of the values over the root of their number; NaN for a single image.
        low: Lower end of the bootstrap percentile interval.
        high: Upper end.
        n: Number of images.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int


def resampled_means(values: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means over images drawn with replacement; the same draws for all columns.

    Args:
        values: `(N, M)`.
        resamples: B.
        seed: Of the draws.

    Returns:
        `(B, M)`.
    """
    draws = counts(np.random.default_rng(seed), resamples, len(values))
    # A product a column: the last digit of a metric must not depend on which others stand beside it.
    return np.stack([draws @ np.ascontiguousarray(column) for column in values.T], 1) / len(values)


def bootstrap(values: Array, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Estimate a mean with the percentile interval of the bootstrap over images (Efron & Tibshirani 1993).

    Args:
        values: `(N,)`, one value an image.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If there are no values or one is NaN.
    """
    return bootstraps([values], resamples, level, seed)[0]


def bootstraps(
    columns: Sequence[Array], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> list[Estimate]:
    """Estimate several means of the same images, each as `bootstrap` does, from one set of draws.

    Args:
        columns: For each metric `(N,)`, one value an image.
        resamples: Number of bootstrap samples.
        level: Coverage of the intervals.
        seed: Of the draws.

    Raises:
        ValueError: If the metrics have different numbers of images, no values, or one that is NaN.
    """
    for values in columns:
        _check_values(values)
    if len(sizes := {len(values) for values in columns}) > 1:
        raise ValueError(f"one set of draws takes metrics of the same images; got {sorted(sizes)} values")
    if not columns:
        return []
    intervals = np.quantile(resampled_means(np.stack(columns, 1), resamples, seed), tails(level), axis=0).T
    return [_estimate(values, float(low), float(high)) for values, (low, high) in zip(columns, intervals, strict=True)]


def derangement(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a permutation `(n,)` without fixed points, uniformly, by rejection (about e tries)."""
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order


def normalise(score: Array, floor: Array, ceiling: Array) -> Array:
    """Return `(score - floor) / (ceiling - floor)`: 0 at the floor, 1 at the ceiling, unclipped.

    Works for both directions of better. NaN where ceiling and floor are equal.
    """
    # Not clipped: a score beyond its ceiling says that the ceiling is no ceiling, and must stay visible.
    span = np.asarray(ceiling, np.float64) - floor
    return (score - np.asarray(floor, np.float64)) / np.where(span == 0, np.nan, span)


def counts(rng: np.random.Generator, resamples: int, n: int) -> Array:
    """How often each of n things is drawn in each of the resamples, `(B, n)`."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def tails(level: float) -> tuple[float, float]:
    """The two quantiles that bound an interval of this coverage."""
    return (1 - level) / 2, (1 + level) / 2


def _estimate(values: Array, low: float, high: float) -> Estimate:
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Estimate(float(values.mean()), error, low, high, n)


def _check_values(values: Array) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected one value an image, (N,) with N >= 1; got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"value of image {int(np.isnan(values).argmax())} is NaN: leave metrics without a value out")
