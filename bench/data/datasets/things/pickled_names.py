"""Names of a DataFrame's columns that PyTables kept as a pickle, read without letting the pickle call anything.

pandas stores columns whose names are not all words as one pickled NumPy array of objects. Opening a pickle may run
whatever its maker wrote, and NumPy's own constructors believe what it says about memory. Here the few functions that
such an array needs stand for notes of what they would be called with; any other name is refused.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np


class _Note:
    """A call that opening the pickle would make, and the state it would give to the result."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - whatever the pickle holds
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.state = state


class _Array(_Note):
    """`_reconstruct(ndarray, (0,), b"b")`; the state is (version, shape, dtype, Fortran order, [objects])."""


class _Type(_Note):
    """`dtype("i8", ...)`; the state is (version, byte order, ...)."""


class _Number(_Note):
    """`scalar(dtype, bytes)`: one of NumPy's integers, as columns made of `np.arange` have."""


_STAND_INS: dict[tuple[str, str], type[_Note]] = {
    ("numpy", "ndarray"): _Note,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Note,  # bytes, in protocols before 3
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Number for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Builds lists, numbers, words and notes, nothing else."""

    def find_class(self, module: str, name: str) -> type[_Note]:
        """Return what stands for a function; raise `ValueError` for one that an array of names does not need."""
        if (module, name) not in _STAND_INS:
            raise ValueError(f"the pickled names use {module}.{name}, which an array of numbers and words does not")
        return _STAND_INS[module, name]


def read_names(pickled: bytes) -> list[str]:
    """Return the names in a pickled one-dimensional array of numbers and words, as words.

    Raises:
        ValueError: If it is no pickle of such an array.
        LookupError: If its instructions refer to what was never kept.
    """
    try:
        array = _Unpickler(io.BytesIO(pickled)).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"the pickled names are damaged: {error}") from None
    state = array.state if isinstance(array, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[4], list):
        raise ValueError("the pickled names are no array of objects")
    if state[1] != (len(state[4]),):
        raise ValueError(f"the pickled names have shape {state[1]}, {len(state[4])} are there")
    return [_name(value) for value in state[4]]


def _name(value: object) -> str:
    """Return a name as a word: a word, a number, or one of NumPy's integers."""
    if isinstance(value, str) or type(value) is int:
        return str(value)
    if isinstance(value, _Number):
        kind, content = value.arguments
        if isinstance(kind, _Type) and re.fullmatch(r"[iu][1248]", kind.arguments[0]):
            order = ">" if kind.state and kind.state[1] == ">" else "<"
            return str(np.frombuffer(content, np.dtype(order + kind.arguments[0]), 1)[0])
    raise ValueError(f"the pickled names hold {type(value).__name__}, not only numbers and words")
