"""The THINGS-fMRI reader against pandas, h5py by hand, and against mistakes, damage and hostile files."""

import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from file_damage import check_cuts, check_flips, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import copy_of
from layouts import things as layout
from PIL import Image

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.options import build
from bench.core.storage import Folder
from bench.data.datasets.things.dataset import Things, ThingsOptions
from bench.data.datasets.things.pickled_names import read_names
from bench.data.datasets.things.responses import read_betas, read_table
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import read_manifest, session_path
from bench.data.sources import retries
from bench.prepare import prepare, verify

TRIALS = layout.TRIALS
PARTS = ("StimulusMetadata.csv", "VoxelMetadata.csv", "ResponseData.h5")


copy = copy_of("things")


@pytest.fixture
def own(copy, tmp_path) -> Path:
    """Subject 1 of the copy in a folder of its own without pictures, to be damaged."""
    folder = tmp_path / "own" / "betas_csv"
    folder.mkdir(parents=True)
    for part in PARTS:
        shutil.copy(copy[0] / "betas_csv" / f"sub-01_{part}", folder)
    return folder.parent


def reader(root, **options) -> Things:
    return Things(build(ThingsOptions, {"root": str(root), **options}, "options of dataset 'things'"))


def path_of(root: Path, subject: int, part: str) -> Path:
    return root / "betas_csv" / f"sub-{subject:02d}_{part}"


def table(root: Path, subject: int, part: str) -> pd.DataFrame:
    return pd.read_csv(path_of(root, subject, part))


# Betas


@pytest.mark.parametrize(("subject", "session"), [(1, 1), (1, 12), (2, 7)])
def test_betas_are_those_of_the_frame(copy, subject, session):
    root, facts = copy
    data = reader(root, voxelset="V1 | V2 | V3 | hV4")
    read = data.read_session(subject, session, data.voxels(subject))
    voxels, shown = table(root, subject, "VoxelMetadata.csv"), table(root, subject, "StimulusMetadata.csv")
    inside = voxels[voxels[["V1", "V2", "V3", "hV4"]].any(axis=1)].sort_values(["voxel_x", "voxel_y", "voxel_z"])
    trials = shown[shown["session"] == session]["trial_id"].tolist()
    with h5py.File(path_of(root, subject, "ResponseData.h5")) as file:
        ids, values = file["ResponseData/block1_values"][:, 0].tolist(), file["ResponseData/block0_values"][()]
    expected = [[values[ids.index(voxel), trial] for voxel in inside["voxel_id"]] for trial in trials]
    np.testing.assert_array_equal(read.betas, np.array(expected, dtype=np.float32))
    assert read.trial.tolist() == trials and len(trials) == 820
    np.testing.assert_array_equal(
        data.voxels(subject).coordinates, inside[["voxel_x", "voxel_y", "voxel_z"]].to_numpy()
    )
    assert read.bytes_read == 820 * len(inside) * 8 == data.reads(subject, session, len(inside))[1]
    np.testing.assert_array_equal(values, facts.betas[subject])
    # Rows of the second subject lie in another order than its voxels: without `voxel_id` they would be mixed up.
    assert (facts.voxel[subject].tolist() == sorted(facts.voxel[subject].tolist())) == (subject == 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_of_voxels_trials_and_columns(tmp_path_factory, data):
    voxels, trials = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
    ids = np.array(data.draw(st.lists(st.integers(0, 400), min_size=voxels, max_size=voxels, unique=True)))
    order = np.array(data.draw(st.permutations(range(trials))))
    path = tmp_path_factory.mktemp("frame") / "sub-01_ResponseData.h5"
    betas = np.random.default_rng(0).normal(size=(voxels, trials))
    chunks = data.draw(st.sampled_from([None, (1, 1), (voxels, 1)]))
    words, together = data.draw(st.booleans()), data.draw(st.booleans())
    layout.write_responses(path, ids, betas, words, together, chunks if not together else None, order)
    wanted = np.array(data.draw(st.lists(st.sampled_from(ids.tolist()), min_size=1)))
    chosen = np.array(data.draw(st.lists(st.integers(0, trials - 1), min_size=1)))
    found, _ = read_betas(path, read_table(path, trials), wanted, chosen)
    row, column = ({value: place for place, value in enumerate(values.tolist())} for values in (ids, order))
    expected = [[betas[row[v], column[t]] for v in wanted.tolist()] for t in chosen.tolist()]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))


