"""LPIPS on AlexNet (Zhang et al. 2018): features whose squared distance is the published perceptual distance.

The convolutions are torchvision's AlexNet; the five linear heads (LPIPS 0.1, BSD-2-Clause) come with torchmetrics.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from eval.networks.torchvision import ALEXNET

RELUS = (1, 4, 7, 9, 11)
"""Places of the five ReLUs in AlexNet's convolutional part."""
CHANNELS = (64, 192, 384, 256, 256)
EPSILON = 1e-8


class LpipsAlex(nn.Module):
    """AlexNet's convolutions and a weight for each channel of its five layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = alexnet(weights=None).features[: RELUS[-1] + 1]
        for layer, channels in enumerate(CHANNELS):  # nested as in the published file, whose names are lin0.model.1
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{layer}", nn.ModuleDict({"model": head}))

    def weighted(self, pixels: Tensor) -> Tensor:
        """Return the root-weighted unit-length features of all layers.

        Args:
            pixels: `(B, 3, H, W)`, normalised.

        Returns:
            `(B, D)`; at 256 px D is 640,128.
        """
        parts, start = [], 0
        for layer, end in enumerate(RELUS):
            pixels = self.features[start : end + 1](pixels)
            start = end + 1
            unit = pixels / torch.sqrt(EPSILON + pixels.square().sum(1, keepdim=True))
            weights = self.get_parameter(f"lin{layer}.model.1.weight")  # (1, C, 1, 1), none negative
            places = pixels.shape[2] * pixels.shape[3]
            parts.append((unit * (weights / places).sqrt()).flatten(1))
        return torch.cat(parts, 1)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    assert isinstance(module, LpipsAlex)
    return {"weighted": module.weighted(pixels)}


def _heads() -> Path:
    found = importlib.util.find_spec("torchmetrics")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"


LPIPS_ALEX = replace(
    ALEXNET,  # LPIPS' own shift and scale of [-1, 1] are ImageNet's mean and s.d. on [0, 1]
    name="lpips_alex",
    taps=("weighted",),
    parameters=2_470_848,
    source=f"{ALEXNET.source}; LPIPS heads come with torchmetrics",
    build=LpipsAlex,
    forward=_forward,
    unused=(),
    foreign=("classifier.",),
    companion=_heads,
)
