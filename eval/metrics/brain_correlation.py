"""Brain correlation: would the reconstruction have driven the voxels as the truth did?"""

from __future__ import annotations

from torch import Tensor

from eval.metrics._correlation import paired_correlation
from eval.metrics.base import Formula


def brain_correlation(predicted: Tensor, measured: Tensor) -> Tensor:
    """Correlate an encoding model's response to each reconstruction with the measured betas, across voxels.

    Second Sight (Kneeland et al. 2023) and MindEye2: Pearson r of each image over the voxels of a mask; the table has
    the mean over images. Where either side is constant the value is 0.

    Args:
        predicted: Betas that the encoding model predicts from the reconstructions, `(N, V)`, V >= 2.
        measured: Test betas of the images, the same shape, averaged over repetitions.

    Returns:
        `(N,)` float64 in [-1, 1], higher is better.

    Raises:
        ValueError: If the shapes differ.
    """
    return paired_correlation(predicted, measured).nan_to_num(nan=0.0)


BRAIN_CORRELATION = Formula("brain-correlation", "brain", "betas", brain_correlation, ranked=False)
