"""Stable Diffusion v1 as a generator: a latent and a text condition from brain activity, as in Takagi 2023."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field

from bench.generators._diffusion.resizing import resized
from bench.generators._diffusion.sampler import generators_of, guided
from bench.generators._diffusion.vae import latents_of, pictures_of
from bench.generators._networks.clip import mean_over_captions
from bench.generators._networks.published import LATENT_CHANNELS, REDUCTION, TEXT_TOKENS, TEXT_WIDTH
from bench.generators._networks.stable_diffusion import (
    CHECKPOINTS,
    LATENT_SHAPE,
    SIZE,
    DrawingOptions,
    build_parts,
    networks,
)
from bench.generators._weights.checkpoints import weights_digest, weights_size
from bench.generators._weights.frozen import module_size
from bench.generators.base import RENDER_ONLY, Generator, InputSpec, Stimuli, TargetSpec, WeightsSize

SMALL_SIZE = 320
"""Side at which Takagi & Nishimoto 2023 encode stimuli: a latent of 6,400 numbers instead of 16,384."""
SMALL_SHAPE = (LATENT_CHANNELS, SMALL_SIZE // REDUCTION, SMALL_SIZE // REDUCTION)
TEXT_SHAPE = (TEXT_TOKENS, TEXT_WIDTH)
STARTS = ("z", "z512", "image")
_ENCODE_BATCH = 8


@dataclass(frozen=True)
class StableDiffusionOptions(DrawingOptions):
    """What a recipe may set; the defaults are those of Takagi & Nishimoto 2023.

    Attributes:
        strength: Part of the schedule that a start (`z`, `z512`, `image`) is noised by and denoised again; 0 noises it
            to the lowest level and decodes it. Without a start the whole schedule is taken.
    """

    model: Literal["v1.4", "v1.5"] = "v1.4"
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.8, metadata=RENDER_ONLY)
    guidance: Annotated[float, Field(ge=0, le=100)] = field(default=5.0, metadata=RENDER_ONLY)


class StableDiffusion(Generator):
    """Stable Diffusion v1.4 or v1.5, frozen.

    Latents are modes of the VAE's posterior, scaled; the published code of Takagi & Nishimoto 2023 takes a posterior
    sample each time. A `z` at 320 px is decoded, resized to 512 px and encoded again before it is noised, as there; of
    50 steps and a strength of .8, it is noised to timestep 801 and denoised from 781, as there too.
    """

    version: ClassVar[int] = 2
    Options: ClassVar[type] = StableDiffusionOptions
    targets: ClassVar[Mapping[str, TargetSpec]] = {
        "z": TargetSpec(SMALL_SHAPE),
        "z512": TargetSpec(LATENT_SHAPE),
        "text": TargetSpec(TEXT_SHAPE, needs=("captions",)),
    }
    inputs: ClassVar[Mapping[str, InputSpec]] = {
        "z": InputSpec(SMALL_SHAPE, oracle="z", required=False),
        "z512": InputSpec(LATENT_SHAPE, oracle="z512", required=False),
        "image": InputSpec((3, SIZE, SIZE), kind="picture", required=False),
        "text": InputSpec(TEXT_SHAPE, oracle="text", required=False),
    }
    trained_on: ClassVar[tuple[str, ...] | None] = ("laion-2b-en", "laion-aesthetics", "open-images", "openai-wit")

    def __init__(self, options: StableDiffusionOptions, device: torch.device) -> None:
        """Load the networks.

        Raises:
            MissingWeightsError: If they are not on this machine and `untrained` is not asked for.
            CorruptFileError: If a file cannot be read or is another model's.
        """
        super().__init__(options, device)
        self.networks = networks(options, device)
        with torch.no_grad():
            self.null = self.networks.text_states([""])

    @classmethod
    def weights_digest(cls, options: StableDiffusionOptions) -> str:
        """Return the sha256 over all files used, or `untrained:<seed>`."""
        return weights_digest([CHECKPOINTS[options.model]], options)

    @classmethod
    def weights_size(cls, options: StableDiffusionOptions) -> WeightsSize:
        """Return the size of VAE, UNet and text tower."""
        if not options.untrained:
            return weights_size([CHECKPOINTS[options.model]], options)
        with torch.device("meta"):
            return module_size(build_parts())

    @torch.no_grad()
    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return latents and text states; they are no samples, so seeds change nothing.

        Args:
            stimuli: B stimuli; images of any size become squares of 320 or 512 px.
            names: `z` `(B, 4, 40, 40)`, `z512` `(B, 4, 64, 64)`, `text` `(B, 77, 768)`: the mean over captions of the
                text tower's last hidden states.
            seeds: One a stimulus.

        Raises:
            UnknownNameError: If a name is not a target.
            BadDataError: If `text` is asked for and a stimulus has no caption.
        """
        self.check_targets(names)
        # Each size is encoded by itself: a latent of 40 x 40 is not the shrunken one of 64 x 64.
        made = {
            "z": lambda: self._latents(stimuli.images, SMALL_SIZE),
            "z512": lambda: self._latents(stimuli.images, SIZE),
            "text": lambda: self._text(stimuli.captions),
        }
        return {name: made[name]() for name in names}

    @torch.no_grad()
    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures of 512 px.

        Args:
            inputs: At most one start, `z` `(B, 4, 40, 40)`, `z512` `(B, 4, 64, 64)` or `image` `(B, 3, H, W)` uint8
                (none draws from noise alone), and `text` `(B, 77, 768)` (none is the empty prompt).
            seeds: One a picture.

        Returns:
            `(B, 3, 512, 512)` uint8 on the CPU.

        Raises:
            UnknownNameError: If there is no such input.
            ValueError: If two starts are given, or shapes, types, numbers or values cannot be right.
        """
        self.check_inputs(inputs, seeds)
        name, options = self.start_among(inputs, STARTS), self.options
        null = self.null.expand(len(seeds), -1, -1)
        # Without a text both conditions are the empty prompt, and guidance changes nothing.
        text = inputs["text"].float().to(self.device) if "text" in inputs else null
        guess = guided(self.networks.guess, {"text": null}, {"text": text}, options.guidance)
        sampler, generators = self.networks.sampler(options, options.strength), generators_of(seeds)
        if name is None:
            latents = sampler.draw(LATENT_SHAPE, generators, guess, self.device)
        else:
            latents = sampler.redraw(self._start(name, inputs[name]), generators, guess)
        return pictures_of(self.networks.vae, latents, 1)

    def _start(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return what a start is at 512 px: scaled latents `(B, 4, 64, 64)`."""
        if name == "z512":
            return values.float().to(self.device)
        pictures = values if name == "image" else pictures_of(self.networks.vae, values.float(), 1)
        # Pillow's default for pictures of another size, which the published code relies on.
        return self._latents(pictures, SIZE, Image.Resampling.BICUBIC).to(self.device)

    def _latents(
        self, images: torch.Tensor, size: int, method: Image.Resampling = Image.Resampling.LANCZOS
    ) -> torch.Tensor:
        """Return the scaled latents `(B, 4, size / 8, size / 8)` of images `(B, 3, H, W)` uint8, on the CPU."""
        # Contiguous: convolutions of pictures whose channels lie last, as Pillow leaves them, round differently.
        squares = (resized(part, size, method).contiguous() for part in images.split(_ENCODE_BATCH))
        parts = [latents_of(self.networks.vae, square.float() / 127.5 - 1) for square in squares]
        return torch.cat([part.cpu() for part in parts])

    def _text(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return each stimulus's mean text states `(B, 77, 768)` over its captions, on the CPU."""
        self.check_captions(captions)
        return mean_over_captions(self.networks.text_states, captions).cpu()
