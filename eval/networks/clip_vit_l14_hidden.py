"""The vision tower of CLIP ViT-L/14 with two hidden states beside its embedding (Takagi & Nishimoto)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eval.networks import clip_vit_l14
from eval.networks.base import Network

HIDDEN = (6, 12)
"""Hidden states as transformers counts them: number k is what the k-th block gives."""


def _forward(module: nn.Module, pixels: Tensor) -> Mapping[str, Tensor]:
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


NETWORK = Network(
    name="clip_vit_l14_hidden",
    taps=("hidden.6", "hidden.12", "encode_image"),  # 257 x 1024 each, and 768 values
    parameters=clip_vit_l14.NETWORK.parameters,
    weights_file=clip_vit_l14.NETWORK.weights_file,
    source=clip_vit_l14.NETWORK.source,
    url=clip_vit_l14.NETWORK.url,
    sha256=clip_vit_l14.NETWORK.sha256,
    terms=clip_vit_l14.NETWORK.terms,
    cache=clip_vit_l14.NETWORK.cache,
    mean=clip_vit_l14.NETWORK.mean,
    std=clip_vit_l14.NETWORK.std,
    build=clip_vit_l14.NETWORK.build,
    forward=_forward,
    prefix=clip_vit_l14.NETWORK.prefix,
)
