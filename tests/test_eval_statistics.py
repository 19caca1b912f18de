"""Bootstrap over images against slow loops and SciPy, random pairings, normalised scores."""

import numpy as np
import pytest
import scipy.stats

from eval.statistics import bootstrap as statistics
from eval.statistics.bootstrap import bootstrap, bootstraps, derangement, normalise


@pytest.fixture
def values():
    return np.random.default_rng(0).gamma(2.0, size=80)


def test_bootstrap_agrees_with_scipy(values):
    ours = bootstrap(values, resamples=20_000)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert ours.value == pytest.approx(values.mean())
    assert ours.standard_error == pytest.approx(scipy.stats.sem(values))
    assert ours.n == 80
    interval = theirs.confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], [interval.low, interval.high], atol=0.02)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    estimates = [bootstrap(rng.standard_normal(100), resamples=400, seed=i) for i in range(300)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    assert 0.90 < covered < 0.98


def test_bootstrap_is_seeded(values):
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_several_means_from_one_set_of_draws_are_those_of_each_alone(values):
    columns = [values, np.sqrt(values), np.zeros(80)]
    assert bootstraps(columns, seed=3) == [bootstrap(column, seed=3) for column in columns]
    drawn = np.random.default_rng(3).multinomial(80, np.full(80, 1 / 80), size=2000)
    means = [np.repeat(values, times).mean() for times in drawn]
    estimate = bootstraps(columns, seed=3)[0]
    np.testing.assert_allclose([estimate.low, estimate.high], np.quantile(means, [0.025, 0.975]), rtol=1e-12)
    assert bootstraps([]) == []


def test_single_image_has_no_standard_error():
    estimate = bootstrap(np.array([0.25]))
    assert (estimate.low, estimate.value, estimate.high) == (0.25, 0.25, 0.25)
    assert np.isnan(estimate.standard_error)


def test_derangements_leave_nothing_in_place():
    rng = np.random.default_rng(6)
    orders = np.array([derangement(4, rng) for _ in range(900)])
    assert not (orders == np.arange(4)).any()
    assert len(np.unique(orders, axis=0)) == 9  # all derangements of 4


def test_normalised_scores_are_not_clipped():
    np.testing.assert_allclose(normalise(np.array([0.1, 0.5, 0.9, 1.3]), 0.5, 0.9), [-1, 0, 1, 2])
    assert normalise(np.array(0.3), 0.5, 0.1) == pytest.approx(0.5)  # a distance
    assert np.isnan(normalise(np.array([0.3]), 0.5, 0.5)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(np.zeros((2, 2))), r"got shape \(2, 2\)"),
        (lambda: bootstrap(np.array([1.0, np.nan])), "image 1 is NaN"),
        (lambda: bootstraps([np.zeros(3), np.zeros(2)]), r"same images; got \[2, 3\] values"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_resampled_means_use_one_draw_for_all_columns():
    column = np.random.default_rng(8).random(30)
    means = statistics.resampled_means(np.stack([column, 2 * column], axis=1), resamples=100)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
