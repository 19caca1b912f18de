"""cs292f against its notebook written out, LPIPS by torchmetrics' own network."""

import dataclasses

import numpy as np
import pytest
import torch
from eval_fakes import fake_features, level_pictures, with_fakes
from PIL import Image
from scipy.spatial.distance import correlation
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from eval.networks.lpips_alex import LPIPS_ALEX
from eval.networks.torchvision import EFFICIENTNET_V2_S
from eval.protocols.base import find
from eval.suite import score

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def pictures():
    """Three truths of 425 px and two reconstructions of 512 px each."""
    return level_pictures(3, 2, size=512, truth_size=425)


@pytest.fixture(scope="module")
def files(pictures):
    """Reconstructions as arrays `[sample][image]`, and truths resized by PIL."""
    shown, truth = pictures
    arrays = [[each.permute(1, 2, 0).numpy() for each in shown[:, s]] for s in range(2)]
    images = [Image.fromarray(t.permute(1, 2, 0).numpy()) for t in truth]
    return arrays, [np.asarray(i.resize((512, 512), Image.Resampling.BILINEAR)) for i in images]


@pytest.fixture(scope="module")
def scores(pictures):
    return score(*pictures, with_fakes(find("cs292f")), "untrained", batch=2)


def test_pcc_and_ssim_are_the_notebooks(files, scores):
    shown, truth = files
    pcc = [
        [np.corrcoef((x / 127.5 - 1).ravel(), (y / 127.5 - 1).ravel())[0, 1] for x, y in zip(s, truth, strict=True)]
        for s in shown
    ]
    ssim = [
        [structural_similarity(rgb2gray(x), rgb2gray(y), data_range=1) for x, y in zip(s, truth, strict=True)]
        for s in shown
    ]
    np.testing.assert_allclose(scores.per_image["pcc"], np.mean(pcc, axis=0), atol=1e-5)
    np.testing.assert_allclose(scores.per_image["ssim"], np.mean(ssim, axis=0), atol=1e-5)


def test_effnet_sees_bytes_and_averages_features_first(files, scores):
    def features(arrays):
        pixels = (np.stack(arrays).astype(np.float64) - MEAN) / STD  # 0 to 255
        stacked = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
        return fake_features(EFFICIENTNET_V2_S, "avgpool", stacked)

    shown, truth = files
    generated = np.mean([features(sample) for sample in shown], axis=0)
    expected = [correlation(t, g) for t, g in zip(features(truth), generated, strict=True)]
    np.testing.assert_allclose(scores.per_image["effnet"], expected, atol=1e-6)


def test_lpips_is_a_squared_distance_averaged_over_samples(files, scores):
    def features(arrays):
        pixels = (np.stack(arrays) / 255 - LPIPS_ALEX.mean) / LPIPS_ALEX.std
        stacked = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
        return fake_features(LPIPS_ALEX, "weighted", stacked).astype(np.float64)

    shown, truth = files
    expected = np.mean([((features(sample) - features(truth)) ** 2).sum(1) for sample in shown], axis=0)
    np.testing.assert_allclose(scores.per_image["lpips"], expected, rtol=1e-4)


def test_truth_is_perfect_and_batches_change_nothing(pictures, scores):
    protocol = with_fakes(find("cs292f"))
    perfect = score(pictures[1], pictures[1], protocol, "untrained")
    assert [m.value for m in perfect.metrics] == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert [m.higher_is_better for m in perfect.metrics] == [True, True, False, False]
    again = score(*pictures, protocol, "untrained", batch=16)
    for name, values in scores.per_image.items():
        np.testing.assert_allclose(again.per_image[name], values, atol=1e-6)


def test_scale_and_order_of_averaging_matter(pictures, scores):
    protocol = with_fakes(find("cs292f"))
    metric = protocol["effnet"]
    usual = dataclasses.replace(metric, name="usual", samples="mean-score")
    scaled = dataclasses.replace(metric, name="scaled", feature=dataclasses.replace(metric.feature, scale=1.0))
    other = score(*pictures, dataclasses.replace(protocol, metrics=(usual, scaled)), "untrained")
    for name in ("usual", "scaled"):
        assert abs(other[name].value - scores["effnet"].value) > 1e-5
