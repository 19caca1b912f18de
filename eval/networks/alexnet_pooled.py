"""AlexNet at Takagi & Nishimoto's layers: after two max-poolings, and the last hidden layer of its classifier."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import alexnet

from eval.networks.base import Network
from eval.pictures import IMAGENET_MEAN, IMAGENET_STD


def _build() -> nn.Module:
    return alexnet(weights=None)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    layers, classifier = module.get_submodule("features"), module.get_submodule("classifier")
    early = layers[:6](pixels)  # type: ignore[index]
    late = layers[6:](early)  # type: ignore[index]
    hidden = classifier[:6](module.get_submodule("avgpool")(late).flatten(1))  # type: ignore[index]
    return {"features.5": early, "features.12": late, "classifier.5": hidden}


NETWORK = Network(
    name="alexnet_pooled",
    taps=("features.5", "features.12", "classifier.5"),
    parameters=61_100_840,
    weights_file="alexnet.pth",
    source="torchvision AlexNet_Weights.IMAGENET1K_V1 (alexnet-owt-7be5be79.pth)",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=_build,
    forward=_forward,
    unused=("classifier.6",),
)
