"""Versatile Diffusion as a generator: a picture from predicted CLIP tokens and a first guess."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, cast

import torch
from PIL import Image
from pydantic import Field

from bench.core.errors import UnknownNameError
from bench.generators._diffusion.resizing import resized
from bench.generators._weights.checkpoints import CheckpointOptions, weights_digest, weights_size
from bench.generators._weights.frozen import Precision, dtype_of, module_size
from bench.generators.base import Generator, InputSpec, Stimuli, TargetSpec, WeightsSize
from bench.generators.versatile_diffusion.architecture import PUBLISHED, build
from bench.generators.versatile_diffusion.dual import TEXT_TOKENS, VISION_TOKENS, WIDTH, make_dual, twins
from bench.generators.versatile_diffusion.embeddings import Embeddings
from bench.generators.versatile_diffusion.parts import CHECKPOINT, load
from bench.generators.versatile_diffusion.sampling import denoise, noise_of, schedule

_NAME = "versatile-diffusion"
_VISION, _TEXT = (VISION_TOKENS, WIDTH), (TEXT_TOKENS, WIDTH)
_VAE_BATCH = 4  # pictures at once through the VAE: at 512 pixels a picture's activations take 0.5 GB in float32
_RENDER_ONLY = {"stage": "render"}


@dataclass(frozen=True)
class Options(CheckpointOptions):
    """What a recipe may set; besides the weights, all of it is about rendering. Defaults are Brain-Diffuser's.

    Attributes:
        steps: DDIM steps of the whole schedule.
        strength: Part of the schedule that a given picture is noised and denoised over; without one all of it is taken.
        guidance: Scale of classifier-free guidance.
        mixing: Share of the caption's attention in the dual guidance; the picture's has the rest.
        size: Pixels of a side; 512 is what the networks were trained with.
        precision: Number format of UNet and VAE: half precision on a GPU unless set. CLIP always computes in float32.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=50, metadata=_RENDER_ONLY)
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.75, metadata=_RENDER_ONLY)
    guidance: Annotated[float, Field(ge=0, le=50)] = field(default=7.5, metadata=_RENDER_ONLY)
    mixing: Annotated[float, Field(ge=0, le=1)] = field(default=0.4, metadata=_RENDER_ONLY)
    size: Annotated[int, Field(ge=64, le=1024, multiple_of=64)] = field(default=512, metadata=_RENDER_ONLY)
    precision: Precision = field(default="auto", metadata=_RENDER_ONLY)


