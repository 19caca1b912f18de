"""Versatile Diffusion as a generator: a picture from predicted CLIP tokens and a first guess."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from PIL import Image
from pydantic import Field

from bench.generators._diffusion.resizing import resized
from bench.generators._diffusion.sampler import Conditions, Sampler, generators_of, guided, noise_of, scheduler
from bench.generators._diffusion.vae import pictures_of
from bench.generators._networks.clip import mean_over_captions
from bench.generators._networks.published import LATENT_CHANNELS, REDUCTION, TEXT_TOKENS, TEXT_WIDTH
from bench.generators._weights.checkpoints import CheckpointOptions, weights_digest, weights_size
from bench.generators._weights.frozen import Precision, dtype_of, module_size
from bench.generators.base import RENDER_ONLY, Generator, InputSpec, Stimuli, TargetSpec, WeightsSize
from bench.generators.versatile_diffusion.dual import VISION_TOKENS, make_dual, twins
from bench.generators.versatile_diffusion.embeddings import Embeddings
from bench.generators.versatile_diffusion.parts import CHECKPOINT, build_parts, load

CAPTIONS = 5
"""Captions of a picture whose embeddings are averaged, at most: COCO has five of most pictures."""
_VISION, _TEXT = (VISION_TOKENS, TEXT_WIDTH), (TEXT_TOKENS, TEXT_WIDTH)
_VAE_BATCH = 4  # pictures at once through the VAE: at 512 pixels a picture's activations take 0.5 GB in float32


@dataclass(frozen=True)
class VersatileDiffusionOptions(CheckpointOptions):
    """What a recipe may set; besides the weights, all of it is about rendering. Defaults are Brain-Diffuser's.

    Attributes:
        steps: DDIM steps of the whole schedule.
        strength: Part of the schedule that a given picture is noised and denoised over; without one all of it is taken.
        guidance: Scale of classifier-free guidance.
        mixing: Share of the caption's attention in the dual guidance; the picture's has the rest.
        size: Pixels of a side; 512 is what the networks were trained with.
        precision: Number format of UNet and VAE: half precision on a GPU unless set. CLIP always computes in float32.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=50, metadata=RENDER_ONLY)
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.75, metadata=RENDER_ONLY)
    guidance: Annotated[float, Field(ge=0, le=50)] = field(default=7.5, metadata=RENDER_ONLY)
    mixing: Annotated[float, Field(ge=0, le=1)] = field(default=0.4, metadata=RENDER_ONLY)
    size: Annotated[int, Field(ge=64, le=1024, multiple_of=64)] = field(default=512, metadata=RENDER_ONLY)
    precision: Precision = field(default="auto", metadata=RENDER_ONLY)


