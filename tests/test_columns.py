"""Fixed-size binary columns: what goes in comes out, bit for bit, through Parquet, slices and chunks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from bench.data.shards.columns import from_column, to_column

DTYPES = ["<i2", "<f4", "<f2", "<f8", "|u1"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 4), (4, 1), (1, 3)])
def test_round_trip(dtype, shape):
    rows = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    column = to_column(rows)
    assert column.type == pa.binary(rows[0].nbytes)
    back = from_column(column, np.dtype(dtype), shape[1:])
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, rows)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5)))
@settings(max_examples=50, deadline=None)
def test_every_bit_is_kept(rows):
    back = from_column(to_column(rows), rows.dtype, rows.shape[1:])
    assert back.tobytes() == rows.tobytes()


def test_bytes_are_those_of_a_loop_over_values():
    rows = np.array([[1, -2], [300, -32768]], dtype=np.int16)
    expected = [b"".join(int(v).to_bytes(2, "little", signed=True) for v in row) for row in rows]
    assert to_column(rows).to_pylist() == expected


def test_big_endian_and_strided_rows_are_stored_little_endian():
    rows = np.arange(24, dtype=">i4").reshape(4, 6)
    np.testing.assert_array_equal(from_column(to_column(rows), np.dtype("<i4"), (6,)), rows)
    np.testing.assert_array_equal(from_column(to_column(rows.T), np.dtype("<i4"), (4,)), rows.T)


def test_one_chunk_is_read_without_copying():
    column = to_column(np.arange(12, dtype=np.float32).reshape(4, 3))
    back = from_column(column, np.dtype(np.float32), (3,))
    assert back.__array_interface__["data"][0] == column.buffers()[1].address


def test_slices_and_chunks():
    rows = np.arange(40, dtype=np.int16).reshape(10, 4)
    column = to_column(rows)
    np.testing.assert_array_equal(from_column(column.slice(3, 5), rows.dtype, (4,)), rows[3:8])
    chunked = pa.chunked_array([column.slice(0, 4), column.slice(4, 0), column.slice(4)])
    np.testing.assert_array_equal(from_column(chunked, rows.dtype, (4,)), rows)


def test_no_rows():
    empty = np.empty((0, 4), np.float32)
    column = to_column(empty)
    assert column.type == pa.binary(16)
    assert from_column(column, np.dtype(np.float32), (4,)).shape == (0, 4)
    none = pa.chunked_array([], type=pa.binary(16))
    assert from_column(none, np.dtype(np.float32), (4,)).shape == (0, 4)


def test_through_parquet(tmp_path):
    rows = np.random.default_rng(0).standard_normal((50, 9)).astype(np.float32)
    rows[3, 4] = np.nan
    pq.write_table(pa.table({"betas": to_column(rows)}), tmp_path / "a.parquet", row_group_size=7)
    column = pq.read_table(tmp_path / "a.parquet")["betas"]
    np.testing.assert_array_equal(from_column(column, rows.dtype, (9,)), rows)


def test_another_width_is_refused():
    column = to_column(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"fixed_size_binary\[16\].*is not \(5,\) of float32 \(20 bytes\)"):
        from_column(column, np.dtype(np.float32), (5,))


def test_nulls_are_refused():
    column = pa.array([b"abcd", None], pa.binary(4))
    with pytest.raises(ValueError, match=r"with 1 nulls"):
        from_column(column, np.dtype(np.float32), (1,))
