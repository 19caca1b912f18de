"""NumPy's own files: rows of a `.npy` array by byte ranges, members of a `.npz` archive. Nothing is ever unpickled.

Headers are read by NumPy. `numpy.load` is not used: it opens paths only and reads archives' members whole.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.data.sources.files import SourceFiles

LONGEST_HEADER = 1 << 14
"""Bytes that one request asks for: NumPy writes 128 for plain arrays and reads no headers above 10,000 characters."""
BLOCK_BYTES = 1 << 23
"""Bytes of an archive's member that are in memory at once while rows are picked."""
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # a damaged byte names a compression that does not exist
    RuntimeError,  # or marks the member as encrypted
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class ArrayHeader:
    """What stands before the numbers of a `.npy` array.

    Attributes:
        offset: Bytes before the numbers.
        shape: Of the array.
        dtype: Of its numbers.
        fortran: Whether the first axis runs fastest.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], where: str) -> ArrayHeader:
    """Read the header of a `.npy` array from its start on.

    Raises:
        CorruptFileError: If there is none, or it describes Python objects, which would have to be unpickled.
    """
    try:
        version = npy_format.read_magic(file)
    except ValueError:
        raise CorruptFileError(f"{where} is not a .npy array: it does not begin with NumPy's mark") from None
    # Version 3 differs from 2 in names of fields only, which no array of numbers has.
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise CorruptFileError(f"{where}: its .npy header cannot be read: {error!r}") from None
    if min(shape, default=0) < 0 or dtype.hasobject or dtype.names is not None or not dtype.itemsize:
        raise CorruptFileError(f"{where} holds {dtype} of shape {shape}, not an array of numbers")
    return ArrayHeader(file.tell(), shape, dtype, fortran)


def header_of(files: SourceFiles, key: str) -> ArrayHeader:
    """Return the header of a `.npy` file, after comparing the file's size with it.

    Raises:
        MissingDataError: If there is no such file.
        CorruptFileError: If it is not a `.npy` file, or shorter or longer than its header says.
    """
    size, where = files.size(key), files.where(key)
    with files.open(key) as file:
        header = read_header(io.BytesIO(file.range(0, min(size, LONGEST_HEADER))), where)
    if header.size != size:
        raise CorruptFileError(f"{where} has {size} bytes, its header {header.shape} {header.dtype} says {header.size}")
    return header


def read_rows(files: SourceFiles, key: str, header: ArrayHeader, rows: slice) -> np.ndarray:
    """Return some neighbouring rows of a `.npy` file: no other byte is read.

    Args:
        files: Where the file lies.
        key: The file.
        header: As `header_of` returned it.
        rows: First row and one past the last, both given.

    Raises:
        BadDataError: If the array has no such rows, or its first axis runs fastest.
    """
    if header.fortran and len(header.shape) > 1:
        raise BadDataError(f"{files.where(key)} is stored with its first axis fastest; save it in C order")
    if not header.shape or not 0 <= rows.start <= rows.stop <= header.shape[0]:
        raise BadDataError(f"{files.where(key)} has shape {header.shape}: rows {rows.start} to {rows.stop} are not all")
    with files.open(key) as file:
        content = file.range(header.offset + rows.start * header.row_bytes, (rows.stop - rows.start) * header.row_bytes)
    return np.frombuffer(content, header.dtype).reshape(rows.stop - rows.start, *header.shape[1:])


def member_names(path: Path) -> list[str]:
    """Return the names of a `.npz` archive's arrays, sorted.

    Raises:
        CorruptFileError: If it is not an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except _ZIP_FAULTS as error:
        raise CorruptFileError(f"{path} cannot be read as .npz: {error}") from None


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[ArrayHeader, IO[bytes]]]:
    """Open an array of an archive after its header.

    Raises:
        MissingDataError: If there is no such array.
        CorruptFileError: If the archive or the array is damaged: what is read inside the context is under its guard.
    """
    where = f"{path}, array {name!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise MissingDataError(f"{path} has no array {name!r}; it has {', '.join(member_names(path))}")
            with archive.open(f"{name}.npy") as file:
                header = read_header(file, where)
                if archive.getinfo(f"{name}.npy").file_size != header.size:
                    raise CorruptFileError(f"{where}: it does not have the {header.size} bytes its header says")
                yield header, file
    except _ZIP_FAULTS as error:
        raise CorruptFileError(f"{where} cannot be read: {error}") from None


def member_header(path: Path, name: str) -> ArrayHeader:
    """Return the header of an array of an archive; errors as in `read_member`."""
    with _opened(path, name) as (header, _):
        return header


def read_member(path: Path, name: str) -> np.ndarray:
    """Return an array of a `.npz` archive, whole.

    Raises:
        MissingDataError: If there is no such array.
        CorruptFileError: If the archive or the array is damaged.
    """
    with _opened(path, name) as (header, file):
        # To the end, and beyond: the archive's checksum is compared where a member ends.
        values = np.frombuffer(_exactly(file, header.size - header.offset) + file.read(1), header.dtype)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def read_member_rows(
    path: Path, name: str, rows: Sequence[int], convert: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Return some rows of an array of a `.npz` archive, in their order, each converted as it comes by.

    Only a few megabytes of the array are in memory at once, and what was converted. The whole member is read
    nevertheless: only at its end does its checksum tell damage.

    Args:
        path: The archive.
        name: The array's name.
        rows: Rows of the array.
        convert: Makes of some rows `(n, ...)` what is kept of them, `(n, ...)`.

    Raises:
        MissingDataError: If there is no such array.
        CorruptFileError: If the archive or the array is damaged.
        BadDataError: If the array has no such rows, or its first axis runs fastest.
    """
    with _opened(path, name) as (header, file):
        count = header.shape[0] if header.shape else 0
        if header.fortran and len(header.shape) > 1:
            raise BadDataError(f"{path}: array {name!r} is stored with its first axis fastest; save it in C order")
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < count:
            raise BadDataError(f"{path}: array {name!r} has {count} rows, not {wanted.min()} to {wanted.max()}")
        kept: dict[int, np.ndarray] = {}
        step = max(1, BLOCK_BYTES // max(header.row_bytes, 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            block = np.frombuffer(_exactly(file, (stop - start) * header.row_bytes), header.dtype)
            inside = np.unique(wanted[(wanted >= start) & (wanted < stop)])
            if len(inside):
                values = convert(block.reshape(stop - start, *header.shape[1:])[inside - start])
                kept |= dict(zip(inside.tolist(), values, strict=True))
        file.read(1)
    return [kept[int(row)] for row in wanted]


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Read a number of bytes.

    Raises:
        EOFError: If the file ends before.
    """
    content = file.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} of {size} bytes are there")
    return content
