"""Small, randomly initialised checkpoints of the true classes in the true file layout, one module a generator.

A module bears its generator's name (`stable_diffusion.py` is `stable-diffusion`) and holds

    save(folder: pathlib.Path) -> None    writes below `folder` what `$RECONBENCH_HOME/weights` would hold
    SETTINGS: dict[str, Any]              options with which a picture takes a moment
    INPUTS: tuple[str, ...]               inputs that go together, where not all that have an oracle do

Outward dimensions are the published ones (targets, inputs, cross-attention width), inner widths and vocabularies tiny.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip.simple_tokenizer import bytes_to_unicode

from bench.core import registry
from bench.generators._weights.checkpoints import CheckpointOptions
from bench.generators._weights.tokenizer import MARKS
from bench.generators.base import Generator


def needed(name: str) -> bool:
    """Say whether a generator's weights do not ship with the package."""
    return issubclass(registry.load("generator", name).Options, CheckpointOptions)


def exists(name: str) -> bool:
    """Say whether there is a small checkpoint of a generator."""
    return importlib.util.find_spec(_module(name)) is not None


def settings(name: str, folder: Path) -> dict[str, Any]:
    """Return options under which a generator loads: of its small checkpoint, saved below `folder`, or none needed."""
    if not needed(name):
        return {}
    return {"weights": str(saved(name, folder)), **importlib.import_module(_module(name)).SETTINGS}


def saved(name: str, folder: Path) -> Path:
    """Return the folder of a generator's small checkpoint, which is saved below `folder` once."""
    place = folder / name
    if not place.exists():
        importlib.import_module(_module(name)).save(place)
    return place


def with_options(generator: Generator, **changes: Any) -> Generator:
    """Return a loaded generator under other options: the same networks, which need not be loaded again."""
    changed = object.__new__(type(generator))
    changed.__dict__ = {**generator.__dict__, "options": dataclasses.replace(generator.options, **changes)}
    return changed


def write_tokenizer(folder: Path, merges: Sequence[tuple[str, str]]) -> None:
    """Write `vocab.json` and `merges.txt` of a CLIP tokenizer: bytes, bytes that end a word, merges, two marks."""
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), *MARKS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def oracle_inputs(name: str) -> list[str]:
    """Return inputs that can be rendered together, each with a target that is its truth."""
    kind = registry.load("generator", name)
    chosen = getattr(importlib.import_module(_module(name)), "INPUTS", None) if exists(name) else None
    return [key for key, spec in kind.inputs.items() if spec.oracle and (chosen is None or key in chosen)]


def _module(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"
