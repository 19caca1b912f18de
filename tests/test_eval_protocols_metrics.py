"""N-way accuracy, retrieval, brain correlation, uniform SSIM and the rules for samples against slow references."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from eval._scoring.samples import SampleValues, combine
from eval.metrics.brain_correlation import brain_correlation
from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.metrics.n_way import N_WAY_TOP_K, NWay
from eval.metrics.retrieval import TOP_1_RETRIEVAL, Retrieval, cosine_similarity
from eval.metrics.ssim import SSIM_UNIFORM


@pytest.fixture
def latents():
    """Forty predicted and true latents `(40, 6)`, noisy enough that retrieval fails now and then, not symmetric."""
    rng = np.random.default_rng(5)
    true = rng.standard_normal((40, 6)) + 0.8
    predicted = true + 1.2 * rng.standard_normal(true.shape) * np.linspace(0.2, 2, 40)[:, None]
    return torch.from_numpy(predicted), torch.from_numpy(true)


@pytest.fixture
def probabilities():
    rng = np.random.default_rng(6)
    truth = rng.standard_normal((12, 30)) * 2
    shown = truth + 2 * rng.standard_normal((12, 30))
    return tuple(torch.from_numpy(side).softmax(1) for side in (shown, truth))


def _published_n_way(shown, label, ways, trials, top):
    """Mind-Vis in NumPy: the class of the truth among `ways - 1` random others, `trials` times."""
    rng = np.random.default_rng(0)
    others = [c for c in range(len(shown)) if c != label]
    wins = []
    for _ in range(trials):
        picked = np.concatenate([[label], rng.choice(others, ways - 1, replace=False)])
        best = np.argsort(-shown[picked])[:top]
        wins.append(0 in best)
    return np.mean(wins)


@pytest.mark.parametrize(("ways", "top"), [(5, 1), (20, 1), (10, 3), (30, 1)])
def test_n_way_is_mind_vis(probabilities, ways, top):
    shown, truth = (side.numpy() for side in probabilities)
    values = N_WAY_TOP_K(*probabilities, NWay(ways, top, trials=4000)).numpy()
    expected = [_published_n_way(x, int(y.argmax()), ways, 2000, top) for x, y in zip(shown, truth, strict=True)]
    np.testing.assert_allclose(values, expected, atol=4 * math.sqrt(0.25 / 2000 + 0.25 / 4000))
    for value, x, y in zip(values, shown, truth, strict=True):  # and its expectation, by counting
        better = int((x > x[y.argmax()]).sum())
        exact = sum(
            math.comb(better, k) * math.comb(29 - better, ways - 1 - k) for k in range(min(top, ways))
        ) / math.comb(29, ways - 1)
        assert abs(value - exact) <= 4 * math.sqrt(exact * (1 - exact) / 4000) + 1e-12


def test_n_way_of_everything_is_the_rank(probabilities):
    shown, truth = probabilities
    values = N_WAY_TOP_K(shown, truth, NWay(30, 1, trials=3))
    assert values.tolist() == (shown.argmax(1) == truth.argmax(1)).double().tolist()
    assert N_WAY_TOP_K(truth, truth, NWay(7)).eq(1).all()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(N_WAY_TOP_K(shown[order], truth[order], NWay(7)), N_WAY_TOP_K(shown, truth, NWay(7))[order])
    flat = torch.full_like(shown, 1 / 30)
    assert N_WAY_TOP_K(flat, truth, NWay(7)).eq(0).all()  # ties are lost
    assert N_WAY_TOP_K(flat * float("nan"), truth, NWay(7)).eq(0).all()


def test_n_way_of_noise_is_chance():
    generator = torch.Generator().manual_seed(0)
    shown, truth = torch.rand(2, 1500, 100, generator=generator)
    readout = NWay(10)
    assert abs(N_WAY_TOP_K(shown, truth, readout).mean() - readout.chance) < 0.02


def _published_pools(similarity, pool, repeats, seed):
    """Mean over pools of the share of rows whose largest entry is their own."""
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(repeats):
        members = rng.choice(len(similarity), pool, replace=False)
        block = similarity[np.ix_(members, members)]
        shares.append((block.argmax(1) == np.arange(pool)).mean())
    return np.mean(shares)


@pytest.mark.parametrize("given", ["brain", "image"])
def test_retrieval_from_pools_is_the_published_loop(latents, given):
    predicted, true = (side.numpy() for side in latents)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (predicted, true)]
    similarity = unit[0] @ unit[1].T
    np.testing.assert_allclose(cosine_similarity(*latents), similarity, atol=1e-12)
    rows = similarity if given == "brain" else similarity.T
    value = TOP_1_RETRIEVAL(*latents, Retrieval(given, pool=15, repeats=30, seed=3)).mean()
    assert value == pytest.approx(_published_pools(rows, 15, 30, 3), abs=1e-12)
    exact = TOP_1_RETRIEVAL(*latents, Retrieval(given, pool=15)).mean()
    assert exact == pytest.approx(_published_pools(rows, 15, 4000, 1), abs=0.01)
    everything = TOP_1_RETRIEVAL(*latents, Retrieval(given, pool=40))
    assert everything.tolist() == (rows.argmax(1) == np.arange(40)).astype(float).tolist()


def test_the_two_directions_differ_and_swap(latents):
    image, brain = (TOP_1_RETRIEVAL(*latents, Retrieval(given, pool=10)) for given in ("brain", "image"))
    assert abs(image.mean() - brain.mean()) > 0.01
    torch.testing.assert_close(TOP_1_RETRIEVAL(*latents[::-1], Retrieval("brain", pool=10)), brain)


def test_mindeyes_helper_returns_the_transpose(latents):
    """The published helper and labels, written out: what they call forward finds the brain response of an image."""

    def batchwise_cosine_similarity(z, b):
        b = b.T
        norms = torch.linalg.norm(z, dim=1, keepdim=True) @ torch.linalg.norm(b, dim=0, keepdim=True)
        return ((z @ b) / norms).T

    brain, clip = latents
    labels = torch.arange(40)
    forward = (batchwise_cosine_similarity(brain, clip).argmax(1) == labels).double()
    backward = (batchwise_cosine_similarity(clip, brain).argmax(1) == labels).double()
    assert torch.equal(forward, TOP_1_RETRIEVAL(brain, clip, Retrieval("image", pool=40)))
    assert torch.equal(backward, TOP_1_RETRIEVAL(brain, clip, Retrieval("brain", pool=40)))


def test_retrieval_of_copies_noise_and_nothing(latents):
    predicted, true = latents
    assert TOP_1_RETRIEVAL(true, true, Retrieval("brain", pool=10)).eq(1).all()
    assert TOP_1_RETRIEVAL(torch.ones_like(true), true, Retrieval("image", pool=10)).eq(0).all()  # all tie
    zero = predicted.clone()
    zero[4] = 0
    assert TOP_1_RETRIEVAL(zero, true, Retrieval("brain", pool=10))[4] == 0
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 900, 20, generator=generator)
    assert abs(TOP_1_RETRIEVAL(*noise, Retrieval("brain", pool=30)).mean() - 1 / 30) < 0.01
    order = torch.randperm(40, generator=generator)
    expected = TOP_1_RETRIEVAL(predicted, true, Retrieval("brain", pool=10))[order]
    torch.testing.assert_close(TOP_1_RETRIEVAL(predicted[order], true[order], Retrieval("brain", pool=10)), expected)


def test_brain_correlation_is_pearson_over_voxels():
    predicted, measured = np.random.default_rng(0).standard_normal((2, 9, 50))
    expected = [pearsonr(x, y)[0] for x, y in zip(predicted, measured, strict=True)]
    values = brain_correlation(torch.from_numpy(predicted), torch.from_numpy(measured))
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert brain_correlation(torch.ones(2, 5), torch.rand(2, 5)).eq(0).all()


def test_uniform_ssim_is_scikit_image_without_keywords():
    x, y = np.random.default_rng(0).random((2, 3, 3, 20, 26))
    expected = [
        structural_similarity(rgb2gray(a.transpose(1, 2, 0)), rgb2gray(b.transpose(1, 2, 0)), data_range=1)
        for a, b in zip(x, y, strict=True)
    ]
    values = SSIM_UNIFORM(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(values, expected, atol=1e-10)
    with pytest.raises(ValueError, match="at least 7 x 7 pixels"):
        SSIM_UNIFORM(torch.rand(1, 3, 6, 9), torch.rand(1, 3, 6, 9))


def test_where_the_average_over_samples_is_taken():
    samples = torch.randn(4, 25, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = samples * torch.tensor([0.3, 1, 2, 4]).view(4, 1, 1)  # unlike samples: the three averages differ
    truth = samples.mean(0) + torch.randn(25, 30, generator=torch.Generator().manual_seed(1))
    formula, readout = TWO_WAY_IDENTIFICATION, Identification(transpose=True)
    correlations = np.mean([np.corrcoef(truth, each)[:25, 25:] for each in samples], axis=0)
    expected = {
        "mean-score": torch.stack([TWO_WAY_IDENTIFICATION(s, truth, Identification(True)) for s in samples]).mean(0),
        "mean-feature": TWO_WAY_IDENTIFICATION(samples.mean(0), truth, Identification(True)),
        "mean-comparison": torch.from_numpy((correlations < np.diag(correlations)[:, None]).sum(1) / 24),
    }
    for rule, values in expected.items():
        collected = SampleValues(formula, readout, rule)
        for sample in samples:
            collected.add(sample, truth)
        torch.testing.assert_close(collected.values(truth), values, atol=1e-12, rtol=0)
    assert len({round(float(values.mean()), 6) for values in expected.values()}) == 3


def test_the_best_sample_is_best_over_all_images():
    values = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.4, 0.5]])
    assert combine(values, "best-sample").tolist() == values[1].tolist()
    assert combine(values, "best-sample", higher_is_better=False).tolist() == values[0].tolist()
    torch.testing.assert_close(combine(values, "mean-score"), torch.tensor([0.7, 0.2, 0.25]))


def test_mirage_is_low_by_one_comparison():
    """Its sum of strict comparisons never counted the picture itself, which it then subtracts."""
    x, y = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = TWO_WAY_IDENTIFICATION(x, y)
    r = np.corrcoef(y, x)[:12, 12:]
    mirage = [((r[:, j] < r[j, j]).sum() - 1) / 11 for j in range(12)]
    np.testing.assert_allclose((ours.numpy() - mirage) * 11, 1, atol=1e-12)


def test_bad_options_and_inputs_are_named():
    with pytest.raises(ValueError, match="0 < top < ways"):
        NWay(5, top=5)
    with pytest.raises(ValueError, match="50-way accuracy needs as many classes, the classifier has 30"):
        N_WAY_TOP_K(torch.rand(2, 30), torch.rand(2, 30))
    with pytest.raises(ValueError, match="pool of 300 needs as many images, got 5"):
        TOP_1_RETRIEVAL(torch.rand(5, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match="given 'brain' or 'image'"):
        Retrieval("picture")
    with pytest.raises(ValueError, match="must have one shape"):
        cosine_similarity(torch.rand(5, 3), torch.rand(5, 4))
