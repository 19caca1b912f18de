"""Dual-guided img2img as Brain-Diffuser samples it: DDIM with eta 0 and classifier-free guidance.

Follows `scripts/versatilediffusion_reconstruct_images.py` of Ozcelik & VanRullen 2023 and the sampler they call,
`lib/model_zoo/ddim_vd.py` of Xu et al. 2023. Latents are kept in float32 whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

LATENT_CHANNELS = 4
REDUCTION = 8
"""Pixels of a picture's side to one of its latent's."""


@dataclass(frozen=True)
class Schedule:
    """Which timesteps are taken.

    Attributes:
        noised: Timestep to whose level an initial picture is noised.
        taken: Timesteps of the denoising steps, from noisy to clean.
    """

    noised: int
    taken: tuple[int, ...]


def schedule(scheduler: Any, steps: int, strength: float) -> Schedule:  # noqa: ANN401 - diffusers is imported late
    """Return the timesteps of an img2img pass.

    Of 50 timesteps 981, 961 ... 1 a strength of .75 takes the last int(.75 * 50) = 37: 721 ... 1. The published sampler
    noises the picture to the level one step above the first that it takes (741), and so does this.

    Args:
        scheduler: `DDIMScheduler`; its `set_timesteps` is called.
        steps: Steps of the whole schedule.
        strength: Part of them to take; 1 takes all of them, from the noisiest level.
    """
    scheduler.set_timesteps(steps)
    # The published sampler indexes its timesteps from clean to noisy.
    rising = sorted(int(step) for step in scheduler.timesteps)
    count = int(strength * steps)
    return Schedule(noised=rising[min(count, steps - 1)], taken=tuple(reversed(rising[:count])))


def noise_of(generators: Sequence[torch.Generator], size: int, device: torch.device) -> torch.Tensor:
    """Return the next standard normal latent of each picture's own generator, `(B, 4, size / 8, size / 8)`.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """
    shape = (LATENT_CHANNELS, size // REDUCTION, size // REDUCTION)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)


def denoise(
    unet: Any,  # noqa: ANN401 - see schedule
    scheduler: Any,  # noqa: ANN401 - see schedule
    timesteps: Sequence[int],
    latents: torch.Tensor,
    conditions: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Return latents after guided DDIM steps (Song et al. 2021 with eta 0; Ho & Salimans 2022).

    Args:
        unet: The dual-guided UNet.
        scheduler: `DDIMScheduler` with its timesteps set.
        timesteps: Steps to take, from noisy to clean.
        latents: `(B, 4, h, w)` float32, noised to about the first timestep.
        conditions: `(2B, 257 + 77, 768)`, the null conditions of all pictures before the conditions of all pictures.
        guidance: How far to go from the null condition's noise estimate through the condition's; 1 is no guidance.
    """
    dtype = next(unet.parameters()).dtype
    conditions = conditions.to(dtype)
    for step in timesteps:
        both = unet(torch.cat([latents, latents]).to(dtype), step, encoder_hidden_states=conditions).sample
        # Guidance multiplies the difference of two near numbers: in float32 whatever the network computes in.
        null, guided = both.float().chunk(2)
        latents = scheduler.step(null + guidance * (guided - null), step, latents, eta=0.0).prev_sample
    return latents
