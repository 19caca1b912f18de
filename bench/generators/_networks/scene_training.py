"""What the training scripts of the tiny models have in common: scenes and their latents, the loop, its options."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.data.simulate.scenes.sampling import draw_batch, sample_scene, stimulus_seed
from bench.generators._diffusion.sampler import scheduler
from bench.generators._networks.scene_latents import PICTURE_SIZE

TRAINING_DESIGN = 1_000_003
"""Design seed of the training scenes: the simulated datasets count theirs from 0."""
HELD_OUT_DESIGN = 1_000_004
"""Design seed of the scenes that training reports on and never learns from."""


def new_scheduler() -> Any:  # noqa: ANN401 - diffusers is imported late
    """Return the noise schedule: Stable Diffusion's betas (Rombach et al. 2022), v-prediction (Salimans & Ho 2022)."""
    return scheduler("ddim", prediction_type="v_prediction")


def pictures(first: int, count: int, design: int = TRAINING_DESIGN) -> torch.Tensor:
    """Return scenes `first ... first + count - 1` of a design as `(count, 3, 64, 64)` floats in [-1, 1]."""
    scenes = [sample_scene(stimulus_seed(index, design)) for index in range(first, first + count)]
    array = np.ascontiguousarray(draw_batch(scenes, PICTURE_SIZE).transpose(0, 3, 1, 2))
    return torch.from_numpy(array).float() / 127.5 - 1


@torch.no_grad()
def latents(out: Path, count: int) -> torch.Tensor:
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


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step.

    Attributes:
        step: Steps taken.
        steps: Steps to take.
        loss: Its mean over the last hundred or so.
        minutes: Since the first.
        due: Whether to report and save.
    """

    step: int
    steps: int
    loss: float
    minutes: float
    due: bool

    def __str__(self) -> str:
        """A line of the report."""
        return f"{self.step}/{self.steps}  loss {self.loss:.4f}  {self.minutes:.1f} min"


def optimise(
    network: nn.Module, steps: int, peak: float, loss_of: Callable[[int], torch.Tensor], every: int
) -> Iterator[Progress]:
    """Take steps of AdamW with clipped gradients, and say after each where training stands.

    Args:
        network: What is trained.
        steps: How many.
        peak: Highest learning rate.
        loss_of: Gives the loss of a step.
        every: Steps between two reports.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-4)
    started, recent = time.monotonic(), 1.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        recent += 0.01 * (float(loss.detach()) - recent)
        due = (step + 1) % every == 0 or step + 1 == steps
        yield Progress(step + 1, steps, recent, (time.monotonic() - started) / 60, due)


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


def parser(description: str, out: Path, scenes: int) -> argparse.ArgumentParser:
    """Return a parser of the options that both scripts have.

    Args:
        description: What the script does.
        out: Weights folder by default.
        scenes: Training scenes by default.
    """
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, default=out, help="weights folder")
    made.add_argument("--scenes", type=int, default=scenes, help="training scenes of the UNet")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1)
    return made


def begin(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse options, start the log, set the threads."""
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    return given
