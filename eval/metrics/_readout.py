"""From comparisons of reconstructions with truths to one value an image: the step that has options of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Readout:
    """What a comparison says about each image. This one: the comparison is the value.

    Attributes:
        averages_comparisons: Whether comparisons of several samples may be averaged before they are read out.
    """

    averages_comparisons: ClassVar[bool] = False

    def conclude(self, comparison: Tensor) -> Tensor:
        """Return `(N,)` float64, one value an image, from what the formula's `compare` gave."""
        return comparison

    @property
    def chance(self) -> float | None:
        """Expected value over random pairings; None where it depends on the pictures and has to be measured."""
        return None

    @property
    def least_images(self) -> int:
        """The smallest N that has a value."""
        return 1

    def describe(self) -> str:
        """Return the options in words; empty where there are none."""
        return ""
