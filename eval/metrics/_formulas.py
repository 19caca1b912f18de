"""The formulas by name: what each reads, how it compares, how the comparison becomes one value an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from eval.metrics._base import cross_correlation
from eval.metrics._prepared import PixelSteps
from eval.metrics._readout import Readout
from eval.metrics.brain_correlation import brain_correlation
from eval.metrics.correlation_distance import correlation_distance
from eval.metrics.identification import Identification
from eval.metrics.n_way import NWay, class_ranks
from eval.metrics.perceptual_distance import perceptual_distance
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.retrieval import Retrieval, cosine_similarity
from eval.metrics.ssim import UNIFORM, ssim_steps

Kind = Literal["pixel", "identification", "distance", "classification", "retrieval", "brain"]
FormulaName = Literal[
    "pixcorr",
    "ssim",
    "ssim-columnwise",
    "ssim-uniform",
    "two-way-identification",
    "correlation-distance",
    "perceptual-distance",
    "n-way-top-k",
    "top-1-retrieval",
    "brain-correlation",
]
Reads = Literal["pixels", "features", "paired features", "latents", "betas"]
"""Where both sides come from; "paired features" never meet those of other images and are not kept."""

PLAIN = Readout()


@dataclass(frozen=True)
class Formula:
    """One way to compare reconstructions with truths.

    Attributes:
        kind: What sort of number it gives.
        reads: What it compares.
        compare: `compare(reconstructions, truths)` of all images; `(N,)` values, or what the readout takes.
        readout: From the comparison to `(N,)` values; a metric may choose other options of the same class.
        higher_is_better: Direction.
        ranked: Whether ranks may count it. What takes more than pictures is shown, never counted.
    """

    kind: Kind
    reads: Reads
    compare: Callable[[Tensor, Tensor], Tensor]
    readout: Readout = PLAIN
    higher_is_better: bool = True
    ranked: bool = True

    def __post_init__(self) -> None:
        if (self.reads == "pixels") != isinstance(self.compare, PixelSteps):
            raise ValueError(f"a {self.kind} formula that reads {self.reads} is compared by {self.compare}")

    @property
    def pixels(self) -> PixelSteps:
        """The two steps of a formula that reads pixels."""
        assert isinstance(self.compare, PixelSteps)
        return self.compare


def _truth_first(reconstructions: Tensor, truth: Tensor) -> Tensor:
    return cross_correlation(truth, reconstructions)  # [i, j] = truth i with reconstruction j, as identification reads


FORMULAS: Mapping[FormulaName, Formula] = MappingProxyType(
    {
        "pixcorr": Formula("pixel", "pixels", PIXCORR),
        "ssim": Formula("pixel", "pixels", ssim_steps()),
        "ssim-columnwise": Formula("pixel", "pixels", ssim_steps(columnwise=True)),
        "ssim-uniform": Formula("pixel", "pixels", ssim_steps(window=UNIFORM)),
        "two-way-identification": Formula("identification", "features", _truth_first, Identification()),
        "correlation-distance": Formula("distance", "features", correlation_distance, higher_is_better=False),
        "perceptual-distance": Formula("distance", "paired features", perceptual_distance, higher_is_better=False),
        "n-way-top-k": Formula("classification", "features", class_ranks, NWay()),
        "top-1-retrieval": Formula("retrieval", "latents", cosine_similarity, Retrieval(), ranked=False),
        "brain-correlation": Formula("brain", "betas", brain_correlation, ranked=False),
    }
)
