"""The vision tower of OpenAI's CLIP ViT-L/14: the "CLIP" column."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from eval.networks.base import Network
from eval.pictures import CLIP_MEAN, CLIP_STD

SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"


def _cache() -> Path:
    return Path("~/.cache/clip").expanduser()  # where clip.load() puts it


def _build() -> nn.Module:
    with warnings.catch_warnings():  # clip-anytorch imports pkg_resources, which warns of its own end
        warnings.simplefilter("ignore", UserWarning)
        from clip.model import VisionTransformer

    return VisionTransformer(input_resolution=224, patch_size=14, width=1024, layers=24, heads=16, output_dim=768)


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"encode_image": module(pixels)}


NETWORK = Network(
    name="clip_vit_l14",
    taps=("encode_image",),  # the projected class token, 768 values
    parameters=303_966_208,
    weights_file="clip_vit_l14.pt",
    source="OpenAI CLIP ViT-L/14 (ViT-L-14.pt), or its plain state dict",
    url=f"https://openaipublic.azureedge.net/clip/models/{SHA256}/ViT-L-14.pt",
    sha256=SHA256,
    terms="MIT (openai/CLIP); its model card asks for research use only",
    cache=_cache,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    build=_build,
    forward=_forward,
    prefix="visual.",
)
