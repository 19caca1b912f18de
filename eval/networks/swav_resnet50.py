"""SwAV's ResNet-50: the "SwAV" column."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import resnet50

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    return resnet50(weights=None)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"avgpool": module(pixels)}  # the classifier is gone: avgpool, flattened


NETWORK = Network(
    name="swav_resnet50",
    taps=("avgpool",),
    parameters=25_557_032,
    weights_file="swav_resnet50.pth",
    source="facebookresearch/swav, ResNet-50, 800 epochs (swav_800ep_pretrain.pth.tar)",
    url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    terms="CC BY-NC 4.0 (facebookresearch/swav)",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
    unused=("fc",),
    foreign=("projection_head.", "prototypes."),
    prefix="module.",
)
