"""THINGS-fMRI's responses, `sub-01_ResponseData.h5`: a pandas DataFrame in its "fixed" HDF5 format, read by h5py.

The frame has a row a voxel, a column `voxel_id` and a column a trial. pandas stores the columns of one type as a block:
`block0_values` `(voxels, columns)` and `block0_items`, their names. Names that are not all words are pickled into a
variable-length array of bytes; see `bench.data.datasets.things.pickled_names`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.datasets.things.pickled_names import read_names
from bench.data.sources.ranges import RangeFile

KEY, VOXEL_ID = "ResponseData", "voxel_id"
ROWS_AT_ONCE = 256
_FAULTS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    MemoryError,
    OverflowError,
    AttributeError,
)
"""What h5py, and reading a pickle, raise on damaged files, depending on which byte is wrong."""


@dataclass(frozen=True)
class Table:
    """Where a file keeps what.

    Attributes:
        voxel: `(N,)` int64 the voxel of each row.
        block: Name of the block with the trials.
        columns: `(T,)` column of each trial in that block.
        itemsize: Bytes of a beta.
    """

    voxel: np.ndarray
    block: str
    columns: np.ndarray
    itemsize: int

    def rows(self, voxels: np.ndarray) -> np.ndarray:
        """Return the rows of some voxels `(V,)`, all of which the file must have."""
        order = np.argsort(self.voxel)
        found: np.ndarray = order[np.searchsorted(self.voxel, voxels, sorter=order)]
        return found

    def span(self, trials: np.ndarray) -> tuple[int, int]:
        """Return the first column of some trials and how many lie between it and the last, both counted."""
        columns = self.columns[trials]
        return int(columns.min()), int(np.ptp(columns)) + 1


@contextmanager
def _opened(file: Path | RangeFile) -> Iterator[h5py.Group]:
    """Open a file's frame; what h5py raises inside becomes an error that names it."""
    try:
        with h5py.File(file, "r") as opened:
            frame = opened.get(KEY)
            if not isinstance(frame, h5py.Group) or "block0_items" not in frame:
                raise CorruptFileError(f"{file} has no frame {KEY!r} in pandas' fixed format; it has {sorted(opened)}")
            yield frame
    except _FAULTS as error:
        raise CorruptFileError(f"{file} cannot be read as pandas' HDF5: {error!r}") from None


def read_table(file: Path | RangeFile, trials: int) -> Table:
    """Read which rows and columns of a file are what; no betas are read.

    Args:
        file: A local file, or an open file of a bucket.
        trials: How many trials there must be.

    Raises:
        CorruptFileError: If it is no HDF5 file, truncated, or no frame in pandas' fixed format.
        BadDataError: If its columns are not `voxel_id` and the trials, or two rows have the same voxel.
        UnreachableError: If ranges of a bucket's file do not come.
    """
    with _opened(file) as frame:
        blocks = {
            name[: -len("_items")]: _names(frame[name])
            for name in frame
            if name.startswith("block") and name.endswith("_items")
        }
        column_of = {name: (block, column) for block, names in blocks.items() for column, name in enumerate(names)}
        # pandas joins columns of one type, so that all trials must lie in one block.
        held = {column_of[str(trial)][0] for trial in range(trials) if str(trial) in column_of}
        expected = {VOXEL_ID, *map(str, range(trials))}
        if set(column_of) != expected or sum(map(len, blocks.values())) != len(expected) or len(held) != 1:
            raise BadDataError(
                f"{file} has {sum(map(len, blocks.values()))} columns, {len(expected & set(column_of))} of them known; "
                f"{VOXEL_ID} and trials 0 to {trials - 1} of one type are needed"
            )
        block, (own, column) = held.pop(), column_of[VOXEL_ID]
        if own == block and isinstance(file, RangeFile):
            # Eight bytes of every row, the rows 79 kB apart: all of the file would cross the network.
            raise BadDataError(
                f"{file} keeps {VOXEL_ID} among the betas; such a file can be read from a local copy only"
            )
        values, ids = (_values(frame, name, len(blocks[name]), file) for name in (block, own))
        if values.dtype.kind != "f" or len(values) != len(ids):
            raise BadDataError(
                f"{file}: betas are {values.shape} {values.dtype}; ({len(ids)}, trials) floats are needed"
            )
        voxel = _voxels(ids[:, column], file)
        return Table(
            voxel, block, np.array([column_of[str(trial)][1] for trial in range(trials)]), values.dtype.itemsize
        )


