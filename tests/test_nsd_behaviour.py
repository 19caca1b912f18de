"""Responses against the design, and files of NSD that are damaged at random."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from file_damage import check_cuts, check_flips
from hypothesis import given, settings
from hypothesis import strategies as st
from nsd_copy import BOX, SPACE, write_copy, write_pictures

from bench.core.errors import BadDataError, CorruptFileError
from bench.data import roi
from bench.data.datasets.nsd import behaviour, layout, volumes
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.data.datasets.nsd.design import read_design
from bench.data.simulate.nsd_copy import volumes as nsd_volumes


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    made = write_copy(tmp_path_factory.mktemp("nsd"), {1: (1,)})
    write_pictures(made, np.unique(Nsd(NsdOptions(root=str(made.root))).trials(1, 1).stimulus)[:5])
    return made


@pytest.fixture
def nsd(copy):
    return Nsd(NsdOptions(root=str(copy.root)))


@pytest.fixture
def responses(copy, tmp_path):
    """A table of responses to be changed, and where to write it."""
    return pd.read_csv(copy.root / layout.responses(1), sep="\t"), tmp_path / "responses.tsv"


def write(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, sep="\t", index=False, na_rep="NaN")
    return path


def test_responses_count_from_zero(copy, nsd):
    found = behaviour.read_responses(copy.root / layout.responses(1))
    raw = np.genfromtxt(copy.root / layout.responses(1), names=True, deletechars="", delimiter="\t")
    assert np.array_equal(found.stimulus, raw["73KID"] - 1)
    assert np.array_equal(found.own, raw["10KID"] - 1)
    assert np.array_equal(nsd.design.pictures[0][found.own], found.stimulus)
    assert np.array_equal(found.is_old, nsd.trials(1, 1).repeat > 0)
    assert np.array_equal(found.reaction_time, raw["RT"], equal_nan=True)


def test_responses_agree_with_the_design(copy, nsd):
    assert nsd.crosscheck() == 750
    assert behaviour.check(copy.root / layout.responses(1), nsd.design, 1) == 750


def test_another_subjects_responses_are_found_out(copy, nsd):
    with pytest.raises(BadDataError, match=r"session 1, trial \d+ shows picture \d+ .*the design says \d+"):
        behaviour.check(copy.root / layout.responses(1), nsd.design, 2)


def test_off_by_one_is_found_out(nsd, responses):
    table, path = responses
    table["73KID"] += 1
    with pytest.raises(BadDataError, match=r"trial 1 shows .*; 750 trials differ"):
        behaviour.check(write(table, path), nsd.design, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda table: table.iloc[:-1], BadDataError, "session 1 has 749 trials, the design 750"),
        (lambda table: table.drop(columns=["RT", "10KID"]), CorruptFileError, "lacks the columns 10KID, RT"),
        (lambda table: table.assign(**{"73KID": table["73KID"] - 80_000}), BadDataError, "whole numbers from 1"),
        (lambda table: table.assign(**{"73KID": table["73KID"] + 0.5}), BadDataError, "whole numbers from 1"),
        (lambda table: table.assign(SESSION="one"), CorruptFileError, "cannot be read as a table of responses"),
    ],
)
def test_tables_that_are_none(nsd, responses, change, error, message):
    table, path = responses
    with pytest.raises(error, match=message):
        behaviour.check(write(change(table), path), nsd.design, 1)


FOLDER = layout.betas_folder(1, SPACE, "betas_fithrf_GLMdenoise_RR")
EVERYWHERE = np.argwhere(np.ones(BOX, bool)).astype(np.int32)
READS = {
    layout.DESIGN: lambda path: read_design(path).pictures,
    layout.roi_volume(1, SPACE, "nsdgeneral"): volumes.read_labels,
    layout.session_betas(FOLDER, 1, "hdf5"): lambda path: volumes.read_hdf5(path, EVERYWHERE, BOX, 750)[0],
    layout.session_betas(FOLDER, 1, "nifti"): lambda path: volumes.read_nifti(path, EVERYWHERE, BOX, 750)[0],
    layout.responses(1): lambda path: behaviour.read_responses(path).stimulus,
}
"""How the numbers of each kind of file are read."""


@pytest.mark.parametrize("key", [key for key in READS if not key.endswith(".tsv")])
def test_a_file_cut_anywhere_is_an_error_that_names_it(copy, key, tmp_path):
    path = tmp_path / Path(key).name
    path.write_bytes((copy.root / key).read_bytes())
    check_cuts(path, lambda: READS[key](path), count=8)


@pytest.mark.parametrize("key", [key for key in READS if key.endswith(".gz")])
def test_a_changed_byte_of_nifti_is_found_by_its_checksum(copy, key, tmp_path):
    path = tmp_path / Path(key).name
    path.write_bytes((copy.root / key).read_bytes())
    assert check_flips(path, lambda: READS[key](path), count=25) >= 15


def test_a_cut_table_of_responses_is_missed_by_the_design(copy, nsd, tmp_path):
    """A text file does not say where it ends: what it lacks shows when it is compared."""
    content = (copy.root / layout.responses(1)).read_bytes()
    path = tmp_path / "responses.tsv"
    for share in (0.0, 0.3, 0.7, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises((CorruptFileError, BadDataError), match=r"responses\.tsv"):
            behaviour.check(path, nsd.design, 1)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_mask_and_any_label(data, tmp_path_factory):
    """Labels are whole numbers from -1 on the NIfTI axes; voxels of a mask are those above 0."""
    seed, low = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from([-1, 0, -2]))
    volume = np.random.default_rng(seed).integers(low, data.draw(st.integers(1, 200)), BOX).astype(np.int16)
    path = tmp_path_factory.mktemp("mask") / "nsdgeneral.nii.gz"
    nsd_volumes.write_nifti(path, volume, SPACE)
    if volume.min() < -1:
        with pytest.raises(BadDataError, match=r"nsdgeneral\.nii\.gz goes from -2"):
            volumes.read_labels(path)
        return
    labels = volumes.read_labels(path)
    assert np.array_equal(labels, volume)
    chosen = roi.mask("nsdgeneral", {"nsdgeneral": labels}, {"nsdgeneral": {}})
    assert np.array_equal(chosen, volume > 0)
