"""Small stand-ins for the feature networks, so that a protocol's plumbing runs in milliseconds, and small pictures."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import eval.metrics
from eval._listing import objects
from eval.metrics.base import Formula
from eval.networks import _weights as weights
from eval.networks.base import Network
from eval.plugins.base import Column, Inputs, Plugin
from eval.protocols.base import Protocol

CLASSES = 120
FORMULAS = objects(eval.metrics, Formula)


def sides(formula: Formula) -> tuple[Tensor, Tensor]:
    """What a formula may be given: both sides of a few more images than it needs, pictures or rows of numbers."""
    n = formula.readout.least_images + 9
    shape = (n, 3, 24, 20) if formula.reads == "pixels" else (n, CLASSES)
    x, y = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.linspace(0, 0.5, n, dtype=torch.float64).view(n, *(1 for _ in shape[1:]))  # from unlike to much alike
    return (1 - own) * x + own * y, y


class TinyNet(nn.Module):
    """For each tap a convolution of its own, pooled to 4 x 4 places."""

    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 6, 5, stride=2) for _ in taps)
        self.head = nn.Linear(6 * 16, CLASSES)

    def features(self, pixels: Tensor) -> list[Tensor]:
        return [nn.functional.adaptive_avg_pool2d(torch.relu(layer(pixels)), 4) for layer in self.layers]


@cache
def fake(network: Network) -> Network:
    """The network's name, taps, file and normalisation on a few hundred parameters."""

    def forward(module: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, TinyNet)
        tapped = dict(zip(network.taps, module.features(pixels), strict=True))
        if "probabilities" in tapped:
            tapped["probabilities"] = module.head(tapped["probabilities"].flatten(1)).softmax(1)
        return tapped

    return dataclasses.replace(
        network, build=lambda: TinyNet(network.taps), forward=forward, unused=(), foreign=(), prefix=""
    )


def with_fakes(protocol: Protocol) -> Protocol:
    """The protocol with every network replaced."""
    metrics = [
        dataclasses.replace(m, feature=dataclasses.replace(m.feature, network=fake(m.feature.network)))
        if m.feature
        else m
        for m in protocol.metrics
    ]
    return dataclasses.replace(protocol, metrics=tuple(metrics))


def fake_features(network: Network, tap: str, pixels: Tensor) -> np.ndarray:
    """Features `(N, D)` of normalised pixels, straight through the stand-in."""
    module = weights.load(fake(network), "untrained", torch.device("cpu"))
    with torch.inference_mode():
        return fake(network).forward(module, pixels)[tap].flatten(1).numpy()


def level_pictures(
    n: int, samples: int, size: int = 48, truth_size: int = 48, own: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Reconstructions `(n, samples, 3, size, size)` and truths `(n, 3, truth_size, truth_size)`, uint8.

    Truths are smooth; each reconstruction mixes a share `own` of its truth with another scene and some noise.
    """
    rng = np.random.default_rng(42)
    coarse, others = (torch.from_numpy(rng.random((n, k, 3, 6, 6))).float() for k in (1, samples))
    noise = torch.from_numpy(rng.random((n, samples, 3, size, size))).float()
    mixed = 0.8 * _enlarged(own * coarse + (1 - own) * others, size) + 0.2 * noise
    return (mixed * 255).round().to(torch.uint8), (_enlarged(coarse, truth_size)[:, 0] * 255).round().to(torch.uint8)


def _enlarged(images: Tensor, size: int) -> Tensor:
    large = nn.functional.interpolate(images.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return large.unflatten(0, images.shape[:2])


def _brightness(inputs: Inputs) -> dict[str, Tensor]:
    return {"brightness": inputs.reconstructions.float().mean((2, 3, 4)).T}


BRIGHTNESS = Plugin("brightness", 4, "Mean level of a reconstruction.", (Column("brightness", "Bright"),), _brightness)
"""A metric of somebody's own, importable in every worker."""
