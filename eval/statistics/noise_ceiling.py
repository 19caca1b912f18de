"""Noise ceilings of voxels (Allen et al. 2022) and of what is predicted from them.

Shape legend: T trials, V voxels, N rows, D columns (voxels or latent values).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHOWINGS = 3
"""NSD shows each image three times; only images with all showings enter the estimate."""


def zscore_sessions(betas: Array, sessions: NDArray[np.int64]) -> Array:
    """Z-score each voxel within each session (sample standard deviation, ddof = 1).

    Args:
        betas: `(T, V)`.
        sessions: `(T,)` session of each trial.

    Returns:
        `(T, V)` float64; NaN where a voxel does not vary within a session, as it carries nothing there.

    Raises:
        ValueError: If the shapes do not match or a session has a single trial.
    """
    if betas.ndim != 2 or sessions.shape != betas.shape[:1]:
        raise ValueError(f"expected betas (T, V) and sessions (T,), got {betas.shape} and {sessions.shape}")
    scored = np.empty(betas.shape, np.float64)
    for session in np.unique(sessions):
        rows = sessions == session
        if rows.sum() < 2:
            raise ValueError(f"session {session} has a single trial: it cannot be z-scored")
        values = np.asarray(betas[rows], np.float64)
        spread = values.std(0, ddof=1)
        scored[rows] = (values - values.mean(0)) / np.where(spread == 0, np.nan, spread)
    return scored


def ncsnr(betas: Array, sessions: NDArray[np.int64], stimuli: NDArray[np.int64]) -> Array:
    """Noise-ceiling signal-to-noise ratio of each voxel, as NSD estimates it.

    Betas are z-scored within sessions; the noise variance is the mean, over images with all three showings, of the
    variance across them (ddof = 1); what is missing to the total variance of 1 is signal.

    Args:
        betas: `(T, V)` raw betas.
        sessions: `(T,)` session of each trial.
        stimuli: `(T,)` stimulus of each trial.

    Returns:
        `(V,)` float64, `sqrt(max(1 - v^2, 0)) / v`; NaN for voxels that do not vary.

    Raises:
        ValueError: If the shapes do not match or no image has exactly three showings.
    """
    scored = zscore_sessions(betas, sessions)
    if stimuli.shape != sessions.shape:
        raise ValueError(f"expected one stimulus a trial, got {stimuli.shape} for {len(sessions)} trials")
    # Sorting brings the showings of an image together; complete images are then runs of three.
    order = np.argsort(stimuli, kind="stable")
    _, starts, counts = np.unique(stimuli[order], return_index=True, return_counts=True)
    complete = starts[counts == SHOWINGS]
    if len(complete) == 0:
        raise ValueError(f"no image has exactly {SHOWINGS} showings; counts run from {counts.min()} to {counts.max()}")
    trials = order[complete[:, None] + np.arange(SHOWINGS)]  # (images, 3)
    noise = np.mean([scored[rows].var(axis=0, ddof=1) for rows in trials], axis=0)
    # Z-scored betas have a variance of 1; by chance the noise estimate may exceed it, and no signal is left.
    return np.sqrt(np.maximum(1 - noise, 0)) / np.sqrt(noise)


def noise_ceiling(ncsnr: Array, images_by_showings: Sequence[int]) -> Array:
    """Percentage of the variance of averaged responses that a perfect model explains.

    Args:
        ncsnr: `(V,)` ratios.
        images_by_showings: How many test images are means of 1, 2, 3, ... showings: `(0, 0, 1000)` for NSD's shared
            images of a complete subject, `(1,)` for single trials.

    Returns:
        `(V,)` in percent: `100 ncsnr^2 / (ncsnr^2 + m)` with m the mean over images of 1 / showings. The ceiling of a
        correlation is `sqrt(NC / 100)`.

    Raises:
        ValueError: If no image is counted or a count is negative.
    """
    counts = np.asarray(images_by_showings, np.float64)
    if counts.ndim != 1 or counts.sum() <= 0 or (counts < 0).any():
        raise ValueError(f"expected numbers of images by showings, such as (0, 0, 1000); got {images_by_showings}")
    mean_inverse = (counts / np.arange(1, len(counts) + 1)).sum() / counts.sum()
    signal = np.square(np.asarray(ncsnr, np.float64))
    return 100 * signal / (signal + mean_inverse)


def prediction_ceiling(predictions: Array, stimuli: NDArray[np.int64]) -> Array:
    """Highest correlation that predictions averaged over showings can have with any noiseless truth.

    True latents have no noise, so a voxel's ceiling does not bound what is predicted from many voxels; the noise that
    reaches the predictions does. It is the variance across predictions from single showings of one image, estimated as
    NSD's is (`ncsnr`); what it leaves of the variance across images is the reliability of the means, and its root
    bounds every correlation with them (Spearman 1904). A score over its ceiling estimates what the same decoder
    would reach on responses without noise.

    Args:
        predictions: `(T, D)`, one row a showing.
        stimuli: `(T,)` which image each shows.

    Returns:
        `(D,)` in [0, 1]; 0 where predictions do not vary between images beyond their noise.

    Raises:
        ValueError: If the shapes do not match, or no two images, or no image with two showings, is among them.
    """
    if predictions.ndim != 2 or stimuli.shape != predictions.shape[:1]:
        raise ValueError(f"expected predictions (T, D) and stimuli (T,), got {predictions.shape} and {stimuli.shape}")
    _, image, counts = np.unique(stimuli, return_inverse=True, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(f"{len(counts)} images with at most {counts.max(initial=0)} showings: 2 of each are needed")
    values = np.asarray(predictions, np.float64)
    means = np.zeros((len(counts), values.shape[1]))
    np.add.at(means, image, values)
    means /= counts[:, None]
    repeated = counts[image] > 1
    # Each image's own variance counts once, however often it was shown.
    squares = np.square(values - means[image]) / np.maximum(counts[image] - 1, 1)[:, None]
    noise = squares[repeated].sum(0) / (counts > 1).sum()
    total = means.var(0, ddof=1)
    left = 1 - noise * (1 / counts).mean() / np.where(total == 0, np.inf, total)
    return np.sqrt(np.clip(np.where(total == 0, 0, left), 0, 1))
