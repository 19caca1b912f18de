"""Reads the networks of Versatile Diffusion from the published files, or makes untrained ones of the published sizes.

The files are those of the repository `shi-labs/versatile-diffusion` in diffusers' layout, a folder a network. Of the
text UNet only the attention blocks are kept: its other layers denoise captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bench.core.errors import CorruptFileError
from bench.generators._diffusion.sampler import NOISE
from bench.generators._networks import published
from bench.generators._weights.checkpoints import Checkpoint, CheckpointOptions, LocalCheckpoint, find
from bench.generators._weights.frozen import frozen, read_json, read_state, seeded
from bench.generators._weights.tokenizer import clip_tokenizer, tokenizer_from
from bench.generators.versatile_diffusion.dual import VISION_TOKENS, load_twins, twins
from eval.pictures import CLIP_MEAN, CLIP_STD

PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "image_unet": ("UNet2DConditionModel", published.UNET),
    "vae": ("AutoencoderKL", {**published.VAE, "sample_size": 256}),
    "image_encoder": ("CLIPVisionModelWithProjection", published.CLIP_VISION),
    "text_encoder": ("CLIPTextModelWithProjection", published.CLIP_TEXT),
}
"""Class and configuration of each network of `shi-labs/versatile-diffusion`."""

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
        noise: Configuration of the noise schedule.
        mean: Of the pixels that the image encoder was trained with, R, G, B in [0, 1].
        std: Likewise.
    """

    image_unet: Any
    texts: Mapping[str, nn.Module]
    vae: Any
    image_encoder: Any
    text_encoder: Any
    tokenizer: Any
    noise: Mapping[str, Any]
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
        part: found.network(published.kind(name), part, _format(part, dtype), device)
        for part, (name, _) in PUBLISHED.items()
    }
    noise = read_json(found.folder / _SCHEDULER)
    _refuse_other_models(found, networks, noise)
    texts = twins(networks["image_unet"])
    # The one file that is read by hand: of the text UNet only the attention blocks are needed.
    path = next(path for path in found.tensors() if path.parent.name == "text_unet")
    load_twins(texts, cast("Mapping[str, torch.Tensor]", read_state(path)), path)
    mean, std = _pixel_statistics(found.folder / _PIXELS)
    texts = {name: frozen(block, dtype, device) for name, block in texts.items()}
    return Parts(
        **networks, texts=texts, tokenizer=tokenizer_from(found.folder / "tokenizer"), noise=noise, mean=mean, std=std
    )


def build_parts() -> dict[str, Any]:
    """Return the networks at their published size by name, freshly initialised on the default device."""
    return {part: published.build(*each) for part, each in PUBLISHED.items()}


def _untrained(dtype: torch.dtype, device: torch.device) -> Parts:
    """Return parts of the published sizes with seeded random weights."""
    with seeded():
        # One seed over all parts in this order, which is part of what `untrained` means.
        networks = build_parts()
        texts = twins(networks["image_unet"])
    return Parts(
        **{part: frozen(network, _format(part, dtype), device) for part, network in networks.items()},
        texts={name: frozen(block, dtype, device) for name, block in texts.items()},
        tokenizer=clip_tokenizer(),
        noise=NOISE,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def _format(part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of a part: the encoders make targets, which are float32 everywhere."""
    return torch.float32 if part in ("image_encoder", "text_encoder") else dtype


def _pixel_statistics(path: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and deviation of the pixels that the image encoder was trained with.

    Raises:
        CorruptFileError: If the file does not give three numbers for each.
    """
    content = read_json(path)
    mean, std = content.get("image_mean"), content.get("image_std")
    for values in (mean, std):
        if not isinstance(values, list) or len(values) != 3:
            raise CorruptFileError(f"{path} must give three numbers each for image_mean and image_std, got {values}")
    return cast("Sequence[float]", mean), cast("Sequence[float]", std)


def _refuse_other_models(found: LocalCheckpoint, networks: Mapping[str, Any], noise: Mapping[str, Any]) -> None:
    """Refuse networks of the same classes whose outward shapes are another model's.

    Raises:
        CorruptFileError: Naming what came and what Versatile Diffusion has.
    """
    image, text = networks["image_encoder"].config, networks["text_encoder"].config
    own = {
        "picture tokens": ((image.image_size // image.patch_size) ** 2 + 1, VISION_TOKENS),
        "picture token width": (image.projection_dim, published.TEXT_WIDTH),
        "caption token width": (text.projection_dim, published.TEXT_WIDTH),
    }
    configs = {"unet": networks["image_unet"].config, "vae": networks["vae"].config, "text": text}
    published.refuse_other_model(found.folder, "Versatile Diffusion", configs, noise, own)
