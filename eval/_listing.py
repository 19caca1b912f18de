"""What a folder lists: its files and packages with a bare name, `base` excepted, and the objects of a kind in them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Protocol, TypeVar


class HasName(Protocol):
    """Anything that has a name."""

    @property
    def name(self) -> str:
        """The name it goes by."""
        ...


T = TypeVar("T", bound=HasName)


def names(folder: ModuleType) -> list[str]:
    """Return the names of the files and packages that a folder lists, without importing them."""
    modules = (module.name for module in pkgutil.iter_modules(folder.__path__))
    return sorted(name for name in modules if name != "base" and not name.startswith("_"))


def objects(folder: ModuleType, kind: type[T]) -> dict[str, T]:
    """Return every object of a kind in the files and packages that a folder lists, by the objects' own names, sorted.

    Raises:
        ValueError: If two objects have one name.
    """
    found: dict[str, T] = {}
    for name in names(folder):
        module = importlib.import_module(f"{folder.__name__}.{name}")
        for each in vars(module).values():
            # A file may import another's object: that is still one object.
            if isinstance(each, kind) and found.setdefault(each.name, each) is not each:
                raise ValueError(f"two objects of {folder.__name__} are named {each.name!r}, one in {name}.py")
    return dict(sorted(found.items()))


def unknown(kind: str, name: str, known: list[str]) -> str:
    """Return what to say of a name that is not known: all that are, and the nearest."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}, allowed: {', '.join(known)}{hint}"
