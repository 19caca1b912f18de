"""The GOD reader against h5py, numpy.load and csv read by hand, and against mistakes and damage."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from file_damage import check_cuts, check_flips, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import copy_of
from layouts import god as layout
from layouts.god import ROIS, VOXELS
from PIL import Image

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.options import build
from bench.core.storage import Folder
from bench.data import splits
from bench.data.datasets.god.dataset import God, GodOptions
from bench.data.datasets.god.images import TRAINING, images_of, name_of, synset_of
from bench.data.sources import npy, retries

ALL_ROIS = sorted((*ROIS, *layout.JOINED))


copy = copy_of("god")


@pytest.fixture
def own(copy, tmp_path) -> Path:
    """The copy in a folder of its own, to be damaged."""
    return Path(shutil.copytree(copy[0], tmp_path / "own"))


def reader(root, **options) -> God:
    return God(build(GodOptions, {"root": str(root), **options}, "options of dataset 'god'"))


def file_of(root: Path, form: str, subject: int = 1) -> Path:
    return root / (f"Subject{subject}.h5" if form == "bdpy" else f"npz/sbj_{subject}.npz")


def edit(path: Path, key: str, change) -> None:
    """Change the part of a table that a metadata key names: its columns, or the metadata where it has none."""
    with h5py.File(path, "r+") as file:
        keys = [name.decode() for name in file["metadata/key"][:]]
        columns = np.flatnonzero(file["metadata/value"][keys.index(key)] == 1)
        table = file["dataset"][:]
        table[:, columns] = change(table[:, columns])
        file["dataset"][:] = table


def edit_metadata(path: Path, key: str, change) -> None:
    with h5py.File(path, "r+") as file:
        row = [name.decode() for name in file["metadata/key"][:]].index(key)
        file["metadata/value"][row] = change(file["metadata/value"][row])


# Responses


@pytest.mark.parametrize("roi", ["VC", "V1", "FFA", "HVC"])
@pytest.mark.parametrize("subject", [1, 3])
def test_responses_are_h5pys(copy, subject, roi):
    root, facts = copy
    data = reader(root, voxelset=f"ROI_{roi}", subjects=(subject,))
    table = data.voxels(subject)
    trials = data.read_session(subject, 1, table)
    with h5py.File(root / f"Subject{subject}.h5") as file:
        dataset, metadata = ("dataSet", "metaData") if subject == 3 else ("dataset", "metadata")
        keys = [key.decode() for key in file[metadata]["key"][:]]
        inside = np.flatnonzero(file[metadata]["value"][keys.index(f"ROI_{roi}")] == 1)
        kind = file[dataset][:, np.flatnonzero(file[metadata]["value"][keys.index("DataType")] == 1)[0]]
        perceived = file[dataset][:][np.isin(kind, (1, 2))]
        places = (
            np.stack([file[metadata]["value"][keys.index(f"voxel_{a}")] for a in "xyz"], 1) if subject == 1 else None
        )
    order = inside if places is None else sorted(inside, key=lambda column: tuple(places[column]))
    np.testing.assert_array_equal(trials.betas, perceived[:, order].astype("<f4"))
    assert trials.betas.shape == (2950, facts.masks[subject, roi].sum())
    assert trials.betas.dtype == np.dtype("<f4") and np.isnan(table.ncsnr).all()


def test_voxels_lie_on_the_grid_of_the_file(copy, caplog):
    root, facts = copy
    table = reader(root, voxelset="ROI_V1 | ROI_LOC", subjects=(1,)).voxels(1)
    inside = facts.masks[1, "V1"] | facts.masks[1, "LOC"]
    places = facts.grid[1] - facts.grid[1].min(axis=0)
    assert table.coordinates.tolist() == sorted(places[inside].tolist())
    at = {tuple(place): column for column, place in enumerate(places.tolist())}
    for roi in ALL_ROIS:
        expected = [int(facts.masks[1, roi][at[tuple(place)]]) for place in table.coordinates.tolist()]
        assert table.labels[f"ROI_{roi}"].tolist() == expected
    assert not caplog.records
    assert reader(root, subjects=(3,)).voxels(3).coordinates.shape[1] == 1
    assert "Subject3.h5 has no voxel grid" in caplog.text


def test_places_that_are_no_grid_are_not_used(own, caplog):
    edit_metadata(file_of(own, "bdpy"), "voxel_x", lambda row: row * np.linspace(1, 1.5, len(row)))
    table = reader(own, subjects=(1,)).voxels(1)
    assert table.coordinates.shape[1] == 1 and "no voxel grid" in caplog.text


def test_voxel_indices_are_taken_before_millimetres(copy, own):
    indices = copy[1].grid[1] + 7
    with h5py.File(file_of(own, "bdpy"), "r+") as file:
        group = file["metadata"]
        more = np.full((3, group["value"].shape[1]), np.nan)
        more[:, :VOXELS] = indices.T
        keys, values = [*group["key"][:], b"voxel_i", b"voxel_j", b"voxel_k"], np.vstack([group["value"][:], more])
        del group["key"], group["value"]
        group["key"], group["value"] = keys, values
    table = reader(own, voxelset="ROI_V2", subjects=(1,)).voxels(1)
    assert table.coordinates.tolist() == sorted(indices[copy[1].masks[1, "V2"]].tolist())


@pytest.mark.parametrize("subject", [1, 2])
def test_responses_of_arrays_are_numpys(copy, subject):
    root, _ = copy
    data = reader(root, betas="npz", voxelset="ROI_V2 & ROI_LVC", subjects=(subject,))
    table = data.voxels(subject)
    trials = data.read_session(subject, 1, table)
    loaded = np.load(root / "npz" / f"sbj_{subject}.npz")
    inside = loaded["V2"] & loaded["LVC"]
    expected = np.concatenate([loaded["arr_0"][:, inside], loaded["arr_1"][:, inside]]).astype("<f4")
    np.testing.assert_array_equal(trials.betas, expected)
    assert table.coordinates.ravel().tolist() == np.flatnonzero(inside).tolist()


@settings(max_examples=25, deadline=None)
@given(rois=st.sets(st.sampled_from(ALL_ROIS), min_size=1), form=st.sampled_from(["bdpy", "npz"]))
def test_any_voxel_set(copy, rois, form):
    root, facts = copy
    data = reader(root, betas=form, voxelset=" | ".join(f"ROI_{roi}" for roi in sorted(rois)), subjects=(1,))
    inside = np.any([facts.masks[1, roi] for roi in rois], axis=0)
    whole = facts.tables[1][:2950] if form == "bdpy" else np.concatenate([facts.npz[1][f"arr_{i}"] for i in (0, 1)])
    betas = data.read_session(1, 1, data.voxels(1)).betas
    # In whatever order the voxels come, they are these and no others.
    found, expected = (sorted(map(tuple, v.T.tolist())) for v in (betas, whole[:, inside].astype("<f4")))
    assert found == expected


# Trials and stimuli


def shown_by_hand(root: Path, subject: int, form: str) -> list[str]:
    """Image names of training and test rows, from csv and arrays, or from numbers printed with six decimals."""
    if form == "npz":
        loaded, names = np.load(root / "npz" / f"sbj_{subject}.npz"), []
        for file, index in (("imagenet_training_label.csv", "arr_3"), ("imagenet_testing_label.csv", "arr_4")):
            with (root / "npz" / file).open() as lines:
                rows = [row[1].removesuffix(".JPEG") for row in csv.reader(lines)]
            names += [rows[i] for i in loaded[index]]
        return names
    with h5py.File(root / f"Subject{subject}.h5") as file:
        table = file["dataset"][:] if "dataset" in file else file["dataSet"][:]
    kind, ids = table[:, VOXELS], table[:, VOXELS + 1]
    return ["n{:08d}_{:d}".format(*map(int, f"{i:.6f}".split("."))) for i in ids[kind < 3]]


@pytest.mark.parametrize(("subject", "form"), [(1, "bdpy"), (3, "bdpy"), (1, "npz"), (2, "npz")])
def test_trials_show_what_the_file_says(copy, subject, form):
    root, facts = copy
    data = reader(root, betas=form, subjects=(subject,))
    shown, names = data.trials(subject, 1), shown_by_hand(root, subject, form)
    assert form == "npz" or names == facts.shown[subject][:2950]
    numbered = [
        sorted(some, key=lambda name: (int(name[1:9]), int(name[10:]))) for some in (facts.training, facts.test)
    ]
    assert [[*numbered[0], *numbered[1]][number] for number in shown.stimulus] == names
    seen = Counter()
    for name, repeat in zip(names, shown.repeat.tolist(), strict=True):
        assert repeat == seen[name]
        seen[name] += 1
    assert shown.trial.tolist() == list(range(2950))


def test_forms_and_subjects_number_images_alike(copy):
    root, _ = copy
    readers = [reader(root), reader(root, betas="npz"), reader(root, subjects=(3,)), reader(root, trials="imagery")]
    assert len({data.images.digest for data in readers}) == 1
    assert len({str(data.stimuli_source()) for data in readers}) == 1
    assert len({str(data.source()) for data in readers}) == 4


def test_zeros_at_the_end_of_an_id_are_kept(copy):
    """1518878.014910 is stored as 1518878.01491: printed in any other way it is image 1491."""
    assert name_of(1518878.01491, "file") == "n01518878_14910"
    assert name_of(13111881.00917, "file") == "n13111881_9170"
    assert name_of(1443537.0, "file") == "n01443537_0"
    ending = [name for name in copy[1].training if name.endswith("0")]
    assert len(ending) > 100
    for name in ending:
        assert name_of(layout.stimulus_id(name), "file") == name
        wrong = str(layout.stimulus_id(name)).partition(".")[2]
        assert int(wrong) != int(name.partition("_")[2]) or len(wrong) == 6


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 99_999_998), st.integers(0, 999_999))
def test_any_id_is_its_image(synset, image):
    assert name_of(float(f"{synset}.{image:06d}"), "file") == f"n{synset:08d}_{image}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -3.5, 0.0, 1e9])
def test_what_is_no_id(value):
    with pytest.raises(BadDataError, match=r"Subject1.h5: .* is not a stimulus_id such as 1518878.014910"):
        name_of(value, "Subject1.h5")


def test_images_that_do_not_add_up(copy):
    training, test = copy[1].training, copy[1].test
    with pytest.raises(BadDataError, match=r"1199 training images of 150 categories; GOD has 150 x 8"):
        images_of(training[1:], test, "file")
    with pytest.raises(BadDataError, match=r"1200 training images of 151 categories"):
        images_of([*training[1:], "n00000001_1"], test, "file")
    with pytest.raises(BadDataError, match=r"file has 50 test images of 49 categories.*six decimals"):
        images_of(training, [*test[1:], synset_of(test[1]) + "_999999"], "file")
    with pytest.raises(BadDataError, match=rf"{synset_of(training[0])} is a category of training and of test"):
        images_of(training, [*test[1:], synset_of(training[0]) + "_999999"], "file")


@pytest.mark.parametrize("form", ["bdpy", "npz"])
def test_test_images_are_never_trained_on(copy, form):
    root, facts = copy
    data, split = reader(root, betas=form, subjects=(1,)), splits.Split()
    numbers = list(range(1250))
    shared = np.array([s.number for s in data.stimuli(numbers) if s.shared])
    assert {data.images.names[number] for number in shared} == set(facts.test)
    shown = data.trials(1, 1)
    roles = split.roles(shown.stimulus, np.isin(shown.stimulus, shared))
    assert np.sum(roles == splits.ROLES.index("test")) == 1750
    tested = {synset_of(data.images.names[number]) for number in shown.stimulus[roles == 2]}
    assert len(tested) == 50 and not tested & {synset_of(data.images.names[n]) for n in shown.stimulus[roles < 2]}


def test_imagery_is_a_test_set_of_its_own(copy):
    root, facts = copy
    data = reader(root, trials="imagery", subjects=(1,))
    shown = data.trials(1, 1)
    assert shown.trial.tolist() == list(range(2950, 3450))
    assert [data.images.names[number] for number in shown.stimulus] == facts.shown[1][2950:]
    assert shown.stimulus.min() >= TRAINING and set(np.bincount(shown.stimulus)[TRAINING:]) == {10}
    expected = np.sort(facts.tables[1][2950:][:, facts.masks[1, "VC"]].astype("<f4"))
    np.testing.assert_array_equal(np.sort(data.read_session(1, 1, data.voxels(1)).betas), expected)
    assert data.label == "bdpy.imagery.ROI_VC"
    assert all(stimulus.shared for stimulus in data.stimuli(np.unique(shown.stimulus).tolist()))
    with pytest.raises(OptionError, match="betas 'npz' hold no imagery trials"):
        reader(root, betas="npz", trials="imagery")


def test_imagery_may_name_the_category_only(own):
    """Or nothing at all, for those who read perception."""
    path = file_of(own, "bdpy")
    before = reader(own, trials="imagery", subjects=(1,)).trials(1, 1).stimulus
    edit(path, "stimulus_id", lambda ids: np.r_[ids[:2950], np.floor(ids[2950:])])
    assert np.array_equal(reader(own, trials="imagery", subjects=(1,)).trials(1, 1).stimulus, before)
    edit(path, "stimulus_id", lambda ids: np.r_[ids[:2950], np.full((500, 1), np.nan)])
    assert len(reader(own, subjects=(1,)).trials(1, 1).trial) == 2950
    with pytest.raises(BadDataError, match=r"500 rows of DataType 3 with 1 images, shown \[500\] times; GOD has 50"):
        reader(own, trials="imagery", subjects=(1,)).trials(1, 1)
    edit(path, "stimulus_id", lambda ids: np.r_[ids[:2950], np.repeat(np.arange(1.0, 51.0), 10)[:, None]])
    with pytest.raises(BadDataError, match="imagined n00000001 is not one of the 50 test categories"):
        reader(own, trials="imagery", subjects=(1,)).trials(1, 1)


def test_pictures_of_the_archive(copy):
    root, facts = copy
    data = reader(root)
    numbers = [1249, 3, 1200, 0, 3, 700]
    for number, stimulus in zip(numbers, data.stimuli(numbers), strict=True):
        name = data.images.names[number]
        np.testing.assert_array_equal(stimulus.image, np.rint(facts.pictures[name] * 255).astype(np.uint8))
        assert (stimulus.number, stimulus.label, stimulus.shared) == (number, name[:9], number >= 1200)
        assert stimulus.captions == ()
    assert data.origins([0, 1249]) == [f"imagenet:{data.images.names[0]}", f"imagenet:{data.images.names[1249]}"]
    with pytest.raises(MissingDataError, match="pictures 0 to 1249, not 1250"):
        list(data.stimuli([0, 1250]))


def test_pictures_by_name_come_first(copy, own):
    data, names = reader(own), reader(own).images.names
    for number, folder in ((5, "image_training"), (1210, "image_test")):
        (own / "images" / folder).mkdir(parents=True)
        Image.new("L", (9, 7), number % 256).save(own / "images" / folder / f"{names[number]}.JPEG")
    images = [stimulus.image for stimulus in data.stimuli([1210, 5])]
    assert [(image.shape, int(image[0, 0, 0])) for image in images] == [((7, 9, 3), 1210 % 256), ((7, 9, 3), 5)]
    assert reader(own).stimuli_source() != reader(copy[0]).stimuli_source()
    with pytest.raises(MissingDataError, match=rf"image_training/{names[6]}.JPEG"):
        list(data.stimuli([6]))


def test_the_largest_archive_is_taken_and_bytes_are_kept(copy, own):
    facts = copy[1]
    bytes_ = {name: np.rint(picture * 255).astype(np.uint8) for name, picture in facts.pictures.items()}
    stacks = [np.stack([bytes_[name] for name in names]) for names in (facts.training, facts.test)]
    np.savez(own / "npz" / "images_500.npz", train_images=stacks[0], test_images=stacks[1])
    (own / "npz" / "images_256.npz").write_bytes(b"not looked at")
    data = reader(own)
    assert data.pictures.kind == "images_500.npz"
    (stimulus,) = data.stimuli([17])
    np.testing.assert_array_equal(stimulus.image, bytes_[data.images.names[17]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * 255, r"images_256.npz has pictures from .* to .*; 0 to 1 is needed"),
        (lambda v: np.where(v > 0.999, np.nan, v), r"has pictures from nan to nan"),
        (lambda v: v.transpose(0, 3, 1, 2), r"train_images is \(1200, 3, 8, 8\) float32; \(N, H, W, 3\)"),
        (lambda v: (v * 100).astype(np.int64), r"train_images is \(1200, 8, 8, 3\) int64"),
    ],
)
def test_arrays_that_are_no_pictures(own, change, message):
    path = own / "npz" / "images_256.npz"
    loaded = np.load(path)
    np.savez(path, train_images=change(loaded["train_images"]), test_images=loaded["test_images"])
    with pytest.raises(BadDataError, match=message):
        list(reader(own).stimuli(list(range(1200))))


def test_without_pictures(own):
    (own / "npz" / "images_256.npz").unlink()
    data = reader(own)
    assert data.stimuli_source()["pictures"] == "none" and list(data.stimuli([])) == []
    with pytest.raises(MissingDataError, match=r"has no pictures: neither images/image_training .* on request"):
        list(data.stimuli([0]))


# What is not there, or not right


def test_options_and_names(copy):
    root, _ = copy
    with pytest.raises(UnknownNameError, match=r"unknown betas 'bdyp' .* Did you mean 'bdpy'"):
        reader(root, betas="bdyp")
    with pytest.raises(UnknownNameError, match=r"unknown ROI 'ROI_V5' in voxel set 'ROI_V5' of subject 1"):
        reader(root, voxelset="ROI_V5").voxels(1)
    with pytest.raises(BadDataError, match=r"voxel set 'ROI_V1:2' of subject 1 selects no voxel; its ROIs have"):
        reader(root, voxelset="ROI_V1:2").voxels(1)
    with pytest.raises(OptionError, match="no subject 6: GOD has subjects 1 to 5"):
        reader(root, subjects=(6,)).sessions()
    for sessions in ((2,), 2, (1, 2)):
        with pytest.raises(OptionError, match="one session a subject, session 1"):
            reader(root, sessions=sessions).sessions()
    with pytest.raises(OptionError, match="no session 2"):
        reader(root).trials(1, 2)
    with pytest.raises(OptionError, match=r"trials.*perception"):
        reader(root, trials="dreams")
    assert reader(root, sessions=1).sessions() == reader(root, sessions=(1,)).sessions() == [(1, 1), (3, 1)]
    assert reader(root, betas="npz").sessions() == [(1, 1), (2, 1)]
    with pytest.raises(MissingDataError, match=r"there is no .*Subject2.h5"):
        reader(root, subjects=(1, 2)).sessions()


@pytest.mark.parametrize("folder", ["", "Kamitani/npz"])
def test_where_arrays_may_lie(copy, tmp_path, folder):
    shutil.copytree(copy[0] / "npz", tmp_path / "root" / folder)
    assert reader(tmp_path / "root", betas="npz").source() == reader(copy[0], betas="npz").source()


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("DataType", lambda v: np.where(v == 3, 4, v), r"Subject1.h5: DataType 4 is none of 1 \(training\)"),
        ("DataType", lambda v: v + 0.5, "DataType must be whole numbers"),
        ("DataType", lambda v: np.where(np.arange(3450)[:, None] == 0, np.nan, v), "DataType must be whole numbers"),
        ("DataType", lambda v: v[::-1], r"500 rows of DataType 1 with|1200 rows of DataType 1 with"),
        ("stimulus_id", lambda v: np.roll(v, 1), r"rows of DataType 1 with 1200 images|DataType 2 with 51 images"),
        ("stimulus_id", lambda v: np.round(v, 4), r"GOD has 1200, each 1 times|GOD has 50, each 35 times"),
        ("stimulus_id", np.floor, r"1200 rows of DataType 1 with 150 images, shown \[8\] times"),
    ],
)
def test_labels_that_do_not_add_up(own, key, change, message):
    edit(file_of(own, "bdpy"), key, change)
    with pytest.raises(BadDataError, match=message):
        reader(own, subjects=(1,)).trials(1, 1)


def test_subjects_who_saw_other_images(own):
    with h5py.File(file_of(own, "bdpy", 3), "r+") as file:
        ids = file["dataSet"][:, VOXELS + 1]
        file["dataSet"][:, VOXELS + 1] = np.where(ids == ids[0], np.floor(ids) + 0.999999, ids)
    with pytest.raises(BadDataError, match=r"Subject3.h5 shows images that subject 1 did not see, such as n\d+_999999"):
        _ = reader(own).images


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("ROI_V1", lambda row: row * 2, "ROI_V1 must be 1, 0 or NaN for every column"),
        (
            "ROI_V1",
            lambda row: np.where(np.arange(len(row)) >= VOXELS, 1, row),
            "ROI_V1 has columns that are no voxels",
        ),
        ("ROI_V1", lambda row: row * 0, "no column belongs to ROI_V1"),
        ("VoxelData", lambda row: row * np.nan, "no column belongs to VoxelData"),
        ("DataType", np.ones_like, r"63 columns belong to DataType, one is needed"),
    ],
)
def test_metadata_that_cannot_be_right(own, key, change, message):
    edit_metadata(file_of(own, "bdpy"), key, change)
    with pytest.raises(BadDataError, match=rf"Subject1.h5: {message}"):
        data = reader(own, subjects=(1,))
        data.trials(1, 1), data.voxels(1)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("dataset", "has no dataset or dataSet in /; it has .*metadata"),
        ("metadata", "has no metadata or metaData in /"),
        ("metadata/key", "has no key in /metadata; it has"),
        ("metadata/value", "has no value in /metadata"),
    ],
)
def test_files_of_another_kind(own, gone, message):
    path = file_of(own, "bdpy")
    with h5py.File(path, "r+") as file:
        del file[gone]
    with pytest.raises(CorruptFileError, match=rf"Subject1.h5 {message}"):
        reader(own, subjects=(1,)).trials(1, 1)
    path.write_bytes(b"not HDF5" * 100)
    with pytest.raises(CorruptFileError, match=r"Subject1.h5 cannot be read as bdpy's HDF5"):
        reader(own, subjects=(1,)).trials(1, 1)


def test_two_metadata_of_one_key(own):
    with h5py.File(file_of(own, "bdpy"), "r+") as file:
        keys = file["metadata/key"][:]
        file["metadata/key"][:] = np.where(keys == b"ROI_V2", b"ROI_V1", keys)
    with pytest.raises(BadDataError, match=r"two metadata have the same key among .*ROI_V1, ROI_V1"):
        reader(own, subjects=(1,)).trials(1, 1)


def test_metadata_of_another_table(own):
    path = file_of(own, "bdpy")
    with h5py.File(path, "r+") as file:
        table = file["dataset"][:, 1:]
        del file["dataset"]
        file["dataset"] = table
    with pytest.raises(BadDataError, match=r"metadata of shape \(\d+, 63\) for \d+ keys and 62 columns"):
        reader(own, subjects=(1,)).trials(1, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("arr_3", np.zeros_like, r"1200 rows of DataType 1 with 1 images, shown \[1200\] times"),
        ("arr_3", lambda v: v + 1, r"arr_3 is \(1200,\) int64, not one of 1200 images a row"),
        ("arr_4", lambda v: v[:1000], r"1000 rows of DataType 2|DataType 1 with"),
        ("arr_4", lambda v: v.astype(float), r"arr_4 is \(1750,\) float64"),
        ("arr_4", lambda v: np.roll(v, 1), r"arr_2 is not the mean of arr_1 over the rows of each image in arr_4"),
        ("arr_2", lambda v: v[::-1], r"arr_2 is not the mean of arr_1"),
        ("arr_1", lambda v: v[:, 1:], r"arr_1 is \(1750, 59\) float64, not \(1750, voxels\) floats"),
        ("arr_0", lambda v: v[:1100], r"arr_0 is \(1100, 60\) float64, not \(1200, voxels\) floats"),
        ("V1", lambda v: v.astype(int), r"mask V1 is \(60,\) int64; \(60,\) booleans are needed"),
        ("V1", lambda v: v[1:], r"mask V1 is \(59,\) bool"),
    ],
)
def test_arrays_that_do_not_fit_together(own, name, change, message):
    path = file_of(own, "npz")
    arrays = dict(np.load(path))
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    np.savez(path, **arrays)
    data = reader(own, betas="npz", subjects=(1,))
    with pytest.raises(BadDataError, match=rf"sbj_1.npz.*{message}"):
        data.read_session(1, 1, data.voxels(1))


def test_label_files_that_are_wrong(own, copy):
    path = own / "npz" / "imagenet_testing_label.csv"
    names = copy[1].test
    right = path.read_text()
    for content, error, message in (
        ("1443537.022563\n", CorruptFileError, "is not a stimulus id and an image"),
        ("abc,n01443537_22563.JPEG\n", CorruptFileError, "is not a stimulus id and an image"),
        (right.replace(names[0], names[1], 1), BadDataError, f"is image {names[0]}, its row says {names[1]}"),
        ("\n".join(right.splitlines()[:-1]), BadDataError, "imagenet_testing_label.csv.* has 49 images, GOD has 50"),
        ("\x00", CorruptFileError, "imagenet_testing_label.csv"),
    ):
        path.write_text(content)
        with pytest.raises(error, match=message):
            reader(own, betas="npz", subjects=(1,)).trials(1, 1)
    path.unlink()
    with pytest.raises(MissingDataError, match=r"has no imagenet_testing_label.csv in"):
        reader(own, betas="npz", subjects=(1,)).trials(1, 1)


# Damage


def test_damaged_bdpy_files(own):
    """What no checksum protects is checked by counts; the numbers of voxels themselves cannot be."""
    path = file_of(own, "bdpy")

    def read():
        data = reader(own, subjects=(1,))
        return data.trials(1, 1).stimulus, data.read_session(1, 1, data.voxels(1))

    right = read()[0]
    check_cuts(path, read, count=6)
    check_flips(path, lambda: read()[0], count=40, first=4096)
    assert np.array_equal(read()[0], right)


def test_damaged_archives(own):
    path = file_of(own, "npz")

    def read():
        data = reader(own, betas="npz", subjects=(1,))
        return data.read_session(1, 1, data.voxels(1)).betas

    check_cuts(path, read, count=6)
    check_flips(path, read, count=40)
    pictures = own / "npz" / "images_256.npz"
    check_cuts(pictures, lambda: list(reader(own).stimuli([0, 1249])), count=6)
    check_flips(pictures, lambda: np.stack([s.image for s in reader(own).stimuli([0, 1249])]), count=20)


def test_pickles_are_never_opened(own):
    path = file_of(own, "npz")
    np.savez(path, **{**dict(np.load(path)), "arr_3": np.array([print] * 1200, dtype=object)}, allow_pickle=True)
    with pytest.raises(CorruptFileError, match=r"sbj_1.npz, array 'arr_3' holds object"):
        reader(own, betas="npz", subjects=(1,)).trials(1, 1)
    assert "arr_3" in npy.member_names(path)


def test_damaged_pictures_by_name(own):
    name = reader(own).images.names[2]
    folder = own / "images" / "image_training"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / f"{name}.JPEG")
    check_cuts(folder / f"{name}.JPEG", lambda: list(reader(own).stimuli([2])))
    with replaced(folder / f"{name}.JPEG", b"GIF89a"), pytest.raises(CorruptFileError, match=f"{name}.JPEG cannot be"):
        list(reader(own).stimuli([2]))


# Buckets


def test_a_bucket_gives_the_same(own, s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    Folder.at(f"s3://{s3_bucket}/god").upload(own)
    for options in ({"betas": "bdpy", "subjects": (1,)}, {"betas": "npz", "subjects": (2,)}):
        here, there = reader(own, **options), reader(f"s3://{s3_bucket}/god", **options)
        assert there.remote and there.source() == here.source() and there.stimuli_source() == here.stimuli_source()
        ((subject, _),) = there.sessions()
        mine, theirs = (data.read_session(subject, 1, data.voxels(subject)) for data in (here, there))
        np.testing.assert_array_equal(mine.betas, theirs.betas)
        images = [np.stack([stimulus.image for stimulus in data.stimuli([0, 1249])]) for data in (here, there)]
        np.testing.assert_array_equal(*images)
