"""Rows of .npy files and arrays of .npz archives against numpy.load, whole and damaged."""

import io

import numpy as np
import pytest
from file_damage import check_cuts, check_flips
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.data.sources import npy
from bench.data.sources.files import SourceFiles

DTYPES = st.sampled_from(["<f4", ">f4", "<f8", "<i2", "|u1", "|b1"])


@pytest.fixture
def files(tmp_path):
    return SourceFiles(str(tmp_path))


def rows_of(files, key, rows):
    return npy.read_rows(files, key, npy.header_of(files, key), rows)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), version=st.sampled_from([(1, 0), (2, 0), (3, 0)]), fortran=st.booleans())
def test_any_header_is_numpys(data, version, fortran):
    array = data.draw(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    array = np.asfortranarray(array) if fortran else array
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    header = npy.read_header(io.BytesIO(content.getvalue()), "array")
    assert (header.shape, header.dtype) == (array.shape, array.dtype)
    assert header.fortran == (array.flags.f_contiguous and not array.flags.c_contiguous)
    assert header.size == len(content.getvalue())


@settings(max_examples=30, deadline=None)
@given(array=hnp.arrays(DTYPES, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)), data=st.data())
def test_any_rows_are_numpys(tmp_path_factory, array, data):
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "a.npy", array)
    start = data.draw(st.integers(0, len(array)))
    stop = data.draw(st.integers(start, len(array)))
    found = rows_of(SourceFiles(str(folder)), "a.npy", slice(start, stop))
    np.testing.assert_array_equal(found, np.load(folder / "a.npy")[start:stop])


def test_a_header_longer_than_usual(files, tmp_path):
    """Padded headers, as some writers leave room to grow."""
    array, text = np.arange(6.0).reshape(3, 2), b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2)}"
    text = text.ljust(999) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes())
    np.testing.assert_array_equal(rows_of(files, "a.npy", slice(1, 3)), array[1:])


def test_what_is_no_array_of_numbers(files, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "fields.npy", np.zeros(3, dtype=[("a", "<f4")]))
    for name in ("objects.npy", "fields.npy"):
        with pytest.raises(CorruptFileError, match=rf"{name} holds .*not an array of numbers"):
            npy.header_of(files, name)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.zeros((3, 2))))
    with pytest.raises(BadDataError, match=r"fortran.npy is stored with its first axis fastest"):
        rows_of(files, "fortran.npy", slice(0, 1))
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    with pytest.raises(BadDataError, match=r"short.npy has shape \(3, 2\): rows 2 to 4"):
        rows_of(files, "short.npy", slice(2, 4))
    with pytest.raises(MissingDataError, match=r"no file .*gone.npy"):
        npy.header_of(files, "gone.npy")


def test_damaged_arrays(files, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(0).random((9, 7)))
    check_cuts(path, lambda: rows_of(files, "a.npy", slice(0, 9)))
    check_flips(path, lambda: rows_of(files, "a.npy", slice(0, 9)), count=120, first=128)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CorruptFileError, match=r"a.npy has 633 bytes, its header .* says 632"):
        npy.header_of(files, "a.npy")


@pytest.fixture(params=[np.savez, np.savez_compressed])
def archive(request, tmp_path):
    rng = np.random.default_rng(0)
    request.param(tmp_path / "a.npz", rows=rng.random((50, 3)), turned=np.asfortranarray(rng.random((4, 3))), n=3)
    return tmp_path / "a.npz"


def test_arrays_of_an_archive(archive):
    expected = np.load(archive)
    assert npy.member_names(archive) == sorted(expected.files)
    for name in expected.files:
        np.testing.assert_array_equal(npy.read_member(archive, name), expected[name])
        assert npy.member_header(archive, name).shape == expected[name].shape
    with pytest.raises(MissingDataError, match=r"a.npz has no array 'columns'; it has n, rows, turned"):
        npy.read_member(archive, "columns")
    with pytest.raises(BadDataError, match="'turned' is stored with its first axis fastest"):
        npy.read_member_rows(archive, "turned", [0], np.asarray)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 49), max_size=20), block=st.integers(1, 300))
def test_rows_of_an_archive_in_any_order_and_any_blocks(tmp_path_factory, rows, block):
    path = tmp_path_factory.mktemp("rows") / "a.npz"
    values = np.random.default_rng(0).random((50, 3))
    np.savez(path, rows=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy, "BLOCK_BYTES", block)
        found = npy.read_member_rows(path, "rows", rows, lambda some: some * 2)
    np.testing.assert_array_equal(np.array(found).reshape(-1, 3), values[rows] * 2)


def test_rows_that_an_archive_does_not_have(archive):
    with pytest.raises(BadDataError, match="'rows' has 50 rows, not 3 to 50"):
        npy.read_member_rows(archive, "rows", [50, 3], np.asarray)


def test_damaged_archives(archive):
    check_cuts(archive, lambda: npy.read_member(archive, "rows"))
    refused = check_flips(archive, lambda: npy.read_member(archive, "rows"), count=150)
    assert refused > 50
    check_flips(archive, lambda: np.array(npy.read_member_rows(archive, "rows", [1, 30], np.asarray)), count=150)