class VersatileDiffusion(Generator):
    """CLIP's tokens of a picture and its captions as targets; dual-guided img2img from them.

    A missing condition is replaced by the published null condition: the tokens of a grey picture, of the empty caption.
    """

    version: ClassVar[int] = 1
    Options: ClassVar[type] = Options
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

    def __init__(self, options: Options, device: torch.device) -> None:  # type: ignore[valid-type]
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
        self.scheduler = parts.scheduler
        self.schedule = schedule(self.scheduler, self.options.steps, self.options.strength)

    @classmethod
    def weights_digest(cls, options: Options) -> str:  # type: ignore[valid-type]
        """Return the sha256 over the checkpoint's files, or that of untrained weights."""
        return weights_digest([CHECKPOINT], options)

    @classmethod
    def weights_size(cls, options: Options) -> WeightsSize:  # type: ignore[valid-type]
        """Return the size of the checkpoint's weight files, or of the untrained networks."""
        if not options.untrained:  # type: ignore[attr-defined]
            return weights_size([CHECKPOINT], options)
        with torch.device("meta"):
            networks = [build(part, config) for part, config in PUBLISHED.items()]
            return module_size([*networks, *twins(networks[0]).values()])

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return CLIP's tokens: `vision` `(B, 257, 768)`, `text` `(B, 77, 768)`; they are no samples of anything.

        Raises:
            UnknownNameError: If a name is not a target.
            BadDataError: If `text` is asked for and a stimulus has no caption.
        """
        self.check_targets(names)
        made = {
            "vision": lambda: self.embeddings.vision(stimuli.images),
            "text": lambda: self.embeddings.mean_text(stimuli.captions),
        }
        return {name: made[name]() for name in names}

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
            ValueError: If none is given, or shapes, types or values cannot be right.
        """
        _check(inputs, len(seeds))
        # Stacking no noise would fail further down.
        if not seeds:
            return torch.zeros(0, 3, self.options.size, self.options.size, dtype=torch.uint8)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        if "image" in inputs:
            start, timesteps = self._noised(inputs["image"], generators), self.schedule.taken
        else:
            start = noise_of(generators, self.options.size, self.device)
            timesteps = tuple(int(step) for step in self.scheduler.timesteps)
        conditions = self._conditions(inputs, len(seeds))
        return self._decode(denoise(self.unet, self.scheduler, timesteps, start, conditions, self.options.guidance))

    @functools.cached_property
    def _null(self) -> dict[str, torch.Tensor]:
        """The null conditions, `(1, tokens, 768)` each."""
        return {"vision": self.embeddings.null_vision(), "text": self.embeddings.null_text()}

    def _conditions(self, inputs: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        """Return `(2B, 257 + 77, 768)`: the null condition of every picture, then the given ones."""
        null = {name: value.expand(count, -1, -1) for name, value in self._null.items()}
        # A condition that is not given equals its null one, so guidance follows the other alone.
        given = {name: inputs[name].cpu().float() if name in inputs else null[name] for name in null}
        both = [torch.cat([each["vision"], each["text"]], dim=1) for each in (null, given)]
        return torch.cat(both).to(self.device)

    def _noised(self, images: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Return latents of pictures, sampled from the VAE's posterior and noised to where denoising starts."""
        pixels = resized(images, self.options.size, Image.Resampling.BICUBIC).float() / 127.5 - 1
        posteriors = [
            self.vae.encode(part.to(self.device, self.dtype)).latent_dist for part in pixels.split(_VAE_BATCH)
        ]
        mean, std = (torch.cat([getattr(p, name).float() for p in posteriors]) for name in ("mean", "std"))
        # A sample of the posterior, as in the published script, by each picture's own generator.
        sample = mean + std * noise_of(generators, self.options.size, self.device)
        level = torch.full((len(images),), self.schedule.noised, device=self.device)
        noise = noise_of(generators, self.options.size, self.device)
        return cast("torch.Tensor", self.scheduler.add_noise(sample * self.vae.config.scaling_factor, noise, level))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the pictures of latents, `(B, 3, size, size)` uint8 on the CPU."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.dtype)
        pixels = torch.cat([self.vae.decode(part).sample.float().cpu() for part in scaled.split(_VAE_BATCH)])
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _check(inputs: Mapping[str, torch.Tensor], count: int) -> None:
    """Check what is given to render; see there."""
    if not inputs:
        raise ValueError(f"{_NAME} renders from any of {', '.join(VersatileDiffusion.inputs)}; none is given")
    for name, values in inputs.items():
        if name not in VersatileDiffusion.inputs:
            raise UnknownNameError("input", name, VersatileDiffusion.inputs, f"generator {_NAME!r}")
        spec, got = VersatileDiffusion.inputs[name], f"got {tuple(values.shape)} {values.dtype}"
        if spec.kind == "picture" and (values.ndim != 4 or values.shape[1] != 3 or values.dtype != torch.uint8):
            raise ValueError(f"{_NAME}: {name} must be (B, 3, H, W) uint8, {got}")
        if spec.kind == "latent" and (tuple(values.shape[1:]) != spec.shape or not values.is_floating_point()):
            raise ValueError(f"{_NAME}: {name} must be (B, {', '.join(map(str, spec.shape))}) of floats, {got}")
        if len(values) != count:
            raise ValueError(f"{_NAME}: {len(values)} inputs {name!r} but {count} seeds")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{_NAME}: {name} holds NaN or infinite values")
