"""The networks of Versatile Diffusion as published, and how each is built from a configuration.

Sizes: those of `shi-labs/versatile-diffusion` (Xu et al. 2023; CLIP ViT-L/14: Radford et al. 2021).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

_CLASSES = {
    "image_unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
}

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "image_unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae": {
        "sample_size": 256,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 4,
        "layers_per_block": 2,
    },
    "image_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": 768,
    },
}
"""Configuration of each network; what is not named is the library's default."""

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

# Fixed here because a checkpoint may come with another scheduler's configuration, in which these are absent. With them
# 50 steps visit 1, 21 ... 981 and end at the first level of the schedule, as Brain-Diffuser's own sampler does.
SAMPLER: Mapping[str, Any] = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
NOISE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def kind(part: str) -> Any:  # noqa: ANN401 - the libraries are imported late
    """Return the class of a part, by its name in `PUBLISHED`."""
    library, name = _CLASSES[part]
    return getattr(importlib.import_module(library), name)


def build(part: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - see kind
    """Return a network with random weights on the default device.

    Args:
        part: A name of `PUBLISHED`.
        config: Its configuration, as in `PUBLISHED`.
    """
    cls = kind(part)
    return cls.from_config(dict(config)) if _CLASSES[part][0] == "diffusers" else cls(cls.config_class(**config))


def build_scheduler(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - see kind
    """Return the DDIM sampler over the noise schedule of a configuration."""
    from diffusers import DDIMScheduler

    noise = {name: config[name] for name in NOISE if name in config}
    return DDIMScheduler(**{**NOISE, **noise, **SAMPLER})
