"""Voxels of gzipped volumes against nibabel's own reading, in both byte orders; streams that end early; scalings."""

import gzip
import io

import nibabel
import numpy as np
import pytest

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.sources import nifti

BOX = (4, 3, 5)


def written(dtype: str, trials: int = 6) -> tuple[bytes, np.ndarray]:
    """A gzipped file of random volumes, and what nibabel reads from it."""
    values = np.random.default_rng(3).integers(-300, 300, (*BOX, trials)).astype(dtype)
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    content = nibabel.Nifti1Image(values, np.eye(4), header).to_bytes()
    return gzip.compress(content), np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)


def read(content: bytes, coordinates: np.ndarray, trials: int) -> np.ndarray:
    with gzip.open(io.BytesIO(content)) as stream:
        return nifti.read_trials(stream, nibabel.Nifti1Header.from_fileobj(stream), coordinates, BOX, trials)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4"])
def test_voxels_in_any_order_are_those_nibabel_reads(dtype):
    content, expected = written(dtype)
    places = np.argwhere(np.ones(BOX, bool))
    for chosen in (places, np.random.default_rng(0).permutation(places)[:7], places[:0]):
        found = read(content, chosen, 6)
        assert found.dtype == np.dtype(dtype).newbyteorder("<") and found.shape == (6, len(chosen))
        assert np.array_equal(found, np.array([expected[tuple(at)] for at in chosen]).reshape(-1, 6).T)


def test_a_stream_that_ends_early_says_in_which_trial():
    content, _ = written("<i2", trials=3)
    with pytest.raises(EOFError, match="it ends in trial 4 of 6"):
        read(content, np.zeros((1, 3), int), 6)


@pytest.mark.parametrize(
    ("slope", "intercept", "fine"),
    [(0, 0, True), (1, 0, True), (np.nan, np.nan, True), (0, 5, True), (0.5, 0, False), (1, 2, False)],
)
def test_only_numbers_that_are_stored_as_they_are_meant_are_read(slope, intercept, fine):
    header = nibabel.Nifti1Header()
    header["scl_slope"], header["scl_inter"] = slope, intercept
    if fine:
        nifti.check_unscaled(header, "a.nii.gz", "Our betas")
    else:
        with pytest.raises(BadDataError, match=rf"a.nii.gz has scl_slope {slope:.1f}, .*; Our betas have none"):
            nifti.check_unscaled(header, "a.nii.gz", "Our betas")


def test_a_file_that_goes_on_behind_its_last_volume_is_refused(tmp_path):
    content, expected = written("<i2")
    path, places = tmp_path / "a.nii.gz", np.argwhere(np.ones(BOX, bool))
    came = []

    def read_file() -> np.ndarray:
        return nifti.read_voxels(path, places, BOX, 6, lambda *header: came.append(header), "Our betas")

    path.write_bytes(content)
    assert np.array_equal(read_file(), expected.reshape(-1, 6).T)
    assert came == [(np.dtype("<i2"), (*BOX, 6))]
    path.write_bytes(content + gzip.compress(b"one more"))
    with pytest.raises(CorruptFileError, match=r"a\.nii\.gz holds more than its header says"):
        read_file()