def test_a_table_of_full_size_is_never_read_whole(tmp_path):
    """Subject 1's true 211,339 x 9,840 betas, of which HDF5 stores none as long as they are zero."""
    path, voxels = tmp_path / "sub-01_ResponseData.h5", 211_339
    layout.write_responses(path, np.arange(voxels), np.zeros((voxels, 1)), words=True)
    with h5py.File(path, "a") as file:
        frame = file["ResponseData"]
        del frame["block0_values"], frame["block0_items"]
        frame["block0_items"] = np.arange(TRIALS)
        frame.create_dataset("block0_values", (voxels, TRIALS), "<f8")
    tracemalloc.start()
    found, count = read_betas(path, read_table(path, TRIALS), np.arange(1000, 6000), np.arange(820))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (820, 5000) and not found.any() and count == 5000 * 820 * 8
    assert peak < found.nbytes + (40 << 20)


# Names of columns


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(), st.integers(0, 9839).map(np.int64)), min_size=1),
    protocol=st.integers(3, 5),
)
def test_pickled_names_are_what_opening_the_pickle_gives(names, protocol):
    array = np.empty(len(names), dtype=object)
    array[:] = names
    pickled = pickle.dumps(array, protocol)
    assert read_names(pickled) == [str(name) for name in pickle.loads(pickled)]


class Hostile:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("inside", [True, False])
def test_a_pickle_is_never_opened(own, tmp_path, inside):
    trap = tmp_path / "sprung"
    content = np.array([Hostile(trap), *range(TRIALS)], dtype=object) if inside else Hostile(trap)
    path = path_of(own, 1, "ResponseData.h5")
    with h5py.File(path, "a") as file:
        del file["ResponseData/block0_items"]
        layout.write_pickled(file["ResponseData"], "block0_items", pickle.dumps(content))
    with pytest.raises(CorruptFileError, match=r"sub-01_ResponseData.h5 .*pickled names"):
        read_table(path, TRIALS)
    assert not trap.exists()
    pickle.loads(pickle.dumps(content))
    assert trap.exists()  # it was a trap


class Shell(Hostile):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_name_that_no_array_needs_is_refused(tmp_path, protocol):
    trap = tmp_path / "sprung"
    pickled = pickle.dumps(np.array([1, Shell(trap)], dtype=object), protocol)
    with pytest.raises(ValueError, match=rf"the pickled names use {os.system.__module__}\.system, which an array"):
        read_names(pickled)
    assert not trap.exists()
    pickle.loads(pickled)
    assert trap.exists()  # it was a trap


class Huge:
    """An array of 2^50 numbers, as a pickle would have NumPy make one."""

    def __reduce__(self):
        return np.zeros(0).__reduce__()[0], (np.ndarray, (1 << 50,), b"d")


def test_numpy_itself_is_not_called():
    with pytest.raises(ValueError, match="the pickled names hold _Array, not only numbers and words"):
        read_names(pickle.dumps(np.array([1, Huge()], dtype=object)))


# Trials and images


def test_trials_images_and_repeats(copy):
    root, facts = copy
    data = reader(root)
    names = sorted({*table(root, 1, "StimulusMetadata.csv")["stimulus"]})
    assert list(data.images.names) == names and len(names) == 8740
    for subject in (1, 2):
        seen: dict[int, int] = {}
        shown = table(root, subject, "StimulusMetadata.csv")
        for session in range(1, 13):
            trials, rows = data.trials(subject, session), shown[shown["session"] == session]
            assert trials.trial.tolist() == rows["trial_id"].tolist()
            assert [names[number] for number in trials.stimulus] == rows["stimulus"].tolist()
            for number, repeat in zip(trials.stimulus.tolist(), trials.repeat.tolist(), strict=True):
                assert repeat == seen.get(number, 0)
                seen[number] = repeat + 1
        assert {names[number] for number, count in seen.items() if count == 12} == set(facts.test)
        assert sorted(seen.values()) == [1] * 8640 + [12] * 100


