"""Stable Diffusion v1.4 and v1.5 with tiny inner widths, under the names that the published files have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from bench.generators._diffusion.sampler import NOISE
from bench.generators._networks.stable_diffusion import CHECKPOINTS
from small_checkpoints import write_tokenizer

SETTINGS: dict[str, Any] = {"steps": 4, "strength": 0.5}
INPUTS = ("z", "text")
MERGES = (("t", "h"), ("th", "e</w>"), ("a", "n"), ("i", "n"), ("o", "n</w>"))
_OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def save(folder: Path) -> None:
    """Write both models; v1.4 as safetensors, v1.5 as plain PyTorch files."""
    for number, (model, checkpoint) in enumerate(CHECKPOINTS.items()):
        save_model(folder / checkpoint.name, seed=number, safetensors=model == "v1.4")


def save_model(folder: Path, seed: int, safetensors: bool) -> None:
    """Write one model in diffusers' layout."""
    torch.manual_seed(seed)
    parts = {"vae": vae(), "unet": unet(), "text_encoder": text()}
    for name, module in parts.items():
        plain, safe = ("pytorch_model", "model") if name == "text_encoder" else ("diffusion_pytorch_model",) * 2
        (folder / name).mkdir(parents=True)
        config = module.config.to_dict() if name == "text_encoder" else dict(module.config)
        (folder / name / "config.json").write_text(json.dumps(config, default=str))
        state = published_names(name, module.state_dict())
        if safetensors:
            save_file(state, folder / name / f"{safe}.safetensors", metadata={"format": "pt"})
        else:
            torch.save(state, folder / name / f"{plain}.bin")
    schedule = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0", **NOISE, "skip_prk_steps": True}
    schedule |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    write_tokenizer(folder / "tokenizer", MERGES)


def published_names(part: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under the names of the published files, which are older than the libraries."""
    if part == "text_encoder":
        named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
        return {**named, "text_model.embeddings.position_ids": torch.arange(77)[None]}
    if part == "vae":
        return {_renamed(name): value.clone() for name, value in state.items()}
    return dict(state)


def pipeline(kind: Any, networks: Any, **more: Any) -> Any:
    """Return a pipeline of diffusers over networks: `vae`, `text`, `tokenizer`, `unet`."""
    parts = {"vae": networks.vae, "text_encoder": networks.text, "tokenizer": networks.tokenizer, "unet": networks.unet}
    absent = {"scheduler": None, "safety_checker": None, "feature_extractor": None}
    made = kind(**{**parts, **absent, **more}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def _renamed(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        name = name.replace(new, old)
    return name


def vae() -> AutoencoderKL:
    """A VAE of factor 8 to four channels, whose latents differ between pictures as those of a trained one do."""
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,
    )
    with torch.no_grad():
        module.quant_conv.weight.mul_(30)
    return module


def unet() -> UNet2DConditionModel:
    """A UNet of the published width of text states, with attention at 16 px and below."""
    return UNet2DConditionModel(
        sample_size=64,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=768,
        attention_head_dim=2,
    )


def text() -> CLIPTextModel:
    """A text tower of the published width and length, one layer, and the tokenizer's few pieces."""
    pieces = 512 + len(MERGES) + 2
    config = CLIPTextConfig(
        vocab_size=pieces,
        hidden_size=768,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=pieces - 2,
        eos_token_id=pieces - 1,
    )
    return CLIPTextModel(config)
