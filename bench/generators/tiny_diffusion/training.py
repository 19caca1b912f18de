"""What the training scripts of the tiny models have in common: scenes and their latents, order, rates, averages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from bench.data.simulate.scenes.sampling import draw_batch, sample_scene, stimulus_seed
from bench.generators.tiny_diffusion.architecture import PICTURE_SIZE

TRAINING_DESIGN = 1_000_003
"""Design seed of the training scenes: the simulated datasets count theirs from 0."""
HELD_OUT_DESIGN = 1_000_004
"""Design seed of the scenes that training reports on and never learns from."""


def pictures(first: int, count: int, design: int = TRAINING_DESIGN) -> torch.Tensor:
    """Return scenes `first ... first + count - 1` of a design as `(count, 3, 64, 64)` floats in [-1, 1]."""
    scenes = [sample_scene(stimulus_seed(index, design)) for index in range(first, first + count)]
    array = np.ascontiguousarray(draw_batch(scenes, PICTURE_SIZE).transpose(0, 3, 1, 2))
    return torch.from_numpy(array).float() / 127.5 - 1


@torch.no_grad()
def training_latents(out: Path, count: int) -> torch.Tensor:
    """Return the scaled posterior means `(count, 4, 16, 16)` of training scenes under the VAE in `out`."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae", low_cpu_mem_usage=False).float().eval()
    parts = []
    for first in range(0, count, 128):
        # Modes, not samples: the diffusion model then learns what rendering is given.
        mean = vae.encode(pictures(first, min(128, count - first))).latent_dist.mode()
        parts.append(mean * vae.config.scaling_factor)
    return torch.cat(parts)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield `steps` batches of `size` row numbers below `count`, reshuffled whenever all were seen."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            # What is left of the old order is dropped, so that every batch holds distinct scenes.
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """Return the rate at a step: linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the averaged weights towards the trained ones."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        # Averaged weights draw better pictures than the last ones, which still wander (Ho et al. 2020).
        slow.lerp_(fast, 1 - decay)


def pixel_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean Pearson correlation of `(N, ...)` pictures over their own pixels (PixCorr)."""
    a, b = (x.flatten(1).double() - x.flatten(1).double().mean(1, keepdim=True) for x in (a, b))
    return float((functional.normalize(a, dim=1) * functional.normalize(b, dim=1)).sum(1).mean())
