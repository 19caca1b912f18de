"""What every metric shares: one value an image, and correlations that stay defined and small in memory.

Shape legend: N images, D features an image, C columns of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

CHUNK_BYTES = 1 << 26
"""Size of one float64 working block; the features themselves stay in their own dtype."""


class PerImageMetric(Metric):
    """A metric with one value an image, whose score is their mean.

    Values are kept, not summed, because intervals and paired comparisons resample images. Batches of any size and any
    number of processes give the same values.
    """

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def per_image(self) -> Tensor:
        """Return `(N,)` float64, one value an image in the order of the updates, over all processes."""
        with self.sync_context():
            return self._values()

    def compute(self) -> Tensor:
        """Return the mean over images, a float64 scalar.

        Raises:
            ValueError: If nothing was added before.
        """
        return self._values().mean()

    def _values(self) -> Tensor:
        if isinstance(self.values, list) and not self.values:
            raise ValueError(f"{type(self).__name__} has no images: call update() first")
        return dim_zero_cat(self.values)


def check_pairs(reconstructions: Tensor, truth: Tensor) -> None:
    """Check that both sides hold the same number of equally shaped things.

    Raises:
        ValueError: If the shapes differ, there is nothing, or there is no axis beside the images.
    """
    if reconstructions.shape != truth.shape:
        raise ValueError(
            f"reconstructions {tuple(reconstructions.shape)} and truth {tuple(truth.shape)} must have one shape"
        )
    if truth.ndim < 2 or truth.numel() == 0:
        raise ValueError(f"expected at least one image with at least one value, got shape {tuple(truth.shape)}")


def unit_images(images: Tensor) -> Tensor:
    """Return images as floating point in [0, 1]: uint8 divided by 255, floating point as it came."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


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
    rows = max(1, CHUNK_BYTES // (16 * x.shape[1]))
    parts = zip(x.split(rows), y.split(rows), strict=True)
    return torch.cat([(_standardise(a) * _standardise(b)).sum(1).clamp(-1, 1) for a, b in parts])


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
    (mean_x, norm_x), (mean_y, norm_y) = _moments(x), _moments(y)
    # A sum over columns: AlexNet's second layer has 184,512 of them, and doubles of all would not fit in memory.
    products = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for a, b in zip(column_chunks(x), column_chunks(y), strict=True):
        products.addmm_(a.double() - mean_x, (b.double() - mean_y).T)
    return (products / (norm_x * norm_y.T)).clamp(-1, 1)


def column_chunks(x: Tensor) -> Iterator[Tensor]:
    """Yield `(N, C)` blocks of the columns of `(N, D)`, small enough to be widened to float64."""
    return iter(x.split(max(1, CHUNK_BYTES // (8 * len(x))), dim=1))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and centred norm of each row, `(N, 1)` each."""
    # Relative to the first value of the row: a constant row then has a norm of exactly zero.
    first = x[:, :1].double()
    offset = sum((c.double() - first).sum(1, keepdim=True) for c in column_chunks(x)) / x.shape[1]
    squares = sum((c.double() - first - offset).square().sum(1, keepdim=True) for c in column_chunks(x))
    return first + offset, torch.as_tensor(squares).sqrt()


def _standardise(x: Tensor) -> Tensor:
    x = x.double()
    x = x - x[:, :1]  # see _moments
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True)
