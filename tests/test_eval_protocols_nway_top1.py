"""nway-top1 against Mind-Vis' procedure written out: draws of classes, five samples, mean and max over samples."""

import math

import numpy as np
import pytest
import torch
from eval_fakes import CLASSES, fake_features, level_pictures, with_fakes
from PIL import Image

from eval.networks.torchvision import VIT_H_14
from eval.protocols.base import find
from eval.suite import score


@pytest.fixture(scope="module")
def pictures():
    return level_pictures(6, 3)


@pytest.fixture(scope="module")
def scores(pictures):
    return score(*pictures, with_fakes(find("nway-top1")), "untrained")


def _probabilities(pictures):
    """The classifier's preset: PIL bicubic to 518 px, ImageNet mean and s.d., softmax."""
    files = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
    large = [np.asarray(f.resize((518, 518), Image.Resampling.BICUBIC)) / 255 for f in files]
    pixels = [(each - VIT_H_14.mean) / VIT_H_14.std for each in large]
    stacked = torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2)).float()
    return fake_features(VIT_H_14, "probabilities", stacked)


def _published_accuracy(shown, label, ways, trials, rng):
    others = [c for c in range(CLASSES) if c != label]
    wins = 0
    for _ in range(trials):
        picked = np.concatenate([[label], rng.choice(others, ways - 1, replace=False)])
        wins += int(shown[picked].argmax() == 0)
    return wins / trials


@pytest.mark.parametrize("ways", [50, 100])
def test_accuracies_are_the_published_procedure(pictures, scores, ways):
    shown, truth = pictures
    labels = _probabilities(truth).argmax(1)
    rng = np.random.default_rng(0)
    accuracies = np.array(
        [
            [
                _published_accuracy(p, label, ways, 400, rng)
                for p, label in zip(_probabilities(shown[:, s]), labels, strict=True)
            ]
            for s in range(3)
        ]
    )
    noise = 4 * math.sqrt(0.25 / 400 + 0.25 / 1000)
    np.testing.assert_allclose(scores.per_image[f"{ways}-way"], accuracies.mean(0), atol=noise)
    best = accuracies[accuracies.mean(1).argmax()]
    assert scores[f"{ways}-way-max"].value == pytest.approx(best.mean(), abs=noise / 2)
    assert scores[f"{ways}-way-max"].value >= scores[f"{ways}-way"].value


def test_accuracy_is_between_chance_and_one(scores):
    assert 0.02 < scores["100-way"].value < scores["50-way"].value < 1


def test_max_is_an_oracle_and_never_ranked():
    protocol = find("nway-top1")
    assert [(m.name, m.ranked, m.chance) for m in protocol.metrics] == [
        ("50-way", True, 0.02),
        ("50-way-max", False, 0.02),
        ("100-way", True, 0.01),
        ("100-way-max", False, 0.01),
    ]
    assert all(m.reads_out.trials == 1000 and m.reads_out.top == 1 for m in protocol.metrics)
    assert all(m.kind == "classification" for m in protocol.metrics)


def test_truth_is_perfect_repeats_and_order_only_permutes(pictures, scores):
    protocol = with_fakes(find("nway-top1"))
    perfect = score(pictures[1], pictures[1], protocol, "untrained")
    assert [m.value for m in perfect.metrics] == [1.0] * 4
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    again = score(pictures[0][order], pictures[1][order], protocol, "untrained", batch=4)
    for name, values in scores.per_image.items():
        np.testing.assert_allclose(again.per_image[name], values[order.numpy()], atol=1e-9)
