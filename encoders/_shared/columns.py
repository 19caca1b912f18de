"""Heads that see the same voxels: they share a factorisation, or the trunk of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from encoders.base import Head


def columns_key(head: Head, subject: int) -> str:
    """Return a name of the voxel columns a head uses; equal columns have equal names."""
    if head.columns is None:
        return "all"
    # One byte order and width, so that the name is the same on every machine.
    columns = np.ascontiguousarray(head.columns[subject], dtype="<i8")
    return hashlib.sha256(columns.tobytes()).hexdigest()[:16]


def group_by_columns(heads: Sequence[Head], subjects: Sequence[int]) -> dict[str, list[tuple[int, Head]]]:
    """Return the numbered heads by the voxel columns they use.

    Args:
        heads: The heads of a fit.
        subjects: Heads share a group only where they see the same voxels in each of these.
    """
    groups: dict[str, list[tuple[int, Head]]] = {}
    for number, head in enumerate(heads):
        key = "+".join(columns_key(head, subject) for subject in subjects)
        groups.setdefault(key, []).append((number, head))
    return groups
