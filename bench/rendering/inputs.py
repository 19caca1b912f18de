"""Checks what is given to a generator to render before anything is sent to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.core.errors import BadDataError, UnknownNameError
from bench.generators.base import InputSpec


def checked_inputs(
    inputs: Mapping[str, np.ndarray], rows: int, specs: Mapping[str, InputSpec], where: str
) -> dict[str, np.ndarray]:
    """Return inputs as a generator takes them: latents float32, pictures uint8.

    Args:
        inputs: For each input `(N, *shape)`; a picture may have any height and width.
        rows: N.
        specs: What the generator declares.
        where: What the inputs belong to, for messages.

    Raises:
        UnknownNameError: If the generator has no such input.
        BadDataError: If a required input is missing, or a shape, type or value cannot be right.
    """
    for name in inputs:
        if name not in specs:
            raise UnknownNameError("input", name, specs, where)
    if absent := [name for name, spec in specs.items() if spec.required and name not in inputs]:
        raise BadDataError(f"{where}: required input {absent[0]!r} is missing")
    if not inputs:
        raise BadDataError(f"{where}: no input is given; the generator takes {', '.join(specs)}")
    return {name: _checked(values, rows, specs[name], f"{where}: input {name!r}") for name, values in inputs.items()}


def _checked(values: np.ndarray, rows: int, spec: InputSpec, what: str) -> np.ndarray:
    """Return one input, checked."""
    if spec.kind == "picture":
        if values.ndim != 4 or values.shape[:2] != (rows, 3) or values.dtype != np.uint8:
            raise BadDataError(f"{what} must be ({rows}, 3, H, W) uint8, got {values.shape} {values.dtype}")
        return values
    if values.shape != (rows, *spec.shape) or not np.issubdtype(values.dtype, np.floating):
        raise BadDataError(f"{what} must be {(rows, *spec.shape)} of floats, got {values.shape} {values.dtype}")
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values.reshape(rows, -1)).all(axis=1))[0])
        raise BadDataError(f"{what} holds NaN or infinite values, first in row {row}")
    return values
