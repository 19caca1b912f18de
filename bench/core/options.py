"""Typed options from plain mappings (YAML, JSON, command lines), with errors that name the nearest key."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from bench.core.errors import OptionError, UnknownNameError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return a frozen dataclass made from a mapping.

    Args:
        cls: The dataclass.
        values: Its fields by name; fields with defaults may be left out.
        where: What the values belong to, for messages ("options of encoder 'ridge'").

    Raises:
        UnknownNameError: If a key is not a field.
        OptionError: If it is no mapping, a value has the wrong type or range, or a required field is missing.
    """
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise OptionError(f"{where}: a mapping of {', '.join(sorted(fields))} is needed, got {values!r}")
    for key in values:
        if key not in fields:
            raise UnknownNameError("option", str(key), fields, where)
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "value"
        raise OptionError(f"{where}: {place}: {first['msg']} (got {first['input']!r})") from None


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as `1,2,5-8`.

    Raises:
        argparse.ArgumentTypeError: If it is not such a list.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2,5-8")
        found.extend(range(int(first), int(last) + 1))
    return tuple(sorted(set(found)))
