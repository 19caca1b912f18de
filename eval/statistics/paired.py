"""Paired tests between two rows: difference, bootstrap interval, sign-flip permutation test, Holm's correction.

The unit is the test image, with its values in all subjects together: subjects saw the same images, so an image that
favours one system tends to favour it in every subject, and subjects are no independent replications of it.

Shape legend: T tests (metrics, pairs of rows), S subjects, N images, B sign flips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.statistics.bootstrap import LEVEL, RESAMPLES, Array
from eval.statistics.crossed import contributions, interval, resampled

FLIPS = 9999
_CHUNK = 1000
_MARGIN = 1e-9
"""Sums of the same numbers in another order differ in their last bits; such ties count against the difference."""


@dataclass(frozen=True)
class PairedTest:
    """One metric of two rows, first minus second.

    Attributes:
        difference: Mean over subjects of means over images.
        low: Lower end of the bootstrap interval over subjects and images.
        high: Upper end.
        p_value: Of the sign-flip test over images, two-sided, not corrected.
        n: Images behind it.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def paired_tests(
    differences: Array,
    resamples: int = RESAMPLES,
    flips: int | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> list[PairedTest]:
    """Test differences between rows, paired by subject and image; all tests share their draws.

    The interval draws subjects and images, so it also covers what differs between subjects. The p-value holds the
    subjects: with the 2 to 8 of this field no test over subjects could reach .05 (2^-S sign patterns), so it speaks of
    these subjects seeing other images. Neither is a reason to drop the other; a claim should have both.

    Args:
        differences: `(T, S, N)`, first minus second; NaN where a subject did not see an image.
        resamples: Bootstrap samples.
        flips: Sign flips, see `sign_flip`; None takes as many as Holm's correction of T tests needs.
        level: Coverage of the interval.
        seed: Of the draws.

    Raises:
        ValueError: If there is no test, or a value is NaN in some tests only.
    """
    added = contributions(differences)
    low, high = interval(resampled(differences, resamples, seed, draw_subjects=True), level)
    p_values = sign_flip(added, enough_flips(len(added)) if flips is None else flips, seed)
    means = added.sum(axis=1)
    return [
        PairedTest(float(mean), float(a), float(b), float(p), differences.shape[-1])
        for mean, a, b, p in zip(means, low, high, p_values, strict=True)
    ]


def enough_flips(tests: int) -> int:
    """Return how many random flips let the smallest possible p-value stay at 1 % after correcting so many tests."""
    return max(FLIPS, 100 * tests - 1)


def sign_flip(values: Array, flips: int = FLIPS, seed: int = 0) -> Array:
    """Two-sided p-values of a paired permutation test: if rows do not differ, an image's difference has no sign.

    Exchanging the two rows of an image flips the sign of its difference in all subjects at once. Where all 2^N
    patterns are at most as many as asked for, they are enumerated and p is exact; otherwise p is
    `(1 + flips at least as extreme) / (1 + flips)`, which is valid at any number of flips (Phipson & Smyth 2010).
    Identification scores of different images share comparisons; the test treats them as exchangeable all the same.

    Args:
        values: `(T, N)`, what each image adds to the difference.
        flips: B.
        seed: Of random flips, the same for all T tests.

    Returns:
        `(T,)`.

    Raises:
        ValueError: If there are no values or one is NaN.
    """
    if values.ndim != 2 or 0 in values.shape or np.isnan(values).any():
        raise ValueError(f"expected finite differences (T, N), got shape {values.shape} with NaN or nothing in it")
    images = values.shape[1]
    least = np.abs(values.sum(axis=1)) * (1 - _MARGIN)
    exact = 2**images <= flips + 1
    total = 2**images if exact else flips
    extreme, rng = np.zeros(len(values), np.int64), np.random.default_rng(seed)
    for first in range(0, total, _CHUNK):
        rows = min(_CHUNK, total - first)
        negative = _patterns(first, rows, images) if exact else rng.integers(0, 2, size=(rows, images)) > 0
        flipped = np.where(negative, -1.0, 1.0) @ values.T
        extreme += (np.abs(flipped) >= least).sum(axis=0)
    return np.asarray(extreme / total if exact else (1 + extreme) / (1 + total))


def holm(p_values: Array) -> Array:
    """Holm's step-down adjustment (Holm 1979): the family-wise error rate over all T tests, whatever their dependence.

    Args:
        p_values: `(T,)` in [0, 1].

    Returns:
        `(T,)` adjusted, in the same order, at most 1.

    Raises:
        ValueError: If they are not p-values.
    """
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"expected p-values (T,) between 0 and 1, got {p_values}")
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    # Adjusted values never fall: a larger p-value cannot be more significant than a smaller one.
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _patterns(first: int, rows: int, images: int) -> NDArray[np.bool_]:
    """Return sign patterns `first ... first + rows - 1` of all 2^N, `(rows, N)`: the bits of their numbers."""
    numbers = np.arange(first, first + rows)[:, None]
    return (numbers >> np.arange(images)) % 2 > 0
