"""Borda ranks of rows with bootstrap intervals.

Shape legend: R rows of a board, M metrics, S subjects, N images, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.statistics.bootstrap import LEVEL, RESAMPLES, Array, tails
from eval.statistics.crossed import contributions, resampled


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


def borda(
    tables: Mapping[str, Array],
    higher_is_better: Sequence[bool],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Rank]:
    """Rank rows by Borda count over metrics, with intervals from a joint bootstrap over subjects and images.

    A row's value of a metric is the mean over subjects of the mean over images. Each resample draws subjects and
    images with replacement, the same for all rows, and images the same for all subjects (see `crossed`):
    rows are compared on the same pictures.

    Args:
        tables: For each row a grid `(M, S, N)`; NaN where a subject did not see an image, in all rows alike.
        higher_is_better: For each of the M metrics.
        resamples: Number of bootstrap samples.
        level: Coverage of the rank intervals.
        seed: Of the draws.

    Returns:
        The rows, best first.

    Raises:
        ValueError: If there are no rows, shapes differ between rows, or a value is NaN in some rows only.
    """
    _check_tables(tables, len(higher_is_better))
    signs = np.where(higher_is_better, 1.0, -1.0)[:, None, None]
    # From here on higher is better in every metric.
    values = np.stack(list(tables.values())) * signs  # (R, M, S, N)
    points = _borda_points(contributions(values).sum(axis=-1)[None])[0]
    drawn = resampled(values, resamples, seed, draw_subjects=True)
    ranks = _ranks(_borda_points(drawn[~np.isnan(drawn).any(axis=(1, 2))]))
    low, high = np.quantile(ranks, tails(level), axis=0, method="nearest").astype(int)
    return _group(list(tables), points, low, high)


def _check_tables(tables: Mapping[str, Array], metrics: int) -> None:
    """Refuse rows that do not compare; see `borda`."""
    if not tables:
        raise ValueError("nothing to rank: no rows")
    first_name, first = next(iter(tables.items()))
    for row, values in tables.items():
        if values.shape != first.shape or values.ndim != 3 or len(values) != metrics:
            raise ValueError(
                f"row {row!r} has values {values.shape}, row {first_name!r} {first.shape}: ranking needs the same "
                f"subjects and images in all rows and {metrics} metrics"
            )


def _borda_points(values: Array) -> Array:
    """`(B, R)` points from `(B, R, M)` values, higher better: rows beaten, ties one half, mean over metrics."""
    points = np.zeros(values.shape[:2])
    for row in range(values.shape[1]):
        own = values[:, row : row + 1]
        # Two sums of the same numbers may differ in their last bits; that breaks no tie.
        near = np.isclose(own, values, rtol=1e-12, atol=1e-15)
        wins = ((own > values) & ~near).sum(1) + 0.5 * (near.sum(1) - 1)
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
