"""Content addresses: the same description always has the same digest, on every machine.

A description is plain data (dataclasses, mappings, sequences, strings, numbers, booleans, None). It says everything
that may change a result and nothing that may not: no paths, worker counts, batch sizes or clocks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DIGEST_CHARACTERS = 16


def plain(value: Any) -> Any:  # noqa: ANN401 - any description
    """Return a description as JSON data, with dataclasses as mappings and tuples as lists.

    Raises:
        TypeError: If the description holds something that has no single JSON form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if len({str(key) for key in value}) < len(value):
            raise TypeError(f"a description cannot hold a mapping with two keys that read the same: {list(value)!r}")
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    raise TypeError(f"a description cannot hold {type(value).__name__}: {value!r}")


def canonical_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - any description
    """Return strict JSON with sorted keys: byte-stable, no NaN.

    Args:
        value: A description, see `plain`.
        indent: For files that people read; digests use none.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(plain(value), sort_keys=True, allow_nan=False, indent=indent, separators=separators)


def digest(value: Any) -> str:  # noqa: ANN401 - any description
    """Return the content address of a description: 16 hex characters of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_CHARACTERS]


def source_digest(packages: Sequence[str] = ("bench", "encoders", "eval")) -> str:
    """Return the sha256 of the source files of the packages, as they lie on this machine.

    A submitted job has no `.git`, so this, not the commit, is what always stands on the record.
    """
    root = Path(__file__).resolve().parent.parent.parent
    total = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in {".py", ".yaml", ".json", ".safetensors"} and "__pycache__" not in path.parts:
                total.update(path.relative_to(root).as_posix().encode() + b"\0")
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
