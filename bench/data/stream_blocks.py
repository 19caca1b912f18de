"""What the object store holds of a group of sessions: one row of binary values, read back without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bench.data.columns import binary_row, from_binary_row
from bench.data.stream_rules import Moments

COLUMNS = {"trial": "<i4", "stimulus": "<i4", "repeat": "<i4", "session": "<i4", "role": "<i1"}
"""The numbers of a trial, as blocks hold them."""
_SUMS = ("mean", "squares")


@dataclass(frozen=True)
class Part:
    """One session's trials of one part.

    Attributes:
        columns: `COLUMNS` by name, `(T,)` each.
        moments: Statistics of the trials that normalise them, None where nothing does.
        betas: All betas of the session, as a view of its file.
        keep: `(T,)` rows of `betas`.
    """

    columns: dict[str, np.ndarray]
    moments: Moments | None
    betas: np.ndarray
    keep: np.ndarray


def row(parts: Sequence[Part]) -> pa.Table:
    """Return the sessions of a group as one row of binary values, one after the other."""
    values = {n: np.concatenate([part.columns[n] for part in parts]).astype(kind) for n, kind in COLUMNS.items()}
    values["rows"] = np.array([len(part.keep) for part in parts], "<i8")
    statistics = [part.moments for part in parts if part.moments is not None]
    if statistics:
        values["count"] = np.array([each.count for each in statistics], "<i8")
        values["mean"] = np.stack([each.mean for each in statistics])
        values["squares"] = np.stack([each.squares for each in statistics])
    betas = np.empty((int(values["rows"].sum()), parts[0].betas.shape[1]), parts[0].betas.dtype)
    for part, stop in zip(parts, np.cumsum(values["rows"]), strict=True):
        np.take(part.betas, part.keep, axis=0, out=betas[stop - len(part.keep) : stop])
    return pa.table({name: binary_row(array) for name, array in {**values, "betas": betas}.items()})


def betas_of(block: pa.Table, dtype: str, voxels: int) -> list[np.ndarray]:
    """Return the betas `(T, V)` of each session of a row, as views of its memory."""
    betas = from_binary_row(block["betas"], np.dtype(dtype)).reshape(-1, voxels)
    ends = np.cumsum(from_binary_row(block["rows"], np.dtype("<i8")))
    return np.split(betas, ends[:-1])


def statistics_of(block: pa.Table) -> list[Moments]:
    """Return the statistics of each session of a row."""
    if "count" not in block.column_names:
        return []
    counts = from_binary_row(block["count"], np.dtype("<i8"))
    mean, squares = (from_binary_row(block[name], np.dtype("<f8")).reshape(len(counts), -1) for name in _SUMS)
    return [Moments(int(c), m, s) for c, m, s in zip(counts, mean, squares, strict=True)]