class VersatileDiffusion(Generator):
    """CLIP's tokens of a picture and its captions as targets; dual-guided img2img from them.

    A missing condition is replaced by the published null condition: the tokens of a grey picture, of the empty caption.
    """

    version: ClassVar[int] = 1
    Options: ClassVar[type] = VersatileDiffusionOptions
    targets: ClassVar[Mapping[str, TargetSpec]] = {
        "vision": TargetSpec(_VISION),
        "text": TargetSpec(_TEXT, needs=("captions",)),
    }
    inputs: ClassVar[Mapping[str, InputSpec]] = {
        "vision": InputSpec(_VISION, oracle="vision", required=False),
        "text": InputSpec(_TEXT, oracle="text", required=False),
        "image": InputSpec((3, 512, 512), kind="picture", required=False),
    }
    trained_on: ClassVar[tuple[str, ...] | None] = ("laion-2b-en", "laion-aesthetics", "open-images", "openai-wit")

    def __init__(self, options: VersatileDiffusionOptions, device: torch.device) -> None:
        """Load the networks and join the two UNets.

        Raises:
            MissingWeightsError: If a file of the checkpoint is not on this machine.
            CorruptFileError: If a file holds another network.
        """
        super().__init__(options, device)
        self.dtype = dtype_of(self.options.precision, device)
        parts = load(self.options, self.dtype, device)
        make_dual(parts.image_unet, parts.texts, self.options.mixing)
        self.unet, self.vae = parts.image_unet.eval(), parts.vae
        encoders = parts.image_encoder, parts.text_encoder
        self.embeddings = Embeddings(*encoders, parts.tokenizer, parts.mean, parts.std, device)
        steps, strength = self.options.steps, self.options.strength
        self.sampler = Sampler(scheduler("ddim", parts.noise), steps, int(strength * steps))

    @classmethod
    def weights_digest(cls, options: VersatileDiffusionOptions) -> str:
        """Return the sha256 over the checkpoint's files, or that of untrained weights."""
        return weights_digest([CHECKPOINT], options)

    @classmethod
    def weights_size(cls, options: VersatileDiffusionOptions) -> WeightsSize:
        """Return the size of the checkpoint's weight files, or of the untrained networks."""
        if not options.untrained:
            return weights_size([CHECKPOINT], options)
        with torch.device("meta"):
            networks = build_parts()
            return module_size([*networks.values(), *twins(networks["image_unet"]).values()])

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return CLIP's tokens: `vision` `(B, 257, 768)`, `text` `(B, 77, 768)`; they are no samples of anything.

        Raises:
            UnknownNameError: If a name is not a target.
            BadDataError: If `text` is asked for and a stimulus has no caption.
        """
        self.check_targets(names)
        made = {
            "vision": lambda: self.embeddings.vision(stimuli.images),
            "text": lambda: self._text(stimuli.captions),
        }
        return {name: made[name]() for name in names}

    def _text(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return `(B, 77, 768)`: the mean over the first five captions of each picture, empty ones left out."""
        kept = [[text for text in texts if text.strip()][:CAPTIONS] for texts in captions]
        self.check_captions(kept)
        return mean_over_captions(self.embeddings.text, kept)

    @torch.no_grad()
    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures.

        Args:
            inputs: Any of `vision` `(B, 257, 768)`, `text` `(B, 77, 768)` and `image` `(B, 3, H, W)` uint8.
            seeds: One a picture.

        Returns:
            `(B, 3, size, size)` uint8 on the CPU.

        Raises:
            UnknownNameError: If there is no such input.
            ValueError: If none is given, or shapes, types, numbers or values cannot be right.
        """
        self.check_inputs(inputs, seeds)
        generators = generators_of(seeds)
        null = {name: value.expand(len(seeds), -1, -1).to(self.device) for name, value in self._null.items()}
        # A condition that is not given equals its null one, so guidance follows the other alone.
        given = {name: inputs[name].to(self.device).float() if name in inputs else null[name] for name in null}
        guess = guided(self._guess, null, given, self.options.guidance)
        if "image" in inputs and seeds:
            latents = self.sampler.redraw(self._sampled(inputs["image"], generators), generators, guess)
        else:
            latents = self.sampler.draw(self._shape, generators, guess, self.device)
        return pictures_of(self.vae, latents, _VAE_BATCH)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Shape of a picture's latent."""
        return (LATENT_CHANNELS, self.options.size // REDUCTION, self.options.size // REDUCTION)

    def _guess(self, latents: torch.Tensor, step: int, states: Conditions) -> torch.Tensor:
        """Return the dual-guided UNet's noise prediction in float32: guidance multiplies differences of near numbers.

        Args:
            latents: `(B, 4, h, w)`.
            step: Timestep.
            states: `vision` `(B, 257, 768)` and `text` `(B, 77, 768)`.
        """
        tokens = torch.cat([states["vision"], states["text"]], dim=1).to(self.dtype)
        made: torch.Tensor = self.unet(latents.to(self.dtype), step, encoder_hidden_states=tokens).sample
        return made.float()

    @functools.cached_property
    def _null(self) -> dict[str, torch.Tensor]:
        """The null conditions, `(1, tokens, 768)` each."""
        return {"vision": self.embeddings.null_vision(), "text": self.embeddings.null_text()}

    def _sampled(self, images: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Return scaled latents of pictures, as in the published script sampled from the VAE's posterior."""
        pixels = resized(images, self.options.size, Image.Resampling.BICUBIC).float() / 127.5 - 1
        posteriors = [
            self.vae.encode(part.to(self.device, self.dtype)).latent_dist for part in pixels.split(_VAE_BATCH)
        ]
        mean, std = (torch.cat([getattr(p, name).float() for p in posteriors]) for name in ("mean", "std"))
        return (mean + std * noise_of(generators, self._shape, self.device)) * self.vae.config.scaling_factor
