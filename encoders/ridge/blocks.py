"""Stored runs of targets, and the product that turns them into predictions or weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StoredBlock:
    """A stored run of targets with what turns it into predictions.

    Attributes:
        start: First target.
        cross: `(r, width)` cross-products, each target's with the factorisation it uses.
        alpha: `(width,)`.
        mean: `(width,)` of the targets.
        candidate: `(width,)` int64, the factorisation each target uses.
    """

    start: int
    cross: torch.Tensor
    alpha: torch.Tensor
    mean: torch.Tensor
    candidate: torch.Tensor

    def times(self, rows: Sequence[torch.Tensor], eigenvalues: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `(N, width)`: rows of a target's factorisation times its block.

        Args:
            rows: For each factorisation `(N, r)`.
            eigenvalues: For each factorisation `(r,)`.
        """
        if len(rows) == 1:
            return _apply(rows[0], eigenvalues[0], self.cross, self.alpha)
        values = self.cross.new_zeros(rows[0].shape[0], self.cross.shape[1])
        for number in (int(n) for n in self.candidate.unique()):
            mine = self.candidate == number
            values[:, mine] = _apply(rows[number], eigenvalues[number], self.cross[:, mine], self.alpha[mine])
        return values


def _apply(rows: torch.Tensor, eigenvalues: torch.Tensor, cross: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return `rows @ diag(1 / (s + alpha_t)) @ cross` for every target t.

    Args:
        rows: `(N, r)`.
        eigenvalues: `(r,)`.
        cross: `(r, width)`.
        alpha: `(width,)`.
    """
    # One alpha scales the few rows instead of the wide block.
    if bool((alpha == alpha[0]).all()):
        return (rows / (eigenvalues + alpha[0])) @ cross
    return rows @ (cross / (eigenvalues[:, None] + alpha))
