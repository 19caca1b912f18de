"""Retrieval among a pool: the image that a brain response belongs to, and the response that an image belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from eval.metrics._correlation import column_chunks
from eval.metrics.base import Formula, Readout, check_pairs
from eval.metrics.identification import TOLERANCE

Given = Literal["brain", "image"]


@dataclass(frozen=True)
class Retrieval(Readout):
    """Which side is given, and the pools it is sought in.

    Attributes:
        given: "brain": given a brain response (predicted latent), the image (true latent) is found among the pool's
            images, which is image retrieval. "image": given an image, its brain response is found: brain retrieval.
        pool: Candidates, the right one among them.
        repeats: Number of random pools; None takes the expectation over all pools, which has no sampling noise.
        seed: Of the pools.
    """

    across_images: ClassVar[bool] = True
    given: Given = "brain"
    pool: int = 300
    repeats: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.given not in ("brain", "image") or self.pool < 2 or (self.repeats is not None and self.repeats < 1):
            raise ValueError(f"retrieval is given 'brain' or 'image', a pool >= 2 and repeats >= 1 or None; got {self}")

    def conclude(self, comparison: Tensor) -> Tensor:
        """Return `(N,)` values from `(N, N)` similarities, `[i, j]` = prediction i with true latent j.

        Raises:
            ValueError: If there are fewer images than the pool holds.
        """
        if len(comparison) < self.pool:
            raise ValueError(f"retrieval from a pool of {self.pool} needs as many images, got {len(comparison)}")
        queries = comparison if self.given == "brain" else comparison.T
        # NaN is never below anything: what is undefined is never found.
        rivals = ~(queries < queries.diagonal()[:, None] - TOLERANCE)
        rivals.fill_diagonal_(False)
        if self.repeats is None:
            return _expected(rivals.sum(1), len(rivals), self.pool)
        return self._sampled(rivals, self.repeats)

    def _sampled(self, rivals: Tensor, repeats: int) -> Tensor:
        rng, rivals = np.random.default_rng(self.seed), rivals.cpu()
        n, hits = len(rivals), torch.zeros(len(rivals), dtype=torch.float64)
        for _ in range(repeats):
            members = torch.from_numpy(rng.choice(n, self.pool, replace=False))
            hits[members] += (~rivals[members][:, members].any(1)).double()
        # Hits over the expected number of draws: the mean over images is exactly the mean over pools.
        return hits * n / (repeats * self.pool)

    @property
    def chance(self) -> float:
        """One in the pool."""
        return 1 / self.pool

    @property
    def least_images(self) -> int:
        """The pool's size."""
        return self.pool

    def describe(self) -> str:
        """Return the direction and the pools."""
        found = "image" if self.given == "brain" else "brain response"
        pools = "expectation over all pools" if self.repeats is None else f"{self.repeats} pools, seed {self.seed}"
        return f"given the {self.given}, its {found} is found, top-1 of {self.pool}, {pools}"


def cosine_similarity(predicted: Tensor, true: Tensor) -> Tensor:
    """Cosines of all pairs of latents in float64.

    Args:
        predicted: Latents `(N, ...)`, flattened per image.
        true: The same shape.

    Returns:
        `(N, N)` float64, `[i, j]` = prediction i with true latent j; NaN where either is zero.

    Raises:
        ValueError: If the shapes differ.
    """
    check_pairs(predicted, true)
    x, y = predicted.flatten(1), true.flatten(1)
    products = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    squares_x, squares_y = (torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    # A sum over columns: MindEye2's latents have 425,984 of them.
    for a, b in zip(column_chunks(x), column_chunks(y), strict=True):
        a, b = a.double(), b.double()
        products.addmm_(a, b.T)
        squares_x += a.square().sum(1)
        squares_y += b.square().sum(1)
    return products / (squares_x.sqrt()[:, None] * squares_y.sqrt())


def _expected(rivals: Tensor, n: int, pool: int) -> Tensor:
    """Share of pools without any of an image's rivals: C(n - 1 - rivals, pool - 1) / C(n - 1, pool - 1)."""
    free = (n - rivals - pool).double()
    logs = torch.lgamma(n - rivals.double()) - torch.lgamma(free.clamp(min=0) + 1)
    whole = torch.lgamma(torch.tensor([n, n - pool + 1], dtype=torch.float64))
    return torch.where(free < 0, 0.0, torch.exp(logs - (whole[0] - whole[1]))).clamp(0, 1)


TOP_1_RETRIEVAL = Formula("top-1-retrieval", "retrieval", "latents", cosine_similarity, Retrieval(), ranked=False)
"""Top-1 retrieval by cosine of predicted with true latents (Lin et al. 2022; Scotti et al. 2023).

The mean over images is the accuracy. With random pools a single value is an image's hits over its expected number of
draws and may exceed 1.
"""