def test_every_test_concept_is_a_training_concept(copy):
    """What a decoder of labels must know: stimuli say their concept as label, so that an audit can see it."""
    root, facts = copy
    images = reader(root).images
    training = {concept for concept, test in zip(images.concepts, images.test, strict=True) if not test}
    tested = {concept for concept, test in zip(images.concepts, images.test, strict=True) if test}
    assert len(training) == 720 and len(tested) == 100 and tested <= training
    assert {name for name, test in zip(images.names, images.test, strict=True) if test} == set(facts.test)


def test_pictures(copy, tmp_path):
    root, facts = copy
    data = reader(root)
    numbers = data.images.numbers(np.array([facts.pictures[5], next(n for n in facts.pictures if n in facts.test)]))
    for stimulus, number in zip(data.stimuli(numbers.tolist()), numbers.tolist(), strict=True):
        name = data.images.names[number]
        concept = name.rpartition("_")[0]
        np.testing.assert_array_equal(stimulus.image, np.asarray(Image.open(root / "images" / concept / name)))
        assert stimulus.label == concept and stimulus.shared == (name in facts.test) and stimulus.captions == ()
        assert data.origins([number]) == [f"things:{concept}/{name}"]
    absent = next(n for n, name in enumerate(data.images.names) if name not in facts.pictures)
    with pytest.raises(MissingDataError, match=r"no picture .*\.jpg: .*things-initiative.org and set option images"):
        list(data.stimuli([absent]))
    with pytest.raises(MissingDataError, match="pictures 0 to 8739, not 8740"):
        list(data.stimuli([8740]))
    concept = data.images.concepts[absent]
    (tmp_path / "database" / concept).mkdir(parents=True)
    path = tmp_path / "database" / concept / data.images.names[absent]
    Image.new("L", (9, 5), 7).save(path)
    elsewhere = reader(root, images=str(tmp_path / "database"))
    assert next(elsewhere.stimuli([absent])).image.tolist() == np.full((5, 9, 3), 7).tolist()
    check_cuts(path, lambda: list(elsewhere.stimuli([absent])), count=4)


# Voxels


def test_rois_are_the_columns(copy):
    root, _ = copy
    data = reader(root, voxelset="prf | floc | glasser")
    assert len(data.source()["label_names"]) == 12 + 17 + 180 + 3
    for subject in (1, 2):
        voxels = table(root, subject, "VoxelMetadata.csv").sort_values(["voxel_x", "voxel_y", "voxel_z"])
        rois = [name for name in voxels if set(voxels[name]) <= {0, 1} and "subject" not in name]
        assert {"glasser-p9-\n46v", "glasser-a9-\n46v", "LO1 (prf)"} <= set(rois) and len(rois) == 12 + 17 + 180
        voxels = voxels[voxels[rois].any(axis=1)]
        labels = data.voxels(subject).labels
        for name in rois:
            atlas = name.replace(" (prf)", "").replace("\n", "")
            assert labels[atlas].tolist() == voxels[name].tolist()
        families = {"prf": layout.PRF, "floc": layout.FLOC, "glasser": layout.GLASSER}
        for family, members in families.items():
            assert labels[family].tolist() == voxels[list(members)].any(axis=1).astype(int).tolist()
        assert (labels["IT"] & labels["lEBA"]).any()  # overlaps stay


def test_voxel_sets_name_columns_with_line_breaks(copy):
    root, _ = copy
    voxels = table(root, 1, "VoxelMetadata.csv")
    expected = voxels[(voxels["glasser-p9-\n46v"] == 1) | ((voxels["LO1 (prf)"] == 1) & (voxels["lEBA"] == 1))]
    data = reader(root, voxelset="glasser-p9-46v | LO1 & lEBA:1")
    found = data.voxels(1).coordinates.tolist()
    assert found == sorted(expected[["voxel_x", "voxel_y", "voxel_z"]].to_numpy().tolist())
    with pytest.raises(UnknownNameError, match=r"unknown ROI 'lFFB' .*Did you mean 'lFFA'"):
        reader(root, voxelset="lFFB").voxels(1)
    with pytest.raises(
        BadDataError, match=r"of subject 1 selects no voxel; its ROIs have {'IT': \d+, .*'lEBA': \d+, .*} in /"
    ):
        reader(root, voxelset=" & ".join(layout.FLOC)).voxels(1)


