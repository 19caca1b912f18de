"""Streaming moments and correlations against NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from encoders._shared.correlation import (
    CorrelationMeter,
    TargetCorrelation,
    mean_target_correlation,
    validation_correlation,
)
from encoders._shared.moments import RunningMoments, require_finite
from encoders.base import Block, Head


def moments_of(values: np.ndarray, sizes: list[int]) -> RunningMoments:
    moments = RunningMoments()
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        moments.update(torch.from_numpy(part))
    return moments


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), offset=st.sampled_from([0.0, 1e4, -3e5]))
def test_moments_equal_numpy_for_any_batches(sizes, offset):
    count = sum(sizes)
    values = np.random.default_rng(count).standard_normal((count, 2, 3)) + offset
    moments = moments_of(values, sizes)
    if count == 0:
        with pytest.raises(ValueError, match="moments of 0 rows"):
            _ = moments.variance
        return
    flat = values.reshape(count, 6)
    np.testing.assert_allclose(moments.mean.numpy(), flat.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.variance.numpy(), flat.var(0), rtol=1e-7)
    np.testing.assert_allclose(moments.scale.numpy(), flat.std(0) if count > 1 else np.ones(6), rtol=1e-7)


def test_constant_columns_are_divided_by_one():
    # 0.1 has no exact float32; its mean over 7 rows need not equal it to the last bit.
    values = np.full((7, 3), [0.0, 0.1, 1e6], dtype=np.float32)
    moments = moments_of(values, [2, 5])
    assert moments.constant.all()
    assert moments.scale.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="moments of 0 rows"):
        _ = RunningMoments().mean


def test_small_variation_is_not_taken_for_constant():
    values = np.array([[1.0], [1.00001]])
    assert not moments_of(values, [2]).constant.any()


def test_finite_values_pass_even_where_their_sum_overflows():
    require_finite(torch.full((4, 4), 3e38), "voxels")
    with pytest.raises(
        ValueError, match=r"betas: 2 of 5 columns hold NaN or infinite values \(the first is column 1\)"
    ):
        require_finite(torch.tensor([[0, math.nan, 0, 0, 0], [0, 0, 0, -math.inf, 0]]), "betas")


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    offset=st.sampled_from([0.0, 1e3]),
)
def test_correlation_equals_scipy_for_any_batches_and_blocks(rows, widths, offset):
    count, size = sum(rows), sum(widths)
    rng = np.random.default_rng([count, size])
    true = rng.standard_normal((count, size)) + offset
    predicted = true + rng.standard_normal((count, size)) - 5 * offset
    correlation = TargetCorrelation(size)
    start = 0
    for width in widths:
        for part in np.split(np.arange(count), np.cumsum(rows)[:-1]):
            run = slice(start, start + width)
            correlation.update(torch.from_numpy(predicted[part, run]), torch.from_numpy(true[part, run]), start)
        start += width
    came = correlation.per_target().numpy()
    if count < 2:
        assert np.isnan(came).all()
    else:
        expected = [pearsonr(predicted[:, target], true[:, target])[0] for target in range(size)]
        np.testing.assert_allclose(came, expected, atol=1e-7)


def test_targets_that_do_not_vary_are_left_out_and_constant_predictions_count_as_nothing():
    true = torch.tensor([[1.0, 5.0, 1.0], [2.0, 5.0, 2.0], [3.0, 5.0, 3.0]])
    predicted = torch.tensor([[1.0, 1.0, 0.1], [2.0, 2.0, 0.1], [3.0, 3.0, 0.1]])
    correlation = TargetCorrelation(3)
    correlation.update(predicted[:1], true[:1])
    correlation.update(predicted[1:], true[1:])
    values = correlation.per_target()
    assert values[0] == pytest.approx(1)
    assert values[1].isnan()
    assert values[2] == 0
    assert correlation.mean() == pytest.approx(0.5)


def test_perfect_and_opposite_predictions():
    true = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert mean_target_correlation([({"z": 3 * true + 1}, {"z": true})]) == pytest.approx(1)
    assert mean_target_correlation([({"z": -true}, {"z": true})]) == pytest.approx(-1)


def test_heads_weigh_the_same_whatever_their_size():
    generator = torch.Generator().manual_seed(1)
    wide, narrow = torch.randn(30, 10, 10, generator=generator), torch.randn(30, 1, generator=generator)
    pairs = [({"wide": wide[:10], "narrow": -narrow[:10]}, {"wide": wide[:10], "narrow": narrow[:10]})]
    pairs += [({"wide": wide[10:], "narrow": -narrow[10:]}, {"wide": wide[10:], "narrow": narrow[10:]})]
    assert mean_target_correlation(pairs) == pytest.approx(0, abs=1e-12)


def test_without_trials_there_is_no_correlation():
    assert math.isnan(mean_target_correlation([]))
    assert math.isnan(CorrelationMeter().mean())
    empty = torch.zeros(0, 3)
    assert math.isnan(mean_target_correlation([({"z": empty}, {"z": empty})]))


def test_shapes_and_heads_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"heads \['a'\] against targets of \['b'\]"):
        mean_target_correlation([({"a": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)})])
    with pytest.raises(ValueError, match=r"predictions \(2, 3\) and targets \(2, 2\) at 0"):
        TargetCorrelation(3).update(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="within 3 targets"):
        TargetCorrelation(3).update(torch.zeros(2, 2), torch.zeros(2, 2), start=2)


def test_validation_correlation_is_the_mean_over_subjects_with_validation_trials():
    from fake_subjects import linear_subject

    heads = [Head("z", (4,))]
    counts = {"train": 5, "validation": 40}
    data = {subject: linear_subject(subject, heads, 4, counts, noise=0.0) for subject in (1, 2)}
    data[3] = linear_subject(3, heads, 4, {"train": 5}, noise=0.0)

    def predict(voxels, subject, seed):
        true = data[subject].roles["validation"].targets["z"]
        sign = 1 if subject == 1 else -0.5
        yield {"z": Block(0, sign * true[:, :3])}
        yield {"z": Block(3, sign * true[:, 3:])}

    assert validation_correlation(predict, data, heads) == pytest.approx(0, abs=1e-12)
    assert math.isnan(validation_correlation(predict, {3: data[3]}, heads))
