"""A metric in a training loop: any formula of `eval.metrics` over batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from eval.metrics.base import Formula, Readout, check_pairs


class PerImageMetric(Metric):
    """A formula with one value an image, whose score is their mean.

    Values are kept, not summed, because intervals and paired comparisons resample images; where an image's value
    depends on the others, both sides are kept. Batches of any size and any number of processes give the same values.

    Args:
        formula: Which metric.
        readout: Options of its last step; None takes the formula's own.
    """

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]
    truth: list[Tensor]

    def __init__(self, formula: Formula, readout: Readout | None = None) -> None:
        super().__init__()
        self.formula = formula
        self.readout = readout or formula.readout
        for state in ("values", "truth") if self.readout.across_images else ("values",):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]  # which torchmetrics reads and never writes
        """The formula's direction."""
        return self.formula.higher_is_better

    def update(self, reconstructions: Tensor, truth: Tensor) -> None:
        """Add a batch of both sides, as the formula takes them."""
        if self.readout.across_images:
            check_pairs(reconstructions, truth)
            self.values.append(reconstructions.flatten(1))
            self.truth.append(truth.flatten(1))
        else:
            self.values.append(self.formula(reconstructions, truth, self.readout))

    def per_image(self) -> Tensor:
        """Return `(N,)` float64, one value an image in the order of the updates, over all processes."""
        with self.sync_context():
            return self._of_all()

    def compute(self) -> Tensor:
        """Return the mean over images, a float64 scalar.

        Raises:
            ValueError: If nothing was added before.
        """
        return self._of_all().mean()

    def _of_all(self) -> Tensor:
        if isinstance(self.values, list) and not self.values:
            raise ValueError(f"{self.formula.name} has no images: call update() first")
        values = dim_zero_cat(self.values)
        if not self.readout.across_images:
            return values
        with torch.no_grad():
            return self.formula(values, dim_zero_cat(self.truth), self.readout)
