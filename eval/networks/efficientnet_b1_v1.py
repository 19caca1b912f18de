"""EfficientNet-B1 with torchvision's weights V1: the "Eff" column of Brain-Diffuser."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import efficientnet_b1

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    return efficientnet_b1(weights=None)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"avgpool": module(pixels)}  # the classifier is gone: avgpool, flattened


NETWORK = Network(
    name="efficientnet_b1_v1",
    taps=("avgpool",),
    parameters=7_794_184,
    weights_file="efficientnet_b1_v1.pth",
    source="torchvision EfficientNet_B1_Weights.IMAGENET1K_V1 (efficientnet_b1_rwightman-bac287d4.pth)",
    url="https://download.pytorch.org/models/efficientnet_b1_rwightman-bac287d4.pth",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
    unused=("classifier",),
)
