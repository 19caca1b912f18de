"""Correlation distance of feature vectors: the "EffNet-B" and "SwAV" columns of the published tables."""

from __future__ import annotations

from torch import Tensor

from eval.metrics._correlation import paired_correlation
from eval.metrics.base import Formula


def correlation_distance(reconstructions: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - Pearson r of each pair, `scipy.spatial.distance.correlation` (Ozcelik & VanRullen 2023).

    Constant features have no correlation; they count as r = 0, distance 1, where SciPy gives NaN.

    Args:
        reconstructions: Features `(N, ...)`, flattened per image.
        truth: The same shape.

    Returns:
        `(N,)` float64 in [0, 2], lower is better.

    Raises:
        ValueError: If the shapes differ.
    """
    return 1 - paired_correlation(reconstructions, truth).nan_to_num(nan=0.0)


CORRELATION_DISTANCE = Formula(
    "correlation-distance", "distance", "features", correlation_distance, higher_is_better=False
)
