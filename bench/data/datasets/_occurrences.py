"""Counts how often a picture was shown before: the repeat of every dataset's trials."""

from __future__ import annotations

import numpy as np


def occurrences(values: np.ndarray) -> np.ndarray:
    """Return for each value how often it stood before in the sequence, `(N,)`: the 0-based repeat."""
    # Stable, so that equal values stay in the order they were shown in: their rank among them is the repeat.
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.arange(len(values)) - np.repeat(first, np.diff(np.r_[first, len(values)]))
    return counts
