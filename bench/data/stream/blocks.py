"""What the object store holds of a group of sessions: one row of binary values, read back without a copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bench.data.shards.columns import binary_row, from_binary_row
from bench.data.stream.rules import Moments

COLUMNS = {"trial": "<i4", "stimulus": "<i4", "repeat": "<i4", "session": "<i4", "role": "<i1"}
"""The numbers of a trial, as blocks hold them."""
_SUMS = ("mean", "squares")


@dataclass(frozen=True)
class SessionShare:
    """One session's trials in one part of the split.

    Attributes:
        columns: `COLUMNS` by name, `(T,)` each.
        moments: Statistics of the trials that normalise them, None where nothing does.
        keep: `(T,)` which of the session's trials these are.
    """

    columns: dict[str, np.ndarray]
    moments: Moments | None
    keep: np.ndarray


class BlockWriter:
    """Collects the sessions of a group, one after the other, as one row of binary values.

    Betas are copied as each session is added, while what was read of its file still lies in the cache.

    Args:
        most: Trials of the group's sessions together, of all parts.
        voxels: V.
        dtype: NumPy type of the betas.
    """

    def __init__(self, most: int, voxels: int, dtype: str) -> None:
        # Memory that stays untouched is never handed out, so the other parts' trials cost nothing here.
        self._betas = np.empty((most, voxels), dtype)
        self._shares: list[SessionShare] = []
        self._trials = 0

    def add(self, share: SessionShare, betas: np.ndarray) -> None:
        """Append a session.

        Args:
            share: What is kept of it.
            betas: `(T, V)` betas of all its trials.
        """
        stop = self._trials + len(share.keep)
        # Rows are known to exist: with any other mode NumPy copies through a buffer, against which it would check them.
        np.take(betas, share.keep, axis=0, out=self._betas[self._trials : stop], mode="clip")
        self._trials = stop
        self._shares.append(share)

    def table(self) -> pa.Table:
        """Return the row."""
        values = {
            name: np.concatenate([share.columns[name] for share in self._shares]).astype(kind)
            for name, kind in COLUMNS.items()
        }
        values["rows"] = np.array([len(share.keep) for share in self._shares], "<i8")
        statistics = [share.moments for share in self._shares if share.moments is not None]
        if statistics:
            values["count"] = np.array([each.count for each in statistics], "<i8")
            values["mean"] = np.stack([each.mean for each in statistics])
            values["squares"] = np.stack([each.squares for each in statistics])
        values["betas"] = self._betas[: self._trials]
        return pa.table({name: binary_row(array) for name, array in values.items()})


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
