"""Names of a DataFrame's columns that PyTables kept as a pickle, read without opening the pickle.

pandas stores columns whose names are not all words as one pickled NumPy array of objects. Opening a pickle may run
whatever its maker wrote. Here its instructions are listed (`pickletools.genops`) and followed with inert stand-ins: a
function is a name, and a call of it is a note that it would be called with these arguments.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "INT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
}
_FIXED: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}


class _Mark:
    """Where the members of a list or tuple begin on the stack."""


@dataclass
class _Call:
    """A call that opening the pickle would make."""

    function: Any
    arguments: Any
    state: Any = None


def read_names(pickled: bytes) -> list[str]:
    """Return the names in a pickled one-dimensional array of numbers and words, as words.

    Raises:
        ValueError: If it is no pickle of such an array.
        IndexError: If its instructions take more than they gave, as of a damaged one.
        KeyError: If they refer to what was never kept.
    """
    machine = _Machine()
    for instruction, argument, _ in pickletools.genops(pickled):
        machine.follow(instruction.name, argument)
    array = machine.stack.pop()
    state = array.state if isinstance(array, _Call) else None
    # An array of objects is built from (version, shape, dtype, Fortran order, [objects]).
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[4], list):
        raise ValueError("the pickled names are no array of objects")
    if state[1] != (len(state[4]),):
        raise ValueError(f"the pickled names have shape {state[1]}, {len(state[4])} are there")
    return [_name(value) for value in state[4]]


def _name(value: object) -> str:
    """Return a name as a word: a word, a number, or one of NumPy's integers."""
    if isinstance(value, str) or type(value) is int:
        return str(value)
    if isinstance(value, _Call) and value.function in ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar"):
        # Columns made of np.arange keep each number as a call: scalar(dtype, bytes).
        kind, content = value.arguments
        if (
            isinstance(kind, _Call)
            and kind.function == "numpy dtype"
            and re.fullmatch(r"[iu][1248]", kind.arguments[0])
        ):
            order = ">" if kind.state and kind.state[1] == ">" else "<"
            return str(np.frombuffer(content, np.dtype(order + kind.arguments[0]), 1)[0])
    raise ValueError(f"the pickled names hold {type(value).__name__}, not only numbers and words")


class _Machine:
    """Follows a pickle's instructions without running anything."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.kept: dict[int, Any] = {}
        self.actions: Mapping[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.stack.append(_Mark()),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "TUPLE": lambda _: self.stack.append(tuple(self._to_mark())),
            "APPENDS": lambda _: self._extend(self._to_mark()),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "MEMOIZE": lambda _: self.kept.update({len(self.kept): self.stack[-1]}),
            "STACK_GLOBAL": lambda _: self.stack.append(" ".join(self._last(2))),
            "GLOBAL": self.stack.append,
            "REDUCE": lambda _: self.stack.append(_Call(*self._last(2))),
            "BUILD": lambda _: self._build(self.stack.pop()),
        }

    def follow(self, name: str, argument: Any) -> None:  # noqa: ANN401 - whatever an instruction carries
        """Follow one instruction.

        Raises:
            ValueError: If a pickled array of names needs no such instruction.
        """
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _FIXED:
            self.stack.append(_FIXED[name])
        elif name in _TUPLES:
            self.stack.append(tuple(self._last(_TUPLES[name])))
        # Protocols up to 3 number what they keep themselves; later ones count (MEMOIZE).
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.kept[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.kept[argument])
        elif name in self.actions:
            self.actions[name](argument)
        elif name not in _IGNORED:
            raise ValueError(f"the pickled names use {name}, which an array of numbers and words does not")

    def _last(self, count: int) -> list[Any]:
        """Take the last values off the stack."""
        if len(self.stack) < count:
            raise IndexError("the pickled names are damaged")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _to_mark(self) -> list[Any]:
        """Take everything down to the last mark off the stack."""
        values: list[Any] = []
        while not isinstance(self.stack[-1], _Mark):
            values.append(self.stack.pop())
        self.stack.pop()
        return values[::-1]

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("the pickled names append to something that is no list")
        self.stack[-1].extend(values)

    def _build(self, state: Any) -> None:  # noqa: ANN401 - any value of a pickle
        if not isinstance(self.stack[-1], _Call):
            raise ValueError("the pickled names give a state to something that is no array")
        self.stack[-1].state = state
