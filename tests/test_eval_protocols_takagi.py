"""takagi against its scripts written out: five samples, correlations averaged, other reconstructions as distractors."""

import dataclasses

import numpy as np
import pytest
import torch
from eval_fakes import fake_features, level_pictures, with_fakes
from PIL import Image

from eval.protocols.base import find
from eval.suite import score


@pytest.fixture(scope="module")
def pictures():
    return level_pictures(7, 5, own=0.15)


@pytest.fixture(scope="module")
def scores(pictures):
    return score(*pictures, with_fakes(find("takagi")), "untrained")


def _features(metric, pictures):
    network, step = metric.feature.network, metric.feature.resize
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[step.interpolation]
    files = [Image.fromarray(p.permute(1, 2, 0).numpy()).resize((step.size, step.size), kernel) for p in pictures]
    pixels = [(np.asarray(f) / 255 - network.mean) / network.std for f in files]
    return fake_features(network, metric.feature.tap, torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2)).float())


@pytest.mark.parametrize("metric", find("takagi").metrics, ids=lambda m: m.name)
def test_identification_is_the_script(pictures, scores, metric):
    shown, truth = pictures
    original = _features(metric, truth)
    generated = [_features(metric, shown[:, sample]) for sample in range(5)]
    accuracies = []
    for own in range(7):
        true = np.mean([np.corrcoef(original[own], sample[own])[0, 1] for sample in generated])
        fakes = [
            np.mean([np.corrcoef(original[own], sample[other])[0, 1] for sample in generated])
            for other in range(7)
            if other != own
        ]
        accuracies.append(np.mean([true > fake for fake in fakes]))
    np.testing.assert_allclose(scores.per_image[metric.name], accuracies, atol=1e-9)


def test_some_comparisons_are_lost(scores):
    assert 0.5 < np.mean([metric.value for metric in scores.metrics]) < 1


def test_layers_and_sizes_are_those_of_the_script():
    described = {
        m.name: (m.feature.network.name, m.feature.tap, m.feature.resize.size, m.feature.resize.interpolation)
        for m in find("takagi").metrics
    }
    assert described == {
        "inception": ("inception_v3", "avgpool", 299, "bilinear"),
        "alex5": ("alexnet_pooled", "features.5", 299, "bilinear"),
        "alex12": ("alexnet_pooled", "features.12", 299, "bilinear"),
        "alex18": ("alexnet_pooled", "classifier.5", 299, "bilinear"),
        "clip-h6": ("clip_vit_l14_hidden", "hidden.6", 224, "bicubic"),
        "clip-h12": ("clip_vit_l14_hidden", "hidden.12", 224, "bicubic"),
        "clip": ("clip_vit_l14_hidden", "encode_image", 224, "bicubic"),
    }
    assert all(
        m.reads_out.transpose and m.samples == "mean-comparison" and m.chance == 0.5 for m in find("takagi").metrics
    )


def test_averaging_later_is_another_metric(pictures, scores):
    protocol = with_fakes(find("takagi"))
    later = tuple(dataclasses.replace(metric, samples="mean-score") for metric in protocol.metrics)
    other = score(*pictures, dataclasses.replace(protocol, metrics=later), "untrained")
    assert any(abs(other[m.name].value - scores[m.name].value) > 1e-3 for m in protocol.metrics)


def test_one_sample_is_the_transpose_of_the_usual_identification(pictures):
    protocol = with_fakes(find("takagi"))
    usual = tuple(dataclasses.replace(metric, readout=None) for metric in protocol.metrics)
    there = score(pictures[0][:, :1], pictures[1], protocol, "untrained")
    swapped = score(pictures[1], pictures[0][:, 0], dataclasses.replace(protocol, metrics=usual), "untrained")
    for name, values in there.per_image.items():
        np.testing.assert_allclose(values, swapped.per_image[name], atol=1e-12)


def test_truth_is_perfect(pictures):
    perfect = score(pictures[1], pictures[1], with_fakes(find("takagi")), "untrained")
    assert [m.value for m in perfect.metrics] == [1.0] * 7
