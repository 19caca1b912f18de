"""Correlations that stay defined and small in memory.

Shape legend: N images, D features an image, C columns of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.metrics.base import check_pairs

CHUNK_BYTES = 1 << 21
"""Size of one float64 working block, which fits in a processor's cache; features stay in their own dtype."""

SAMPLE = 1025
"""Values of a row among which a typical one is sought; odd, so that the median is one of them."""


def paired_correlation(reconstructions: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation of each reconstruction with its own truth, `numpy.corrcoef` in float64.

    Args:
        reconstructions: `(N, ...)`, flattened per image.
        truth: The same shape.

    Returns:
        `(N,)` float64; NaN where either side is constant, as in NumPy.
    """
    check_pairs(reconstructions, truth)
    x, y = reconstructions.flatten(1), truth.flatten(1)
    rows = max(1, CHUNK_BYTES // (64 * x.shape[1]))
    parts = zip(x.split(rows), y.split(rows), strict=True)
    xx, yy, xy = torch.cat([_paired_moments(a, b) for a, b in parts], 1)
    return (xy / (xx * yy).sqrt()).clamp(-1, 1)


def cross_correlation(rows: Tensor, columns: Tensor) -> Tensor:
    """Pearson correlations of all pairs: the cross block of `numpy.corrcoef(rows, columns)` in float64.

    Args:
        rows: `(N, ...)` features, flattened per image.
        columns: The same shape.

    Returns:
        `(N, N)` float64, `[i, j]` = row i with column j; NaN where either is constant, as in NumPy.
    """
    check_pairs(rows, columns)
    x, y = rows.flatten(1), columns.flatten(1)
    n, (start_x, start_y) = len(x), (_typical(x), _typical(y))
    products = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    sums, squares = torch.zeros(2, 2, n, dtype=torch.float64, device=x.device)
    # A sum over columns: AlexNet's second layer has 184,512 of them, and doubles of all would not fit in memory.
    for a, b in zip(column_chunks(x), column_chunks(y), strict=True):
        a, b = a.double() - start_x, b.double() - start_y
        products.addmm_(a, b.T)
        sums += torch.stack([a.sum(1), b.sum(1)])
        squares += torch.stack([torch.linalg.vecdot(a, a), torch.linalg.vecdot(b, b)])
    means = sums / x.shape[1]
    spread_x, spread_y = (squares - sums * means).clamp(min=0).sqrt()
    products -= torch.outer(sums[0], means[1])
    return (products / torch.outer(spread_x, spread_y)).clamp(-1, 1)


def column_chunks(x: Tensor, parts: int = 1) -> Iterator[Tensor]:
    """Yield `(N, C)` blocks of the columns of `(N, D)`, small enough to be widened to float64 `parts` at a time."""
    return iter(x.split(max(1, CHUNK_BYTES // (8 * len(x) * parts)), dim=1))


def _typical(x: Tensor) -> Tensor:
    """Return a value of each row near its mean, `(N, 1)` float64.

    Sums of squares are taken from there: near the mean they lose no digits, and because it is a value of the row, a
    constant row has a spread of exactly zero.
    """
    return x[:, :SAMPLE].median(1, keepdim=True).values.double()


def _paired_moments(x: Tensor, y: Tensor) -> Tensor:
    """Return the centred sums of squares of x and of y, and of products, `(3, R)` float64, of rows `(R, D)`."""
    start_x, start_y = _typical(x), _typical(y)
    total = torch.zeros(5, len(x), dtype=torch.float64, device=x.device)
    for a, b in zip(column_chunks(x, 8), column_chunks(y, 8), strict=True):
        a, b = a.double() - start_x, b.double() - start_y
        products = [torch.linalg.vecdot(*pair) for pair in ((a, a), (b, b), (a, b))]
        total += torch.stack([a.sum(1), b.sum(1), *products])
    sum_x, sum_y, xx, yy, xy = total
    n = x.shape[1]
    return torch.stack([(xx - sum_x**2 / n).clamp(min=0), (yy - sum_y**2 / n).clamp(min=0), xy - sum_x * sum_y / n])
