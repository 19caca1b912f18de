"""NSD-synthetic and NSD-imagery against what was written, read slowly; mistakes and damage."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
from layouts import nsd_imagery, nsd_synthetic
from nsd_copy import SPACE

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.storage import Folder
from bench.data.datasets.nsd import layout
from bench.data.datasets.nsd.design import read_design
from bench.data.datasets.nsd.side_experiment import SideOptions
from bench.data.datasets.nsd_imagery import ImageryOptions, NsdImagery, blocks
from bench.data.datasets.nsd_synthetic import NsdSynthetic
from bench.data.shards.manifest import read_manifest, session_path
from bench.data.splits import ROLES, Split
from bench.prepare import prepare, verify


@pytest.fixture
def synthetic(tmp_path):
    return tmp_path / "root", nsd_synthetic.write(tmp_path / "root")


@pytest.fixture
def imagery(tmp_path):
    return tmp_path / "root", nsd_imagery.write(tmp_path / "root")


def whole(root: Path, experiment: str, subject: int) -> np.ndarray:
    """Reference: the whole volume through nibabel, `(T, V)` in canonical order."""
    folder = root / layout.betas_folder(subject, SPACE, f"{experiment}betas_fithrf_GLMdenoise_RR")
    volume = np.asarray(nibabel.load(folder / f"betas_{experiment}.nii.gz").dataobj)
    mask = np.asarray(nibabel.load(root / layout.roi_volume(subject, SPACE, "nsdgeneral")).dataobj) > 0
    return volume[mask].T


def imagery_reader(root, **options) -> NsdImagery:
    return NsdImagery(ImageryOptions(root=str(root), **options))


def test_synthetic_betas_and_pictures(synthetic):
    root, facts = synthetic
    reader = NsdSynthetic(SideOptions(root=str(root)))
    assert reader.sessions() == [(1, 1), (3, 1)] and reader.name == "nsd-synthetic"
    for subject in (1, 3):
        read = reader.read_session(subject, 1, reader.voxels(subject))
        assert np.array_equal(read.betas, whole(root, "nsdsynthetic", subject))
        for trial in range(0, 744, 31):
            picture = next(iter(reader.stimuli([int(read.stimulus[trial])]))).image
            shown = int(facts.ordering[trial])
            expected = facts.common[shown - 1] if shown <= 220 else facts.coloured[subject][shown - 221]
            assert np.array_equal(picture, expected)


def test_coloured_pictures_of_two_subjects_are_different_stimuli(synthetic):
    reader = NsdSynthetic(SideOptions(root=str(synthetic[0])))
    first, third = reader.trials(1, 1).stimulus, reader.trials(3, 1).stimulus
    same = first == third
    assert np.array_equal(same, synthetic[1].ordering <= 220)
    assert not set(first[~same]) & set(third[~same])
    assert reader.trials(1, 1).repeat.max() >= 1


@pytest.mark.parametrize("kind", ["vision", "imagery"])
def test_imagery_rows_are_those_of_the_runs(imagery, kind):
    root, facts = imagery
    reader = imagery_reader(root, trials=kind)
    runs = [run for run in nsd_imagery.RUNS if run.startswith(kind[:3] if kind == "vision" else "img")]
    rows = np.concatenate([np.arange(720)[blocks()[run]] for run in runs])
    for subject in (1, 2):
        read = reader.read_session(subject, 1, reader.voxels(subject))
        assert read.trial.tolist() == rows.tolist()
        assert read.stimulus.tolist() == facts.shown[subject][rows].tolist()
        assert np.array_equal(read.betas, whole(root, "nsdimagery", subject)[rows])
        showings = pd.Series(read.stimulus).value_counts()
        assert set(showings) == {8 if kind == "vision" else 16} and len(showings) == 18
    assert kind in reader.label and reader.trials_stored(1, 1) == 720


def test_blocks_are_the_published_ones():
    starts = {run: (rows.start, rows.stop) for run, rows in blocks().items()}
    expected = [0, 48, 144, 192, 240, 336, 384, 432, 528, 576, 624, 672, 720]
    assert [start for start, _ in starts.values()] == expected[:-1]
    assert [stop for _, stop in starts.values()] == expected[1:]


def test_targets_are_pictures_and_words(imagery):
    root, facts = imagery
    reader = imagery_reader(root)
    targets = list(reader.stimuli(range(18)))
    names = [name for letter in "ABC" for name in nsd_imagery.TARGETS[letter]]
    assert [target.label for target in targets] == names
    for target in targets[:12]:
        assert np.array_equal(target.image, facts.pictures[target.label])
    assert all(target.image is None for target in targets[12:])
    assert reader.nsd_targets == {28751, 30856, 53881, 61177, 65872}


@pytest.mark.skipif(
    "RECONBENCH_NSD_EXPDESIGN" not in os.environ, reason="RECONBENCH_NSD_EXPDESIGN does not point to nsd_expdesign.mat"
)
def test_the_split_keeps_the_five_targets_out_of_training(imagery):
    design = read_design(Path(os.environ["RECONBENCH_NSD_EXPDESIGN"]))
    targets = np.array(sorted(imagery_reader(imagery[0]).nsd_targets))
    assert set(targets) <= set(design.shared)
    roles = Split().roles(targets, np.isin(targets, design.shared))
    assert [ROLES[role] for role in roles] == ["test"] * 5


@pytest.mark.parametrize("which", ["synthetic", "imagery"])
def test_prepared_they_are_all_test(request, which, tmp_path, ray_session):
    root, _ = request.getfixturevalue(which)
    reader = NsdSynthetic(SideOptions(root=str(root))) if which == "synthetic" else imagery_reader(root)
    shards = prepare(reader, Folder.at(tmp_path / "data"), advance=lambda units, note: None)
    assert verify(reader, Folder.at(tmp_path / "data"), advance=lambda units, note: None) > 0
    table = shards.read_table(session_path(1, 1))
    assert table["trial"].to_pylist() == reader.trials(1, 1).trial.tolist()
    stimuli = Folder.at(Path(shards.uri).parent / read_manifest(shards).stimuli).read_table("part-0.parquet")
    assert all(stimuli["shared"].to_pylist())
    roles = Split().roles(table["stimulus"].to_numpy(), np.ones(table.num_rows, bool))
    assert {ROLES[role] for role in roles} == {"test"}


def test_mistakes(synthetic, tmp_path):
    root = str(synthetic[0])
    with pytest.raises(UnknownNameError, match="Did you mean 'fithrf'"):
        NsdSynthetic(SideOptions(root=root, betas="fithr"))
    with pytest.raises(UnknownNameError, match="unknown space 'fsaverage'"):
        NsdSynthetic(SideOptions(root=root, space="fsaverage"))
    with pytest.raises(MissingDataError, match=r"no betas of subject 2, session 1: .*betas_nsdsynthetic\.hdf5 or"):
        NsdSynthetic(SideOptions(root=root, subjects=(2,))).sessions()
    with pytest.raises(OptionError, match="no session 2: NSD-synthetic has one session a subject"):
        NsdSynthetic(SideOptions(root=root, sessions=(2,))).sessions()
    with pytest.raises(OptionError, match="no session 2: NSD-synthetic has one session a subject"):
        NsdSynthetic(SideOptions(root=root)).trials(1, 2)
    with pytest.raises(
        MissingDataError,
        match=r"has no betas .*, such as nsddata_betas/ppdata/subj01/func1pt8mm/nsdsyntheticbetas_fithrf",
    ):
        NsdSynthetic(SideOptions(root=str(tmp_path / "nowhere"))).sessions()


def test_a_damaged_synthetic_design(synthetic):
    root = synthetic[0]
    path = root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    for ordering in (np.arange(744), np.arange(1, 745)):
        scipy.io.savemat(path, {"masterordering": ordering})
        with pytest.raises(BadDataError, match=r"nsdsynthetic_expdesign\.mat: masterordering must hold pictures 1"):
            _ = NsdSynthetic(SideOptions(root=str(root))).ordering
    scipy.io.savemat(path, {"masterordering": np.arange(1, 101)})
    with pytest.raises(BadDataError, match="betas of shape"):
        reader = NsdSynthetic(SideOptions(root=str(root)))
        reader.read_session(1, 1, reader.voxels(1))
    for content in (path.read_bytes()[:60], b"", b"not a design"):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"nsdsynthetic_expdesign\.mat"):
            _ = NsdSynthetic(SideOptions(root=str(root))).ordering


def test_damaged_imagery(imagery):
    root, _ = imagery
    behaviour = root / "nsddata/bdata/nsdimagery"
    path = behaviour / "nsdimagery_subj01_visB.tsv"
    table = pd.read_csv(path, sep="\t")
    table.iloc[:40].to_csv(path, sep="\t", index=False)
    with pytest.raises(BadDataError, match=r"visB\.tsv has 40 trials"):
        imagery_reader(root).trials(1, 1)
    swapped = table.copy()
    swapped.loc[0, "IMAGEFILE"] = "another.png"
    swapped.to_csv(path, sep="\t", index=False)
    with pytest.raises(BadDataError, match="6 conditions with one picture each"):
        imagery_reader(root).trials(1, 1)
    table.drop(columns="CONDITION").to_csv(path, sep="\t", index=False)
    with pytest.raises(CorruptFileError, match=r"visB\.tsv cannot be read as a table"):
        imagery_reader(root).trials(1, 1)
    table.to_csv(path, sep="\t", index=False)
    other = behaviour / "nsdimagery_subj01_imgC_2.tsv"
    strange = pd.read_csv(other, sep="\t")
    strange.loc[3, "CONDITION"] = 77
    strange.to_csv(other, sep="\t", index=False)
    with pytest.raises(BadDataError, match=r"run imgC_2: conditions \[77\]"):
        imagery_reader(root, trials="imagery").trials(1, 1)
    picture = root / "nsddata/experiments/nsdimagery/rawtargetimages/setA/cross.png"
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(CorruptFileError, match=r"cross\.png cannot be read as a picture"):
        list(imagery_reader(root).stimuli([4]))
    picture.unlink()
    with pytest.raises(BadDataError, match=r"run visA shows 'cross\.png'"):
        _ = imagery_reader(root).targets
