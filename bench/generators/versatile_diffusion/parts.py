"""Reads the networks of Versatile Diffusion from the published files, or makes untrained ones of the published sizes.

The files are those of the repository `shi-labs/versatile-diffusion` in diffusers' layout, a folder a network. Of the
text UNet only the attention blocks are kept: its other layers denoise captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from bench.generators.checkpoints import Checkpoint, CheckpointOptions, find
from bench.generators.clip_tokenizer import clip_tokenizer, tokenizer_from
from bench.generators.frozen import frozen, pretrained, read_json, read_state, seeded
from bench.generators.versatile_diffusion.architecture import (
    PIXEL_MEAN,
    PIXEL_STD,
    PUBLISHED,
    build,
    build_scheduler,
    kind,
)
from bench.generators.versatile_diffusion.dual import load_twins, twins

# The repository holds PyTorch's own format; safetensors serve those who have converted it.
WEIGHTS: Mapping[str, tuple[str, str]] = {
    "image_unet": ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
    "text_unet": ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
    "vae": ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
    "image_encoder": ("pytorch_model.bin", "model.safetensors"),
    "text_encoder": ("pytorch_model.bin", "model.safetensors"),
}
_PIXELS = "image_feature_extractor/preprocessor_config.json"
_SCHEDULER = "scheduler/scheduler_config.json"

CHECKPOINT = Checkpoint(
    name="versatile-diffusion",
    files=(
        *("|".join(f"{part}/{name}" for name in names) for part, names in WEIGHTS.items()),
        *(f"{part}/config.json" for part in PUBLISHED),
        *("tokenizer/vocab.json", "tokenizer/merges.txt"),
        _PIXELS,
        _SCHEDULER,
    ),
    licence="MIT",
    terms="Copies keep its copyright notice.",
    repository="shi-labs/versatile-diffusion",
)


@dataclass(frozen=True)
class Parts:
    """What the generator is made of: frozen networks on one device, the two encoders in float32.

    Attributes:
        image_unet: `UNet2DConditionModel` that denoises pictures.
        texts: For each of its attention blocks the text UNet's twin.
        vae: `AutoencoderKL`.
        image_encoder: `CLIPVisionModelWithProjection`.
        text_encoder: `CLIPTextModelWithProjection`.
        tokenizer: `CLIPTokenizer`.
        scheduler: `DDIMScheduler`.
        mean: Of the pixels that the image encoder was trained with, R, G, B in [0, 1].
        std: Likewise.
    """

    image_unet: Any
    texts: Mapping[str, nn.Module]
    vae: Any
    image_encoder: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    mean: Sequence[float]
    std: Sequence[float]


def load(options: CheckpointOptions, dtype: torch.dtype, device: torch.device) -> Parts:
    """Return the parts of the published checkpoint, or untrained ones where the options ask for them.

    Args:
        options: Where the files are.
        dtype: Number format of UNet, attention blocks and VAE.
        device: Where the networks go.

    Raises:
        MissingWeightsError: If a file is not on this machine.
        CorruptFileError: If a file is unreadable, or holds another network than its configuration describes.
    """
    if options.untrained:
        return _untrained(dtype, device)
    found = find(CHECKPOINT, options)
    networks = {
        part: pretrained(kind(part), found.folder / part, found.safetensors(f"{part}/"), _format(part, dtype), device)
        for part in PUBLISHED
    }
    texts = twins(networks["image_unet"])
    path = next(path for path in found.tensors() if path.parent.name == "text_unet")
    load_twins(texts, cast("Mapping[str, torch.Tensor]", read_state(path)), path)
    pixels = read_json(found.folder / _PIXELS)
    return Parts(
        **networks,
        texts={name: frozen(block, dtype, device) for name, block in texts.items()},
        tokenizer=tokenizer_from(found.folder / "tokenizer"),
        scheduler=build_scheduler(read_json(found.folder / _SCHEDULER)),
        mean=pixels["image_mean"],
        std=pixels["image_std"],
    )


def _untrained(dtype: torch.dtype, device: torch.device) -> Parts:
    """Return parts of the published sizes with seeded random weights."""
    with seeded():
        networks = {part: build(part, config) for part, config in PUBLISHED.items()}
        texts = twins(networks["image_unet"])
    return Parts(
        **{part: frozen(network, _format(part, dtype), device) for part, network in networks.items()},
        texts={name: frozen(block, dtype, device) for name, block in texts.items()},
        tokenizer=clip_tokenizer(),
        scheduler=build_scheduler({}),
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
    )


def _format(part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of a part: the encoders make targets, which are float32 everywhere."""
    return torch.float32 if part in ("image_encoder", "text_encoder") else dtype
