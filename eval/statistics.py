"""Uncertainty and ranking: bootstrap over images, paired differences, Borda ranks with intervals, chance.

Everything is seeded and vectorised: a resample is a row of counts, and all its means are one matrix product.

Shape legend: N images, M metrics, B resamples, R rows of a board.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Rank:
    """Where a row stands.

    Attributes:
        row: Its name.
        points: Borda points, the mean over metrics of the number of rows beaten (ties one half).
        rank: 1 is best. Rows whose interval overlaps that of the best row of their group share its rank.
        low: Best rank of the bootstrap interval.
        high: Worst rank of the bootstrap interval.
    """

    row: str
    points: float
    rank: int
    low: int
    high: int


def resampled_means(values: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means over images drawn with replacement; the same draws for all columns.

    Args:
        values: `(N, M)`.
        resamples: B.
        seed: Of the draws.

    Returns:
        `(B, M)`.
    """
    return _counts(np.random.default_rng(seed), resamples, len(values)) @ values / len(values)


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
    _check_values(values)
    means = resampled_means(values[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, _tails(level))
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Estimate(float(values.mean()), error, float(low), float(high), n)


def bootstrap_over_subjects(
    subjects: Sequence[Array], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Estimate the mean over subjects of means over images; images are drawn anew within each subject.

    The interval is about these subjects seeing other images. It says nothing about other subjects: there are too few.

    Args:
        subjects: For each subject `(N_s,)` values, one an image.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Of the draws.

    Returns:
        The estimate; its standard error is that of a mean of independent means, its n counts all images.

    Raises:
        ValueError: If there are no subjects, no values, or one is NaN.
    """
    if not subjects:
        raise ValueError("no subjects to average over")
    alone = [bootstrap(values, resamples, level, seed + number) for number, values in enumerate(subjects)]
    drawn = [resampled_means(v[:, None], resamples, seed + number)[:, 0] for number, v in enumerate(subjects)]
    low, high = np.quantile(np.mean(drawn, axis=0), _tails(level))
    error = float(np.sqrt(np.sum([e.standard_error**2 for e in alone])) / len(subjects))
    value = float(np.mean([e.value for e in alone]))
    return Estimate(value, error, float(low), float(high), sum(e.n for e in alone))


def bootstrap_difference(
    first: Array, second: Array, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Estimate the mean of `first - second`, paired by image: both sides of a pair are drawn together.

    Args:
        first: `(N,)` values of one row.
        second: `(N,)` values of another row on the same images in the same order.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If the numbers of images differ, there are none, or a value is NaN.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired values need the same images: got shapes {first.shape} and {second.shape}")
    return bootstrap(first - second, resamples, level, seed)


def borda(
    tables: Mapping[str, Sequence[Array]],
    higher_is_better: Sequence[bool],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Rank]:
    """Rank rows by Borda count over metrics, with intervals from a joint bootstrap over subjects and images.

    A row's value of a metric is the mean over subjects of the mean over images. Each resample draws subjects, and
    for each drawn subject images, with replacement, the same for all rows: rows are compared on the same pictures.

    Args:
        tables: For each row one `(N_s, M)` array a subject; subjects and images in the same order in all rows.
        higher_is_better: For each of the M metrics.
        resamples: Number of bootstrap samples.
        level: Coverage of the rank intervals.
        seed: Of the draws.

    Returns:
        The rows, best first.

    Raises:
        ValueError: If there are no rows, shapes differ between rows, or a value is NaN.
    """
    _check_tables(tables, len(higher_is_better))
    signs = np.where(higher_is_better, 1.0, -1.0)
    # From here on higher is better in every column.
    subjects = [np.stack(columns, axis=1) * signs for columns in zip(*tables.values(), strict=True)]  # (N_s, R, M)
    points = _borda_points(np.mean([table.mean(0) for table in subjects], axis=0)[None])[0]
    drawn = _ranks(_borda_points(_hierarchical_means(subjects, resamples, np.random.default_rng(seed))))
    low, high = np.quantile(drawn, _tails(level), axis=0, method="nearest").astype(int)
    return _group(list(tables), points, low, high)


def expected_chance(
    score: Callable[[NDArray[np.int64]], Array], n: int, pairings: int | None = None, seed: int = 0
) -> Array:
    """Expected score of each image when reconstructions and truths are paired at random, never with their own.

    Args:
        score: `score(order)` gives `(N,)` values when reconstruction `order[i]` stands for image i.
        n: N, at least 2.
        pairings: How many random derangements to average; None takes all n - 1 other reconstructions once, exactly.
        seed: Of random derangements.

    Returns:
        `(N,)`.

    Raises:
        ValueError: If n < 2.
    """
    if n < 2:
        raise ValueError(f"chance needs at least 2 images to pair, got {n}")
    indices = np.arange(n)
    # The n - 1 rotations pair every image with every other one exactly once.
    if pairings is None:
        orders = [np.roll(indices, shift) for shift in range(1, n)]
    else:
        rng = np.random.default_rng(seed)
        orders = [derangement(n, rng) for _ in range(pairings)]
    return np.mean([score(order) for order in orders], axis=0)


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


def _counts(rng: np.random.Generator, resamples: int, n: int) -> Array:
    """How often each of n things is drawn in each of the resamples, `(B, n)`."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _check_values(values: Array) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected one value an image, (N,) with N >= 1; got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"value of image {int(np.isnan(values).argmax())} is NaN: leave metrics without a value out")


def _check_tables(tables: Mapping[str, Sequence[Array]], metrics: int) -> None:
    if not tables:
        raise ValueError("nothing to rank: no rows")
    first_name, first = next(iter(tables.items()))
    expected = [table.shape for table in first]
    for row, subjects in tables.items():
        shapes = [table.shape for table in subjects]
        if not shapes or shapes != expected or any(len(s) != 2 or s[0] == 0 or s[1] != metrics for s in shapes):
            raise ValueError(
                f"row {row!r} has tables {shapes}, row {first_name!r} {expected}: ranking needs the same subjects and "
                f"images in all rows and {metrics} metrics"
            )
        if any(np.isnan(table).any() for table in subjects):
            raise ValueError(f"row {row!r} has NaN values: rank over metrics that all rows have")


def _hierarchical_means(subjects: Sequence[Array], resamples: int, rng: np.random.Generator) -> Array:
    """`(B, R, M)` means over drawn subjects of means over drawn images; `subjects` holds `(N_s, R, M)` arrays."""
    means = np.zeros((resamples, *subjects[0].shape[1:]))
    drawn = rng.integers(len(subjects), size=(resamples, len(subjects)))
    # Slot by slot: a subject drawn twice gets other images the second time, as the hierarchical bootstrap asks.
    for slot in drawn.T:
        for number, table in enumerate(subjects):
            here = np.flatnonzero(slot == number)
            counts = _counts(rng, len(here), len(table))
            means[here] += np.tensordot(counts, table, axes=1) / len(table)
    return means / len(subjects)


def _borda_points(values: Array) -> Array:
    """`(B, R)` points from `(B, R, M)` values, higher better: rows beaten, ties one half, mean over metrics."""
    points = np.zeros(values.shape[:2])
    for row in range(values.shape[1]):
        own = values[:, row : row + 1]
        wins = (own > values).sum(1) + 0.5 * ((own == values).sum(1) - 1)
        points[:, row] = wins.mean(1)
    return points


def _ranks(points: Array) -> Array:
    """`(B, R)` ranks, 1 + the number of rows with more points."""
    # Points are multiples of 1 / (2 M); the margin keeps rounding from breaking ties.
    return 1 + (points[:, None, :] > points[:, :, None] + 1e-9).sum(2)


def _group(rows: list[str], points: Array, low: Array, high: Array) -> list[Rank]:
    """Order rows by points and let rows that overlap the best of their group share its rank."""
    ranks: list[Rank] = []
    # Overlap is not transitive, so each row is compared with the first of its group, never with its neighbour.
    leader_high, leader_rank = -1, 0
    for place, index in enumerate(np.argsort(-points, kind="stable"), start=1):
        if low[index] > leader_high:
            leader_high, leader_rank = int(high[index]), place
        ranks.append(Rank(rows[index], float(points[index]), leader_rank, int(low[index]), int(high[index])))
    return ranks
