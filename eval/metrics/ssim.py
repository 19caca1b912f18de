"""SSIM of grey images, as scikit-image computes it, and the other metric that older releases printed as "SSIM".

Everybody in this field calls `ssim(..., multichannel=True, gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=1.0)` on a *grey 2-D* image. scikit-image up to 0.19 then takes the image's
columns for channels and averages one-dimensional SSIMs; from 0.20 on the keyword is ignored and SSIM is
two-dimensional.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eval.metrics.base import PerImageMetric, check_pairs, unit_images

SIGMA = 1.5
RADIUS = 5  # scikit-image truncates at 3.5 sigma
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1
LUMA = (0.2125, 0.7154, 0.0721)  # skimage.color.rgb2gray


def ssim(reconstructions: Tensor, truth: Tensor, *, columnwise: bool = False) -> Tensor:
    """Structural similarity (Wang et al. 2004) of the grey images: Gaussian window, sigma 1.5, data range 1.

    Equals `skimage.metrics.structural_similarity` with the keywords above, borders left out; with `columnwise`, the
    same call with `channel_axis=-1`, which is what scikit-image <= 0.19 made of `multichannel=True` (brain-diffuser).

    Args:
        reconstructions: `(N, 3, H, W)` uint8, or floating point in [0, 1].
        truth: The same shape.
        columnwise: One-dimensional SSIM of every image column instead.

    Returns:
        `(N,)` float64 in [-1, 1], higher is better. Constant pictures are fine: the constants keep it defined.

    Raises:
        ValueError: If the shapes differ, or an image is smaller than the window of 11 pixels.
    """
    check_pairs(reconstructions, truth)
    shape = tuple(truth.shape)
    if truth.ndim != 4 or shape[1] != 3 or shape[2] <= 2 * RADIUS or (not columnwise and shape[3] <= 2 * RADIUS):
        raise ValueError(f"SSIM needs images (N, 3, H, W) of at least 11 x 11 pixels, got {shape}")
    # One image at a time: its planes fit in the processor's cache, and memory does not grow with N.
    pairs = zip(reconstructions, truth, strict=True)
    return torch.stack([_similarity(_grey(x), _grey(y), columnwise).mean() for x, y in pairs])


class SSIM(PerImageMetric):
    """`ssim` over batches."""

    higher_is_better = True

    def __init__(self, *, columnwise: bool = False) -> None:
        super().__init__()
        self.columnwise = columnwise

    def update(self, reconstructions: Tensor, truth: Tensor) -> None:
        """Add images: `(B, 3, H, W)` each."""
        self.values.append(ssim(reconstructions, truth, columnwise=self.columnwise))


def _grey(image: Tensor) -> Tensor:
    red, green, blue = unit_images(image).double()
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _similarity(x: Tensor, y: Tensor, columnwise: bool) -> Tensor:
    """SSIM map of two grey images `(H, W)` in float64: float32 loses the small variances of flat regions."""
    mean_x, mean_y = _smooth(x, columnwise), _smooth(y, columnwise)
    mean_squares = _smooth(x * x + y * y, columnwise)
    mean_product = _smooth(x * y, columnwise)
    product = mean_x * mean_y
    squares = mean_x.square() + mean_y.square()
    numerator = (2 * product + C1) * (2 * (mean_product - product) + C2)
    return numerator / ((squares + C1) * (mean_squares - squares + C2))


def _smooth(image: Tensor, columnwise: bool) -> Tensor:
    """Gaussian window over rows, and over columns unless `columnwise`; only where it fits wholly inside."""
    smoothed = _smooth_axis(image, 0)
    return smoothed if columnwise else _smooth_axis(smoothed, 1)


def _smooth_axis(image: Tensor, axis: int) -> Tensor:
    # Shifted sums in place: twice as fast as conv2d in float64, which has no fast path for one channel.
    weights = torch.exp(-(torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64) ** 2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    size = image.shape[axis] - 2 * RADIUS
    smoothed = image.narrow(axis, 0, size) * float(weights[0])
    for shift in range(1, 2 * RADIUS + 1):
        smoothed.add_(image.narrow(axis, shift, size), alpha=float(weights[shift]))
    return smoothed
