"""AlexNet: the "Alex(2)" and "Alex(5)" columns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import alexnet

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    return alexnet(weights=None)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    layers = module.get_submodule("features")
    second = layers[:5](pixels)  # type: ignore[index]
    return {"features.4": second, "features.11": layers[5:12](second)}  # type: ignore[index]


NETWORK = Network(
    name="alexnet",
    taps=("features.4", "features.11"),  # after the ReLU of the second and of the fifth convolution
    parameters=61_100_840,
    weights_file="alexnet.pth",
    source="torchvision AlexNet_Weights.IMAGENET1K_V1 (alexnet-owt-7be5be79.pth)",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
    unused=("avgpool", "classifier"),
)
