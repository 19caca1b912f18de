"""Steps between prediction and rendering."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from bench.core.errors import UnknownNameError
from bench.recipes import post_steps
from bench.recipes.base import Recipe
from bench.recipes.parts import Node, Stage
from bench.scoring.division import open_reasons_of

RNG = np.random.default_rng(0)
PREDICTIONS = RNG.normal(3, 0.2, (40, 6)).astype(np.float32)
TRAIN = RNG.normal(-1, 5, (200, 6)).astype(np.float32)


def test_restandardise_is_scikit_learns_scaling_and_back():
    expected = StandardScaler().fit(TRAIN).inverse_transform(StandardScaler().fit_transform(PREDICTIONS))
    np.testing.assert_allclose(post_steps.restandardise(PREDICTIONS, TRAIN), expected, rtol=1e-4, atol=1e-4)


def published(pred_test_latent: np.ndarray, train_latents: np.ndarray) -> np.ndarray:
    """The lines of Brain-Diffuser's vdvae_regression.py, target by target (the other two scripts have the same)."""
    pred_latents = np.empty_like(pred_test_latent, dtype=np.float64)
    for target in range(pred_test_latent.shape[1]):
        column, known = pred_test_latent[:, target].astype(np.float64), train_latents[:, target].astype(np.float64)
        mean, known_mean = sum(column) / len(column), sum(known) / len(known)
        deviation = (sum((column - mean) ** 2) / len(column)) ** 0.5  # numpy's default: divisor n, not n - 1
        known_deviation = (sum((known - known_mean) ** 2) / len(known)) ** 0.5
        pred_latents[:, target] = (column - mean) / deviation * known_deviation + known_mean
    return pred_latents


def test_restandardise_is_the_published_formula():
    np.testing.assert_allclose(
        post_steps.restandardise(PREDICTIONS, TRAIN), published(PREDICTIONS, TRAIN), rtol=1e-4, atol=1e-4
    )
    exact = post_steps.restandardise(PREDICTIONS.astype(np.float64), TRAIN.astype(np.float64))
    np.testing.assert_allclose(exact, published(PREDICTIONS, TRAIN), rtol=1e-10)


def test_no_step_is_taken_unless_a_recipe_names_it():
    closed = Recipe("r", (Stage("ridge"),), {"out": Node("tiny-diffusion")})
    assert closed.post == ()
    assert open_reasons_of(closed) == []
    opened = dataclasses.replace(closed, post=("restandardise",))
    assert open_reasons_of(opened) == ["post step 'restandardise' uses statistics of the test predictions"]


def test_restandardised_predictions_have_the_training_targets_moments():
    out = post_steps.restandardise(PREDICTIONS, TRAIN)
    np.testing.assert_allclose(out.mean(0), TRAIN.mean(0), atol=1e-4)
    np.testing.assert_allclose(out.std(0), TRAIN.std(0), rtol=1e-4)


def test_a_constant_prediction_is_the_training_mean():
    constant = PREDICTIONS.copy()
    constant[:, 2] = 7
    out = post_steps.restandardise(constant, TRAIN)
    np.testing.assert_allclose(out[:, 2], TRAIN[:, 2].mean(), rtol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(post_steps.STEPS))
def test_every_step_keeps_shape_and_inputs(name):
    step = post_steps.step(name)
    assert step.version >= 1
    predictions, train = PREDICTIONS.copy(), TRAIN.copy()
    out = step.apply(predictions, train)
    assert out.shape == PREDICTIONS.shape
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(predictions, PREDICTIONS)
    np.testing.assert_array_equal(train, TRAIN)


@pytest.mark.parametrize("name", sorted(post_steps.STEPS))
def test_what_a_step_declares_about_test_statistics_is_true(name):
    step = post_steps.step(name)
    together, alone = step.apply(PREDICTIONS, TRAIN)[:1], step.apply(PREDICTIONS[:1], TRAIN)
    assert step.uses_test_statistics == (not np.allclose(together, alone, atol=1e-3))


def test_an_unknown_step_offers_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown post step 'restandardize'\. Did you mean 'restandardise'\?"):
        post_steps.step("restandardize")
