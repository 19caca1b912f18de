"""bdpy's HDF5 files: one table of samples, and metadata that say what each column is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bench.core.errors import BadDataError, CorruptFileError

ROWS_AT_ONCE = 256
_HDF5_FAULTS = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, MemoryError)
"""What h5py raises on damaged files, depending on which byte is wrong."""


@dataclass(frozen=True)
class BData:
    """What a file's metadata say; its table stays in the file.

    Attributes:
        path: The file.
        keys: Names of the metadata.
        values: `(K, columns)` one row a key: 1 where a column belongs to it, or the column's number of something
            (millimetres), NaN where it says nothing.
        shape: `(samples, columns)` of the table.
    """

    path: Path
    keys: tuple[str, ...]
    values: np.ndarray
    shape: tuple[int, int]

    def columns(self, key: str) -> np.ndarray:
        """Return the columns that belong to a key, ascending.

        Raises:
            BadDataError: If there is no such key, or it holds numbers other than 0, 1 and NaN, or no 1.
        """
        if key not in self.keys:
            raise BadDataError(f"{self.path} has no {key}; its metadata has {', '.join(self.keys)}")
        values = self.values[self.keys.index(key)]
        if not np.all(np.isnan(values) | np.isin(values, (0, 1))):
            raise BadDataError(f"{self.path}: {key} must be 1, 0 or NaN for every column")
        columns = np.flatnonzero(values == 1)
        if not len(columns):
            raise BadDataError(f"{self.path}: no column belongs to {key}")
        return columns

    def label(self, key: str) -> np.ndarray:
        """Return the one column of a label, `(samples,)` float64.

        Raises:
            BadDataError: If not exactly one column belongs to it.
            CorruptFileError: If the file is damaged.
        """
        columns = self.columns(key)
        if len(columns) != 1:
            raise BadDataError(f"{self.path}: {len(columns)} columns belong to {key}, one is needed")
        with _opened(self.path) as file:
            values: np.ndarray = _table(file, self.path)[:, int(columns[0])]
        return values

    def read(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return some rows and columns of the table, `(T, V)` float32.

        Args:
            rows: `(T,)` in any order.
            columns: `(V,)` in any order.

        Raises:
            CorruptFileError: If the file is damaged.
        """
        result = np.empty((len(rows), len(columns)), dtype="<f4")
        with _opened(self.path) as file:
            table = _table(file, self.path)
            # Whole rows, a few at a time: HDF5 picks single columns slower than it reads all of them.
            for start in range(0, self.shape[0], ROWS_AT_ONCE):
                block = table[start : start + ROWS_AT_ONCE]
                inside = np.flatnonzero((rows >= start) & (rows < start + ROWS_AT_ONCE))
                result[inside] = block[np.ix_(rows[inside] - start, columns)]
        return result


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file; what h5py raises inside becomes an error that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except _HDF5_FAULTS as error:
        raise CorruptFileError(f"{path} cannot be read as bdpy's HDF5: {error!r}") from None


def _member(group: h5py.Group, names: Sequence[str], kind: type, path: Path) -> h5py.Dataset | h5py.Group:
    """Return what a group has under one of some names."""
    found = next((group[name] for name in names if isinstance(group.get(name), kind)), None)
    if found is None:
        raise CorruptFileError(f"{path} has no {' or '.join(names)} in {group.name}; it has {sorted(group)}")
    return found


def _table(file: h5py.File, path: Path) -> h5py.Dataset:
    """Return the table of samples.

    Raises:
        BadDataError: If it is not a table of floating numbers.
    """
    table = _member(file, ("dataset", "dataSet"), h5py.Dataset, path)
    if table.ndim != 2 or table.dtype.kind != "f":
        raise BadDataError(f"{path}: its dataset is {table.shape} {table.dtype}; (samples, columns) floats are needed")
    return table


def read_bdata(path: Path) -> BData:
    """Read the metadata of a file.

    Raises:
        CorruptFileError: If it is no HDF5 file, truncated, or lacks its table or its metadata.
        BadDataError: If metadata and table do not fit together.
    """
    with _opened(path) as file:
        shape = _table(file, path).shape
        metadata = _member(file, ("metadata", "metaData"), h5py.Group, path)
        names = _member(metadata, ("key",), h5py.Dataset, path)[()]
        values = np.asarray(_member(metadata, ("value",), h5py.Dataset, path)[()], dtype=float)
        keys = tuple(name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in np.ravel(names))
    if values.shape != (len(keys), shape[1]):
        raise BadDataError(f"{path}: metadata of shape {values.shape} for {len(keys)} keys and {shape[1]} columns")
    if len(set(keys)) != len(keys):
        raise BadDataError(f"{path}: two metadata have the same key among {', '.join(keys)}")
    return BData(path, keys, values, (int(shape[0]), int(shape[1])))
