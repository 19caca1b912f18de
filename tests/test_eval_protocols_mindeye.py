"""mindeye1 and mindeye2 against their script written out with torchvision, NumPy, SciPy and scikit-image."""

import numpy as np
import pytest
import torch
from eval_fakes import fake_features, level_pictures, with_fakes
from scipy.spatial.distance import correlation
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torchvision import transforms

from eval.protocols.base import find
from eval.suite import score

PROTOCOLS = ["mindeye1", "mindeye2"]
SIZES = {"alex2": 256, "alex5": 256, "inception": 342, "clip": 224, "effnet": 255, "swav": 224}


@pytest.fixture(scope="module")
def pictures():
    shown, truth = level_pictures(5, 1, size=128, truth_size=224, own=0.3)
    return shown[:, 0].float() / 255, truth.float() / 255


def _scored(name, pictures, **given):
    return score(*pictures, with_fakes(find(name)), "untrained", **given)


def _resized(images, *sizes):
    for size in sizes:
        images = transforms.Resize((size, size), antialias=False)(images)
    return images


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pixel_metrics_are_the_script(pictures, name):
    shown, truth = (_resized(side, 256, 425) for side in pictures)
    pixcorr = [np.corrcoef(x.numpy().ravel(), y.numpy().ravel())[0, 1] for x, y in zip(shown, truth, strict=True)]
    greys = [rgb2gray(side.permute(0, 2, 3, 1).numpy()) for side in (shown, truth)]
    keywords = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    ssim = [structural_similarity(x, y, **keywords) for x, y in zip(*greys, strict=True)]
    scores = _scored(name, pictures)
    np.testing.assert_allclose(scores.per_image["pixcorr"], pixcorr, atol=1e-6)
    np.testing.assert_allclose(scores.per_image["ssim"], ssim, atol=1e-5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_feature_metrics_are_the_script(pictures, name):
    scores = _scored(name, pictures)
    for metric, size in SIZES.items():
        network, tap = find(name)[metric].feature.network, find(name)[metric].feature.tap
        normalise = transforms.Normalize(network.mean, network.std)
        shown, truth = (fake_features(network, tap, normalise(_resized(side, 256, size))) for side in pictures)
        if metric in ("effnet", "swav"):
            expected = [correlation(t, p) for t, p in zip(truth, shown, strict=True)]
        else:
            r = np.corrcoef(truth, shown)[:5, 5:]
            expected = (r < np.diag(r)).sum(axis=0) / 4
        np.testing.assert_allclose(scores.per_image[metric], expected, atol=1e-5)


@pytest.fixture(scope="module")
def many():
    """Pictures of 8 px and latents of 320 images: as many as the pool asks for."""
    rng = np.random.default_rng(0)
    true = torch.from_numpy(rng.standard_normal((320, 12)) + 0.5)
    spread = torch.linspace(0.2, 1.5, 320, dtype=torch.float64)[:, None]
    predicted = true + spread * torch.from_numpy(rng.standard_normal((320, 12)))
    pictures = torch.from_numpy(rng.integers(0, 256, (320, 3, 8, 8), dtype=np.uint8))
    return pictures, (predicted, true)


def _only(name, *metrics):
    protocol = find(name)
    return type(protocol)("part", 1, "", None, tuple(protocol[metric] for metric in metrics))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_retrieval_columns_are_swapped_as_published(many, name):
    """The notebook's loop: 30 pools of 300, its transposed similarity, top-1 along the rows."""
    pictures, (brain, clip) = many
    scores = score(pictures, pictures, _only(name, "retrieval-fwd", "retrieval-bwd"), latents=(brain, clip))
    unit_brain, unit_clip = (side / side.norm(dim=1, keepdim=True) for side in (brain, clip))
    rng, shares = np.random.default_rng(0), {"retrieval-fwd": [], "retrieval-bwd": []}
    for _ in range(30):
        pool = torch.from_numpy(rng.choice(320, 300, replace=False))
        fwd = (unit_brain[pool] @ unit_clip[pool].T).T  # "batchwise cosine similarity (brain, clip)": rows are images
        for column, similarity in (("retrieval-fwd", fwd), ("retrieval-bwd", fwd.T)):
            shares[column].append((similarity.argmax(1) == torch.arange(300)).double().mean())
    for column, values in shares.items():
        assert scores[column].value == pytest.approx(float(np.mean(values)), abs=1e-12)
    right = score(
        pictures, pictures, _only("reconbench-1", "retrieval-image", "retrieval-brain"), latents=(brain, clip)
    )
    assert right["retrieval-image"].value == pytest.approx(scores["retrieval-bwd"].value, abs=0.005)
    assert right["retrieval-brain"].value == pytest.approx(scores["retrieval-fwd"].value, abs=0.005)
    assert abs(right["retrieval-image"].value - right["retrieval-brain"].value) > 0.015
    assert not any(metric.ranked for metric in find(name).metrics if metric.kind == "retrieval")
    assert find(name)["retrieval-fwd"].chance == 1 / 300


def test_brain_correlation_asks_the_encoding_model(pictures):
    """A linear encoding model of 40 voxels on the mean colours of 4 x 4 patches."""
    weights = torch.randn(48, 40, generator=torch.Generator().manual_seed(0))

    def encode(images):
        assert 0 <= images.min() <= images.max() <= 1
        assert len(images) <= 2
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ weights

    measured = torch.cat([encode(pictures[1][i : i + 1]) for i in range(5)]) + 0.2
    protocol = _only("mindeye2", "brain-correlation")
    both = torch.stack([pictures[0], pictures[0].flip(3)], 1)
    scores = score(both, pictures[1], protocol, betas=(measured, encode), batch=2)
    expected = [
        np.mean([np.corrcoef(encode(both[i, s : s + 1])[0], measured[i])[0, 1] for s in range(2)]) for i in range(5)
    ]
    np.testing.assert_allclose(scores.per_image["brain-correlation"], expected, atol=1e-6)
    truth = score(pictures[1], pictures[1], protocol, betas=(measured, encode), batch=2)
    assert truth["brain-correlation"].value == pytest.approx(1)


def test_what_was_not_given_is_named(pictures, many):
    scores = _scored("mindeye2", pictures)
    needs = "not computed: needs predictions and true latents and at least 300 images"
    assert scores["retrieval-fwd"].status == scores["retrieval-bwd"].status == needs
    assert scores["brain-correlation"].status == "not computed: needs betas"
    assert scores["retrieval-fwd"].value is None
    assert "retrieval-fwd" not in scores.to_table().column_names
    few = _scored("mindeye2", pictures, latents=(many[1][0][:5], many[1][1][:5]))
    assert few["retrieval-bwd"].status == "not computed: needs at least 300 images"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"latents": (torch.rand(5, 3), torch.rand(5, 4))},
            r"latents \(5, 3\) and true latents \(5, 4\) must have one",
        ),
        (
            {"latents": (torch.rand(4, 3), torch.rand(4, 3))},
            r"predicted latents must be .* each of 5 images; got \(4, 3\)",
        ),
        ({"latents": (torch.rand(5, 3), torch.ones(5, 3, dtype=torch.int64))}, "true latents .*got .*int64"),
        (
            {"betas": (torch.rand(5, 9).index_fill(0, torch.tensor(2), float("nan")), len)},
            "test betas of image 2 are not",
        ),
        (
            {"betas": (torch.rand(5, 9), lambda x: x.mean((2, 3)))},
            r"model gave betas \(5, 3\), the test betas are \(5, 9\)",
        ),
    ],
)
def test_bad_latents_and_betas_are_named(pictures, given, message):
    with pytest.raises(ValueError, match=message):
        score(*pictures, _only("mindeye2", "pixcorr", "brain-correlation"), **given)


def test_the_two_protocols_differ_in_name_and_quirks_only():
    first, second = (find(name) for name in PROTOCOLS)
    assert first.first == second.first
    assert first.metrics == second.metrics[:-1]
    assert any("982" in quirk for quirk in first.quirks)
    for protocol in (first, second):
        assert any("swapped" in quirk for quirk in protocol.quirks)
