"""Exponential, logarithm, power, sine and cosine with the same bits on every machine.

Numpy takes these from the C library or from vector code, whichever the processor has, and they differ in the last bit.
Here they are made of elementwise ``+ - * /`` and roundings alone, which IEEE 754 fixes, in float64. Arguments are
reduced as in fdlibm; the series that follow are long enough for errors of about 1e-15.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

LN2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)
"""log 2 as a sum; the first part has trailing zeros, so that its small multiples are exact."""
HALF_PI = (1.57079632673412561417, 6.07710050650619224932e-11)
"""pi / 2 as a sum, likewise."""
LARGEST_EXPONENT = 700.0
"""Arguments of the exponential are held within plus and minus this."""
LARGEST_ANGLE = 1e5
EXP = tuple(1 / factorial(n) for n in range(14))
SIN = tuple((-1) ** n / factorial(2 * n + 1) for n in range(9))
COS = tuple((-1) ** n / factorial(2 * n) for n in range(9))
ATANH = tuple(1 / (2 * n + 1) for n in range(11))
"""Coefficients of the series, that of the lowest power first."""
VALUES_AT_ONCE = 1 << 14
"""Values of a power made at once, which keeps the steps between in the processor's cache."""


def exp(x: ArrayLike) -> Doubles:
    """Returns e to the power of x, elementwise; arguments beyond +-700 count as +-700."""
    given = np.clip(np.asarray(x, np.float64), -LARGEST_EXPONENT, LARGEST_EXPONENT)
    doublings = np.rint(given * (1 / LN2[0]))
    rest = (given - doublings * LN2[0]) - doublings * LN2[1]
    return np.ldexp(_series(EXP, rest), doublings.astype(np.int32))


def log(x: ArrayLike) -> Doubles:
    """Returns the natural logarithm of positive numbers, elementwise."""
    fraction, doublings = np.frexp(np.asarray(x, np.float64))
    low = fraction < np.sqrt(0.5)
    fraction = np.where(low, 2 * fraction, fraction)
    doublings = doublings - low
    ratio = (fraction - 1) / (fraction + 1)
    return doublings * LN2[0] + (2 * ratio * _series(ATANH, np.square(ratio)) + doublings * LN2[1])


def power(base: ArrayLike, exponent: ArrayLike) -> Doubles:
    """Returns positive numbers to a power, elementwise; 0 stays 0.

    Args:
        base: ``(...)``, none negative.
        exponent: Broadcastable with the base.
    """
    bases, exponents = np.broadcast_arrays(np.asarray(base, np.float64), np.asarray(exponent, np.float64))
    result = np.zeros(bases.shape)
    flat = result.reshape(-1)
    for start in range(0, flat.size, VALUES_AT_ONCE):
        block = slice(start, start + VALUES_AT_ONCE)
        some = bases.flat[block]
        positive = some > 0
        flat[block] = np.where(positive, exp(exponents.flat[block] * log(np.where(positive, some, 1.0))), 0.0)
    return result


def sin(x: ArrayLike) -> Doubles:
    """Returns the sine of angles in radians, elementwise.

    Raises:
        ValueError: When an angle is above 1e5, where its reduction would lose accuracy.
    """
    return _wave(np.asarray(x, np.float64), 0)


def cos(x: ArrayLike) -> Doubles:
    """Returns the cosine of angles in radians, elementwise.

    Raises:
        ValueError: When an angle is above 1e5, where its reduction would lose accuracy.
    """
    return _wave(np.asarray(x, np.float64), 1)


def _wave(x: Doubles, quarters: int) -> Doubles:
    """The sine of x, a number of quarter turns later."""
    if not np.all(np.abs(x) <= LARGEST_ANGLE):
        raise ValueError(f"angles of up to {np.abs(x).max()}; allowed are {LARGEST_ANGLE}")
    turned = np.rint(x * (1 / (HALF_PI[0] + HALF_PI[1])))
    rest = (x - turned * HALF_PI[0]) - turned * HALF_PI[1]
    square = np.square(rest)
    quarter = (turned.astype(np.int64) + quarters) % 4
    wave = np.where(quarter % 2 == 0, rest * _series(SIN, square), _series(COS, square))
    return np.where(quarter < 2, wave, -wave)


def _series(coefficients: tuple[float, ...], x: Doubles) -> Doubles:
    """The sum of coefficients times powers of x, from the highest down."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result *= x
        result += coefficient
    return result