def test_ncsnr_gives_the_noise_ceilings_back(copy):
    root, _ = copy
    data = reader(root, voxelset="prf | floc | glasser")
    for subject in (1, 2):
        found = dict(
            zip(map(tuple, data.voxels(subject).coordinates.tolist()), data.voxels(subject).ncsnr, strict=True)
        )
        for row in table(root, subject, "VoxelMetadata.csv").itertuples():
            ncsnr = float(found.get((row.voxel_x, row.voxel_y, row.voxel_z), np.nan))
            if row.voxel_id == 7:
                assert np.isnan(ncsnr)  # neither is known
            for value, showings in ((row.nc_singletrial, 1), (row.nc_testset, 12)):
                if not np.isnan(value) and (row.voxel_x, row.voxel_y, row.voxel_z) in found:
                    assert 100 * ncsnr**2 / (ncsnr**2 + 1 / showings) == pytest.approx(value, rel=1e-5, abs=1e-9)


# Mistakes


def test_sessions_and_subjects(copy, own):
    root, _ = copy
    assert reader(root).sessions() == [(s, n) for s in (1, 2) for n in range(1, 13)]
    assert reader(root, subjects=(2,), sessions=(9, 3)).sessions() == [(2, 3), (2, 9)]
    assert reader(root, sessions=2).sessions() == [(1, 1), (1, 2), (2, 1), (2, 2)]
    with pytest.raises(MissingDataError, match=r"no betas of subject 3, .* no betas_csv/sub-03_ResponseData.h5 in /"):
        reader(root, subjects=(1, 3)).sessions()
    with pytest.raises(OptionError, match="no subject 4: THINGS-fMRI has subjects 1 to 3"):
        reader(root, subjects=(4,)).sessions()
    for sessions in (13, (0,)):
        with pytest.raises(OptionError, match=r"no session (13|0): THINGS-fMRI has sessions 1 to 12"):
            reader(root, sessions=sessions).sessions()
    path_of(own, 1, "VoxelMetadata.csv").unlink()
    with pytest.raises(MissingDataError, match=r"no file .*sub-01_VoxelMetadata.csv"):
        reader(own).voxels(1)


def test_subjects_must_have_seen_the_same_images(own, copy):
    shutil.copy(path_of(copy[0], 2, "ResponseData.h5"), own / "betas_csv")
    shown = table(copy[0], 2, "StimulusMetadata.csv")
    first = shown["stimulus"][_test(shown)].iloc[0]
    shown["stimulus"] = shown["stimulus"].replace(first, f"other_{first}")
    shown.to_csv(path_of(own, 2, "StimulusMetadata.csv"), index=False)
    with pytest.raises(BadDataError, match=r"sub-02_StimulusMetadata.csv: images, .*not those of subject 1"):
        reader(own).stimuli_source()


def _train(t: pd.DataFrame) -> pd.Index:
    return t.index[t["trial_type"] == "train"]


def _test(t: pd.DataFrame) -> pd.Index:
    return t.index[t["trial_type"] == "test"]


