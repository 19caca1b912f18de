"""A small Versatile Diffusion in the published layout: CLIP's own vocabulary, 257 and 77 tokens of 768."""

import json
from pathlib import Path
from typing import Any

import torch
from clip.simple_tokenizer import SimpleTokenizer

from bench.generators._diffusion.sampler import NOISE
from bench.generators._networks import published
from bench.generators.versatile_diffusion.dual import twins
from bench.generators.versatile_diffusion.parts import CHECKPOINT, PUBLISHED, WEIGHTS
from eval.pictures import CLIP_MEAN, CLIP_STD
from small_checkpoints import write_tokenizer

SETTINGS: dict[str, Any] = {"steps": 4, "strength": 0.5, "size": 64}

_ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_SMALL: dict[str, dict[str, Any]] = {
    "image_unet": {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "vae": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "image_encoder": _ENCODER,
    "text_encoder": _ENCODER,
}
# Inputs of the cross-attention have length 1 where a trained CLIP's have 10; its own first weights are of size .02.
_LOUDER = {".attn2.to_v.": 30.0, ".attn2.to_k.": 30.0, "text_model": 8.0, "vision_model": 4.0}


def config(part: str) -> dict[str, Any]:
    """The published configuration of a part with small inner widths."""
    return {**PUBLISHED[part][1], **_SMALL[part]}


def build(part: str, **changes: Any) -> Any:
    """A small network of a part's class with random weights."""
    return published.build(PUBLISHED[part][0], {**config(part), **changes})


def text_unet_state() -> dict[str, torch.Tensor]:
    """Tensors of a denoiser of captions: its attention blocks, and one of the layers that rendering does not need."""
    blocks = twins(build("image_unet"))
    state = {f"{name}.{key}": value for name, block in blocks.items() for key, value in block.state_dict().items()}
    return {**_lively(state), "conv_in.weight": torch.randn(8, 768)}


def save(folder: Path) -> None:
    """Write the checkpoint below a folder, with the published file names."""
    place = folder / CHECKPOINT.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        for part in PUBLISHED:
            network = build(part)
            describe = network.save_config if part in ("image_unet", "vae") else network.config.save_pretrained
            describe(place / part)
            torch.save(_lively(network.state_dict()), place / part / WEIGHTS[part][0])
        (place / "text_unet").mkdir()
        torch.save(text_unet_state(), place / "text_unet" / WEIGHTS["text_unet"][0])
    write_tokenizer(place / "tokenizer", list(SimpleTokenizer().bpe_ranks))
    pixels = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    _write(place / "image_feature_extractor/preprocessor_config.json", pixels)
    _write(place / "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler", **NOISE})


def _lively(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Spread the first values, so that every layer and condition shows in what a random network of this size gives."""
    return {name: _spread(name, value) if value.is_floating_point() else value for name, value in state.items()}


def _spread(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return one tensor with larger first values: norms and biases are ones and zeros, CLIP's weights near zero."""
    if value.ndim == 1:
        return value + 0.2 * torch.randn_like(value)
    return value * next((factor for part, factor in _LOUDER.items() if part in name), 1.0)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
