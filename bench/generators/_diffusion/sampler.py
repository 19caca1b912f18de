"""Samples a latent diffusion model: a noise schedule, the part of it that img2img takes, guidance, the steps.

Every generator brings its own UNet call; all else is the same for all. Latents are kept in float32 whatever the UNet
computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

SamplerName = Literal["ddim", "plms"]
Conditions = Mapping[str, torch.Tensor]
"""What a UNet attends to, by name, each `(B, ...)`."""
Guess = Callable[[torch.Tensor, int], torch.Tensor]
"""What a network predicts (noise, or velocity) for noisy latents `(B, C, h, w)` at a timestep, in float32."""
GuessUnder = Callable[[torch.Tensor, int, Conditions], torch.Tensor]
"""The same under conditions that are still to be given."""

NOISE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""The noise that Stable Diffusion and Versatile Diffusion were trained with and publish (Rombach et al. 2022)."""


def scheduler(name: SamplerName, noise: Mapping[str, Any] = NOISE, prediction_type: str = "epsilon") -> Any:  # noqa: ANN401 - diffusers is imported late
    """Return DDIM (Song et al. 2021) or PLMS (Liu et al. 2022) over a noise schedule.

    Args:
        name: Which.
        noise: A checkpoint's schedule; of its entries only those of `NOISE` count.
        prediction_type: What the network predicts, as diffusers calls it.
    """
    from diffusers import DDIMScheduler, PNDMScheduler

    given = {key: noise.get(key, default) for key, default in NOISE.items()}
    # Fixed, because a checkpoint may come with another scheduler's configuration, in which they are absent. With them
    # 50 steps visit 1, 21 ... 981 and end at the first level, as the published code of Stable Diffusion does.
    given |= {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    given |= {"prediction_type": prediction_type}
    if name == "ddim":
        # diffusers clips to [-1, 1] by default, as for pixels; latents go beyond.
        return DDIMScheduler(**given, clip_sample=False)
    # Without the Runge-Kutta steps: the published PLMS starts with lower orders instead.
    return PNDMScheduler(**given, skip_prk_steps=True)


@dataclass(frozen=True)
class Cut:
    """The part of a schedule that img2img takes.

    Attributes:
        noised: Timestep to whose level the start is noised; None leaves it as it is.
        taken: Timesteps of the denoising steps, from noisy to clean.
    """

    noised: int | None
    taken: tuple[int, ...]


def cut(timesteps: Sequence[int], count: int, gap: int = 1) -> Cut:
    """Return which part of a schedule an img2img pass takes (Meng et al. 2022).

    Of 50 timesteps 981, 961 ... 1 a strength of .8 takes the last 40, 781 ... 1. The published samplers of Stable
    Diffusion and of Versatile Diffusion noise the start to the level one step above the first that they take (801):
    they count levels and steps from 0 alike, so that level 40 precedes step 39 (`stochastic_encode` and `decode` of
    `ldm/models/diffusion/ddim.py`; `lib/model_zoo/ddim_vd.py`).

    Args:
        timesteps: The whole schedule, from noisy to clean.
        count: How many steps to take, the last ones.
        gap: Steps between the level of the start and the first step taken. 1 as published; with 0 the network is asked
            about the level that the start really has, and where no step is taken there is no level to noise to.
    """
    first = len(timesteps) - count
    noised = timesteps[max(first - gap, 0)] if count or gap else None
    return Cut(noised, tuple(timesteps[first:]))


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a random generator for each seed."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def noise_of(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the next standard normal numbers of each picture's own generator, `(B, *shape)`.

    Drawn on the CPU and picture by picture, so that a seed means the same noise on every device and in every batch.
    """
    draws = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(draws).to(device) if draws else torch.empty(0, *shape, device=device)


def guided(guess: GuessUnder, null: Conditions, given: Conditions, scale: float) -> Guess:
    """Return a network under classifier-free guidance, `null + scale * (given - null)` (Ho & Salimans 2022).

    Args:
        guess: The network.
        null: What guidance steers away from.
        given: What is drawn, under the same names.
        scale: 1 is no guidance, 0 ignores what is given.
    """
    if scale in (0, 1):  # one of the two cancels out; half the work is saved
        alone = given if scale else null
        return lambda latents, step: guess(latents, step, alone)
    both = {name: torch.cat([null[name], given[name]]) for name in given}

    def guess_guided(latents: torch.Tensor, step: int) -> torch.Tensor:
        # Both predictions in one pass: twice the batch costs less than two passes.
        without, towards = guess(torch.cat([latents, latents]), step, both).chunk(2)
        return without + scale * (towards - without)

    return guess_guided


class Sampler:
    """A sampler with the steps of its schedule, and which of them img2img takes.

    Attributes:
        scheduler: diffusers' scheduler, its timesteps set.
        timesteps: The whole schedule, from noisy to clean.
        cut: What img2img takes of it.
    """

    def __init__(self, scheduler: Any, steps: int, count: int, gap: int = 1) -> None:  # noqa: ANN401 - see scheduler
        """Set the steps.

        Args:
            scheduler: DDIM or PLMS.
            steps: Steps of the whole schedule.
            count: How many of them img2img takes.
            gap: Steps between the level of its start and the first step; see `cut`.
        """
        scheduler.set_timesteps(steps)
        self.scheduler = scheduler
        # Sorted and single: diffusers' PLMS names a timestep twice.
        self.timesteps = tuple(sorted({int(step) for step in scheduler.timesteps}, reverse=True))
        self.cut = cut(self.timesteps, count, gap)

    def redraw(
        self, start: torch.Tensor, generators: Sequence[torch.Generator], guess: Guess, eta: float = 0.0
    ) -> torch.Tensor:
        """Noise latents `(B, C, h, w)` to the cut's level and denoise them again (img2img, Meng et al. 2022).

        Args:
            start: Scaled latents, float32.
            generators: One a picture.
            guess: The network.
            eta: Noise added back at each step of DDIM: 0 is DDIM itself, 1 is DDPM.
        """
        if self.cut.noised is not None:
            level = torch.full((len(start),), self.cut.noised, device=start.device)
            start = self.scheduler.add_noise(start, noise_of(generators, start.shape[1:], start.device), level)
        return self._denoise(start, self.cut.taken, generators, guess, eta)

    def draw(
        self, shape: Sequence[int], generators: Sequence[torch.Generator], guess: Guess, device: torch.device
    ) -> torch.Tensor:
        """Denoise pure noise along the whole schedule; returns latents `(B, *shape)`, B the number of generators."""
        return self._denoise(noise_of(generators, shape, device), self.timesteps, generators, guess)

    def _denoise(
        self,
        latents: torch.Tensor,
        timesteps: Sequence[int],
        generators: Sequence[torch.Generator],
        guess: Guess,
        eta: float = 0.0,
    ) -> torch.Tensor:
        """Take the steps of the sampler; nothing is taken for no pictures."""
        self.scheduler.set_timesteps(len(self.timesteps))  # PLMS remembers earlier predictions
        if hasattr(self.scheduler, "step_plms"):
            # It opens with an improved Euler step, which asks about the end of the step before it is taken.
            timesteps = [*timesteps[:2], *timesteps[1:]]
        for step in timesteps if len(latents) else ():
            # Drawn from each picture's own generator: left to the scheduler it would come from one for the batch.
            added = (
                {"eta": eta, "variance_noise": noise_of(generators, latents.shape[1:], latents.device)} if eta else {}
            )
            latents = self.scheduler.step(guess(latents, step), step, latents, **added).prev_sample
        return latents
