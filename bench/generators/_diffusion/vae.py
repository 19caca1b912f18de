"""Pictures to the latents of a VAE and back, scaled as its diffusion model takes them."""

from __future__ import annotations

from typing import Any

import torch


def latents_of(vae: Any, pixels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - diffusers is imported late
    """Return the scaled posterior modes `(B, C, h, w)` float32 of pixels `(B, 3, H, W)` in -1 ... 1.

    The mode: a sample would add noise that no voxel can predict.
    """
    encoded: torch.Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return (encoded * vae.config.scaling_factor).float()


def pictures_of(vae: Any, latents: torch.Tensor, batch: int) -> torch.Tensor:  # noqa: ANN401 - see latents_of
    """Return the pictures `(B, 3, H, W)` uint8 on the CPU of scaled latents `(B, C, h, w)`.

    Args:
        vae: An `AutoencoderKL`.
        latents: On any device.
        batch: Pictures decoded at once: a decoder's activations outweigh everything else and gain little from batches.
    """
    if not len(latents):  # which attention cannot reshape
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        return torch.zeros(0, 3, *(factor * side for side in latents.shape[2:]), dtype=torch.uint8)
    scaled = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype)
    pixels = torch.cat([vae.decode(part).sample.float().cpu() for part in scaled.split(batch)])
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
