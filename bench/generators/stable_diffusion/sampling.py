"""Text-conditioned img2img (Meng et al. 2022) with classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bench.generators.stable_diffusion.networks import Networks

SIZE = 512
LATENT_SHAPE = (4, SIZE // 8, SIZE // 8)
Sampler = Literal["ddim", "plms"]


@dataclass(frozen=True)
class Plan:
    """How pictures are drawn.

    Attributes:
        sampler: DDIM (Song et al. 2021) without added noise, or PLMS (Liu et al. 2022).
        steps: Steps of the whole schedule.
        strength: Part of it that a start is noised by and that is taken.
        guidance: Weight of the conditioned against the unconditional prediction; 1 is no guidance.
    """

    sampler: Sampler
    steps: int
    strength: float
    guidance: float


@dataclass(frozen=True)
class Condition:
    """What the UNet attends to, `(B, 77, 768)` text states and, with an image adapter, `(B, 16, 768)` image tokens."""

    text: torch.Tensor
    tokens: torch.Tensor | None = None


def scheduler(sampler: Sampler, schedule: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a diffusers scheduler
    """Return a sampler over a noise schedule.

    Both visit 1, 21, ... 981 for 50 steps, as the published code of Stable Diffusion does.
    """
    from diffusers import DDIMScheduler, PNDMScheduler

    # Keys with an underscore name diffusers' class and release, not the noise.
    kept = {key: value for key, value in schedule.items() if not key.startswith("_")}
    kept |= {"timestep_spacing": "leading"}
    if sampler == "ddim":
        kept.pop("skip_prk_steps", None)
        # diffusers clips to [-1, 1] by default, as for pixels; latents go beyond.
        return DDIMScheduler.from_config({**kept, "clip_sample": False})
    kept.pop("clip_sample", None)
    # Without the Runge-Kutta steps: the published PLMS starts with lower orders instead.
    return PNDMScheduler.from_config({**kept, "skip_prk_steps": True})


def noise(seeds: Sequence[int]) -> torch.Tensor:
    """Return one `(4, 64, 64)` normal draw a seed, on the CPU: the same whatever the device, batch and order."""
    draws = [torch.randn((1, *LATENT_SHAPE), generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.cat(draws) if draws else torch.empty(0, *LATENT_SHAPE)


def sample(
    networks: Networks,
    plan: Plan,
    start: torch.Tensor | None,
    condition: Condition,
    null: Condition,
    seeds: Sequence[int],
) -> torch.Tensor:
    """Denoise a start, or pure noise.

    Args:
        networks: The networks.
        plan: How.
        start: Scaled latents `(B, 4, 64, 64)`, noised to the strength first; None starts from noise alone and takes
            the whole schedule.
        condition: What is drawn.
        null: What guidance steers away from.
        seeds: One a picture.

    Returns:
        Scaled latents `(B, 4, 64, 64)` float32.
    """
    steps = scheduler(plan.sampler, networks.schedule)
    steps.set_timesteps(plan.steps)
    drawn = noise(seeds).to(networks.device)
    if start is None:
        timesteps, latents = steps.timesteps, drawn * steps.init_noise_sigma
    else:
        # Cut off as in the published img2img: .8 of 50 steps are the last 40.
        skipped = plan.steps - min(int(plan.steps * plan.strength), plan.steps)
        timesteps, latents = steps.timesteps[skipped * steps.order :], start.to(networks.device)
        if len(timesteps):
            # Without a step to take nothing would remove the noise again.
            latents = steps.add_noise(latents, drawn, timesteps[:1])
    for step in timesteps:
        latents = steps.step(_predicted(networks, plan, latents, step, condition, null), step, latents).prev_sample
    return latents


def _predicted(
    networks: Networks, plan: Plan, latents: torch.Tensor, step: torch.Tensor, condition: Condition, null: Condition
) -> torch.Tensor:
    """Return the guided noise prediction `(B, 4, 64, 64)` float32 at a timestep."""
    # The null prediction cancels out at 1; half the work is saved.
    if plan.guidance == 1.0:
        return _noise_in(networks, latents, step, condition)
    both = Condition(
        torch.cat([null.text, condition.text]),
        None if condition.tokens is None or null.tokens is None else torch.cat([null.tokens, condition.tokens]),
    )
    # Both predictions in one pass: twice the batch costs less than two passes.
    without, towards = _noise_in(networks, torch.cat([latents, latents]), step, both).chunk(2)
    return without + plan.guidance * (towards - without)


def _noise_in(networks: Networks, latents: torch.Tensor, step: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Return the UNet's noise prediction; steps between predictions are taken in float32 whatever its format."""
    dtype = networks.unet.dtype
    added = None if condition.tokens is None else {"image_embeds": [condition.tokens.to(dtype)]}
    found: torch.Tensor = networks.unet(
        latents.to(dtype), step, encoder_hidden_states=condition.text.to(dtype), added_cond_kwargs=added
    ).sample
    return found.float()
