"""Several samples of an image: where, between features and table, their average is taken.

Shape legend: N images, S samples of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eval.metrics.base import Formula, Readout
from eval.protocols.base import SampleRule


def combine(values: Tensor, rule: SampleRule, higher_is_better: bool = True) -> Tensor:
    """Combine the values of samples into one an image.

    Args:
        values: `(S, N)`.
        rule: "mean-score" or "best-sample".
        higher_is_better: Which sample is best.

    Returns:
        `(N,)`.
    """
    if rule == "best-sample":
        means = values.mean(1)
        return values[means.argmax() if higher_is_better else means.argmin()]
    return values.mean(0)


class SampleValues:
    """Takes the features of one sample of all images after the other and gives one value an image.

    Features are dropped as soon as the rule allows: those of all samples would not fit in memory.

    Args:
        formula: How features are compared.
        readout: How the comparison becomes values.
        rule: What is averaged.
    """

    def __init__(self, formula: Formula, readout: Readout, rule: SampleRule) -> None:
        self.formula = formula
        self.readout = readout
        self.rule = rule
        self._total: Tensor | None = None  # features or comparisons, summed
        self._count = 0
        self._values: list[Tensor] = []

    def add(self, features: Tensor, truth: Tensor) -> None:
        """Add one sample: features `(N, ...)` of the reconstructions, and those of the truths."""
        self._count += 1
        if self.rule == "mean-feature":
            self._add_up(features.double())
            return
        comparison = self.formula.compare(features, truth)
        if self.rule == "mean-comparison":
            self._add_up(comparison)
        else:
            self._values.append(self.readout.conclude(comparison))

    def values(self, truth: Tensor) -> Tensor:
        """Return `(N,)` float64 values of all samples that were added."""
        if self._total is None:
            return combine(torch.stack(self._values), self.rule, self.formula.higher_is_better)
        mean = self._total / self._count
        comparison = self.formula.compare(mean, truth) if self.rule == "mean-feature" else mean
        return self.readout.conclude(comparison)

    def _add_up(self, term: Tensor) -> None:
        self._total = term if self._total is None else self._total + term
