"""Statistics over subjects, ranks and paired tests against slow loops, SciPy and simulated nulls."""

import itertools

import numpy as np
import pytest
import scipy.stats

from eval.statistics.bootstrap import bootstrap
from eval.statistics.crossed import bootstrap_over_subjects, contributions, grid, interval, resampled
from eval.statistics.paired import enough_flips, holm, paired_tests, sign_flip
from eval.statistics.ranking import borda


def _laid(tables):
    """Rows given as one `(N_s, M)` array a subject, laid out as `(M, S, N)`; subject s saw the first N_s images."""
    first = next(iter(tables.values()))
    n = max(len(table) for table in first)
    rows = {}
    for name, subjects in tables.items():
        rows[name] = np.full((first[0].shape[1], len(subjects), n), np.nan)
        for place, table in enumerate(subjects):
            rows[name][:, place, : len(table)] = table.T
    return rows


# -- crossed subjects and images ---------------------------------------------------------------------------------------


def _holes(seed=0, shape=(3, 4, 12)):
    values = np.random.default_rng(seed).standard_normal(shape)
    values[..., 1, 3] = values[..., 2, 7:] = np.nan
    return values


def test_the_grid_puts_each_value_at_its_image():
    laid = grid([np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])], [[70, 30, 50], [90, 30]])
    np.testing.assert_array_equal(laid, [[2, 3, 1, np.nan], [5, np.nan, np.nan, 4]])


def test_contributions_sum_to_the_mean_over_subjects():
    values = _holes()
    expected = np.nanmean(values, axis=2).mean(axis=1)
    np.testing.assert_allclose(contributions(values).sum(axis=1), expected)


@pytest.mark.parametrize("draw_subjects", [True, False])
def test_resamples_repeat_subjects_and_images(draw_subjects):
    values = _holes()
    rng = np.random.default_rng(5)
    people = rng.multinomial(4, [0.25] * 4, size=60) if draw_subjects else np.ones((60, 4), int)
    images = rng.multinomial(12, [1 / 12] * 12, size=60)
    expected = []
    for who, what in zip(people, images, strict=True):
        taken = values[:, :, np.repeat(range(12), what)]
        means = [np.nanmean(taken[:, s], axis=1) for s in np.repeat(range(4), who) if (~np.isnan(taken[0, s])).any()]
        expected.append(np.mean(means, axis=0))
    np.testing.assert_allclose(resampled(values, 60, 5, draw_subjects), expected)


def test_one_subject_is_the_bootstrap_over_images():
    values = np.random.default_rng(1).gamma(2.0, size=50)
    ours, plain = bootstrap_over_subjects(values[None], seed=3), bootstrap(values, seed=3)
    assert (ours.value, ours.n) == (pytest.approx(plain.value), 50)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high))
    assert ours.standard_error == pytest.approx(scipy.stats.sem(values))


def test_subjects_that_agree_on_images_are_no_replications():
    """Four subjects with equal values are as uncertain as one; independent ones are half as uncertain."""
    rng = np.random.default_rng(2)
    shared = rng.standard_normal(200)
    alone = bootstrap(shared)
    same = bootstrap_over_subjects(np.stack([shared] * 4))
    independent = bootstrap_over_subjects(rng.standard_normal((4, 200)))
    assert same.standard_error == pytest.approx(alone.standard_error)
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.01)
    assert independent.standard_error == pytest.approx(alone.standard_error / 2, rel=0.15)


def test_the_interval_over_subjects_covers_the_true_mean():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng([9, seed])
        values = rng.standard_normal(80) + 0.5 * rng.standard_normal((3, 80)) + np.array([[0.5], [0.0], [-0.5]])
        estimate = bootstrap_over_subjects(values, resamples=300, seed=seed)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.98


