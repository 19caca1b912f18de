"""PixCorr: Pearson correlation of the pixels of a reconstruction with those of its truth.

Shape legend: B pictures, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eval.metrics._correlation import CHUNK_BYTES, SAMPLE
from eval.metrics.base import Formula, PixelSteps, TruthParts
from eval.pictures import planes_last, unit_images


def _prepare(truth: Tensor) -> TruthParts:
    """Return truths `(B, C, H, W)`, shifted, and `(2, B)` float64: their sums and centred sums of squares."""
    laid, start = _laid(truth)
    shifted = laid - start.view(-1, 1, 1, 1)
    total = torch.zeros(2, shifted.shape[0] * shifted.shape[1], dtype=torch.float64, device=shifted.device)
    for part in _columns(shifted):
        values = part.double()
        total += torch.stack([values.sum(0), values.square().sum(0)])
    sums, squares = _per_picture(total, shifted)
    return shifted, torch.stack([sums, _centred(squares, sums, sums, shifted)])


def _correlations(reconstructions: Tensor, prepared: TruthParts) -> Tensor:
    """Return `(B,)` PixCorr of reconstructions `(B, C, H, W)` with truths that are prepared."""
    true, (true_sums, true_squares) = prepared
    shown, start = _laid(reconstructions)
    shift = start.repeat_interleave(shown.shape[1])
    total = torch.zeros(3, shown.shape[0] * shown.shape[1], dtype=torch.float64, device=shown.device)
    for part, true_part in zip(_columns(shown), _columns(true), strict=True):
        values = (part - shift).double()  # a block at a time: the whole would not stay in the cache
        products = (true_part * values).sum(0)
        total += torch.stack([values.sum(0), products, values.square().sum(0)])
    sums, products, squares = _per_picture(total, shown)
    squares = _centred(squares, sums, sums, shown).clamp(min=0)
    correlations = _centred(products, sums, true_sums, shown) / (squares * true_squares.clamp(min=0)).sqrt()
    return correlations.clamp(-1, 1).nan_to_num(nan=0.0)


def _laid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return pictures planes last, in float64 where they have it and float32 else, and of each `(B,)` a typical value.

    Sums are taken from there: a shift changes no correlation. Near the mean, sums of squares lose no digits; and
    because it is a value of the picture, a constant one has a spread of exactly zero.
    """
    pixels = unit_images(images)
    laid = planes_last(pixels.to(torch.promote_types(pixels.dtype, torch.float32)))
    row = laid[:, :, laid.shape[2] // 2].flatten(1)  # through the middle, all channels
    return laid, row[:, :SAMPLE].median(1).values


def _columns(laid: Tensor) -> tuple[Tensor, ...]:
    """Split pictures that are laid out planes last into `(rows, B * C)` blocks, whose doubles fit in the cache."""
    values = laid.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)
    return values.split(max(1, CHUNK_BYTES // (8 * values.shape[1])))


def _per_picture(totals: Tensor, images: Tensor) -> Tensor:
    """Add up the channels: `(M, B)` of `(M, B * C)`."""
    return totals.view(len(totals), *images.shape[:2]).sum(2)


def _centred(products: Tensor, sums_x: Tensor, sums_y: Tensor, images: Tensor) -> Tensor:
    """Return sums of products about the means from those about zero."""
    return products - sums_x * sums_y / images[0].numel()


PIXCORR = Formula("pixcorr", "pixel", "pixels", PixelSteps(("shifted", "moments"), _prepare, _correlations))
"""Correlates pixels, all channels together (Ozcelik & VanRullen 2023: `numpy.corrcoef` of the flattened RGB image).

Pictures are `(N, C, H, W)` uint8 or floating point. Where either is constant the published formula gives NaN, and with
it a table without a number. Here such a picture scores 0: it carries no information about the truth.
"""