def _merged(t: pd.DataFrame) -> pd.DataFrame:
    """One concept becomes another."""
    one, other = t["concept"][_train(t)].unique()[:2]
    return t.assign(concept=t["concept"].replace(one, other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:-1], "has 9839 trials; THINGS-fMRI has 9840"),
        (lambda t: t.drop(columns="concept"), "lacks column 'concept'"),
        (lambda t: t.assign(trial_id=t["trial_id"] // 2), "trial_id is not 0 to 9839, each once"),
        (lambda t: t.assign(subject_id=2), "has trials of subject 2"),
        (lambda t: t.assign(session=t["session"].replace({1: 2, 2: 1})), "trial 0 is of session 2, not 1"),
        (lambda t: t.assign(trial_type=t["trial_type"].replace("test", "catch")), "'catch' is neither 'train'"),
        (lambda t: t.assign(trial_type="train"), "in 9840 trials; THINGS-fMRI has 8640, each once"),
        (lambda t: t.assign(session=t["session"].astype("Int64").where(t.index != 5)), "has empty fields"),
        (lambda t: t.assign(stimulus=t["stimulus"].where(t.index != 5)), "'' is not the name of an image"),
        (lambda t: t.replace({"stimulus": {t["stimulus"][_train(t)[0]]: "../x.jpg"}}), r"'\.\./x.jpg' is not the name"),
        (lambda t: t.replace({"stimulus": {t["stimulus"][_test(t)[0]]: t["stimulus"][_train(t)[0]]}}), "two concepts"),
        (_merged, "has 719 training concepts of"),
        (lambda t: t.assign(concept=t["concept"].where(t["trial_type"] == "train", "dog")), "test concept dog is no"),
    ],
)  # fmt: skip
def test_wrong_tables_of_trials(own, change, message):
    path = path_of(own, 1, "StimulusMetadata.csv")
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises((BadDataError, CorruptFileError), match=message) as caught:
        reader(own).trials(1, 1)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:-1], "has 59 voxels, the responses beside it 60"),
        (lambda t: t.iloc[:0], "has no voxels"),
        (lambda t: t.assign(voxel_id=t["voxel_id"] + 1), "has 60 voxels, the responses beside it 60, or other ones"),
        (lambda t: t.assign(voxel_id=t["voxel_id"] // 2), "two voxels have the same voxel_id"),
        (lambda t: t.assign(voxel_x=1, voxel_y=1, voxel_z=1), "two voxels have the same place"),
        (lambda t: t.assign(voxel_z=t["voxel_z"] + 0.5), "voxel_z must be whole numbers from 0"),
        (lambda t: t.assign(subject_id=3), "voxels of another subject than 1"),
        (lambda t: t.assign(nc_singletrial=100.0), "noise ceilings go from 100.0 to 100.0; 0 to below 100"),
        (lambda t: t.assign(nc_testset=-1.0), "noise ceilings go from -1.0"),
        (lambda t: t.assign(hV4=t["hV4"] * 2), "ROI hV4 must be 0 or 1 for every voxel, got 2"),
        (lambda t: t.assign(IT=np.nan), "ROI IT must be 0 or 1 for every voxel, got nan"),
        (lambda t: t.assign(IT="in"), "cannot be read as a table: .*'in'"),
        (lambda t: t.drop(columns="V3a"), "lacks column 'V3a'"),
        (lambda t: t.drop(columns="nc_testset"), "lacks column 'nc_testset'"),
        (lambda t: t.drop(columns="glasser-H"), "has 208 ROIs, 179 of them glasser"),
        (lambda t: t.assign(more=0), "has 210 ROIs, 180 of them glasser"),
        (lambda t: t.rename(columns={"glasser-H": "glasser-V 1"}), "has 209 ROIs, 179 of them glasser"),
        (lambda t: t.rename(columns={"glasser-H": "glasser-H*"}), r"column 'glasser-H\*' cannot be named"),
    ],
)
def test_wrong_tables_of_voxels(own, change, message):
    path = path_of(own, 1, "VoxelMetadata.csv")
    change(pd.read_csv(path).copy()).to_csv(path, index=False)
    with pytest.raises((BadDataError, CorruptFileError), match=message) as caught:
        reader(own).voxels(1)
    assert path.name in str(caught.value)


def test_columns_of_one_name(own):
    path = path_of(own, 1, "VoxelMetadata.csv")
    with (
        replaced(path, path.read_bytes().replace(b",VO2,", b",VO1,")),
        pytest.raises(BadDataError, match=r"two of its 222 columns have the same name"),
    ):
        reader(own).voxels(1)


@pytest.mark.parametrize(
    ("ids", "betas", "message"),
    [
        (np.arange(60), np.zeros((60, TRIALS - 1)), "9840 columns, 9840 of them known"),
        (np.arange(60), np.zeros((60, TRIALS), np.int16), "betas are .* int16; .* floats are needed"),
        (np.arange(60) // 2, np.zeros((60, TRIALS)), "two rows have the same voxel_id"),
        (np.arange(60) - 0.5, np.zeros((60, TRIALS)), "voxel_id must be whole numbers from 0"),
    ],
)
def test_wrong_responses(own, ids, betas, message):
    path = path_of(own, 1, "ResponseData.h5")
    layout.write_responses(path, ids, betas)
    with pytest.raises(BadDataError, match=rf"sub-01_ResponseData.h5.* {message}"):
        reader(own).voxels(1)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("block0_items", r"no frame 'ResponseData' in pandas' fixed format; it has \['ResponseData'\]"),
        ("block0_values", r"block0_values has shape None; 9840 columns are named"),
        ("block1_items", "9840 columns, 9840 of them known; voxel_id and trials 0 to 9839"),
        ("", r"no frame 'ResponseData' in pandas' fixed format; it has \[\]"),
    ],
)
def test_responses_that_lack_something(own, lost, message):
    path = path_of(own, 1, "ResponseData.h5")
    with h5py.File(path, "a") as file:
        del file[f"ResponseData/{lost}"]
    with pytest.raises((BadDataError, CorruptFileError), match=message):
        reader(own).voxels(1)


