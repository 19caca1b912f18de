"""ViT-H/14, fine-tuned on ImageNet from SWAG: the classifier of n-way accuracy (Mind-Vis, CnD)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import vit_h_14

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    return vit_h_14(weights=None, image_size=518)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"probabilities": module(pixels).softmax(1)}


NETWORK = Network(
    name="vit_h_14",
    taps=("probabilities",),  # of ImageNet's 1000 classes
    parameters=633_470_440,
    weights_file="vit_h_14.pth",
    source="torchvision ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1 (vit_h_14_swag-80465313.pth)",
    url="https://download.pytorch.org/models/vit_h_14_swag-80465313.pth",
    terms="CC BY-NC 4.0 (facebookresearch/SWAG)",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
)
