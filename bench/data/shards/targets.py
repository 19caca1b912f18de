"""Target shards: what a generator makes of each stimulus, one Parquet row a stimulus."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.core.errors import BadDataError, MissingDataError
from bench.core.storage import Folder
from bench.data.shards.columns import from_column, to_column
from bench.data.shards.manifest import FileEntry, read_checked, read_manifest


def targets_table(stimulus: np.ndarray, values: np.ndarray) -> pa.Table:
    """Return rows of a target shard.

    Args:
        stimulus: `(N,)` 0-based stimulus numbers.
        values: `(N, *shape)` in the target's dtype.
    """
    return pa.table({"stimulus": pa.array(stimulus, pa.int32()), "value": to_column(values)})


def write_targets(folder: Folder, name: str, stimulus: np.ndarray, values: np.ndarray) -> FileEntry:
    """Write one part of a target's shards and return its manifest entry."""
    size, sha256 = folder.write_table(name, targets_table(stimulus, values))
    return FileEntry(name, len(stimulus), size, sha256)


def read_targets(folder: Folder) -> tuple[np.ndarray, np.ndarray]:
    """Return a target of every stimulus of its set.

    Args:
        folder: A finished `targets/<generator>.<target>@<digest>` folder.

    Returns:
        Stimulus numbers `(N,)` int32, strictly increasing, and values `(N, *shape)` in the target's dtype.

    Raises:
        MissingDataError: If the set was never finished or a file is missing.
        CorruptFileError: If a file differs from its manifest.
        BadDataError: If the folder is not a set of targets, or holds a stimulus twice.
    """
    manifest = read_manifest(folder)
    if manifest.kind != "targets":
        raise BadDataError(f"{folder} is a set of {manifest.kind}, not of targets")
    dtype = np.dtype(manifest.dtype)
    stimulus = np.empty(sum(entry.rows for entry in manifest.files), np.int32)
    values = np.empty((len(stimulus), *manifest.shape), dtype)
    first = 0
    for entry in manifest.files:  # filled part by part: the set is never in memory twice
        table = pq.read_table(io.BytesIO(read_checked(folder, entry)))
        rows = slice(first, first + entry.rows)
        stimulus[rows] = table["stimulus"].to_numpy()
        values[rows] = from_column(table["value"], dtype, manifest.shape)
        first += entry.rows
    order = np.argsort(stimulus, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        stimulus, values = stimulus[order], values[order]
    if len(twice := stimulus[1:][np.diff(stimulus) == 0]):
        raise BadDataError(f"{folder} holds stimulus {int(twice[0])} more than once")
    return stimulus, values


@dataclass(frozen=True)
class TargetTable:
    """Targets of one head, one row a stimulus however often it was shown.

    Attributes:
        stimulus: `(M,)` sorted 0-based stimuli.
        values: `(M, *shape)`.
    """

    stimulus: np.ndarray
    values: np.ndarray

    def of(self, stimuli: np.ndarray, run: tuple[int, int] | None = None) -> np.ndarray:
        """Return the targets of some trials: `(B, *shape)` float32.

        Args:
            stimuli: `(B,)` stimulus of each trial.
            run: First and one past the last of the flattened targets; `(B, stop - start)` is returned then.

        Raises:
            MissingDataError: If a stimulus has no target.
        """
        rows = self.rows_of(stimuli)
        if run is None:
            return self.values[rows].astype(np.float32)
        # Flattening the table is a view; only the run's columns are copied.
        return self.values.reshape(len(self.values), -1)[rows, run[0] : run[1]].astype(np.float32)

    def rows_of(self, stimuli: np.ndarray) -> np.ndarray:
        """Return the rows of some stimuli in the table, `(B,)`.

        Raises:
            MissingDataError: If a stimulus has no target.
        """
        rows = np.searchsorted(self.stimulus, stimuli)
        rows = np.minimum(rows, len(self.stimulus) - 1)
        absent = self.stimulus[rows] != stimuli
        if absent.any():
            raise MissingDataError(
                f"no target for stimuli {np.unique(stimuli[absent])[:5].tolist()}; rerun the targets stage"
            )
        return rows

    def sliced(self, take: tuple[int, int] | None) -> TargetTable:
        """Return the table with only part of the targets' first axis."""
        return self if take is None else TargetTable(self.stimulus, self.values[:, take[0] : take[1]])
