"""The latent space of the tiny models: their VAE, the noise schedule, img2img starts and DDIM denoising."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional

from bench.generators._weights.shipped_files import WeightFiles
from bench.generators.base import InputSpec
from bench.generators.tiny_diffusion.architecture import LATENT_SHAPE, PICTURE_SIZE

FOLDER = Path(__file__).parent / "weights"
WEIGHTS = WeightFiles(
    "tiny-diffusion",
    FOLDER,
    ("scheduler/scheduler_config.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
)
STARTS = {
    "latent": InputSpec(LATENT_SHAPE, oracle="latent", required=False),
    "image": InputSpec((3, PICTURE_SIZE, PICTURE_SIZE), kind="picture", required=False),
}
"""What img2img starts from: one of the two."""
ENCODE_BATCH = 64

Guess = Callable[[torch.Tensor, int], torch.Tensor]
"""A network's output for noisy latents `(B, 4, 16, 16)` at a timestep."""


class LatentSpace:
    """Pictures to latents and back, and the way from noise to a latent that a guessing network leads.

    Attributes:
        vae: The frozen VAE.
        scheduler: The noise schedule, set to the chosen number of steps.
        timesteps: Timesteps that img2img takes: the last `steps * strength` of the schedule.
    """

    def __init__(self, steps: int, strength: float, device: torch.device) -> None:
        """Load the shipped VAE.

        Raises:
            MissingWeightsError: If a weight file is not there.
        """
        WEIGHTS.check()
        from diffusers import AutoencoderKL, DDIMScheduler

        self.device = device
        self.vae = WEIGHTS.load(AutoencoderKL, "vae", device)
        self.scheduler = DDIMScheduler.from_pretrained(WEIGHTS.folder / "scheduler")
        self.scheduler.set_timesteps(steps)
        # Rounded: cut off, .29 of 100 steps would be 28, because the product of floats falls just below 29.
        calls = round(steps * strength)
        self.timesteps = [int(t) for t in self.scheduler.timesteps[steps - calls :]]

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return scaled posterior means `(B, 4, 16, 16)` of `(B, 3, H, W)` uint8 pictures."""
        return torch.cat([self._encoded(part) for part in images.split(ENCODE_BATCH)])

    def _encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents of a batch; pictures of another size are brought to 64 x 64."""
        pixels = images.to(self.device).float() / 127.5 - 1
        if pixels.shape[-2:] != (PICTURE_SIZE, PICTURE_SIZE):
            # Antialiased: plain bilinear resampling skips rows of a larger picture.
            pixels = functional.interpolate(pixels, (PICTURE_SIZE, PICTURE_SIZE), mode="bilinear", antialias=True)
        return cast("torch.Tensor", self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the `(B, 3, 64, 64)` uint8 pictures of latents, on the CPU."""
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    def start(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return the latents `(B, 4, 16, 16)` that a `latent` or an `image` stands for, checked.

        Raises:
            ValueError: If its shape, type or values cannot be right.
        """
        if name == "image":
            if values.ndim != 4 or values.shape[1] != 3 or values.dtype != torch.uint8:
                raise ValueError(f"image must be (B, 3, H, W) uint8, got {tuple(values.shape)} {values.dtype}")
            return self.encode(values)
        return checked(name, values, LATENT_SHAPE).to(self.device)

    def noise(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Return the next standard normal latent of each picture's own generator; drawn on the CPU on any device."""
        return torch.stack([torch.randn(LATENT_SHAPE, generator=g) for g in generators]).to(self.device)

    def redraw(self, latents: torch.Tensor, seeds: Sequence[int], guess: Guess, eta: float = 0.0) -> torch.Tensor:
        """Noise latents to the strength's level and denoise them again (img2img, Meng et al. 2022).

        Args:
            latents: `(B, 4, 16, 16)`.
            seeds: One a picture.
            guess: The network.
            eta: Noise added back at each step: 0 is DDIM, 1 is DDPM.
        """
        # Strength 0 takes no step; noising to the first one would then change what is only to be decoded.
        if not self.timesteps or not len(latents):
            return latents
        generators = generators_of(seeds)
        first = torch.full((len(latents),), self.timesteps[0], device=self.device)
        latents = self.scheduler.add_noise(latents, self.noise(generators), first)
        return self._denoise(latents, self.timesteps, generators, guess, eta)

    def draw(self, seeds: Sequence[int], guess: Guess, eta: float = 0.0) -> torch.Tensor:
        """Denoise pure noise along the whole schedule; arguments as for `redraw`."""
        generators = generators_of(seeds)
        timesteps = [int(t) for t in self.scheduler.timesteps]
        return self._denoise(self.noise(generators), timesteps, generators, guess, eta)

    def _denoise(
        self,
        latents: torch.Tensor,
        timesteps: Sequence[int],
        generators: Sequence[torch.Generator],
        guess: Guess,
        eta: float,
    ) -> torch.Tensor:
        """Take DDIM steps (Song et al. 2021)."""
        for step in timesteps:
            # Drawn from each picture's own generator: left to the scheduler it would come from one for the batch.
            noise = self.noise(generators) if eta > 0 else None
            made = guess(latents, step)
            latents = self.scheduler.step(made, step, latents, eta=eta, variance_noise=noise).prev_sample
        return latents


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a random generator for each seed."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def checked(name: str, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return an input `(B, *shape)` as float32.

    Raises:
        ValueError: If its shape is another, or it holds NaN or infinite values.
    """
    if tuple(values.shape[1:]) != shape:
        raise ValueError(f"{name} must be (B, {', '.join(map(str, shape))}), got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    return values.float()


def check_counts(inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> None:
    """Check that there is one seed a row of every input.

    Raises:
        ValueError: If not.
    """
    for name, values in inputs.items():
        if len(values) != len(seeds):
            raise ValueError(f"{len(values)} inputs {name!r} but {len(seeds)} seeds")
