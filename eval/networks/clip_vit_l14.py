"""The vision tower of OpenAI's CLIP ViT-L/14: the "CLIP" column."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from eval.networks.base import Network


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
    source="OpenAI CLIP ViT-L/14 (ViT-L-14.pt): torch.save(clip.load('ViT-L/14', 'cpu')[0].state_dict(), ...)",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    build=_build,
    forward=_forward,
    prefix="visual.",
)
