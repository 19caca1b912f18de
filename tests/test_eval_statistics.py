"""Bootstrap, ranking and chance against slow loops and SciPy."""

import numpy as np
import pytest
import scipy.stats

from eval import statistics
from eval.statistics import bootstrap, bootstrap_difference, borda, derangement, expected_chance, normalise


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


def test_single_image_has_no_standard_error():
    estimate = bootstrap(np.array([0.25]))
    assert (estimate.low, estimate.value, estimate.high) == (0.25, 0.25, 0.25)
    assert np.isnan(estimate.standard_error)


def test_difference_is_paired_by_image(values):
    shift = bootstrap_difference(values + 0.1, values)
    assert shift.low == pytest.approx(0.1)
    assert shift.high == pytest.approx(0.1)
    unpaired = bootstrap_difference(np.roll(values, 1) + 0.1, values)
    assert unpaired.low < 0 < unpaired.high


def _slow_borda(tables, higher_is_better):
    means = {row: np.mean([t.mean(0) for t in subjects], axis=0) for row, subjects in tables.items()}
    points = dict.fromkeys(tables, 0.0)
    for metric, higher in enumerate(higher_is_better):
        for a in tables:
            for b in tables:
                if a == b:
                    continue
                x, y = means[a][metric], means[b][metric]
                points[a] += 0.5 if x == y else float((x > y) == higher)
    return {row: total / len(higher_is_better) for row, total in points.items()}


def test_borda_points_equal_a_slow_count():
    rng = np.random.default_rng(5)
    tables = {f"row{i}": [rng.random((20, 4)), rng.random((15, 4))] for i in range(6)}
    tables["row5"][0][:, 2], tables["row5"][1][:, 2] = tables["row0"][0][:, 2], tables["row0"][1][:, 2]
    directions = [True, False, True, False]
    ranks = borda(tables, directions, resamples=50)
    expected = _slow_borda(tables, directions)
    assert {rank.row: rank.points for rank in ranks} == pytest.approx(expected)
    assert [rank.points for rank in ranks] == sorted(expected.values(), reverse=True)


def _rows(gap, seed=0):
    """Three rows, each better than the next by `gap` noise standard deviations in 3 metrics, the last lower-better."""
    rng = np.random.default_rng(seed)
    base = np.array([1.0, 1.0, -1.0])
    return {
        name: [level * gap * base + rng.standard_normal((60, 3)) for _ in range(3)]
        for name, level in {"c": 0, "a": 2, "b": 1}.items()
    }


def test_clear_differences_give_clear_ranks():
    ranks = borda(_rows(3.0), [True, True, False])
    assert [(r.row, r.rank, r.low, r.high) for r in ranks] == [("a", 1, 1, 1), ("b", 2, 2, 2), ("c", 3, 3, 3)]


def test_rows_that_overlap_share_a_rank():
    ranks = borda(_rows(0.0), [True, True, False])
    assert [r.rank for r in ranks] == [1, 1, 1]
    mixed = _rows(0.0) | {"worst": [np.array([-9.0, -9.0, 9.0]) + np.zeros((60, 3))] * 3}
    assert [r.rank for r in borda(mixed, [True, True, False])] == [1, 1, 1, 4]


def test_ranks_compare_rows_on_the_same_pictures():
    difficulty = np.random.default_rng(1).standard_normal((60, 1)) * 100
    tables = {"better": [difficulty + 0.1], "worse": [difficulty.copy()]}
    assert [(r.row, r.low, r.high) for r in borda(tables, [True])] == [("better", 1, 1), ("worse", 2, 2)]


def test_one_subject_carries_subject_uncertainty():
    good, bad = np.ones((40, 1)), np.zeros((40, 1))
    tables = {"a": [good, good, bad], "b": [bad, bad, good]}  # a wins in two subjects of three
    assert [(r.row, r.rank, r.low, r.high) for r in borda(tables, [True])] == [("a", 1, 1, 2), ("b", 1, 1, 2)]


def test_expected_chance_is_the_mean_over_all_other_pairs():
    matrix = np.random.default_rng(4).random((9, 9))
    exact = expected_chance(lambda order: matrix[order, np.arange(9)], 9)
    slow = [np.mean([matrix[j, i] for j in range(9) if j != i]) for i in range(9)]
    np.testing.assert_allclose(exact, slow)
    sampled = expected_chance(lambda order: matrix[order, np.arange(9)], 9, pairings=4000)
    np.testing.assert_allclose(sampled, slow, atol=0.03)


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
        (lambda: bootstrap_difference(np.zeros(3), np.zeros(4)), r"\(3,\) and \(4,\)"),
        (lambda: borda({}, [True]), "no rows"),
        (lambda: borda({"a": [np.zeros((3, 2))]}, [True]), "and 1 metrics"),
        (lambda: borda({"a": [np.zeros((3, 1))], "b": [np.zeros((4, 1))]}, [True]), "row 'b' has tables"),
        (lambda: borda({"a": [np.full((3, 1), np.nan)]}, [True]), "row 'a' has NaN"),
        (lambda: expected_chance(lambda order: order, 1), "got 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_resampled_means_use_one_draw_for_all_columns():
    column = np.random.default_rng(8).random(30)
    means = statistics.resampled_means(np.stack([column, 2 * column], axis=1), resamples=100)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
