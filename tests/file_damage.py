"""Damaged copies of a file, for tests that whatever is wrong with it is an error that names it, or no wrong number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import ReconbenchError


def cuts(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Beginnings of a file: none of it, all but its last byte, and some in between."""
    rng = random.Random(seed)
    for size in (0, 1, len(content) - 1, *(rng.randrange(2, len(content) - 1) for _ in range(count))):
        yield content[:size]


def flips(content: bytes, count: int, seed: int = 0, first: int | None = None) -> Iterator[bytes]:
    """Copies with one byte changed, anywhere or among the first ones."""
    rng = random.Random(seed)
    for _ in range(count):
        place = rng.randrange(len(content) if first is None else min(first, len(content)))
        damaged = bytearray(content)
        damaged[place] ^= rng.randrange(1, 256)
        yield bytes(damaged)


def check_cuts(path: Path, read: Callable[[], object], count: int = 12) -> None:
    """Every truncated copy of a file must be refused by name."""
    for damaged in cuts(path.read_bytes(), count):
        with replaced(path, damaged), pytest.raises(ReconbenchError) as caught:
            read()
        assert path.name in str(caught.value)


def check_flips(path: Path, read: Callable[[], np.ndarray], count: int = 40, first: int | None = None) -> int:
    """Every copy with a wrong byte must be refused by name or give the right numbers; return how many were refused."""
    right, refused = read(), 0
    for damaged in flips(path.read_bytes(), count, first=first):
        with replaced(path, damaged):
            try:
                found = read()
            except ReconbenchError as error:
                assert path.name in str(error), error
                refused += 1
            else:
                np.testing.assert_array_equal(found, right)
    assert refused, "no damage was noticed"
    return refused


class replaced:
    """Give a file another content for a while."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content, self.before = path, content, path.read_bytes()

    def __enter__(self) -> None:
        self.path.write_bytes(self.content)

    def __exit__(self, *raised: object) -> None:
        self.path.write_bytes(self.before)