# Damage


@pytest.mark.parametrize("part", PARTS)
def test_truncated_and_foreign_files(own, part):
    path = path_of(own, 1, part)

    def read():
        data = reader(own)
        return data.read_session(1, 1, data.voxels(1))

    check_cuts(path, read, count=3)
    for content in (b"<html>\nnot found\n", b"\x89HDF\r\n\x1a\n" + bytes(2000) + b"\n", b"\xff\xfe\x00,\n" * 9, b'"\n'):
        with replaced(path, content), pytest.raises((BadDataError, CorruptFileError)) as caught:
            read()
        assert path.name in str(caught.value)


def test_garbled_responses(tmp_path):
    """Any wrong byte of what leads to the betas is noticed, or changes nothing."""
    path, betas = tmp_path / "sub-01_ResponseData.h5", np.zeros((3, 40))
    layout.write_responses(path, np.arange(3), betas)
    check_flips(path, lambda: read_betas(path, read_table(path, 40), np.arange(3), np.arange(40))[0], 60, first=96)
    pickled = pickle.dumps(np.array([*range(40), "voxel_id"], dtype=object))
    for size in range(len(pickled)):
        with pytest.raises((ValueError, LookupError)):
            read_names(pickled[:size])


# Buckets and shards


def test_a_bucket_gives_the_same_by_ranges(own, copy, s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    responses = path_of(own, 1, "ResponseData.h5")
    shutil.copytree(copy[0] / "images" / "aardvark1", own / "images" / "aardvark1")
    Folder.at(f"s3://{s3_bucket}/things").upload(own)
    here, there = (reader(root, voxelset="V1") for root in (own, f"s3://{s3_bucket}/things"))
    assert there.remote and there.source() == here.source()
    mine, theirs = (data.read_session(1, 11, data.voxels(1)) for data in (here, there))
    np.testing.assert_array_equal(mine.betas, theirs.betas)
    # What HDF5 itself reads comes in blocks of 256 kB; a row's other sessions are never fetched.
    assert mine.bytes_read < theirs.bytes_read < mine.bytes_read + (1 << 20) < responses.stat().st_size
    layout.write_responses(responses, np.arange(60), copy[1].betas[1], chunks=(8, 820))
    Folder.at(f"s3://{s3_bucket}/packed").upload(own)
    packed = reader(f"s3://{s3_bucket}/packed", voxelset="V1")
    np.testing.assert_array_equal(packed.read_session(1, 11, packed.voxels(1)).betas, mine.betas)
    layout.write_responses(responses, np.arange(60), copy[1].betas[1], together=True)
    Folder.at(f"s3://{s3_bucket}/together").upload(own)
    assert reader(own).voxels(1).digest == reader(copy[0]).voxels(1).digest
    with pytest.raises(BadDataError, match=r"keeps voxel_id among the betas; .* local copy only"):
        reader(f"s3://{s3_bucket}/together").voxels(1)
    name = next(iter((own / "images" / "aardvark1").iterdir())).name
    number = here.images.names.index(name)
    np.testing.assert_array_equal(next(there.stimuli([number])).image, next(here.stimuli([number])).image)


def test_shards(copy, tmp_path, ray_session):
    root, _ = copy
    data = reader(root, subjects=(1,), sessions=1, voxelset="prf")
    target = Folder.at(tmp_path / "data")
    shards = prepare(data, target, advance=lambda units, note: None)
    assert verify(data, target, advance=lambda units, note: None) > 0
    assert read_manifest(shards).voxels == {"1": len(data.voxels(1).coordinates)}
    rows = shards.read_table(session_path(1, 1))
    stored = from_column(rows["betas"], np.dtype("<f4"), (len(data.voxels(1).coordinates),))
    np.testing.assert_array_equal(stored, data.read_session(1, 1, data.voxels(1)).betas)
    assert rows["stimulus"].to_pylist() == data.trials(1, 1).stimulus.tolist()
