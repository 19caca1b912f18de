"""PixCorr: Pearson correlation of the pixels of a reconstruction with those of its truth."""

from __future__ import annotations

from torch import Tensor

from eval.metrics.base import PerImageMetric, paired_correlation, unit_images


def pixcorr(reconstructions: Tensor, truth: Tensor) -> Tensor:
    """Correlate pixels, all channels together (Ozcelik & VanRullen 2023: `numpy.corrcoef` of the flattened RGB image).

    Where either picture is constant the published formula gives NaN, and with it a table without a number. Here such a
    picture scores 0: it carries no information about the truth.

    Args:
        reconstructions: `(N, C, H, W)` uint8 or floating point.
        truth: The same shape.

    Returns:
        `(N,)` float64 in [-1, 1], higher is better.

    Raises:
        ValueError: If the shapes differ.
    """
    return paired_correlation(unit_images(reconstructions), unit_images(truth)).nan_to_num(nan=0.0)


class PixCorr(PerImageMetric):
    """`pixcorr` over batches."""

    higher_is_better = True

    def update(self, reconstructions: Tensor, truth: Tensor) -> None:
        """Add images: `(B, C, H, W)` each."""
        self.values.append(pixcorr(reconstructions, truth))
