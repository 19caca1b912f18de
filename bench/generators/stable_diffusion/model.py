"""Stable Diffusion v1 as a generator: a latent and a text condition from brain activity, as in Takagi 2023."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field

from bench.core.errors import BadDataError
from bench.generators._diffusion.resizing import resized
from bench.generators._weights.checkpoints import CheckpointOptions, weights_digest, weights_size
from bench.generators._weights.frozen import Precision, dtype_of, module_size
from bench.generators.base import Generator, InputSpec, Stimuli, TargetSpec, WeightsSize
from bench.generators.stable_diffusion.networks import CHECKPOINTS, TOKENS, WIDTH, build, networks
from bench.generators.stable_diffusion.sampling import LATENT_SHAPE, SIZE, Condition, Plan, Sampler, sample

SMALL_SIZE = 320
"""Side at which Takagi & Nishimoto 2023 encode stimuli: a latent of 6,400 numbers instead of 16,384."""
SMALL_SHAPE = (4, SMALL_SIZE // 8, SMALL_SIZE // 8)
TEXT_SHAPE = (TOKENS, WIDTH)
STARTS = ("z", "z512", "image")
_ENCODE_BATCH = 8
_RENDER_ONLY = {"stage": "render"}


@dataclass(frozen=True)
class StableDiffusionOptions(CheckpointOptions):
    """What a recipe may set; the defaults are those of Takagi & Nishimoto 2023.

    Attributes:
        model: Which published weights.
        precision: Number format of the networks; `auto` is float16 on a GPU and float32 on a CPU.
        sampler: DDIM without added noise, or PLMS, the first default of Stable Diffusion's text-to-image.
        steps: Steps of the whole schedule.
        strength: Part of the schedule that a start (`z`, `z512`, `image`) is noised by and denoised again; 0 only
            decodes it. Without a start the whole schedule is taken.
        guidance: Weight of classifier-free guidance; 1 is none.
    """

    model: Literal["v1.4", "v1.5"] = "v1.4"
    precision: Precision = "auto"
    sampler: Sampler = field(default="ddim", metadata=_RENDER_ONLY)
    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=50, metadata=_RENDER_ONLY)
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.8, metadata=_RENDER_ONLY)
    guidance: Annotated[float, Field(ge=0, le=100)] = field(default=5.0, metadata=_RENDER_ONLY)

    @property
    def plan(self) -> Plan:
        """How pictures are drawn."""
        return Plan(self.sampler, self.steps, self.strength, self.guidance)


class StableDiffusion(Generator):
    """Stable Diffusion v1.4 or v1.5, frozen.

    Latents are modes of the VAE's posterior, scaled; the published code of Takagi & Nishimoto 2023 takes a posterior
    sample each time. A `z` at 320 px is decoded, resized to 512 px and encoded again before it is noised, as there.
    """

    version: ClassVar[int] = 1
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
        self.networks = networks(options.model, options, dtype_of(options.precision, device), device)
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
            return module_size(build())

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
        sizes = {"z": SMALL_SIZE, "z512": SIZE}
        with torch.no_grad():
            return {
                name: self._text(stimuli.captions) if name == "text" else self._latents(stimuli.images, sizes[name])
                for name in names
            }

    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures of 512 px.

        Args:
            inputs: At most one start, `z` `(B, 4, 40, 40)`, `z512` `(B, 4, 64, 64)` or `image` `(B, 3, H, W)` uint8
                (none draws from noise alone), and `text` `(B, 77, 768)` (none is the empty prompt).
            seeds: One a picture.

        Returns:
            `(B, 3, 512, 512)` uint8 on the CPU.

        Raises:
            ValueError: If two starts are given, or their number is not that of the seeds.
        """
        starts = [name for name in STARTS if name in inputs]
        if len(starts) > 1:
            raise ValueError(f"stable-diffusion starts from one of {', '.join(STARTS)}, got {' and '.join(starts)}")
        for name, values in inputs.items():
            if len(values) != len(seeds):
                raise ValueError(f"stable-diffusion: {len(values)} of input {name!r} for {len(seeds)} seeds")
        with torch.no_grad():
            start = self._start(starts[0], inputs[starts[0]]) if starts else None
            null = self.null.expand(len(seeds), -1, -1)
            # Without a text both conditions are the empty prompt, and guidance changes nothing.
            text = inputs["text"].float().to(self.device) if "text" in inputs else null
            latents = sample(self.networks, self.options.plan, start, Condition(text), Condition(null), seeds)
            return self.networks.pictures(latents)

    def _start(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return what a start is at 512 px: scaled latents `(B, 4, 64, 64)`."""
        if name == "z512":
            return values.float().to(self.device)
        pictures = values if name == "image" else self.networks.pictures(values.float())
        # Pillow's default for pictures of another size, which the published code relies on.
        return self._latents(pictures, SIZE, Image.Resampling.BICUBIC)

    def _latents(
        self, images: torch.Tensor, size: int, method: Image.Resampling = Image.Resampling.LANCZOS
    ) -> torch.Tensor:
        """Return the scaled latents `(B, 4, size / 8, size / 8)` of images `(B, 3, H, W)` uint8, on the CPU."""
        # Contiguous: convolutions of pictures whose channels lie last, as Pillow leaves them, round differently.
        squares = (resized(part, size, method).contiguous() for part in images.split(_ENCODE_BATCH))
        parts = [self.networks.latents(square.float() / 127.5 - 1) for square in squares]
        return torch.cat([part.cpu() for part in parts])

    def _text(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return each stimulus's mean text states `(B, 77, 768)` over its captions, on the CPU.

        Raises:
            BadDataError: If a stimulus has no caption.
        """
        if without := [place for place, texts in enumerate(captions) if not texts]:
            raise BadDataError(
                f"target 'text' of generator 'stable-diffusion' needs captions: {len(without)} of {len(captions)} "
                f"stimuli of a batch have none, the first at place {without[0]}"
            )
        # Stimulus by stimulus: the mean is over its own captions, however many it has.
        return torch.stack([self.networks.text_states(texts).mean(0).cpu() for texts in captions])
