"""The tiny latent diffusion model as a generator: img2img from a predicted latent, as in BRAID."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch.nn import functional

from bench.errors import UnknownNameError
from bench.generators.base import (
    Generator,
    InputSpec,
    MissingWeightsError,
    Stimuli,
    TargetSpec,
    WeightsSize,
    safetensors_size,
)
from bench.generators.tiny_diffusion.architecture import LATENT_SHAPE, PICTURE_SIZE

WEIGHTS = Path(__file__).parent / "weights"
WEIGHT_FILES = (
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
_ENCODE_BATCH = 64
_RENDER_ONLY = {"stage": "render"}


@dataclass(frozen=True)
class Options:
    """What a recipe may set; all of it is about rendering, none of it changes targets.

    Attributes:
        steps: DDIM steps of the whole schedule (Song et al. 2021); `steps * strength` of them are taken.
        strength: Part of the schedule that is noised and denoised again: 0 only decodes the latent, 1 keeps next to
            nothing of it.
        eta: Noise added back at each step: 0 is DDIM, 1 is DDPM.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=10, metadata=_RENDER_ONLY)
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.5, metadata=_RENDER_ONLY)
    eta: Annotated[float, Field(ge=0, le=1)] = field(default=0.0, metadata=_RENDER_ONLY)


