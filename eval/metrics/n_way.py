"""N-way top-k accuracy: does a classifier see the class of the truth in the reconstruction?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.metrics.base import Formula, Readout, check_pairs


@dataclass(frozen=True)
class NWay(Readout):
    """How many classes compete, and how often.

    In a trial the class of the truth meets `ways - 1` other classes drawn without replacement; it wins when its
    probability in the reconstruction is among the `top` highest. Ties count as lost.

    Attributes:
        ways: Classes in a trial, that of the truth among them.
        top: How many of them count as found.
        trials: Draws of competitors an image.
        seed: Of the draws.
    """

    ways: int = 50
    top: int = 1
    trials: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.top < self.ways and self.trials > 0):
            raise ValueError(f"n-way accuracy needs 0 < top < ways and trials > 0, got {self}")

    def conclude(self, comparison: Tensor) -> Tensor:
        """Return `(N,)` shares of trials won from `class_ranks`.

        Raises:
            ValueError: If the classifier has fewer classes than a trial.
        """
        values = [self._won(*row) for row in comparison.long().tolist()]
        return torch.tensor(values, dtype=torch.float64)

    def _won(self, label: int, above: int, classes: int) -> float:
        """Share of trials won by class `label` when `above` other classes are at least as probable."""
        if classes < self.ways:
            raise ValueError(f"{self.ways}-way accuracy needs as many classes, the classifier has {classes}")
        # What a trial draws is the number of its competitors above: hypergeometric, no need to draw the classes. The
        # seed depends on nothing but the outcome of the comparison, so the order of images changes no value.
        rng = np.random.default_rng([self.seed, label, above])
        drawn = rng.hypergeometric(above, classes - 1 - above, self.ways - 1, size=self.trials)
        return float((drawn < self.top).mean())

    @property
    def chance(self) -> float:
        """`top / ways`, for a classifier that sees nothing."""
        return self.top / self.ways

    def describe(self) -> str:
        """Return ways, top, trials and seed."""
        return f"{self.ways}-way top-{self.top}, {self.trials} trials, seed {self.seed}"


def class_ranks(reconstructions: Tensor, truth: Tensor) -> Tensor:
    """Rank the truth's class in each reconstruction.

    The class of an image is the classifier's own answer to the truth, not a data set's label (Chen et al. 2023).

    Args:
        reconstructions: Class probabilities `(N, C)`.
        truth: The same shape.

    Returns:
        `(N, 3)` float64: the class of the truth; how many other classes are at least as probable in the
        reconstruction (all where a probability is NaN); C.

    Raises:
        ValueError: If the shapes differ.
    """
    check_pairs(reconstructions, truth)
    labels = truth.argmax(1, keepdim=True)
    own = reconstructions.gather(1, labels)
    above = (~(reconstructions < own)).sum(1, keepdim=True) - 1  # itself is not below itself
    classes = torch.full_like(labels, truth.shape[1])
    return torch.cat([labels, above, classes], dim=1).double()


N_WAY_TOP_K = Formula("n-way-top-k", "classification", "features", class_ranks, NWay())
"""Share of n-way trials won by the truth's class (Chen et al. 2023, Mind-Vis; CnD), from class probabilities."""
