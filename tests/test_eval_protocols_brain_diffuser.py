"""brain-diffuser against its procedure written out with PIL, NumPy, SciPy and scikit-image."""

import numpy as np
import pytest
import torch
from eval_fakes import fake_features, level_pictures, with_fakes
from PIL import Image
from scipy.spatial.distance import correlation
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.pictures import PilResize
from eval.protocols.base import find
from eval.suite import score

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _picture(tensor):
    return Image.fromarray(tensor.permute(1, 2, 0).numpy())


def _network_input(pictures, mean, std):
    """Picture files through torchvision's PIL resize, /255, mean and s.d."""
    small = [np.asarray(_picture(p).resize((224, 224), Image.Resampling.BILINEAR)) / 255 for p in pictures]
    return torch.from_numpy(np.stack([((s - mean) / std).transpose(2, 0, 1) for s in small])).float()


@pytest.fixture(scope="module")
def pictures():
    """Five reconstructions of 512 px and truths of 425 px."""
    shown, truth = level_pictures(5, 1, size=512, truth_size=425)
    return shown[:, 0], truth


@pytest.fixture(scope="module")
def scores(pictures):
    return score(*pictures, with_fakes(find("brain-diffuser")), "untrained")


def test_pixel_metrics_are_the_scripts(pictures, scores):
    pixcorr, ssim = [], []
    for shown, truth in zip(*pictures, strict=True):
        generated = np.asarray(_picture(shown).resize((425, 425))) / 255  # Pillow's default filter
        original = truth.permute(1, 2, 0).numpy() / 255
        pixcorr.append(np.corrcoef(generated.reshape(1, -1), original.reshape(1, -1))[0, 1])
        keywords = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        # scikit-image 0.17 made channel_axis=-1 of multichannel=True, also for a grey image
        ssim.append(structural_similarity(rgb2gray(generated), rgb2gray(original), channel_axis=-1, **keywords))
    np.testing.assert_allclose(scores.per_image["pixcorr"], pixcorr, atol=1e-5)
    np.testing.assert_allclose(scores.per_image["ssim"], ssim, atol=1e-5)


@pytest.mark.parametrize("metric", [m for m in find("brain-diffuser").metrics if m.feature], ids=lambda m: m.name)
def test_feature_metrics_are_the_scripts(pictures, scores, metric):
    network = metric.feature.network
    sides = [_network_input(side, np.array(network.mean), np.array(network.std)) for side in pictures]
    shown, truth = (fake_features(network, metric.feature.tap, side) for side in sides)
    if metric.name in ("effnet", "swav"):
        expected = [correlation(t, p) for t, p in zip(truth, shown, strict=True)]
    else:
        r = np.corrcoef(truth, shown)[:5, 5:]
        expected = (r < np.diag(r)).sum(axis=0) / 4
    np.testing.assert_allclose(scores.per_image[metric.name], expected, atol=1e-5)


def test_networks_layers_and_weights_are_the_published_ones():
    protocol = find("brain-diffuser")
    layers = {m.name: (m.feature.network.name, m.feature.tap) for m in protocol.metrics if m.feature}
    assert layers == {
        "alex2": ("alexnet", "features.4"),
        "alex5": ("alexnet", "features.11"),
        "inception": ("inception_v3", "avgpool"),
        "clip": ("clip_vit_l14", "encode_image"),
        "effnet": ("efficientnet_b1_v1", "avgpool"),
        "swav": ("swav_resnet50", "avgpool"),
    }
    assert {m.feature.resize for m in protocol.metrics if m.feature} == {PilResize(224, "bilinear")}
    assert protocol.first is None
    assert protocol["ssim"].formula.name == "ssim-columnwise"
    assert all((network.mean, network.std) == (tuple(MEAN), tuple(STD)) for network in protocol.networks[:2])


def test_differs_from_mindeye_on_the_same_pictures(pictures, scores):
    other = score(*pictures, with_fakes(find("mindeye2")), "untrained")
    for name in ("pixcorr", "ssim", "effnet"):
        assert abs(scores[name].value - other[name].value) > 1e-3, name


def test_floats_are_rounded_as_files_are(pictures, scores):
    again = score(
        *(side.float() / 255 + 1e-4 * (side < 255) for side in pictures),
        with_fakes(find("brain-diffuser")),
        "untrained",
    )
    for name, values in scores.per_image.items():
        np.testing.assert_allclose(again.per_image[name], values, atol=1e-6)


def test_truth_is_perfect_and_order_only_permutes(pictures, scores):
    protocol = with_fakes(find("brain-diffuser"))
    perfect = score(pictures[1], pictures[1], protocol, "untrained")
    assert [m.value for m in perfect.metrics] == pytest.approx([1] * 6 + [0] * 2, abs=1e-6)
    order = torch.tensor([3, 0, 4, 2, 1])
    again = score(pictures[0][order], pictures[1][order], protocol, "untrained")
    for name, values in scores.per_image.items():
        np.testing.assert_allclose(again.per_image[name], values[order.numpy()], atol=1e-6)


@pytest.mark.parametrize(("size", "kernel"), [(24, "bilinear"), (70, "bicubic"), (48, "bicubic")])
def test_pil_resize_is_pil(size, kernel):
    shown = level_pictures(2, 1)[0][:, 0]
    resized = PilResize(size, kernel)(shown.float() / 255)
    chosen = getattr(Image.Resampling, kernel.upper())
    expected = np.stack([np.asarray(_picture(each).resize((size, size), chosen)) for each in shown])
    np.testing.assert_array_equal((resized * 255).round().permute(0, 2, 3, 1).numpy(), expected)


def test_the_scripts_direction_is_ours():
    x, y = torch.randn(2, 50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = np.corrcoef(y, x)[:50, 50:]
    takagi = (r < np.diag(r)[:, None]).sum(1) / 49
    np.testing.assert_array_equal(TWO_WAY_IDENTIFICATION(x, y, Identification(transpose=True)), takagi)
