"""Diagonal Gaussians of latents, and the noise that samples them: a stream of its own for each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.generators._diffusion.sampler import generators_of, noise_of


@dataclass(frozen=True)
class Gaussian:
    """A diagonal normal distribution.

    Attributes:
        mean: `(B, 16, size, size)` float32.
        log_scale: Logarithm of the standard deviation, of the same shape.
    """

    mean: Tensor
    log_scale: Tensor

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Return mean + temperature * standard deviation * noise (the reparameterisation of Kingma & Welling 2014).

        Args:
            noise: Standard normal, of the mean's shape.
            temperature: Factor of the standard deviation: 1 is the distribution itself.
        """
        return self.mean + noise * torch.exp(self.log_scale + math.log(temperature))

    def divergence(self, other: Gaussian) -> Tensor:
        """Return the Kullback-Leibler divergence KL(self || other) of each number, in nats."""
        # Ratios from differences of logarithms: a variance that underflowed to 0 is never divided by.
        ratio = torch.exp(2 * (self.log_scale - other.log_scale))
        distance = (self.mean - other.mean).square() * torch.exp(-2 * other.log_scale)
        return other.log_scale - self.log_scale + 0.5 * (ratio + distance - 1)


class Noise:
    """Random numbers for a batch of pictures, each from its own seed.

    They are drawn on the CPU, so that a seed gives the same picture on every device and in any batch.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, *, posterior: bool) -> None:
        """Start the streams.

        Args:
            seeds: One a picture.
            device: Where the numbers go.
            posterior: Whether they sample posteriors. A stimulus may be encoded and rendered with one seed, so the two
                have streams of their own: rendering from true latents must not meet their noise again.
        """
        self._streams = generators_of([(2 * int(seed) + posterior) % 2**63 for seed in seeds])
        self._device = device

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return the next standard normal numbers, `(B, *shape)` float32."""
        return noise_of(self._streams, shape, self._device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return the next uniform numbers in [1e-5, 1 - 1e-5], `(B, *shape)` float32: the published code's range."""
        drawn = torch.stack([torch.rand(tuple(shape), generator=stream) for stream in self._streams])
        return drawn.mul_(1 - 2e-5).add_(1e-5).to(self._device)
