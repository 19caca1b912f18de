"""The scene network: a small convolutional network for procedural 64-pixel scenes, trained to name what is in them.

ImageNet networks without their weights say nothing about such scenes. This one is trained by
`python -m eval.networks.scene.train` on attributes of the scenes (setting, light, objects, positions, colours), so that
its layers mean something from low (edges, colours, in place) to high (what is there, anywhere); its weights ship with
the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.networks.base import Network

WEIGHTS = Path(__file__).with_name("scene.safetensors")
WIDTHS = (24, 48, 96, 128)
EMBEDDING = 128
ATTRIBUTES = 72
"""Length of the attribute vector that the shipped head predicts."""


class SceneNet(nn.Module):
    """Four stages that halve the picture, then an embedding from which the attributes are read linearly."""

    centre: Tensor
    spread: Tensor

    def __init__(self, attributes: int = ATTRIBUTES) -> None:
        super().__init__()
        widths = (3, *WIDTHS)
        self.stages = nn.ModuleList(_stage(i, o) for i, o in pairwise(widths))
        self.embedding = nn.Linear(WIDTHS[-1] * 4 * 4, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, attributes)
        # Mean and s.d. over training scenes: their common offset would make all embeddings alike.
        self.register_buffer("centre", torch.zeros(EMBEDDING))
        self.register_buffer("spread", torch.ones(EMBEDDING))

    def taps(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the tapped features; convolutional stages before their ReLU.

        Args:
            pixels: `(B, 3, 64, 64)`, normalised.

        Returns:
            `low` `(B, 24, 32, 32)`, `mid` `(B, 96, 8, 8)`, `high` `(B, 128)` pooled over places, and
            `embedding` `(B, 128)` standardised.
        """
        low, mid, last = self._stages(pixels)
        embedding = self.embedding(last.flatten(1))
        return {
            "low": low,
            "mid": mid,
            "high": last.mean((2, 3)),
            "embedding": (embedding - self.centre) / self.spread,
        }

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the raw embedding `(B, 128)`."""
        return self.embedding(self._stages(pixels)[-1].flatten(1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(B, A)`: logits of binary attributes, standardised values of the others."""
        return self.head(torch.relu(self.embed(pixels)))

    def _stages(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First and third stage before, last stage after its ReLU."""
        low = self.stages[0](pixels)
        second = self.stages[1](torch.relu(low))
        mid = self.stages[2](torch.relu(second))
        return low, mid, torch.relu(self.stages[3](torch.relu(mid)))


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, the first with stride 2. It ends before its ReLU: centred features tell scenes apart."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    assert isinstance(module, SceneNet)
    return module.taps(pixels)


SCENE = Network(
    name="scene",
    taps=("low", "mid", "high", "embedding"),
    parameters=sum(p.numel() for p in SceneNet().parameters()),
    weights_file=WEIGHTS.name,
    source="this package: python -m eval.networks.scene.train",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    build=SceneNet,
    forward=_forward,
    unused=("head",),
    shipped=WEIGHTS,
    terms="that of this package",
)
