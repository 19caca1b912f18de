"""The networks of Stable Diffusion v1: published files in diffusers' layout, or random ones of the published size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.core.errors import CorruptFileError
from bench.generators._weights.checkpoints import Checkpoint, CheckpointOptions, Found, find
from bench.generators._weights.frozen import frozen, pretrained, read_json, seeded
from bench.generators._weights.tokenizer import PIECES, clip_tokenizer, tokenizer_from

TOKENS = 77
WIDTH = 768
"""Width of CLIP ViT-L/14's text states, which the UNet attends to."""
LATENT_CHANNELS = 4
SCALING = 0.18215
"""What latents are multiplied by, so that their standard deviation is about one (Rombach et al. 2022)."""

_FILES = (
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors|text_encoder/pytorch_model.bin",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors|unet/diffusion_pytorch_model.bin",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors|vae/diffusion_pytorch_model.bin",
)
_LICENCE = "CreativeML OpenRAIL-M"
_TERMS = "Its use-based restrictions (Attachment A) bind those who use or pass on the weights."
CHECKPOINTS = {
    "v1.4": Checkpoint("stable-diffusion-v1-4", _FILES, _LICENCE, _TERMS, repository="CompVis/stable-diffusion-v1-4"),
    "v1.5": Checkpoint(
        "stable-diffusion-v1-5", _FILES, _LICENCE, _TERMS, repository="stable-diffusion-v1-5/stable-diffusion-v1-5"
    ),
}
_UNET = {
    "sample_size": 64,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": LATENT_CHANNELS,
    "sample_size": 512,
    "scaling_factor": SCALING,
}
_TEXT = {
    "vocab_size": PIECES,
    "hidden_size": WIDTH,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": TOKENS,
    # OpenAI's CLIP was trained with this approximation; the exact function gives other states.
    "hidden_act": "quick_gelu",
    "projection_dim": WIDTH,
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The noise schedule that both models were trained with and publish."""


@dataclass(frozen=True)
class Networks:
    """Stable Diffusion's frozen parts on one device.

    Attributes:
        vae: Pictures to latents and back, `AutoencoderKL`.
        unet: Predicts noise, `UNet2DConditionModel`.
        text: CLIP ViT-L/14's text tower, `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        schedule: Configuration of the noise schedule.
    """

    vae: Any
    unet: Any
    text: Any
    tokenizer: Any
    schedule: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        found: torch.device = self.unet.device
        return found

    def text_states(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the last hidden states of texts `(N, 77, 768)` float32, padded and cut to 77 tokens."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        states: torch.Tensor = self.text(tokens.input_ids.to(self.device)).last_hidden_state
        return states.float()

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scaled posterior modes `(B, 4, H / 8, W / 8)` float32 of images `(B, 3, H, W)` in -1 ... 1."""
        # The mode: a sample would add noise that no voxel can predict.
        encoded = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mode()
        return (encoded * self.vae.config.scaling_factor).float()

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the pictures `(B, 3, 8 H, 8 W)` uint8 on the CPU of scaled latents `(B, 4, H, W)`."""
        # One by one: a decoder's activations at 512 px outweigh everything else, and they gain little from batches.
        scaled = (latents / self.vae.config.scaling_factor).to(self.device, self.vae.dtype)
        pixels = torch.cat([self.vae.decode(one).sample.float().cpu() for one in scaled.split(1)])
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def load(found: Found, dtype: torch.dtype, device: torch.device) -> Networks:
    """Load published networks.

    Raises:
        CorruptFileError: If a file cannot be read or is another model's.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    vae, unet, text = (
        pretrained(kind, found.folder / part, found.safetensors(f"{part}/"), dtype, device)
        for part, kind in kinds.items()
    )
    schedule = read_json(found.folder / "scheduler" / "scheduler_config.json")
    _refuse_other_models(found, vae, unet, text, schedule)
    return Networks(vae, unet, text, tokenizer_from(found.folder / "tokenizer"), schedule)


def untrained(dtype: torch.dtype, device: torch.device) -> Networks:
    """Return networks of the published size with seeded random weights; the tokenizer is CLIP's own."""
    with seeded():
        vae, unet, text = build()
    # Moved after drawing: random weights are those of the CPU in float32, whatever the device and format.
    vae, unet, text = (frozen(each, dtype, device) for each in (vae, unet, text))
    return Networks(vae, unet, text, clip_tokenizer(), dict(SCHEDULE))


def build() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return VAE, UNet and text tower at their published size, freshly initialised on the default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return AutoencoderKL(**_VAE), UNet2DConditionModel(**_UNET), CLIPTextModel(CLIPTextConfig(**_TEXT))


def networks(model: str, options: CheckpointOptions, dtype: torch.dtype, device: torch.device) -> Networks:
    """Return the networks that options ask for, published or untrained.

    Raises:
        MissingWeightsError: If the published ones are not on this machine.
        CorruptFileError: If a file cannot be read or is another model's.
    """
    return untrained(dtype, device) if options.untrained else load(find(CHECKPOINTS[model], options), dtype, device)


def _refuse_other_models(found: Found, vae: Any, unet: Any, text: Any, schedule: dict[str, Any]) -> None:  # noqa: ANN401
    """Refuse a checkpoint of the same classes whose outward shapes or noise schedule are another model's.

    Raises:
        CorruptFileError: Naming what came and what Stable Diffusion v1 has.
    """
    facts = {
        "latent channels": (vae.config.latent_channels, LATENT_CHANNELS),
        "pixels a latent": (2 ** (len(vae.config.block_out_channels) - 1), 8),
        "UNet input channels": (unet.config.in_channels, LATENT_CHANNELS),
        "cross-attention width": (unet.config.cross_attention_dim, WIDTH),
        "text width": (text.config.hidden_size, WIDTH),
        "text tokens": (text.config.max_position_embeddings, TOKENS),
        "prediction type": (schedule.get("prediction_type", "epsilon"), "epsilon"),
        "first beta": (schedule.get("beta_start"), SCHEDULE["beta_start"]),
        "last beta": (schedule.get("beta_end"), SCHEDULE["beta_end"]),
    }
    if wrong := [f"{name} {came} instead of {own}" for name, (came, own) in facts.items() if came != own]:
        raise CorruptFileError(f"{found.folder} is not a Stable Diffusion v1 model: {'; '.join(wrong)}")
