"""The vision tower of OpenAI's CLIP ViT-L/14: its embedding, and its hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.networks.base import Network
from eval.pictures import CLIP_MEAN, CLIP_STD

SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
HIDDEN = (6, 12)
"""Hidden states as transformers counts them: number k is what the k-th block gives."""


def _cache() -> Path:
    return Path("~/.cache/clip").expanduser()  # where clip.load() puts it


def _build() -> nn.Module:
    with warnings.catch_warnings():  # clip-anytorch imports pkg_resources, which warns of its own end
        warnings.simplefilter("ignore", UserWarning)
        from clip.model import VisionTransformer

    return VisionTransformer(input_resolution=224, patch_size=14, width=1024, layers=24, heads=16, output_dim=768)


def _embedding(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    return {"encode_image": module(pixels)}


def _with_hidden_states(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
    tower: Any = module  # clip.model's VisionTransformer; importing clip here would warn whoever lists protocols
    patches = tower.conv1(pixels).flatten(2).transpose(1, 2)
    first = tower.class_embedding.expand(len(patches), 1, -1)
    tokens = tower.ln_pre(torch.cat([first, patches], 1) + tower.positional_embedding).transpose(0, 1)
    tapped: dict[str, Tensor] = {}
    for number, block in enumerate(tower.transformer.resblocks, start=1):
        tokens = block(tokens)
        if number in HIDDEN:
            tapped[f"hidden.{number}"] = tokens.transpose(0, 1)
    return tapped | {"encode_image": tower.ln_post(tokens[0]) @ tower.proj}


CLIP_VIT_L14 = Network(
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
    forward=_embedding,
    prefix="visual.",
)
"""The "CLIP" column."""
CLIP_VIT_L14_HIDDEN = replace(
    CLIP_VIT_L14,
    name="clip_vit_l14_hidden",
    taps=("hidden.6", "hidden.12", "encode_image"),  # 257 x 1024 each, and 768 values
    forward=_with_hidden_states,
)
"""With two hidden states beside the embedding (Takagi & Nishimoto)."""
