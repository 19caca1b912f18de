"""The files of a fitted encoder: one JSON document, tensors in safetensors, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from encoders.base import Head

T = TypeVar("T")
STATE = "state.json"
TENSORS = "state.safetensors"


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, wherever and however they lie in memory, as a safetensors file.

    Args:
        tensors: By name.
        path: The file.
        metadata: Text that is kept with them.
    """
    # safetensors refuses views that share memory or are not contiguous.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, None if metadata is None else dict(metadata))


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the tensors (or arrays) whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_state(
    directory: Path, encoder: str, facts: Mapping[str, Any], heads: Sequence[Head], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write what `read_state` reads; the JSON document comes last, so that its presence means a whole state.

    Args:
        directory: An existing directory.
        encoder: Name of the encoder, checked on reading.
        facts: JSON values.
        heads: The heads of the fit. Their constants and losses are the generator's and are not stored.
        tensors: Tensors, copied to the CPU.
    """
    stored = dict(tensors)
    for head in heads:
        for subject, columns in (head.columns or {}).items():
            stored[f"columns/{head.name}/{subject}"] = torch.from_numpy(np.array(columns, dtype=np.int64))
    save_tensors(stored, directory / TENSORS)
    document = {
        "encoder": encoder,
        "heads": [
            {"name": head.name, "shape": list(head.shape), "subjects": sorted(head.columns) if head.columns else None}
            for head in heads
        ],
        "facts": dict(facts),
    }
    (directory / STATE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_state(directory: Path, encoder: str) -> tuple[dict[str, Any], list[Head], dict[str, torch.Tensor]]:
    """Read a state.

    Args:
        directory: Where `write_state` wrote.
        encoder: The name it must have been written under.

    Returns:
        The facts, the heads (without constants and loss) and the tensors on the CPU.

    Raises:
        FileNotFoundError: If the directory holds no state.
        ValueError: If it holds the state of another encoder.
    """
    path = directory / STATE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no fitted encoder: {STATE} is missing")
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["encoder"] != encoder:
        raise ValueError(f"{path} is the state of {document['encoder']!r}, not of {encoder!r}")
    # After the name was compared: tensors of another encoder may be gigabytes.
    tensors = load_file(directory / TENSORS)
    heads = [_read_head(entry, tensors) for entry in document["heads"]]
    return document["facts"], heads, {name: t for name, t in tensors.items() if not name.startswith("columns/")}


def _read_head(entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Head:
    """Return the head that an entry of the JSON document describes."""
    columns = None
    if entry["subjects"] is not None:
        columns = {subject: tensors[f"columns/{entry['name']}/{subject}"].numpy() for subject in entry["subjects"]}
    return Head(name=entry["name"], shape=tuple(entry["shape"]), columns=columns)
