"""The metrics against NumPy, SciPy, scikit-image and the published formula of identification."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import correlation
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from eval.metrics.correlation_distance import correlation_distance
from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.ssim import SSIM, SSIM_COLUMNWISE
from eval.training import PerImageMetric

SSIM_KEYWORDS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


@pytest.fixture
def pictures():
    """Seven truths and reconstructions `(7, 3, 40, 32)` that share some structure."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.random((7, 3, 40, 32)), (0, 0, 2, 2))
    truth = (truth - truth.min()) / (truth.max() - truth.min())
    noisy = np.clip(truth + 0.2 * rng.standard_normal(truth.shape), 0, 1)
    return torch.from_numpy(noisy), torch.from_numpy(truth)


@pytest.fixture
def features():
    """Thirty pairs of features `(30, 5, 11)`, correlated enough that identification is neither 0.5 nor 1."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((30, 5, 11))
    return torch.from_numpy(0.2 * truth + rng.standard_normal(truth.shape)), torch.from_numpy(truth)


def _reference_identification(predicted, truth):
    """The function of the published scripts: correlations of both stacks, a strict comparison with the diagonal."""
    n = len(truth)
    r = np.corrcoef(truth.reshape(n, -1), predicted.reshape(n, -1))[:n, n:]
    return (r < np.diag(r)).sum(axis=0) / (n - 1)


def test_pixcorr_is_numpy_corrcoef(pictures):
    x, y = pictures
    expected = [np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(PIXCORR(x, y), expected, rtol=0, atol=1e-12)


def test_ssim_is_scikit_image_on_the_grey_image(pictures):
    expected = [
        structural_similarity(
            rgb2gray(a.numpy().transpose(1, 2, 0)), rgb2gray(b.numpy().transpose(1, 2, 0)), **SSIM_KEYWORDS
        )
        for a, b in zip(*pictures, strict=True)
    ]
    np.testing.assert_allclose(SSIM(*pictures), expected, rtol=0, atol=1e-10)


def test_columnwise_ssim_is_scikit_image_with_columns_for_channels(pictures):
    greys = [[rgb2gray(a.numpy().transpose(1, 2, 0)) for a in side] for side in pictures]
    expected = [structural_similarity(a, b, channel_axis=-1, **SSIM_KEYWORDS) for a, b in zip(*greys, strict=True)]
    np.testing.assert_allclose(SSIM_COLUMNWISE(*pictures), expected, rtol=0, atol=1e-10)
    assert not np.allclose(SSIM(*pictures), expected, atol=1e-3)


def test_correlation_distance_is_scipy(features):
    x, y = features
    expected = [correlation(a.numpy().ravel(), b.numpy().ravel()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(correlation_distance(x, y), expected, rtol=0, atol=1e-12)


def test_identification_is_the_published_function(features):
    x, y = features
    expected = _reference_identification(x.numpy(), y.numpy())
    np.testing.assert_array_equal(TWO_WAY_IDENTIFICATION(x, y), expected)
    assert 0.55 < expected.mean() < 0.98


def test_transposed_identification_swaps_the_sides(features):
    x, y = features
    transposed = TWO_WAY_IDENTIFICATION(x, y, Identification(transpose=True))
    np.testing.assert_array_equal(transposed, _reference_identification(y.numpy(), x.numpy()))
    assert not torch.equal(transposed, TWO_WAY_IDENTIFICATION(x, y))


def test_identification_does_not_depend_on_the_chunk_size(features, monkeypatch):
    whole = TWO_WAY_IDENTIFICATION(*features)
    monkeypatch.setattr("eval.metrics._correlation.CHUNK_BYTES", 30 * 8 * 4)
    assert torch.equal(TWO_WAY_IDENTIFICATION(*features), whole)


def test_identity_is_a_perfect_score(pictures):
    _, y = pictures
    ones = np.ones(len(y))
    for function, best in (
        (PIXCORR, ones),
        (SSIM, ones),
        (TWO_WAY_IDENTIFICATION, ones),
        (correlation_distance, 0 * ones),
    ):
        np.testing.assert_allclose(function(y, y), best, rtol=0, atol=1e-12)


def test_identification_of_unrelated_features_is_chance():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 300, 64, generator=generator)
    for transpose in (False, True):
        assert abs(TWO_WAY_IDENTIFICATION(x, y, Identification(transpose=transpose)).mean() - 0.5) < 0.03


def test_ties_count_nothing_or_one_half(features):
    x, y = features
    same = x[:1].expand_as(x)  # one picture for every stimulus: in the transposed direction everything ties
    assert TWO_WAY_IDENTIFICATION(same, y, Identification(transpose=True)).eq(0).all()
    assert TWO_WAY_IDENTIFICATION(same, y, Identification(True, "half")).eq(0.5).all()
    twins = y.clone()
    twins[1] = twins[0]
    assert TWO_WAY_IDENTIFICATION(twins, twins)[:2].tolist() == [28 / 29, 28 / 29]
    assert TWO_WAY_IDENTIFICATION(twins, twins, Identification(ties="half"))[:2].tolist() == [28.5 / 29, 28.5 / 29]


def test_one_picture_for_all_is_at_chance_against_other_truths(features):
    x, y = features
    score = TWO_WAY_IDENTIFICATION(x[:1].expand_as(x), y).mean()
    assert score == pytest.approx(0.5)


@pytest.mark.parametrize("ties", ["zero", "half"])
def test_constant_features_count_as_lost(features, ties):
    x, y = features
    x[3], y[7] = 0.5, 0.25  # exact in binary: NumPy's mean is exact and its correlations are NaN
    with np.errstate(invalid="ignore"):
        expected = _reference_identification(x.numpy(), y.numpy())
    x[3], y[7] = 0.1, 0.3
    score = TWO_WAY_IDENTIFICATION(x, y, Identification(ties=ties))
    assert score[3] == 0
    assert score[7] == 0
    others = [i for i in range(30) if i not in (3, 7)]
    np.testing.assert_array_equal(score[others], expected[others])
    assert score[others].max() <= 28 / 29


def test_constant_images_score_zero_and_distance_one(pictures):
    x, y = pictures
    x[0], y[1] = 0.1, 0.7
    for values in (PIXCORR(x, y), 1 - correlation_distance(x, y)):
        assert values[:2].tolist() == [0, 0]
        assert torch.isfinite(values).all()
    assert torch.isfinite(SSIM(x, y)).all()


@pytest.mark.parametrize("function", [PIXCORR, SSIM])
def test_bytes_equal_unit_floats(pictures, function):
    levels = [(side * 255).round().to(torch.uint8) for side in pictures]
    torch.testing.assert_close(
        function(*levels), function(*(side.double() / 255 for side in levels)), rtol=0, atol=1e-6
    )


def test_bad_input_is_named():
    images = torch.rand(3, 3, 16, 16)
    with pytest.raises(ValueError, match=r"reconstructions \(2, 3, 16, 16\) and truth \(3, 3, 16, 16\)"):
        PIXCORR(images[:2], images)
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(3, 3, 10, 16\)"):
        SSIM(images[:, :, :10], images[:, :, :10])
    with pytest.raises(ValueError, match="at least one image"):
        correlation_distance(images[:0], images[:0])
    with pytest.raises(ValueError, match="at least 2 images"):
        TWO_WAY_IDENTIFICATION(images[:1], images[:1])
    with pytest.raises(ValueError, match="'zero' or 'half', got 'most'"):
        Identification(ties="most")
    with pytest.raises(ValueError, match=r"got correlations \(2, 3\)"):
        Identification().conclude(torch.rand(2, 3))
    with pytest.raises(ValueError, match="pixcorr has no images"), pytest.warns(UserWarning, match="before the"):
        PerImageMetric(PIXCORR).compute()
