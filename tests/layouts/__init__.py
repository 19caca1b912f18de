"""Small datasets of random numbers in the true layout of their files, one module a dataset.

A module bears its dataset's name (`bold5000.py` is `bold5000`) and holds

    write(root: pathlib.Path) -> Facts           writes below `root` what the dataset's own folder would hold; returns
                                                 what was written, for tests to compare with
    VARIANTS: dict[str, dict[str, Any]]          options beside `root` under which it is to be read, each by a name; the
                                                 contract of datasets is tested with every one; without it the defaults

Layouts, names, types and the order of axes are the published ones, numbers of trials and voxels small.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def names() -> list[str]:
    """Return the names of the datasets that have a layout here, sorted."""
    return sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__))


def load(name: str) -> Any:
    """Return the module of a dataset."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def variants(name: str) -> dict[str, dict[str, Any]]:
    """Return the options under which a dataset is to be read, by the names of their combinations."""
    return dict(getattr(load(name), "VARIANTS", {"default": {}}))


def copy_of(name: str) -> Callable[..., tuple[Path, Any]]:
    """Return a fixture of a module: the root of a small copy of a dataset, and what is in it. Never change it."""

    @pytest.fixture(scope="module")
    def copy(tmp_path_factory) -> tuple[Path, Any]:
        root = tmp_path_factory.mktemp(name) / name
        return root, load(name).write(root)

    return copy