def _voxels(values: np.ndarray, file: Path | RangeFile) -> np.ndarray:
    """Return `voxel_id` as int64 `(N,)`; pandas may have kept it among the floats."""
    if not np.all((values >= 0) & (values < 2**31) & (values == np.floor(values))):
        raise BadDataError(f"{file}: {VOXEL_ID} must be whole numbers from 0")
    if len(np.unique(values)) != len(values):
        raise BadDataError(f"{file}: two rows have the same {VOXEL_ID}")
    return values.astype(np.int64)


def _values(frame: h5py.Group, block: str, columns: int, file: Path | RangeFile) -> h5py.Dataset:
    """Return the values of a block `(voxels, columns)`."""
    values = frame.get(f"{block}_values")
    if not isinstance(values, h5py.Dataset) or values.ndim != 2 or values.shape[1] != columns:
        shape = getattr(values, "shape", None)
        raise CorruptFileError(f"{file}: {block}_values has shape {shape}; {columns} columns are named for it")
    return values


def _names(items: h5py.Dataset) -> list[str]:
    """Return the names of a block's columns as words.

    Raises:
        ValueError: If they are kept in a way that pandas does not keep numbers and words in.
    """
    if h5py.check_vlen_dtype(items.dtype) is not None:
        # PyTables' VLARRAY of objects: each row is one pickle, and pandas writes one row.
        return read_names(bytes(items[0]))
    if items.ndim != 1 or items.dtype.kind not in "iuS":
        raise ValueError(f"{items.name} is {items.shape} {items.dtype}: no names of columns")
    return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in items[()].tolist()]


def read_betas(file: Path | RangeFile, table: Table, voxels: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the betas of some voxels and trials; no more than these voxels' rows between these trials is read.

    Args:
        file: A local file, or an open file of a bucket.
        table: What `read_table` gave for it.
        voxels: `(V,)` `voxel_id`s in any order.
        trials: `(T,)` trials in any order.

    Returns:
        `(T, V)` float32, and the bytes read.

    Raises:
        CorruptFileError: If the file is damaged.
        UnreachableError: If ranges of a bucket's file do not come.
    """
    rows, (first, width) = table.rows(voxels), table.span(trials)
    # A session's trials are neighbours, so that nothing lies between the first and the last; if not, it is dropped.
    picked = table.columns[trials] - first
    result = np.empty((len(trials), len(voxels)), dtype="<f4")
    with _opened(file) as frame:
        values = frame[f"{table.block}_values"]
        if isinstance(file, RangeFile) and _lies_whole(values):
            slabs = _fetched(values, file, rows, first, width)
        else:
            slabs = _sliced(values, rows, first, width)
        for voxel_rows, values_read in slabs:
            result[:, voxel_rows] = values_read[:, picked].T
    return result, file.bytes_read if isinstance(file, RangeFile) else len(voxels) * width * table.itemsize


def _lies_whole(values: h5py.Dataset) -> bool:
    """Say whether an array lies in the file in one piece, row after row, as pandas writes it by default."""
    return values.chunks is None and values.id.get_offset() is not None


def _sliced(values: h5py.Dataset, rows: np.ndarray, first: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield which of the rows, and their columns `(n, width)`: neighbours in the file together, by HDF5."""
    order = np.argsort(rows, kind="stable")  # the file is read from front to back, whatever order was asked for
    ranked = rows[order]
    breaks = np.flatnonzero(np.diff(ranked) != 1) + 1
    for start, stop in zip(np.r_[0, breaks], np.r_[breaks, len(ranked)], strict=True):
        for at in range(int(start), int(stop), ROWS_AT_ONCE):
            end = min(at + ROWS_AT_ONCE, int(stop))
            yield order[at:end], values[ranked[at] : ranked[end - 1] + 1, first : first + width]


def _fetched(
    values: h5py.Dataset, file: RangeFile, rows: np.ndarray, first: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same by one range a row: the other sessions of a voxel lie between, eleven times as much."""
    size = values.dtype.itemsize
    starts = values.id.get_offset() + (rows * values.shape[1] + first) * size
    spans = [(int(start), width * size) for start in starts]
    for row, content in enumerate(file.ranges(spans)):
        yield np.array([row]), np.frombuffer(content, values.dtype)[None]
