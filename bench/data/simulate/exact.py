"""Products, sums and draws that have the same bits on every machine.

Simulated data must not depend on where they are made. A sum of floats depends on its order, and the order in BLAS or in
numpy's reductions on the processor, the number of threads and the shapes. So matrices are multiplied as whole numbers
here, whose sums are exact in any order, and other sums have a fixed order. Elementwise ``+ - * /``, ``sqrt`` and
roundings are exact by IEEE 754 and can be used freely; for the other functions see
:mod:`bench.data.simulate.elementary`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MANTISSA_BITS = 53
"""Whole numbers up to 2**53 are exact in float64."""
LEFT_BITS = 22
"""Steps of a product's left matrix: this many bits below its limit."""
LONGEST_SUM = 1 << 16
"""Longest inner dimension; the right matrix keeps 15 bits there."""
COLUMNS_AT_ONCE = 1024
"""Columns multiplied at once, which bounds memory."""
TAIL = 3.65
"""Normal numbers end here. Beyond 3.654 numpy's generator takes them from the C library's logarithm, of whose last bit
libraries differ; one number in 3,800 lies there."""
NORMAL_LIMIT = 4.0
"""A power of two that no drawn number exceeds, for :func:`product`."""


def product(left: NDArray[np.floating], right: NDArray[np.floating], limit: float) -> Floats:
    """Multiplies two matrices after rounding both to whole steps, so that every sum is exact.

    The step of ``left`` is ``limit / 2**22`` whatever it holds, so a row of the result depends on no other row. A
    column of ``right`` has steps of ``p / 2**(31 - k)``, where ``p`` is the power of two above its largest magnitude
    and ``2**k`` the one not below the inner dimension. Besides the rounding to float32, an element's error is at most

        2**-23 * limit * sum |right|  +  2**-(32 - k) * p * (sum |left| + K * limit / 2**23)

    with sums over the row and the column that are multiplied.

    Args:
        left: ``(N, K)``.
        right: ``(K, M)``.
        limit: A power of two that no magnitude in ``left`` exceeds.

    Returns:
        ``(N, M)`` float32.

    Raises:
        OverflowError: When ``left`` exceeds the limit or the inner dimension is above 65536: sums might be inexact.
        ValueError: When the limit is not a power of two.
    """
    inner, columns = right.shape
    if np.frexp(limit)[0] != 0.5:
        raise ValueError(f"limit is {limit}; expected a power of two")
    if inner > LONGEST_SUM:
        raise OverflowError(f"inner dimension {inner} is above {LONGEST_SUM}")
    if not _peak(left) <= limit:
        raise OverflowError(f"the left matrix has values up to {_peak(left)}, above its limit of {limit}")
    steps = left.astype(np.float64)
    steps *= 2.0**LEFT_BITS / limit
    np.rint(steps, out=steps)
    right_bits = MANTISSA_BITS - LEFT_BITS - (inner - 1).bit_length()
    result = np.empty((len(left), columns), np.float32)
    for start in range(0, columns, COLUMNS_AT_ONCE):
        block = right[:, start : start + COLUMNS_AT_ONCE].astype(np.float64)
        exponent = np.frexp(np.abs(block).max(axis=0, initial=0.0))[1]
        block *= np.ldexp(1.0, right_bits - exponent)
        sums = whole_product(steps, np.rint(block, out=block))
        sums *= np.ldexp(limit / 2.0**LEFT_BITS, exponent - right_bits)
        result[:, start : start + COLUMNS_AT_ONCE] = sums
    return result


def whole_product(left: Doubles, right: Doubles) -> Doubles:
    """Multiplies matrices (or stacks of them, as ``@`` does) of whole numbers exactly.

    Args:
        left: ``(..., N, K)`` whole numbers.
        right: ``(..., K, M)`` whole numbers.

    Returns:
        ``(..., N, M)``.

    Raises:
        OverflowError: When a sum might exceed 2**53.
    """
    largest = _peak(left) * _peak(right) * right.shape[-2]
    if not largest <= 2.0**MANTISSA_BITS:
        raise OverflowError(f"sums of up to {largest} are not exact in float64")
    return left @ right


def total(values: NDArray[np.floating]) -> Doubles:
    """Sums over the first axis by halves: elementwise additions only, in an order that the length alone decides.

    Args:
        values: ``(N, ...)``, N at least 1.

    Returns:
        ``(...)`` float64.
    """
    rest = np.asarray(values, np.float64)
    while len(rest) > 1:
        half = len(rest) // 2
        rest = np.concatenate([rest[:half] + rest[half : 2 * half], rest[2 * half :]])
    return rest[0]


def norm(values: NDArray[np.floating]) -> Doubles:
    """Returns the Euclidean norm over the first axis of ``(N, ...)``, float64."""
    return np.sqrt(total(np.square(values, dtype=np.float64)))


def mean(values: NDArray[np.floating]) -> Doubles:
    """Returns the mean over the first axis of ``(N, ...)``, float64."""
    return total(values) / len(values)


def deviation(values: NDArray[np.floating]) -> Doubles:
    """Returns the standard deviation over the first axis of ``(N, ...)``, float64."""
    return np.sqrt(mean(np.square(values - mean(values))))


def normals(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Doubles:
    """Draws standard normal float64 numbers; those beyond 3.65 are set to it."""
    drawn = rng.standard_normal(shape)
    return np.clip(drawn, -TAIL, TAIL, out=drawn)


def short_normals(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Floats:
    """Draws standard normal float32 numbers; those beyond 3.65 are set to it."""
    drawn = rng.standard_normal(shape, dtype=np.float32)
    return np.clip(drawn, -TAIL, TAIL, out=drawn)


def interpolate(at: NDArray[np.floating], knots: Doubles, values: ArrayLike) -> Doubles:
    """Interpolates linearly between knots, step by step: compilers may fuse the steps of ``np.interp``.

    Args:
        at: ``(N,)`` places.
        knots: ``(K,)`` ascending; outside them the first and the last value hold.
        values: ``(K,)``.

    Returns:
        ``(N,)`` float64.
    """
    heights = np.asarray(values, np.float64)
    inside = np.clip(np.asarray(at, np.float64), knots[0], knots[-1])
    left = np.clip(np.searchsorted(knots, inside, side="right") - 1, 0, len(knots) - 2)
    share = (inside - knots[left]) / (knots[left + 1] - knots[left])
    return heights[left] + share * (heights[left + 1] - heights[left])


def _peak(values: NDArray[np.floating]) -> float:
    """The largest magnitude; 0 of nothing, NaN if there is one."""
    return float(np.maximum(values.max(initial=0.0), -values.min(initial=0.0)))
