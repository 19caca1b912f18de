"""Strict JSON and its schemas: no NaN, and an error that names the file and the place in it."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jsonschema

from bench.core.errors import CorruptFileError


@functools.cache
def schema(name: str) -> dict[str, Any]:
    """Return a JSON Schema that ships with the package: `record`, `leaderboard` or `gallery`."""
    text = (importlib.resources.files("bench.records") / "schema" / f"{name}.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def parse(content: bytes, where: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the data of strict JSON.

    Raises:
        CorruptFileError: If it is not JSON, or holds NaN or an infinity.
    """

    def refuse(constant: str) -> NoReturn:
        raise CorruptFileError(f"{where} holds {constant}, which strict JSON does not have")

    try:
        return json.loads(content, parse_constant=refuse)
    except ValueError as error:
        raise CorruptFileError(f"{where} is not JSON: {error}") from None


def check(value: Any, rules: Mapping[str, Any], where: str) -> None:  # noqa: ANN401 - JSON data
    """Check JSON data against a schema.

    Raises:
        CorruptFileError: Naming the most telling violation, its place and what is wrong there.
    """
    worst = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(rules).iter_errors(value))
    if worst is not None:
        raise CorruptFileError(f"{where}: {worst.json_path}: {worst.message[:300]}")
