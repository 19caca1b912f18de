"""Finds encoders, generators and datasets by listing their folders: one file is one thing, its name is its name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from typing import Any

from bench.core.errors import UnknownNameError

_KINDS = {
    "encoder": ("encoders", "encoders.base", "Encoder"),
    "generator": ("bench.generators", "bench.generators.base", "Generator"),
    "dataset": ("bench.data.datasets", "bench.data.datasets.base", "Dataset"),
}


@functools.cache
def found(kind: str) -> dict[str, type[Any]]:
    """Return every class of a kind by its name (`braid_mlp.py` is `braid-mlp`).

    Args:
        kind: `encoder`, `generator` or `dataset`.

    Raises:
        TypeError: If a module holds more than one public class of the kind.
    """
    package_name, base_module, base_name = _KINDS[kind]
    base = getattr(importlib.import_module(base_module), base_name)
    package = importlib.import_module(package_name)
    classes: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package_name}.{info.name}")
        here = [
            cls
            for name, cls in inspect.getmembers(module, inspect.isclass)
            if issubclass(cls, base) and not inspect.isabstract(cls) and _within(cls.__module__, module.__name__)
        ]
        if len(here) > 1:
            raise TypeError(f"{module.__name__} holds {len(here)} classes of kind {kind}, one is allowed: {here}")
        if here:
            classes[info.name.replace("_", "-")] = here[0]
    return classes


def _within(name: str, module: str) -> bool:
    """Say whether a module is another one, or lies in it: `encoders.ridge_x` does not lie in `encoders.ridge`."""
    return name == module or name.startswith(f"{module}.")


def load(kind: str, name: str) -> type[Any]:
    """Return the class of a name.

    Raises:
        UnknownNameError: If the folder has no such file; the nearest name is offered.
    """
    classes = found(kind)
    if name not in classes:
        raise UnknownNameError(kind, name, classes)
    return classes[name]
