"""Means over subjects and their uncertainty: images are drawn once for all subjects, because all saw the same ones.

A test image that is hard to reconstruct is hard in every subject: subjects and images are crossed, not nested. Drawing
images anew within each subject (a hierarchical bootstrap) would treat S scores of one image as S independent images and
make intervals too narrow by up to the root of S. So one draw of images serves all subjects, here and everywhere else.

Subjects are held for the interval of a single row: it says how well these subjects' score is known. They are drawn too,
independently of the images (the pigeonhole bootstrap of Owen 2007), wherever systems are compared or ranked: a system
that wins in two subjects of three is not simply better, and what makes a subject easy cancels in a paired difference.

Shape legend: S subjects, N images, B resamples. A grid is `(..., S, N)` with NaN where a subject did not see an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval.statistics.bootstrap import LEVEL, RESAMPLES, Array, Estimate, counts, tails


def grid(values: Sequence[Array], images: Sequence[Sequence[int]]) -> Array:
    """Lay out values by subject and image.

    Args:
        values: For each subject `(N_s,)`.
        images: For each subject which image each value belongs to; no image twice.

    Returns:
        `(S, N)` over the sorted images that any subject saw; NaN where a subject did not see one.

    Raises:
        ValueError: If there are no subjects, or values and images do not fit together.
    """
    if not values or len(values) != len(images):
        raise ValueError(f"no subjects to average over: {len(values)} tables, {len(images)} lists of images")
    everything = np.unique(np.concatenate([np.asarray(mine) for mine in images]))
    laid = np.full((len(values), len(everything)), np.nan)
    for row, own, mine in zip(laid, values, images, strict=True):
        if own.shape != (len(mine),) or len(set(mine)) != len(mine):
            raise ValueError(f"{own.shape} values for {len(mine)} images, {len(set(mine))} of them different")
        if np.isnan(own).any():
            raise ValueError(f"value of image {int(np.isnan(own).argmax())} is NaN: leave metrics without a value out")
        row[np.searchsorted(everything, np.asarray(mine))] = own
    return laid


def contributions(values: Array) -> Array:
    """What each image adds to the mean over subjects of means over images.

    Args:
        values: Grid `(..., S, N)`.

    Returns:
        `(..., N)`; their sum over images is the mean.

    Raises:
        ValueError: If a subject has no value, or the values do not all miss the same places.
    """
    there = _there(values)
    shares = there / there.sum(axis=1, keepdims=True) / len(there)
    total: Array = (np.where(there, values, 0.0) * shares).sum(axis=-2)
    return total


def resampled(values: Array, resamples: int, seed: int, draw_subjects: bool) -> Array:
    """Means over subjects of means over images, of images drawn with replacement for all subjects at once.

    Args:
        values: Grid `(..., S, N)`.
        resamples: B.
        seed: Of the draws.
        draw_subjects: Whether subjects are drawn as well, independently of the images.

    Returns:
        `(B, ...)`; NaN in the rare resample in which no drawn subject saw a drawn image.
    """
    there, rng = _there(values), np.random.default_rng(seed)
    subjects, images = there.shape
    people = counts(rng, resamples, subjects) if draw_subjects else np.ones((resamples, subjects))
    drawn = counts(rng, resamples, images)
    seen = drawn @ there.T.astype(np.float64)  # (B, S)
    # A drawn subject none of whose images were drawn has no mean: the others stand for it.
    weights = np.where(seen > 0, people, 0.0)
    flat = np.where(there, values, 0.0).reshape(-1, subjects, images)
    total = np.zeros((resamples, len(flat)))
    for subject in range(subjects):  # subject by subject: the sums of all at once would take S times the memory
        sums = drawn @ flat[:, subject].T
        total += sums * (weights[:, subject] / np.maximum(seen[:, subject], 1.0))[:, None]
    everyone = weights.sum(axis=1, keepdims=True)
    means = total / np.where(everyone > 0, everyone, np.nan)
    return np.asarray(means.reshape(resamples, *values.shape[:-2]))


def interval(means: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Ends of the percentile interval of resampled means `(B, ...)`."""
    low, high = np.nanquantile(means, tails(level), axis=0)
    return low, high


def bootstrap_over_subjects(values: Array, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Estimate the mean over subjects of means over images; the subjects are held, images drawn for all at once.

    The interval is about these subjects seeing other images. It says nothing about other subjects: there are too few.

    Args:
        values: Grid `(S, N)`.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Of the draws.

    Returns:
        The estimate; its standard error is over images, each with what it adds in all subjects, and its n counts the
        values.
    """
    there = _there(values)
    own = values - np.nanmean(values, axis=1, keepdims=True)
    spread, n = contributions(own), values.shape[1]
    error = float(np.sqrt(n / (n - 1) * (spread**2).sum())) if n > 1 else float("nan")
    low, high = interval(resampled(values, resamples, seed, draw_subjects=False), level)
    return Estimate(float(contributions(values).sum()), error, float(low), float(high), int(there.sum()))


def _there(values: Array) -> NDArray[np.bool_]:
    """Which subject saw which image, `(S, N)`; see `contributions` for what is refused."""
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(f"expected values by subject and image, (..., S, N); got shape {values.shape}")
    known = ~np.isnan(values).reshape(-1, *values.shape[-2:])
    there: NDArray[np.bool_] = known[0]
    if (known != there).any():
        place = tuple(int(i) for i in np.argwhere((known != there).any(axis=0))[0])
        raise ValueError(
            f"subject {place[0]}, image {place[1]} has a value in some rows or metrics and NaN in others: compare over "
            "the same images and over metrics that all rows have"
        )
    if not there.any(axis=1).all():
        raise ValueError(f"subject {int((~there.any(axis=1)).argmax())} has no value at all")
    return there
