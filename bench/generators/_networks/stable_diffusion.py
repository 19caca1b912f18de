"""The networks of Stable Diffusion v1: published files in diffusers' layout, or random ones of the published size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from bench.generators._diffusion.sampler import NOISE, Conditions, Sampler, SamplerName, scheduler
from bench.generators._networks import published
from bench.generators._networks.clip import token_ids
from bench.generators._weights.checkpoints import Checkpoint, CheckpointOptions, find
from bench.generators._weights.frozen import Precision, dtype_of, frozen, read_json, seeded
from bench.generators._weights.tokenizer import clip_tokenizer, tokenizer_from
from bench.generators.base import RENDER_ONLY

SIZE = 512
LATENT_SHAPE = (published.LATENT_CHANNELS, SIZE // published.REDUCTION, SIZE // published.REDUCTION)

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
_PARTS = {
    "vae": ("AutoencoderKL", published.VAE),
    "unet": ("UNet2DConditionModel", published.UNET),
    "text_encoder": ("CLIPTextModel", published.CLIP_TEXT),
}


@dataclass(frozen=True)
class DrawingOptions(CheckpointOptions):
    """What a recipe may set of every generator around Stable Diffusion.

    Attributes:
        model: Which published weights.
        precision: Number format of the networks; `auto` is float16 on a GPU and float32 on a CPU.
        sampler: DDIM without added noise, or PLMS, the first default of Stable Diffusion's text-to-image.
        steps: Steps of the whole schedule.
        guidance: Weight of classifier-free guidance; 1 is none.
    """

    model: Literal["v1.4", "v1.5"] = "v1.5"
    precision: Precision = "auto"
    sampler: SamplerName = field(default="ddim", metadata=RENDER_ONLY)
    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=50, metadata=RENDER_ONLY)
    guidance: Annotated[float, Field(ge=0, le=100)] = field(default=7.5, metadata=RENDER_ONLY)


@dataclass(frozen=True)
class Networks:
    """Stable Diffusion's frozen parts on one device.

    Attributes:
        vae: Pictures to latents and back, `AutoencoderKL`.
        unet: Predicts noise, `UNet2DConditionModel`.
        text: CLIP ViT-L/14's text tower, `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        noise: Configuration of the noise schedule.
    """

    vae: Any
    unet: Any
    text: Any
    tokenizer: Any
    noise: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        found: torch.device = self.unet.device
        return found

    def text_states(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the last hidden states of texts `(N, 77, 768)` float32, padded and cut to 77 tokens."""
        states: torch.Tensor = self.text(token_ids(self.tokenizer, texts).to(self.device)).last_hidden_state
        return states.float()

    def guess(self, latents: torch.Tensor, step: int, states: Conditions) -> torch.Tensor:
        """Return the UNet's noise prediction `(B, 4, h, w)` float32.

        Args:
            latents: `(B, 4, h, w)`.
            step: Timestep.
            states: `text` `(B, 77, 768)`, and with an image adapter its `tokens` `(B, 1, 16, 768)`.
        """
        dtype = self.unet.dtype
        added = {"image_embeds": [states["tokens"].to(dtype)]} if "tokens" in states else None
        found: torch.Tensor = self.unet(
            latents.to(dtype), step, encoder_hidden_states=states["text"].to(dtype), added_cond_kwargs=added
        ).sample
        return found.float()

    def sampler(self, options: DrawingOptions, strength: float = 1.0) -> Sampler:
        """Return the sampler that options ask for; of its steps img2img takes the published `int(strength * steps)`."""
        return Sampler(scheduler(options.sampler, self.noise), options.steps, int(strength * options.steps))


def build_parts() -> list[Any]:
    """Return VAE, UNet and text tower at their published size, freshly initialised on the default device."""
    return [published.build(*part) for part in _PARTS.values()]


def networks(options: DrawingOptions, device: torch.device) -> Networks:
    """Return the networks that options ask for, published or with seeded random weights.

    Raises:
        MissingWeightsError: If the published ones are not on this machine.
        CorruptFileError: If a file cannot be read or is another model's.
    """
    dtype = dtype_of(options.precision, device)
    if options.untrained:
        with seeded():
            parts = build_parts()
        # Moved after drawing: random weights are those of the CPU in float32, whatever the device and format.
        vae, unet, text = (frozen(part, dtype, device) for part in parts)
        return Networks(vae, unet, text, clip_tokenizer(), NOISE)
    found = find(CHECKPOINTS[options.model], options)
    vae, unet, text = (found.network(published.kind(name), part, dtype, device) for part, (name, _) in _PARTS.items())
    noise = read_json(found.folder / "scheduler" / "scheduler_config.json")
    own = {
        "text width": (text.config.hidden_size, published.TEXT_WIDTH),
        **{key.replace("_", " "): (noise.get(key), NOISE[key]) for key in ("beta_start", "beta_end")},
    }
    configs = {"unet": unet.config, "vae": vae.config, "text": text.config}
    published.refuse_other_model(found.folder, "a Stable Diffusion v1 model", configs, noise, own)
    return Networks(vae, unet, text, tokenizer_from(found.folder / "tokenizer"), noise)
