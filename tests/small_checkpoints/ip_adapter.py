"""IP-Adapter-Plus with tiny inner widths, under the names that the published file has, on a small Stable Diffusion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from bench.generators.ip_adapter.adapter import CHECKPOINT, random_state, shapes
from small_checkpoints import stable_diffusion

SETTINGS: dict[str, Any] = {"steps": 2}
EMBEDDING, DIM = 32, 64


def save(folder: Path) -> None:
    """Write Stable Diffusion, the image encoder and the adapter, as safetensors."""
    stable_diffusion.save(folder)
    save_adapter(folder / CHECKPOINT.name, safetensors=True)


def save_adapter(folder: Path, safetensors: bool) -> None:
    """Write image encoder and adapter; as safetensors names carry the part, as a plain file the parts are mappings."""
    torch.manual_seed(7)
    vision = encoder()
    place = folder / "models" / "image_encoder"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(vision.config.to_dict(), default=str))
    named = {name.removeprefix("vision_model."): value for name, value in vision.state_dict().items()}
    named = {name if "visual" in name else f"vision_model.{name}": value for name, value in named.items()}
    named["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
    state = random_state(shapes(stable_diffusion.unet(), EMBEDDING, DIM))
    file = folder / "models" / "ip-adapter-plus_sd15"
    if safetensors:
        save_file(named, place / "model.safetensors", metadata={"format": "pt"})
        flat = {f"{part}.{name}": value for part, names in state.items() for name, value in names.items()}
        save_file(flat, file.with_suffix(".safetensors"))
    else:
        torch.save(named, place / "pytorch_model.bin")
        torch.save(state, file.with_suffix(".bin"))


def encoder() -> CLIPVisionModelWithProjection:
    """An image tower of CLIP ViT-H/14's picture and patch size, three narrow layers."""
    small = {"hidden_size": EMBEDDING, "intermediate_size": EMBEDDING, "num_hidden_layers": 3, "num_attention_heads": 2}
    picture = {"patch_size": 14, "image_size": 224, "projection_dim": 16, "hidden_act": "gelu"}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**small, **picture, initializer_factor=5.0))
