"""Networks as published, that several models are built from: their configurations, and how they become networks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.errors import CorruptFileError

LATENT_CHANNELS = 4
REDUCTION = 8
"""Pixels of a picture's side to one of its latent's."""
TEXT_TOKENS, TEXT_WIDTH = 77, 768
"""Of CLIP ViT-L/14's text states, which the UNets attend to."""
PIECES = 49408
"""Entries of CLIP's vocabulary."""

_LIBRARIES = {
    "AutoencoderKL": "diffusers",
    "UNet2DConditionModel": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
}

UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 8,
}
"""Stable Diffusion v1's (Rombach et al. 2022), and the picture flow's of Versatile Diffusion (Xu et al. 2023)."""
VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": LATENT_CHANNELS,
    "sample_size": 512,
    # So that the standard deviation of scaled latents is about one.
    "scaling_factor": 0.18215,
}
"""Of both models likewise."""
CLIP_TEXT: Mapping[str, Any] = {
    "vocab_size": PIECES,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": TEXT_TOKENS,
    # OpenAI's CLIP was trained with this approximation; the exact function gives other states.
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
"""CLIP ViT-L/14's text tower (Radford et al. 2021)."""
CLIP_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
"""CLIP ViT-L/14's image tower."""


def kind(name: str) -> Any:  # noqa: ANN401 - the libraries are imported late
    """Return a class of diffusers or transformers by its name."""
    return getattr(importlib.import_module(_LIBRARIES[name]), name)


def build(name: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - see kind
    """Return a network of a class, freshly initialised on the default device."""
    cls = kind(name)
    return cls(**config) if _LIBRARIES[name] == "diffusers" else cls(cls.config_class(**config))


def refuse_other_model(
    folder: Path,
    model: str,
    configs: Mapping[str, Any],
    noise: Mapping[str, Any],
    own: Mapping[str, tuple[object, object]],
) -> None:
    """Refuse a checkpoint of the same classes whose outward shapes are another model's.

    Args:
        folder: Where it lies.
        model: What it should be.
        configs: The configurations of its `unet`, `vae` and `text` tower.
        noise: Its noise schedule.
        own: By name what came and what the model has, beyond what all models here have in common.

    Raises:
        CorruptFileError: Naming what came and what the model has.
    """
    unet, vae, text = (configs[part] for part in ("unet", "vae", "text"))
    facts = {
        "latent channels": (vae.latent_channels, LATENT_CHANNELS),
        "pixels a latent": (2 ** (len(vae.block_out_channels) - 1), REDUCTION),
        "UNet input channels": (unet.in_channels, LATENT_CHANNELS),
        "cross-attention width": (unet.cross_attention_dim, TEXT_WIDTH),
        "text tokens": (text.max_position_embeddings, TEXT_TOKENS),
        **own,
        "prediction type": (noise.get("prediction_type", "epsilon"), "epsilon"),
    }
    if wrong := [f"{name} {came} instead of {wanted}" for name, (came, wanted) in facts.items() if came != wanted]:
        raise CorruptFileError(f"{folder} is not {model}: {'; '.join(wrong)}")
