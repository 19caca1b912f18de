"""Inception V3: the "Incep" column."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import inception_v3

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    # torchvision sets transform_input whenever it loads weights: the network undoes ImageNet's mean and s.d. itself.
    return inception_v3(weights=None, transform_input=True, init_weights=False)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"avgpool": module(pixels)}  # the classifier is gone and dropout does nothing: avgpool, flattened


NETWORK = Network(
    name="inception_v3",
    taps=("avgpool",),
    parameters=27_161_264,
    weights_file="inception_v3.pth",
    source="torchvision Inception_V3_Weights.IMAGENET1K_V1 (inception_v3_google-0cc3c7bd.pth)",
    url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
    unused=("AuxLogits", "fc"),
)
