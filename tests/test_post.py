"""Steps between prediction and rendering."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from bench import post
from bench.errors import UnknownNameError

RNG = np.random.default_rng(0)
PREDICTIONS = RNG.normal(3, 0.2, (40, 6)).astype(np.float32)
TRAIN = RNG.normal(-1, 5, (200, 6)).astype(np.float32)


def test_restandardise_is_scikit_learns_scaling_and_back():
    expected = StandardScaler().fit(TRAIN).inverse_transform(StandardScaler().fit_transform(PREDICTIONS))
    np.testing.assert_allclose(post.restandardise(PREDICTIONS, TRAIN), expected, rtol=1e-4, atol=1e-4)


def test_restandardised_predictions_have_the_training_targets_moments():
    out = post.restandardise(PREDICTIONS, TRAIN)
    np.testing.assert_allclose(out.mean(0), TRAIN.mean(0), atol=1e-4)
    np.testing.assert_allclose(out.std(0), TRAIN.std(0), rtol=1e-4)


def test_a_constant_prediction_is_the_training_mean():
    constant = PREDICTIONS.copy()
    constant[:, 2] = 7
    out = post.restandardise(constant, TRAIN)
    np.testing.assert_allclose(out[:, 2], TRAIN[:, 2].mean(), rtol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(post.STEPS))
def test_every_step_keeps_shape_and_inputs(name):
    step = post.step(name)
    assert step.version >= 1
    predictions, train = PREDICTIONS.copy(), TRAIN.copy()
    out = step.apply(predictions, train)
    assert out.shape == PREDICTIONS.shape
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(predictions, PREDICTIONS)
    np.testing.assert_array_equal(train, TRAIN)


@pytest.mark.parametrize("name", sorted(post.STEPS))
def test_what_a_step_declares_about_test_statistics_is_true(name):
    step = post.step(name)
    together, alone = step.apply(PREDICTIONS, TRAIN)[:1], step.apply(PREDICTIONS[:1], TRAIN)
    assert step.uses_test_statistics == (not np.allclose(together, alone, atol=1e-3))


def test_an_unknown_step_offers_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown post step 'restandardize'\. Did you mean 'restandardise'\?"):
        post.step("restandardize")