class TinyDiffusion(Generator):
    """A VAE and an unconditional latent diffusion UNet, trained on the simulator's scenes by `train.py` beside it.

    The picture of a latent is img2img (Meng et al. 2022): the latent is noised to `strength`, denoised with DDIM,
    decoded. Instead of a latent it takes a picture (another generator's output), which it encodes first.
    """

    version: ClassVar[int] = 2
    Options: ClassVar[type] = Options
    targets: ClassVar[Mapping[str, TargetSpec]] = {"latent": TargetSpec(LATENT_SHAPE)}
    inputs: ClassVar[Mapping[str, InputSpec]] = {
        "latent": InputSpec(LATENT_SHAPE, oracle="latent", required=False),
        "image": InputSpec((3, PICTURE_SIZE, PICTURE_SIZE), kind="picture", required=False),
    }

    def __init__(self, options: Options, device: torch.device) -> None:  # type: ignore[valid-type]
        """Load the shipped weights.

        Raises:
            MissingWeightsError: If a weight file is not there.
        """
        super().__init__(options, device)
        check_weights()
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

        self.vae = _frozen(AutoencoderKL, "vae", device)
        self.unet = _frozen(UNet2DModel, "unet", device)
        self.scheduler = DDIMScheduler.from_pretrained(WEIGHTS / "scheduler")
        self.scheduler.set_timesteps(self.options.steps)
        calls = round(self.options.steps * self.options.strength)
        self.timesteps = [int(t) for t in self.scheduler.timesteps[self.options.steps - calls :]]

    @classmethod
    def weights_digest(cls, options: Options) -> str:  # type: ignore[valid-type]
        """Return the sha256 over the weight files, names included; they are the same whatever the options."""
        check_weights()
        total = hashlib.sha256()
        for name in WEIGHT_FILES:
            total.update(name.encode() + b"\0" + hashlib.sha256((WEIGHTS / name).read_bytes()).digest())
        return total.hexdigest()

    @classmethod
    def weights_size(cls, options: Options) -> WeightsSize:  # type: ignore[valid-type]
        """Return the size of VAE and UNet; they are the same whatever the options."""
        check_weights()
        return safetensors_size([WEIGHTS / name for name in WEIGHT_FILES if name.endswith(".safetensors")])

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the scaled posterior means `(B, 4, 16, 16)`: they are no samples, so seeds change nothing.

        Raises:
            UnknownNameError: If a name is not a target.
        """
        for name in names:
            if name not in self.targets:
                raise UnknownNameError("target", name, self.targets, "generator 'tiny-diffusion'")
        with torch.no_grad():
            parts = [self._latents(part).cpu() for part in stimuli.images.split(_ENCODE_BATCH)]
        return {name: torch.cat(parts) for name in names}

    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures from predicted latents, or from pictures.

        Args:
            inputs: Either `latent` `(B, 4, 16, 16)` or `image` `(B, 3, H, W)` uint8.
            seeds: One a picture.

        Returns:
            `(B, 3, 64, 64)` uint8 on the CPU.

        Raises:
            ValueError: If not exactly one input is given, or its shape or values cannot be right.
        """
        with torch.no_grad():
            latents = self._denoise(self._start(inputs, seeds), seeds)
            pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
            return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    def loss(
        self, inputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], seeds: Sequence[int]
    ) -> torch.Tensor:
        """Return how far denoising a predicted latent misses the true one.

        The predicted latent is noised to a timestep that rendering visits (drawn from its seed); the loss is the mean
        squared distance of the UNet's clean estimate from the true latent, which is the usual noise-prediction loss
        weighted by the noise-to-signal ratio (Ho et al. 2020), so that small timesteps do not swamp the others.

        Args:
            inputs: `latent` `(B, 4, 16, 16)`, may require gradients.
            targets: `latent` `(B, 4, 16, 16)`.
            seeds: One a latent.
        """
        latents, generators = self._start(inputs, seeds), [torch.Generator().manual_seed(int(s)) for s in seeds]
        visited = torch.tensor(self.timesteps or [int(self.scheduler.timesteps[-1])])
        picks = torch.cat([torch.randint(len(visited), (1,), generator=g) for g in generators])
        steps = visited[picks].to(self.device)
        noisy = self.scheduler.add_noise(latents, self._noise(generators), steps)
        kept = self.scheduler.alphas_cumprod.to(self.device)[steps].view(-1, 1, 1, 1)
        clean = kept.sqrt() * noisy - (1 - kept).sqrt() * self.unet(noisy, steps).sample
        return functional.mse_loss(clean, targets["latent"].to(self.device))

    def trace(
        self, inputs: Mapping[str, torch.Tensor], layers: Sequence[str], steps: Sequence[int], seeds: Sequence[int]
    ) -> dict[tuple[str, int], torch.Tensor]:
        """Return the outputs of UNet modules while rendering.

        Args:
            inputs: As for `render`.
            layers: Names among `unet.named_modules()` ("mid_block", "up_blocks.1").
            steps: Denoising steps taken, from 0; with the defaults 0 to 4.
            seeds: One a picture.

        Returns:
            For each layer and step `(B, ...)` on the CPU.

        Raises:
            UnknownNameError: If the UNet has no module of a name.
            ValueError: If a step is not taken, or a module gives no tensor exactly once a step.
        """
        modules = {name: module for name, module in self.unet.named_modules() if name}
        for name in layers:
            if name not in modules:
                raise UnknownNameError("layer", name, modules, "the UNet of 'tiny-diffusion'")
        if wrong := [step for step in steps if not 0 <= step < len(self.timesteps)]:
            raise ValueError(f"trace: steps {wrong} are not among the {len(self.timesteps)} denoising steps taken")
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
        hooks = [modules[name].register_forward_hook(_keep(seen[name])) for name in layers]
        try:
            with torch.no_grad():
                self._denoise(self._start(inputs, seeds), seeds)
        finally:
            for hook in hooks:
                hook.remove()
        for name, outputs in seen.items():
            if len(outputs) != len(self.timesteps):
                raise ValueError(
                    f"trace: {name!r} gave {len(outputs)} tensors in {len(self.timesteps)} steps, not one a step"
                )
        return {(name, step): seen[name][step] for name in layers for step in steps}

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return scaled posterior means of `(B, 3, H, W)` uint8 pictures."""
        pixels = images.to(self.device).float() / 127.5 - 1
        if pixels.shape[-2:] != (PICTURE_SIZE, PICTURE_SIZE):
            pixels = functional.interpolate(pixels, (PICTURE_SIZE, PICTURE_SIZE), mode="bilinear", antialias=True)
        return cast("torch.Tensor", self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor)

    def _start(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Return the latents that rendering starts from, checked."""
        given = sorted(inputs)
        if given not in (["latent"], ["image"]):
            raise ValueError(f"tiny-diffusion renders from one of 'latent' and 'image', got {given}")
        values = inputs[given[0]]
        if len(values) != len(seeds):
            raise ValueError(f"{len(values)} inputs {given[0]!r} but {len(seeds)} seeds")
        if given == ["image"]:
            if values.ndim != 4 or values.shape[1] != 3 or values.dtype != torch.uint8:
                raise ValueError(f"image must be (B, 3, H, W) uint8, got {tuple(values.shape)} {values.dtype}")
            return self._latents(values)
        if tuple(values.shape[1:]) != LATENT_SHAPE:
            raise ValueError(f"latent must be (B, {', '.join(map(str, LATENT_SHAPE))}), got {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("latent holds NaN or infinite values")
        return values.to(self.device, torch.float32)

    def _noise(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Return the next standard normal latent of each picture's own generator; drawn on the CPU on any device."""
        return torch.stack([torch.randn(LATENT_SHAPE, generator=g) for g in generators]).to(self.device)

    def _denoise(self, latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Noise latents to the strength's level and denoise them again."""
        if not self.timesteps or not len(latents):
            return latents
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        first = torch.full((len(latents),), self.timesteps[0], device=self.device)
        latents = self.scheduler.add_noise(latents, self._noise(generators), first)
        eta = self.options.eta
        for step in self.timesteps:
            noise = self._noise(generators) if eta > 0 else None
            guess = self.unet(latents, step).sample
            latents = self.scheduler.step(guess, step, latents, eta=eta, variance_noise=noise).prev_sample
        return latents


def check_weights() -> None:
    """Check that the shipped weights are there.

    Raises:
        MissingWeightsError: If a file is not; the message says how to get it.
    """
    missing = [name for name in WEIGHT_FILES if not (WEIGHTS / name).is_file()]
    if missing:
        raise MissingWeightsError(
            f"tiny-diffusion: no {missing[0]} in {WEIGHTS}. The weights ship with the package; reinstall it, or train "
            f"them with: python -m bench.generators.tiny_diffusion.train --out {WEIGHTS}"
        )


def _frozen(kind: Any, name: str, device: torch.device) -> Any:  # noqa: ANN401 - a diffusers model class and model
    """Return a network of the weights folder: float32, evaluation mode, no gradients of its own."""
    settings = {"torch_dtype": torch.float32, "use_safetensors": True, "low_cpu_mem_usage": False}
    model = kind.from_pretrained(WEIGHTS / name, **settings)
    return model.to(device).eval().requires_grad_(False)


def _keep(outputs: list[torch.Tensor]) -> Any:  # noqa: ANN401 - a forward hook
    """Return a forward hook that appends a module's output to a list."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: object) -> None:
        if isinstance(output, tuple):  # down blocks return their skip connections too
            output = output[0]
        if isinstance(output, torch.Tensor):
            outputs.append(output.detach().cpu().clone())

    return hook
