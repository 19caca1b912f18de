"""Rows of numbers as a fixed-size binary Parquet column, and back without copying.

Measured against list columns, fixed-size binary scans about ten times faster: one buffer, no offsets.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def to_column(rows: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Return `(N, ...)` numbers as N fixed-size binary values in C order, little-endian."""
    rows = np.ascontiguousarray(rows)
    rows = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    width = rows[0].nbytes if rows.shape[0] else int(np.prod(rows.shape[1:])) * rows.itemsize
    buffer = pa.py_buffer(rows.reshape(-1).view(np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows.shape[0], [None, buffer])


def from_column(column: pa.Array | pa.ChunkedArray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return N fixed-size binary values as `(N, *shape)` numbers; a view where the column is one chunk.

    Args:
        column: What `to_column` made, possibly sliced.
        dtype: Number type of the values.
        shape: Shape of one value.

    Raises:
        ValueError: If the width of a value is not that of `shape` and `dtype`, or a value is null.
    """
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1:
            parts = [from_column(chunk, dtype, shape) for chunk in column.chunks]
            return np.concatenate(parts) if parts else np.empty((0, *shape), dtype)
        column = column.chunk(0)
    width = int(np.prod(shape)) * dtype.itemsize
    if column.type.byte_width != width or column.null_count:
        raise ValueError(
            f"column of {column.type} with {column.null_count} nulls is not {shape} of {dtype} ({width} bytes)"
        )
    data = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    start = column.offset * width
    return data[start : start + len(column) * width].view(dtype).reshape(len(column), *shape)


def binary_row(array: np.ndarray) -> pa.LargeBinaryArray:
    """Return a column of one row that holds an array's bytes, without copying them.

    Args:
        array: Contiguous, any shape; shape and dtype are the reader's to know.
    """
    content = pa.py_buffer(np.ascontiguousarray(array))
    offsets = pa.py_buffer(np.array([0, content.size], "<i8"))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def from_binary_row(column: pa.Array | pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    """Return the numbers of a one-row column as a flat, read-only view of its memory."""
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    # Not `array[0].as_buffer()`: Arrow copies a binary value when it makes a scalar of it.
    _, offsets, content = array.buffers()
    start, stop = np.frombuffer(offsets, "<i8")[array.offset : array.offset + 2]
    values = np.frombuffer(content, np.uint8)[start:stop].view(dtype)
    values.flags.writeable = False  # what Ray keeps inline with its reference would be writable
    return values