def test_a_subject_with_a_single_image_leaves_no_empty_mean():
    values = np.full((2, 3), np.nan)
    values[0], values[1, 0] = 1.0, 3.0
    means = resampled(values, 200, 0, draw_subjects=True)
    assert np.isnan(means).any()  # subject 2 twice, its image never
    assert set(means[~np.isnan(means)]) == {1.0, 2.0, 3.0}
    low, high = interval(means)
    assert (float(low), float(high)) == (1.0, 3.0)


# -- ranks -------------------------------------------------------------------------------------------------------------


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
    ranks = borda(_laid(tables), directions, resamples=50)
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
    ranks = borda(_laid(_rows(3.0)), [True, True, False])
    assert [(r.row, r.rank, r.low, r.high) for r in ranks] == [("a", 1, 1, 1), ("b", 2, 2, 2), ("c", 3, 3, 3)]


def test_rows_that_overlap_share_a_rank():
    ranks = borda(_laid(_rows(0.0)), [True, True, False])
    assert [r.rank for r in ranks] == [1, 1, 1]
    mixed = _rows(0.0) | {"worst": [np.array([-9.0, -9.0, 9.0]) + np.zeros((60, 3))] * 3}
    assert [r.rank for r in borda(_laid(mixed), [True, True, False])] == [1, 1, 1, 4]


def test_ranks_compare_rows_on_the_same_pictures():
    difficulty = np.random.default_rng(1).standard_normal((60, 1)) * 100
    tables = _laid({"better": [difficulty + 0.1], "worse": [difficulty.copy()]})
    assert [(r.row, r.low, r.high) for r in borda(tables, [True])] == [("better", 1, 1), ("worse", 2, 2)]


def test_one_subject_carries_subject_uncertainty():
    good, bad = np.ones((40, 1)), np.zeros((40, 1))
    tables = _laid({"a": [good, good, bad], "b": [bad, bad, good]})  # a wins in two subjects of three
    assert [(r.row, r.rank, r.low, r.high) for r in borda(tables, [True])] == [("a", 1, 1, 2), ("b", 1, 1, 2)]


def test_ranks_know_that_subjects_share_their_images():
    """A row ahead on 9 images of 16, the same ones in all subjects, is no clearer with eight subjects than with one."""
    ahead = np.where(np.arange(16) < 9, 1.0, 0.0)[:, None]
    for subjects in (1, 8):
        tables = _laid({"a": [ahead] * subjects, "b": [1 - ahead] * subjects})
        assert [(r.low, r.high) for r in borda(tables, [True])] == [(1, 2), (1, 2)]


# -- paired tests ------------------------------------------------------------------------------------------------------


