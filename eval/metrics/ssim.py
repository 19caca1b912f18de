"""SSIM of grey images, as scikit-image computes it, and the other metric that older releases printed as "SSIM".

Everybody in this field calls `ssim(..., multichannel=True, gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=1.0)` on a *grey 2-D* image. scikit-image up to 0.19 then takes the image's
columns for channels and averages one-dimensional SSIMs; from 0.20 on the keyword is ignored and SSIM is
two-dimensional.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from eval.metrics.base import Formula, PixelSteps, TruthParts
from eval.pictures import planes_last, unit_images

STRIP = 128
"""Rows of the SSIM map at a time: all that one strip takes fits in the processor's cache."""
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


def _grey(images: Tensor) -> Tensor:
    """Return `(H, W, B)` grey values, in float64 where the images have it and in float32 else."""
    pixels = planes_last(unit_images(images).to(torch.promote_types(images.dtype, torch.float32)))
    # Channels stand last in memory: the weighted sum is one product of a matrix with a vector.
    return pixels.permute(2, 3, 0, 1) @ torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device)


def _check_size(images: Tensor, window: Window, axes: tuple[int, ...]) -> None:
    shape, least = tuple(images.shape), len(window.weights)
    if images.ndim != 4 or shape[1] != 3 or any(shape[2 + axis] < least for axis in axes):
        raise ValueError(f"SSIM needs images (N, 3, H, W) of at least {least} x {least} pixels, got {shape}")


def _prepare(truth: Tensor, window: Window, axes: tuple[int, ...]) -> TruthParts:
    """Return centred grey values `(H, W, B)`, their centres `(B,)`, and the windows' means of truths `(B, 3, H, W)`."""
    _check_size(truth, window, axes)
    grey = _grey(truth)
    centre = grey.mean((0, 1))
    grey = grey.sub_(centre)
    return grey, centre, _smooth(grey, window, axes)


def _similarity(reconstructions: Tensor, prepared: TruthParts, window: Window, axes: tuple[int, ...]) -> Tensor:
    """Return `(B,)` float64 means of the SSIM maps of reconstructions `(B, 3, H, W)`."""
    y, centre, mean_y = prepared
    # Variances and covariances do not feel a shift; centred, their differences of squares lose far fewer digits.
    x = _grey(reconstructions).sub_(centre)
    margin = len(window.weights) - 1
    total = torch.zeros_like(centre, dtype=torch.float64)
    for top in range(0, len(mean_y), STRIP):
        strip, inside = slice(top, top + STRIP + margin), slice(top, top + STRIP)
        similarity = _similarity_map(x[strip], y[strip], mean_y[inside], centre, window, axes)
        total += similarity.sum((0, 1), dtype=torch.float64)
    return total / mean_y[..., 0].numel()


def _similarity_map(
    x: Tensor, y: Tensor, mean_y: Tensor, centre: Tensor, window: Window, axes: tuple[int, ...]
) -> Tensor:
    """Return the SSIM map of grey images from which `centre` was subtracted, given the windows' means of y."""
    mean_x, covariance = (_smooth(plane, window, axes) for plane in (x, x * y))
    variances = _smooth((x * x).addcmul_(y, y), window, axes)
    correction = window.correction(len(axes))
    covariance.addcmul_(mean_x, mean_y, value=-1).mul_(2 * correction).add_(C2)
    variances.addcmul_(mean_x, mean_x, value=-1).addcmul_(mean_y, mean_y, value=-1).mul_(correction).add_(C2)
    mean_x, mean_y = mean_x.add_(centre), mean_y + centre  # not in place: the truth's are kept
    similarity = (mean_x * mean_y).mul_(2).add_(C1).mul_(covariance)
    luminance = mean_x.square_().addcmul_(mean_y, mean_y).add_(C1)
    return similarity.div_(luminance.mul_(variances))


def _smooth(planes: Tensor, window: Window, axes: tuple[int, ...]) -> Tensor:
    """Weighted means of planes `(H, W, B)` along each of the axes; only where the window fits wholly inside."""
    weights = torch.tensor(window.weights, dtype=planes.dtype, device=planes.device)
    channels = planes.shape[2]
    # Images stand last in memory, so that one vector instruction serves many: 5 times as fast as one by one.
    images = planes[None].permute(0, 3, 1, 2)
    for axis in axes:
        kernel = weights.view(1, 1, -1, 1) if axis == 0 else weights.view(1, 1, 1, -1)
        images = functional.conv2d(images, kernel.repeat(channels, 1, 1, 1), groups=channels)
    return images[0].permute(1, 2, 0)


def _formula(name: str, window: Window = GAUSSIAN, axes: tuple[int, ...] = (0, 1)) -> Formula:
    """Return SSIM with a window along these axes of the picture.

    Of the truths it keeps `(H, W, B)` grey values about their means, the means `(B,)`, and the windows' means.
    """
    prepare = partial(_prepare, window=window, axes=axes)
    steps = PixelSteps(("grey", "centre", "means"), prepare, partial(_similarity, window=window, axes=axes))
    return Formula(name, "pixel", "pixels", steps)


SSIM = _formula("ssim")
"""Structural similarity (Wang et al. 2004) of the grey images: Gaussian window, sigma 1.5, data range 1.

Equals `skimage.metrics.structural_similarity` with the keywords above, borders left out. Pictures are `(N, 3, H, W)`
uint8, or floating point in [0, 1], no smaller than the window. Constant ones are fine: C1 and C2 keep it defined.
"""
SSIM_COLUMNWISE = _formula("ssim-columnwise", axes=(0,))
"""The mean over columns of one-dimensional SSIM: the same call with `channel_axis=-1`, which is what scikit-image
<= 0.19 made of `multichannel=True` (Brain-Diffuser)."""
SSIM_UNIFORM = _formula("ssim-uniform", UNIFORM)
"""`structural_similarity(x, y, data_range=1)` without further keywords (CS292F)."""
