"""Typed options from plain mappings (YAML, JSON, command line), with errors that name the nearest key and the place."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import pydantic
import yaml
from pydantic_core import ErrorDetails

from bench.core.errors import OptionError, ReconbenchError, UnknownNameError

T = TypeVar("T")
_UNKNOWN_KEY = ("unexpected_keyword_argument", "invalid_key")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return a frozen dataclass made from a mapping, and the dataclasses among its fields from the mappings in it.

    Args:
        cls: The dataclass. A field that holds several others may name one of them in its metadata: with
            `{"each": "stage"}` messages say "stage 'fit'" instead of "stages.0".
        values: Its fields by name; fields with defaults may be left out.
        where: What the values belong to, for messages ("options of encoder 'ridge'").

    Raises:
        UnknownNameError: If a key, on whatever level, is not a field.
        OptionError: If it is no mapping, a value has the wrong type or range, or a required field is missing.
    """
    given = dict(values) if isinstance(values, Mapping) else values
    try:
        (built,) = adapter(cls).validate_python((given,))  # type: ignore[arg-type]  # classes are hashable
    except pydantic.ValidationError as error:
        raise _mendable(error.errors(), cls, given, where) from None
    return cast("T", built)


class _Loader(yaml.SafeLoader):
    """YAML without the habit of dropping all but the last of equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; PyYAML calls this.

        Raises:
            ConstructorError: If a key stands there twice.
        """
        keys = [key.value for key, _ in node.value]  # before super() adds those that `<<` merges in
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands there twice", node.start_mark)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        OptionError: If it is not YAML, holds anything else, or has a key twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise OptionError(f"{path} holds {type(content).__name__}, a mapping is needed")
    return content


@functools.cache
def adapter(cls: type[Any]) -> pydantic.TypeAdapter[tuple[Any]]:
    """Return what makes a tuple of one dataclass from plain data and refuses unknown keys on every level.

    pydantic takes no configuration for a dataclass itself, but hands that of a tuple down to the dataclasses in it.
    """
    one: Any = tuple[cls]  # type: ignore[valid-type]
    return pydantic.TypeAdapter(one, config=pydantic.ConfigDict(extra="forbid"))


def _mendable(found: Sequence[ErrorDetails], cls: type[Any], values: Any, where: str) -> ReconbenchError:  # noqa: ANN401
    """Return what to tell of pydantic's findings: of an unknown key if there is one, else of the first."""
    first = next((each for each in found if each["type"] in _UNKNOWN_KEY), found[0])
    kind, loc, given = first["type"], first["loc"][1:], first["input"]
    if kind in _UNKNOWN_KEY:
        place, holder = _place(cls, values, loc[:-1], where)
        return UnknownNameError("option", str(loc[-1]), _fields(holder), place)
    place, needed = _place(cls, values, loc, where)
    if kind == "dataclass_type":
        return OptionError(f"{place}: a mapping of {', '.join(sorted(_fields(needed)))} is needed, got {given!r}")
    if kind == "dict_type":
        return OptionError(f"{place} is a mapping from names, got {given!r}")
    if kind == "tuple_type" and _fields(_within(needed, 0)):
        return OptionError(f"{place} is a list of mappings, got {given!r}")
    if kind == "missing":
        return OptionError(f"{place}: {first['msg']}")
    return OptionError(f"{place if loc else f'{where}: value'}: {first['msg']} (got {given!r})")


def _place(kind: Any, value: Any, loc: Iterable[int | str], where: str) -> tuple[str, Any]:  # noqa: ANN401
    """Return in words where in a value of a type something stands, and the type that is needed there."""
    path, each = "", None
    for part in loc:
        field = _fields(kind).get(str(part))
        word, each = each, field.metadata.get("each") if field else None
        kind, value = _within(kind, part), _item(value, part)
        if word:
            named = isinstance(part, int) and isinstance(value, Mapping)
            name = value.get("name", getattr(kind, "name", part)) if named else part
            where, path = f"{where}: {word} {name!r}", ""
        else:
            path = f"{path}.{part}" if path else str(part)
    return f"{where}: {path}" if path else where, kind


def _fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:  # noqa: ANN401 - any type
    """Return the fields of a dataclass by name; none of other types."""
    return {f.name: f for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}


def _within(kind: Any, part: int | str) -> Any:  # noqa: ANN401 - any type
    """Return the type of a dataclass' field, or of what a container holds; None where there is no such thing."""
    if _fields(kind):
        kind = get_type_hints(kind).get(str(part))
        either = get_args(kind)
        return either[0] if NoneType in either else kind
    held = [each for each in get_args(kind) if each is not Ellipsis]
    return held[-1] if held else None


def _item(value: Any, part: int | str) -> Any:  # noqa: ANN401 - unchecked YAML
    """Return what a mapping or list holds at a place; None where it is neither or holds nothing there."""
    try:
        return value[part]
    except (LookupError, TypeError):
        return None
