"""SSIM of grey images, as scikit-image computes it, and the other metric that older releases printed as "SSIM".

Everybody in this field calls `ssim(..., multichannel=True, gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=1.0)` on a *grey 2-D* image. scikit-image up to 0.19 then takes the image's
columns for channels and averages one-dimensional SSIMs; from 0.20 on the keyword is ignored and SSIM is
two-dimensional.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eval.metrics.base import PerImageMetric, check_pairs, unit_images

C1, C2 = 0.01**2, 0.03**2  # for a data range of 1
LUMA = (0.2125, 0.7154, 0.0721)  # skimage.color.rgb2gray


@dataclass(frozen=True)
class Window:
    """The neighbourhood in which means and variances are taken.

    Attributes:
        weights: Along one axis, symmetric, of odd length; both axes have the same.
        sample_covariance: Divide variances by n - 1 instead of n, scikit-image's default.
    """

    weights: tuple[float, ...]
    sample_covariance: bool = False

    def correction(self, axes: int) -> float:
        """Return n / (n - 1) for the n pixels of the window on that many axes, or 1."""
        pixels = len(self.weights) ** axes
        return pixels / (pixels - 1) if self.sample_covariance else 1.0


def _gaussian(sigma: float, radius: int) -> tuple[float, ...]:
    weights = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    return tuple((weights / weights.sum()).tolist())


GAUSSIAN = Window(_gaussian(1.5, 5))
"""Wang et al. 2004; scikit-image truncates at 3.5 sigma."""
UNIFORM = Window((1 / 7,) * 7, sample_covariance=True)
"""What scikit-image takes when it is asked for nothing."""


def ssim(reconstructions: Tensor, truth: Tensor, *, columnwise: bool = False, window: Window = GAUSSIAN) -> Tensor:
    """Structural similarity (Wang et al. 2004) of the grey images: Gaussian window, sigma 1.5, data range 1.

    Equals `skimage.metrics.structural_similarity` with the keywords above, borders left out; with `columnwise`, the
    same call with `channel_axis=-1`, which is what scikit-image <= 0.19 made of `multichannel=True` (brain-diffuser).

    Args:
        reconstructions: `(N, 3, H, W)` uint8, or floating point in [0, 1].
        truth: The same shape.
        columnwise: One-dimensional SSIM of every image column instead.
        window: `GAUSSIAN`, or `UNIFORM` for `structural_similarity(x, y, data_range=1)` without further keywords.

    Returns:
        `(N,)` float64 in [-1, 1], higher is better. Constant pictures are fine: the constants keep it defined.

    Raises:
        ValueError: If the shapes differ, or an image is smaller than the window.
    """
    check_pairs(reconstructions, truth)
    shape, least = tuple(truth.shape), len(window.weights)
    if truth.ndim != 4 or shape[1] != 3 or shape[2] < least or (not columnwise and shape[3] < least):
        raise ValueError(f"SSIM needs images (N, 3, H, W) of at least {least} x {least} pixels, got {shape}")
    # One image at a time: its planes fit in the processor's cache, and memory does not grow with N.
    pairs = zip(reconstructions, truth, strict=True)
    axes = (0,) if columnwise else (0, 1)
    return torch.stack([_similarity(_grey(x), _grey(y), window, axes).mean() for x, y in pairs])


class SSIM(PerImageMetric):
    """`ssim` over batches."""

    higher_is_better = True

    def __init__(self, *, columnwise: bool = False, window: Window = GAUSSIAN) -> None:
        super().__init__()
        self.columnwise = columnwise
        self.window = window

    def update(self, reconstructions: Tensor, truth: Tensor) -> None:
        """Add images: `(B, 3, H, W)` each."""
        self.values.append(ssim(reconstructions, truth, columnwise=self.columnwise, window=self.window))


def _grey(image: Tensor) -> Tensor:
    red, green, blue = unit_images(image).double()
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _similarity(x: Tensor, y: Tensor, window: Window, axes: tuple[int, ...]) -> Tensor:
    """SSIM map of two grey images `(H, W)` in float64: float32 loses the small variances of flat regions."""
    mean_x, mean_y = _smooth(x, window, axes), _smooth(y, window, axes)
    mean_squares = _smooth(x * x + y * y, window, axes)
    mean_product = _smooth(x * y, window, axes)
    product = mean_x * mean_y
    squares = mean_x.square() + mean_y.square()
    correction = window.correction(len(axes))
    numerator = (2 * product + C1) * (2 * correction * (mean_product - product) + C2)
    return numerator / ((squares + C1) * (correction * (mean_squares - squares) + C2))


def _smooth(image: Tensor, window: Window, axes: tuple[int, ...]) -> Tensor:
    """Weighted means along each of the axes; only where the window fits wholly inside."""
    for axis in axes:
        image = _smooth_axis(image, window.weights, axis)
    return image


def _smooth_axis(image: Tensor, weights: tuple[float, ...], axis: int) -> Tensor:
    # Shifted sums in place: twice as fast as conv2d in float64, which has no fast path for one channel.
    size = image.shape[axis] - len(weights) + 1
    smoothed = image.narrow(axis, 0, size) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        smoothed.add_(image.narrow(axis, shift, size), alpha=weight)
    return smoothed