def test_difference_is_paired_by_image():
    values = np.random.default_rng(0).gamma(2.0, size=80)
    shifted = np.stack([values + 0.1, np.roll(values, 1) + 0.1]) - values
    shift, unpaired = paired_tests(shifted[:, None])
    assert (shift.low, shift.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert unpaired.low < 0 < unpaired.high
    assert shift.p_value == 1 / 10_000
    assert unpaired.p_value > 0.05


@pytest.mark.parametrize("n", [2, 3, 9])
def test_few_images_are_enumerated_as_by_scipy(n):
    values = np.random.default_rng(n).standard_normal((4, n)) + 0.4
    for p, row in zip(sign_flip(values), values, strict=True):
        theirs = scipy.stats.permutation_test((row,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(theirs.pvalue)
        slow = [abs((row * signs).sum()) for signs in itertools.product((1, -1), repeat=n)]
        assert p == pytest.approx(np.mean(np.array(slow) >= abs(row.sum()) - 1e-12))


def test_many_images_are_sampled_as_by_scipy():
    values = np.random.default_rng(3).standard_normal((3, 60)) + np.array([[0.0], [0.15], [0.3]])
    theirs = [
        scipy.stats.permutation_test((r,), np.sum, permutation_type="samples", n_resamples=9999, rng=1).pvalue
        for r in values
    ]
    np.testing.assert_allclose(sign_flip(values), theirs, atol=0.02)
    np.testing.assert_array_equal(sign_flip(values), sign_flip(values))
    assert (sign_flip(values, seed=1) != sign_flip(values)).any()


def test_equal_rows_have_no_difference():
    (test,) = paired_tests(np.zeros((1, 2, 30)))
    assert (test.difference, test.low, test.high, test.p_value, test.n) == (0.0, 0.0, 0.0, 1.0, 30)


def test_the_false_positive_rate_is_what_it_says():
    """No difference, but every image favours one side in all four subjects alike: 5 % of tests may reject.

    A test that took subjects for replications would reject far more often, so the data can tell the two apart.
    """
    rng = np.random.default_rng(11)
    shared = rng.standard_t(4, size=(1500, 1, 30))
    deltas = shared + 0.3 * rng.standard_normal((1500, 4, 30))
    rejected = sign_flip(contributions(deltas), flips=499, seed=1) <= 0.05
    assert 0.035 < rejected.mean() < 0.065
    naive = sign_flip(deltas.reshape(1500, 120), flips=499, seed=1) <= 0.05
    assert naive.mean() > 0.2


def test_holm_is_the_written_out_procedure():
    p = np.array([0.04, 0.001, 0.3, 0.012, 0.012, 0.8])
    # Sorted: .001 x 6, .012 x 5, .012 x 4 (not below .060), .04 x 3, .3 x 2, .8 (not below .6).
    np.testing.assert_allclose(holm(p), [0.12, 0.006, 0.6, 0.06, 0.06, 0.8])
    assert holm(np.array([0.9, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []
    for alpha in (0.01, 0.05, 0.1, 0.5):  # reject while p of rank k stays below alpha / (m - k + 1), then stop
        rejected = set()
        for k, place in enumerate(np.argsort(p, kind="stable")):
            if p[place] > alpha / (len(p) - k):
                break
            rejected.add(int(place))
        assert set(np.flatnonzero(holm(p) <= alpha)) == rejected


def test_holm_keeps_the_family_wise_error_rate():
    rng = np.random.default_rng(12)
    p = rng.random((2000, 8))
    assert np.mean([(holm(row) <= 0.05).any() for row in p]) < 0.065
    assert np.mean((p <= 0.05).any(axis=1)) > 0.3


def test_corrected_p_values_can_reach_significance():
    for tests in (1, 40, 500, 5000):
        assert tests / (enough_flips(tests) + 1) <= 0.01


NAN = np.full((3, 1, 3), np.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid([], []), "no subjects to average over"),
        (lambda: grid([np.ones(2)], [[1, 2, 3]]), r"\(2,\) values for 3 images, 3 of them"),
        (lambda: grid([np.ones(2)], [[1, 1]]), "2 images, 1 of them different"),
        (lambda: grid([np.array([1.0, np.nan])], [[1, 2]]), "image 1 is NaN"),
        (lambda: contributions(np.zeros(3)), r"got shape \(3,\)"),
        (lambda: contributions(np.where(np.arange(2)[:, None, None] < 1, np.ones((2, 2, 3)), np.nan)), "image 0 has a"),
        (lambda: contributions(np.array([[1.0, 2.0], [np.nan, np.nan]])), "subject 1 has no value at all"),
        (lambda: borda({}, [True]), "no rows"),
        (lambda: borda({"a": np.zeros((2, 1, 3))}, [True]), "and 1 metrics"),
        (lambda: borda({"a": np.zeros((1, 1, 3)), "b": np.zeros((1, 1, 4))}, [True]), "row 'b' has values"),
        (lambda: borda({"a": NAN[:1], "b": np.zeros((1, 1, 3))}, [True]), "has a value in some rows"),
        (lambda: sign_flip(np.zeros(3)), r"\(T, N\), got shape \(3,\)"),
        (lambda: sign_flip(np.array([[np.nan, 1.0]])), "finite differences"),
        (lambda: holm(np.array([0.5, 1.2])), "p-values"),
        (lambda: holm(np.array([np.nan])), "p-values"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
