"""The latent space of the simulator's scenes, in which both tiny models draw: their VAE, their noise, their steps.

A picture of 3 x 64 x 64 becomes a latent of 4 x 16 x 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.generators._diffusion.sampler import Guess, Sampler, generators_of
from bench.generators._diffusion.vae import latents_of, pictures_of
from bench.generators._weights.shipped_files import WeightFiles
from bench.generators.base import InputSpec

PICTURE_SIZE = 64
LATENT_SHAPE = (4, 16, 16)
UNET: Mapping[str, Any] = {
    "sample_size": LATENT_SHAPE[1],
    "in_channels": LATENT_SHAPE[0],
    "out_channels": LATENT_SHAPE[0],
    "layers_per_block": 1,
    "block_out_channels": (32, 64, 128),
    "norm_num_groups": 16,
}
"""What the UNets of both models have in common."""

FOLDER = Path(__file__).parents[1] / "tiny_diffusion" / "weights"
"""Where `bench.generators.tiny_diffusion.train`, which trains the VAE, puts it."""
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
BATCH = 64


class LatentSpace:
    """Pictures to latents and back, and the steps from noise to a latent.

    Attributes:
        vae: The frozen VAE.
        sampler: DDIM; of its steps img2img takes the last `steps * strength`, from the level of the first of them.
    """

    def __init__(self, steps: int, strength: float, device: torch.device) -> None:
        """Load the shipped VAE.

        Raises:
            MissingWeightsError: If a weight file is not there.
        """
        from diffusers import AutoencoderKL, DDIMScheduler

        self.device = device
        self.vae = WEIGHTS.load(AutoencoderKL, "vae", device)
        # Rounded: cut off, .29 of 100 steps would be 28, because the product of floats falls just below 29.
        count = round(steps * strength)
        self.sampler = Sampler(DDIMScheduler.from_pretrained(WEIGHTS.folder / "scheduler"), steps, count, gap=0)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return scaled posterior means `(B, 4, 16, 16)` of `(B, 3, H, W)` uint8 pictures."""
        return torch.cat([latents_of(self.vae, self._pixels(part)) for part in images.split(BATCH)])

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return a batch in -1 ... 1; pictures of another size are brought to 64 x 64."""
        pixels = images.to(self.device).float() / 127.5 - 1
        if pixels.shape[-2:] == (PICTURE_SIZE, PICTURE_SIZE):
            return pixels
        # Antialiased: plain bilinear resampling skips rows of a larger picture.
        return functional.interpolate(pixels, (PICTURE_SIZE, PICTURE_SIZE), mode="bilinear", antialias=True)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the `(B, 3, 64, 64)` uint8 pictures of latents, on the CPU."""
        return pictures_of(self.vae, latents, BATCH)

    def start(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return the latents `(B, 4, 16, 16)` that a `latent` or an `image` stands for."""
        return self.encode(values) if name == "image" else values.float().to(self.device)

    def redraw(self, start: torch.Tensor, seeds: Sequence[int], guess: Guess, eta: float = 0.0) -> torch.Tensor:
        """Noise latents to the strength's level and denoise them again; see `Sampler.redraw`."""
        return self.sampler.redraw(start, generators_of(seeds), guess, eta)

    def draw(self, seeds: Sequence[int], guess: Guess) -> torch.Tensor:
        """Denoise pure noise along the whole schedule."""
        return self.sampler.draw(LATENT_SHAPE, generators_of(seeds), guess, self.device)
