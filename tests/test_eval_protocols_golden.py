"""Frozen protocols give the numbers they gave: recorded once on fixed pictures, compared ever since."""

import numpy as np
import pytest
import torch
from eval_fakes import with_fakes

from eval.protocols.base import find
from eval.suite import score

SCENES_1 = {
    "pixcorr": (0.7029020587478007, 0.705140276650074),
    "ssim": (0.6592802914708773, 0.6588225950423249),
    "scene-low": (1.0, 1.0),
    "scene-mid": (1.0, 1.0),
    "scene-high": (0.7333333333333334, 0.6333333333333333),
    "scene-embedding": (0.8666666666666667, 0.8166666666666668),
    "scene-mid-dist": (0.26315520535586345, 0.2656524601659838),
    "scene-high-dist": (0.091313125604961, 0.1047281935009526),
}
MINDEYE2_ON_FAKES = {
    "pixcorr": 0.7047623299026918,
    "ssim": 0.671682929645112,
    "alex2": 1.0,
    "alex5": 1.0,
    "inception": 1.0,
    "clip": 1.0,
    "effnet": 0.037239678732161295,
    "swav": 0.031997964400006906,
}


@pytest.fixture(scope="module")
def pictures():
    """Six truths and two noisy reconstructions of each: bytes of a seeded generator, the same on every machine."""
    rng = np.random.default_rng(42)
    truth = torch.from_numpy(rng.integers(0, 256, (6, 3, 48, 48), dtype=np.uint8))
    noise = torch.from_numpy(rng.integers(0, 256, (6, 2, 3, 48, 48), dtype=np.uint8))
    return ((truth[:, None].int() + noise.int()) // 2).to(torch.uint8), truth


@pytest.mark.parametrize("samples", [1, 2])
def test_scenes_1_gives_its_numbers(pictures, samples):
    scores = score(pictures[0][:, :samples], pictures[1], "scenes-1")
    assert scores.version == 1
    values = {name: scores[name].value for name in SCENES_1}
    assert values == pytest.approx({name: both[samples - 1] for name, both in SCENES_1.items()}, abs=1e-6)


def test_mindeye2_gives_its_numbers(pictures):
    scores = score(pictures[0], pictures[1], with_fakes(find("mindeye2")), "untrained")
    assert scores.version == 1
    assert {name: scores[name].value for name in MINDEYE2_ON_FAKES} == pytest.approx(MINDEYE2_ON_FAKES, abs=1e-6)
