"""Noise ceilings against loops over images, and against data whose ratio is known."""

import numpy as np
import pytest

from eval.statistics.noise_ceiling import (
    ncsnr,
    noise_ceiling,
    prediction_ceiling,
    zscore_sessions,
)


def _correlations(x, y):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, y.T, strict=True)])


def _trials(ratio, images=800, seed=0):
    """Trials in 6 sessions whose voxels have the given signal-to-noise ratios; three showings an image."""
    rng = np.random.default_rng(seed)
    stimuli = rng.permutation(np.repeat(np.arange(images), 3))
    signal = rng.standard_normal((images, len(ratio))) * ratio
    betas = signal[stimuli] + rng.standard_normal((len(stimuli), len(ratio)))
    sessions = np.sort(rng.integers(1, 7, len(stimuli)))
    return betas * 2 + sessions[:, None], sessions, stimuli  # a scale and a drift, which z-scoring removes


def test_recovers_the_ratio_that_was_put_in():
    ratio = np.array([0.2, 0.36, 0.6, 1.0])
    estimated = ncsnr(*_trials(np.repeat(ratio, 40))).reshape(4, 40)  # one voxel alone is too noisy to judge by
    np.testing.assert_allclose(np.median(estimated, axis=1), ratio, rtol=0.1)


def test_equals_a_loop_over_images():
    betas, sessions, stimuli = _trials(np.array([0.5, 1.0]), images=40)
    keep = np.ones(len(stimuli), bool)
    keep[np.flatnonzero(stimuli == 7)[0]] = False  # an image with two showings does not count
    betas, sessions, stimuli = betas[keep], sessions[keep], stimuli[keep]
    scored = np.empty_like(betas)
    for s in np.unique(sessions):
        block = betas[sessions == s]
        scored[sessions == s] = (block - block.mean(0)) / block.std(0, ddof=1)
    variances = [scored[stimuli == i].var(0, ddof=1) for i in range(40) if (stimuli == i).sum() == 3]
    assert len(variances) == 39
    v = np.sqrt(np.mean(variances, axis=0))
    np.testing.assert_allclose(ncsnr(betas, sessions, stimuli), np.sqrt(np.maximum(1 - v**2, 0)) / v)


def test_a_voxel_without_signal_is_zero_and_one_that_never_varies_is_nan():
    betas, sessions, stimuli = _trials(np.array([0.5, 0.5]))
    betas[:, 0] = 3.0
    result = ncsnr(betas, sessions, stimuli)
    assert np.isnan(result[0])
    assert result[1] > 0.3
    anti = np.tile([1.0, 0.0, -1.0], 30)[:, None]  # more variance within images than in all: no signal
    assert ncsnr(anti, np.ones(90, int), np.repeat(np.arange(30), 3)).tolist() == [0.0]


def test_ceilings_equal_the_published_medians():
    """NSD, b3, nsdgeneral, func1pt8mm: median ncsnr and median ceiling of three showings, subjects 1 to 8."""
    medians = np.array([0.361, 0.361, 0.324, 0.296, 0.415, 0.343, 0.281, 0.226])
    published = [28.1, 28.1, 24.0, 20.8, 34.1, 26.1, 19.1, 13.3]
    np.testing.assert_allclose(noise_ceiling(medians, (0, 0, 1000)), published, atol=0.1)


def test_mixture_of_showings():
    ratio = np.array([0.4])
    expected = 100 * 0.16 / (0.16 + (5 / 3 + 3 / 2 + 2 / 1) / 10)
    np.testing.assert_allclose(noise_ceiling(ratio, (2, 3, 5)), expected)
    np.testing.assert_allclose(noise_ceiling(ratio, (7,)), 100 * 0.16 / 1.16)


def test_correlation_of_the_best_prediction_reaches_the_ceiling():
    rng = np.random.default_rng(1)
    signal = 0.6 * rng.standard_normal((20_000, 1))
    mean_of_three = signal + rng.standard_normal((20_000, 1)) / np.sqrt(3)
    ceiling = np.sqrt(noise_ceiling(np.array([0.6]), (0, 0, 1)) / 100)
    np.testing.assert_allclose(_correlations(signal, mean_of_three), ceiling, atol=0.01)


