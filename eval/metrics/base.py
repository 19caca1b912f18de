"""What a metric is: how two sides compare, and how the comparison becomes one value an image.

Shape legend: N images, B of them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Kind = Literal["pixel", "identification", "distance", "classification", "retrieval", "brain"]
Reads = Literal["pixels", "features", "paired features", "latents", "betas"]
"""Where both sides come from; "paired features" never meet those of other images and are not kept."""
TruthParts = tuple[Tensor, ...]
"""Tensors that belong to some truths; whoever compares leaves them as they are."""

TOGETHER = 8
"""Pictures that pixel metrics take at once: as many as a vector instruction does."""


@dataclass(frozen=True)
class Readout:
    """What a comparison says about each image, with options of its own. This one: the comparison is the value.

    Attributes:
        across_images: Whether an image's value depends on the other images.
        averages_comparisons: Whether comparisons of several samples may be averaged before they are read out.
    """

    across_images: ClassVar[bool] = False
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


@dataclass(frozen=True)
class PixelSteps:
    """A pixel metric in two steps, so that truths which many are compared with pass the first one once.

    Attributes:
        parts: Names of the tensors that `prepare` gives.
        prepare: What is needed of truths `(B, 3, H, W)`.
        compare: `compare(reconstructions, prepared)` gives `(B,)` float64 values.
    """

    parts: tuple[str, ...]
    prepare: Callable[[Tensor], TruthParts]
    compare: Callable[[Tensor, TruthParts], Tensor]

    def __call__(self, reconstructions: Tensor, truth: Tensor) -> Tensor:
        """Return `(N,)` float64 values of reconstructions and truths `(N, 3, H, W)`, a few at a time.

        Raises:
            ValueError: If the shapes differ, or are not what the metric takes.
        """
        check_pairs(reconstructions, truth)
        parts = zip(reconstructions.split(TOGETHER), truth.split(TOGETHER), strict=True)
        return torch.cat([self.compare(shown, self.prepare(true)) for shown, true in parts])


@dataclass(frozen=True)
class Formula:
    """One way to compare reconstructions with truths: called with both, it gives a value an image.

    Attributes:
        name: Its own; the constant that holds it is called so, in capitals.
        kind: What sort of number it gives.
        reads: What it compares.
        compare: `compare(reconstructions, truths)` of all images; `(N,)` values, or what the readout takes.
        readout: From the comparison to `(N,)` values; a metric may choose other options of the same class.
        higher_is_better: Direction.
        ranked: Whether ranks may count it. What takes more than pictures is shown, never counted.
    """

    name: str
    kind: Kind
    reads: Reads
    compare: Callable[[Tensor, Tensor], Tensor]
    readout: Readout = Readout()
    higher_is_better: bool = True
    ranked: bool = True

    def __post_init__(self) -> None:
        if (self.reads == "pixels") != isinstance(self.compare, PixelSteps):
            raise ValueError(f"formula {self.name!r} reads {self.reads} and is compared by {self.compare}")

    def __call__(self, reconstructions: Tensor, truth: Tensor, readout: Readout | None = None) -> Tensor:
        """Return one value an image.

        Args:
            reconstructions: What the formula reads, `(N, ...)`.
            truth: The same shape.
            readout: Options of the last step; None takes the formula's own.

        Returns:
            `(N,)` float64.

        Raises:
            ValueError: If the shapes differ, or there are too few images.
        """
        return (readout or self.readout).conclude(self.compare(reconstructions, truth))

    @property
    def pixels(self) -> PixelSteps:
        """The two steps of a formula that reads pixels."""
        assert isinstance(self.compare, PixelSteps)
        return self.compare


def check_pairs(reconstructions: Tensor, truth: Tensor) -> None:
    """Check that both sides hold the same number of equally shaped things.

    Raises:
        ValueError: If the shapes differ, there is nothing, or there is no axis beside the images.
    """
    if reconstructions.shape != truth.shape:
        raise ValueError(
            f"reconstructions {tuple(reconstructions.shape)} and truth {tuple(truth.shape)} must have one shape"
        )
    if truth.ndim < 2 or truth.numel() == 0:
        raise ValueError(f"expected at least one image with at least one value, got shape {tuple(truth.shape)}")
