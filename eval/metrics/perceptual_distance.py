"""LPIPS as a squared distance of weighted feature vectors, which `eval.networks.lpips_alex` gives."""

from __future__ import annotations

import torch
from torch import Tensor

from eval.metrics.base import Formula, check_pairs


def perceptual_distance(reconstructions: Tensor, truth: Tensor) -> Tensor:
    """Squared Euclidean distance of each pair; on the features of an LPIPS network, LPIPS (Zhang et al. 2018).

    LPIPS sums, over layers, the mean over places of the weighted squared difference of unit-length features. With the
    roots of the weights already in the features it is one squared distance.

    Args:
        reconstructions: Features `(N, ...)`, flattened per image.
        truth: The same shape.

    Returns:
        `(N,)` float64, at least 0, lower is better.

    Raises:
        ValueError: If the shapes differ.
    """
    check_pairs(reconstructions, truth)
    # One image at a time: at 512 px an image has 2.7 million values.
    pairs = zip(reconstructions, truth, strict=True)
    return torch.stack([(x.double() - y.double()).square().sum() for x, y in pairs])


PERCEPTUAL_DISTANCE = Formula(
    "perceptual-distance", "distance", "paired features", perceptual_distance, higher_is_better=False
)
