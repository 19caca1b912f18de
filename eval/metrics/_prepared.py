"""What a pixel metric needs of the truths, made once for all that are compared with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.metrics._base import check_pairs

TOGETHER = 8
"""Pictures that pixel metrics take at once: as many as a vector instruction does."""
Prepared = tuple[Tensor, ...]
"""Tensors that belong to some truths; whoever compares leaves them as they are."""


@dataclass(frozen=True)
class PixelSteps:
    """A pixel metric in two steps, so that truths which many are compared with pass the first one once.

    Attributes:
        parts: Names of the tensors that `prepare` gives.
        prepare: What is needed of truths `(B, 3, H, W)`.
        compare: `compare(reconstructions, prepared)` gives `(B,)` float64 values.
    """

    parts: tuple[str, ...]
    prepare: Callable[[Tensor], Prepared]
    compare: Callable[[Tensor, Prepared], Tensor]

    def __call__(self, reconstructions: Tensor, truth: Tensor) -> Tensor:
        """Return `(N,)` float64 values of reconstructions and truths `(N, 3, H, W)`, a few at a time.

        Raises:
            ValueError: If the shapes differ, or are not what the metric takes.
        """
        check_pairs(reconstructions, truth)
        parts = zip(reconstructions.split(TOGETHER), truth.split(TOGETHER), strict=True)
        return torch.cat([self.compare(shown, self.prepare(true)) for shown, true in parts])