def _decoded(ratio, images=3000, showings=3, seed=3):
    """Single-showing predictions of a decoder: what it says of an image, blurred by noise; and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((images, len(ratio)))
    said = 0.6 * truth + 0.8 * rng.standard_normal(truth.shape)  # without noise it correlates by .6
    stimuli = np.repeat(np.arange(images), showings)
    return said[stimuli] + rng.standard_normal((len(stimuli), len(ratio))) / ratio, stimuli, truth


def test_the_ceiling_of_predictions_is_what_noise_lets_through():
    """A score over its ceiling is the correlation that the decoder would reach on responses without noise."""
    ratio = np.repeat([0.3, 0.6, 1.5], 40)  # the mean over many targets: one alone is too noisy to judge by
    predictions, stimuli, truth = _decoded(ratio, images=800)
    ceiling = prediction_ceiling(predictions, stimuli).reshape(3, 40).mean(axis=1)
    np.testing.assert_allclose(ceiling, np.sqrt(ratio[::40] ** 2 / (ratio[::40] ** 2 + 1 / 3)), atol=0.02)
    means = predictions.reshape(800, 3, 120).mean(axis=1)
    scores = _correlations(means, truth).reshape(3, 40).mean(axis=1)
    np.testing.assert_allclose(scores / ceiling, 0.6, atol=0.02)


def test_the_ceiling_of_predictions_agrees_with_split_halves():
    """Spearman and Brown's formula on the correlation of two halves of four showings."""
    predictions, stimuli, _ = _decoded(np.array([0.5, 1.0]), showings=4)
    halves = predictions.reshape(-1, 2, 2, 2).mean(axis=2)
    r = _correlations(halves[:, 0], halves[:, 1])
    np.testing.assert_allclose(prediction_ceiling(predictions, stimuli), np.sqrt(2 * r / (1 + r)), atol=0.03)


def test_the_ceiling_of_predictions_equals_a_loop_over_images():
    predictions, stimuli, _ = _decoded(np.array([0.5, 1.0]), images=30)
    keep = np.ones(len(stimuli), bool)
    keep[[0, 1, 3, 91 - 2]] = False  # image 0 is shown once, images 1 and 29 twice
    predictions, stimuli = predictions[keep][::-1], stimuli[keep][::-1]
    of = [predictions[stimuli == i] for i in range(30)]
    noise = np.mean([rows.var(axis=0, ddof=1) for rows in of if len(rows) > 1], axis=0)
    share = np.mean([1 / len(rows) for rows in of])
    total = np.var([rows.mean(axis=0) for rows in of], axis=0, ddof=1)
    np.testing.assert_allclose(prediction_ceiling(predictions, stimuli), np.sqrt(1 - noise * share / total))


def test_predictions_without_signal_have_no_ceiling_and_without_noise_none_below_one():
    rng = np.random.default_rng(4)
    stimuli = np.repeat(np.arange(40), 2)
    exact = rng.standard_normal((40, 1))[stimuli]
    anti = np.tile([[1.0], [-1.0]], (40, 1))
    found = prediction_ceiling(np.hstack([exact, anti, np.ones((80, 1))]), stimuli)
    np.testing.assert_allclose(found, [1, 0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prediction_ceiling(np.zeros((4, 2)), np.zeros(3, int)), r"\(4, 2\) and \(3,\)"),
        (lambda: prediction_ceiling(np.zeros((4, 2)), np.arange(4)), "4 images with at most 1 showings"),
        (lambda: prediction_ceiling(np.zeros((4, 2)), np.zeros(4, int)), "1 images with at most 4 showings"),
        (lambda: zscore_sessions(np.zeros((4, 2)), np.zeros(3, int)), r"\(4, 2\) and \(3,\)"),
        (lambda: zscore_sessions(np.zeros((3, 2)), np.array([1, 1, 2])), "session 2 has a single trial"),
        (lambda: ncsnr(np.zeros((4, 2)), np.ones(4, int), np.array([0, 0, 1, 1])), "counts run from 2 to 2"),
        (lambda: ncsnr(np.zeros((4, 2)), np.ones(4, int), np.zeros(3, int)), "one stimulus a trial"),
        (lambda: noise_ceiling(np.ones(2), (0, 0)), "numbers of images by showings"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
