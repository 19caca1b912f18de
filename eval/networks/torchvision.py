"""The networks that torchvision builds: their layers, and the files that their published weights come in.

Where `unused` takes a classifier away, what the network returns is its `avgpool`, flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

from torch import Tensor, nn
from torchvision import models

from eval.networks.base import Network

_FILES = "https://download.pytorch.org/models"


def _network(name: str, build: Callable[[], nn.Module], parameters: int, weights: str, file: str) -> Network:
    """Return a network with a file that torchvision publishes: its pooled features are tapped, its classifier unused.

    Args:
        name: Of the network, and of its file in a weights folder.
        build: Makes it.
        parameters: Number of parameters of the published architecture.
        weights: What torchvision calls the weights.
        file: Their file's published name.
    """
    return Network(
        name=name,
        taps=("avgpool",),
        parameters=parameters,
        weights_file=f"{name}.pth",
        source=f"torchvision {weights} ({file})",
        url=f"{_FILES}/{file}",
        build=build,
        forward=_pooled,
        unused=("classifier",),
    )


def _pooled(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"avgpool": module(pixels)}


def _probabilities(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"probabilities": module(pixels).softmax(1)}


def _layers(module: nn.Module, name: str) -> nn.Sequential:
    return cast("nn.Sequential", module.get_submodule(name))


def _rectified(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    """Return what follows the ReLU of AlexNet's second and fifth convolution."""
    second = _layers(module, "features")[:5](pixels)
    return {"features.4": second, "features.11": _layers(module, "features")[5:12](second)}


def _after_pooling(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    """Return what follows AlexNet's last two max-poolings, and the last hidden layer of its classifier."""
    early = _layers(module, "features")[:6](pixels)
    late = _layers(module, "features")[6:](early)
    hidden = _layers(module, "classifier")[:6](module.get_submodule("avgpool")(late).flatten(1))
    return {"features.5": early, "features.12": late, "classifier.5": hidden}


ALEXNET = replace(
    _network(
        "alexnet",
        partial(models.alexnet, weights=None),
        61_100_840,
        "AlexNet_Weights.IMAGENET1K_V1",
        "alexnet-owt-7be5be79.pth",
    ),
    taps=("features.4", "features.11"),
    forward=_rectified,
    unused=("avgpool", "classifier"),
)
"""The "Alex(2)" and "Alex(5)" columns."""
ALEXNET_POOLED = replace(
    ALEXNET,
    name="alexnet_pooled",
    taps=("features.5", "features.12", "classifier.5"),
    forward=_after_pooling,
    unused=("classifier.6",),
)
"""AlexNet at Takagi & Nishimoto's layers."""
EFFICIENTNET_B1_V1 = _network(
    "efficientnet_b1_v1",
    partial(models.efficientnet_b1, weights=None),
    7_794_184,
    "EfficientNet_B1_Weights.IMAGENET1K_V1",
    "efficientnet_b1_rwightman-bac287d4.pth",
)
"""The "Eff" column of Brain-Diffuser."""
EFFICIENTNET_B1_V2 = _network(
    "efficientnet_b1_v2",
    partial(models.efficientnet_b1, weights=None),
    7_794_184,
    "EfficientNet_B1_Weights.IMAGENET1K_V2",
    "efficientnet_b1-c27df63c.pth",
)
"""The "Eff" column of MindEye and most others."""
EFFICIENTNET_V2_S = _network(
    "efficientnet_v2_s",
    partial(models.efficientnet_v2_s, weights=None),
    21_458_488,
    "EfficientNet_V2_S_Weights.IMAGENET1K_V1",
    "efficientnet_v2_s-dd5fe13b.pth",
)
"""The "Eff" column of CS292F."""
INCEPTION_V3 = replace(
    _network(
        "inception_v3",
        # As torchvision sets it whenever it loads weights: the network undoes ImageNet's mean and s.d. itself.
        partial(models.inception_v3, weights=None, transform_input=True, init_weights=False),
        27_161_264,
        "Inception_V3_Weights.IMAGENET1K_V1",
        "inception_v3_google-0cc3c7bd.pth",
    ),
    unused=("AuxLogits", "fc"),
)
"""The "Incep" column."""
SWAV_RESNET50 = Network(
    name="swav_resnet50",
    taps=("avgpool",),
    parameters=25_557_032,
    weights_file="swav_resnet50.pth",
    source="facebookresearch/swav, ResNet-50, 800 epochs (swav_800ep_pretrain.pth.tar)",
    url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    terms="CC BY-NC 4.0 (facebookresearch/swav)",
    build=partial(models.resnet50, weights=None),
    forward=_pooled,
    unused=("fc",),
    foreign=("projection_head.", "prototypes."),
    prefix="module.",
)
"""The "SwAV" column."""
VIT_H_14 = replace(
    _network(
        "vit_h_14",
        partial(models.vit_h_14, weights=None, image_size=518),
        633_470_440,
        "ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1",
        "vit_h_14_swag-80465313.pth",
    ),
    taps=("probabilities",),
    terms="CC BY-NC 4.0 (facebookresearch/SWAG)",
    forward=_probabilities,
    unused=(),
)
"""Fine-tuned on ImageNet from SWAG: the 1000 classes of n-way accuracy (Mind-Vis, CnD)."""
