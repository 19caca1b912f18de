"""EfficientNet-V2-S: the "Eff" column of CS292F."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    return efficientnet_v2_s(weights=None)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"avgpool": module(pixels)}  # the classifier is gone: avgpool, flattened


NETWORK = Network(
    name="efficientnet_v2_s",
    taps=("avgpool",),
    parameters=21_458_488,
    weights_file="efficientnet_v2_s.pth",
    source="torchvision EfficientNet_V2_S_Weights.IMAGENET1K_V1 (efficientnet_v2_s-dd5fe13b.pth)",
    url="https://download.pytorch.org/models/efficientnet_v2_s-dd5fe13b.pth",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
    unused=("classifier",),
)
