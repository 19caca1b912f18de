"""Banded ridge: a scale for each group of voxels, so that a band may be shrunk more than another.

Nunez-Elizalde, Huth & Gallant 2019. Scaling a band's voxels by the root of its share before an ordinary ridge divides
its penalty by the share. Shares of a candidate are drawn from Dirichlet distributions as himalaya draws them (Dupre la
Tour, Eickenberg, Nunez-Elizalde & Gallant 2022), but sum to the number of bands: equal shares are plain ridge, and
alphas keep their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from encoders.base import SubjectData

ELSEWHERE = "elsewhere"
"""Name of the band of voxels that no expression takes."""


@dataclass(frozen=True)
class Bands:
    """The bands of one subject and one set of voxel columns.

    Attributes:
        names: The ROI expressions, then `ELSEWHERE` where some voxels lie in none.
        member: `(V,)` int64, the number of each column's band.
    """

    names: tuple[str, ...]
    member: np.ndarray

    def draw(self, candidates: int, concentration: Sequence[float], seed: int) -> np.ndarray:
        """Return candidate shares.

        Args:
            candidates: K, how many; one where only one band has voxels.
            concentration: Of the Dirichlet distributions, in turn.
            seed: Of the draw.

        Returns:
            `(K, m)` float64 shares of the m bands, each row of sum m; the first row is all ones. A band without voxels
            among the columns has share 0 and counts for nothing.
        """
        present = np.unique(self.member)
        count = len(present)
        shares = np.zeros((candidates if count > 1 else 1, len(self.names)))
        # Plain ridge is always among the candidates, so that bands can only win by held-out error.
        shares[0, present] = 1
        # A seed of its own, apart from the fit's: subjects and folds may change, the candidates stay.
        rng = np.random.default_rng(seed)
        for row in range(1, len(shares)):
            shares[row, present] = count * rng.dirichlet(np.full(count, concentration[row % len(concentration)]))
        return shares

    def gains(self, shares: np.ndarray) -> torch.Tensor:
        """Return the `(V,)` float64 factors of the voxels for `(m,)` shares."""
        # The root, because the Gram matrix holds the scale twice.
        return torch.from_numpy(np.sqrt(shares)[self.member])


def bands_of(data: SubjectData, expressions: Sequence[str], columns: np.ndarray | None) -> Bands:
    """Return the bands of a subject.

    Args:
        data: The subject, which knows its ROIs.
        expressions: One ROI expression a band.
        columns: The voxel columns that are fitted, or None for all.

    Raises:
        ValueError: If a band has no voxel of the subject, or two bands share one.
    """
    member = np.full(data.n_voxels, -1, dtype=np.int64)
    for number, expression in enumerate(expressions):
        taken = data.columns(expression)
        if not len(taken):
            raise ValueError(f"band {expression!r} holds no voxel of subject {data.subject}")
        shared = taken[member[taken] >= 0]
        if len(shared):
            other = expressions[int(member[shared[0]])]
            raise ValueError(
                f"bands {other!r} and {expression!r} share {len(shared)} voxels of subject {data.subject}; "
                "a voxel belongs to one band"
            )
        member[taken] = number
    # Voxels that no band names are a band too; left out they would be a ROI that nobody asked for.
    if (member < 0).any():
        member[member < 0] = len(expressions)
        return Bands((*expressions, ELSEWHERE), member if columns is None else member[columns])
    return Bands(tuple(expressions), member if columns is None else member[columns])
