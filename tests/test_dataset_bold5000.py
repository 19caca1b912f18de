"""The BOLD5000 reader against nibabel, numpy.load and lists read by hand, and against mistakes and damage."""

import gzip
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from file_damage import check_cuts, check_flips, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layouts import bold5000 as layout
from layouts import copy_of
from layouts.bold5000 import BOX, ROIS, TYPED, TYPES
from PIL import Image

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.options import build
from bench.core.storage import Folder
from bench.data import splits
from bench.data.datasets.bold5000 import stimuli as bold5000_stimuli
from bench.data.datasets.bold5000.betas import Volumes
from bench.data.datasets.bold5000.dataset import Bold5000, Bold5000Options
from bench.data.sources import retries
from bench.data.sources.files import SourceFiles

STIMULI = Path("BOLD5000_Stimuli")
PRESENTED = STIMULI / "Scene_Stimuli" / "Presented_Stimuli"
REPEATED = STIMULI / "Scene_Stimuli" / "repeated_stimuli_113_list.txt"
ARRAYS = Path("BOLD5000_GLMsingle_ROI_betas") / "py"
HEMISPHERES = ("LH", "RH")


copy = copy_of("bold5000")


@pytest.fixture
def own(copy, tmp_path) -> Path:
    """The copy in a folder of its own, to be damaged; of the pictures only two."""
    root = Path(shutil.copytree(copy[0], tmp_path / "own", ignore=shutil.ignore_patterns("Presented_Stimuli")))
    for name in pictures(copy[1])[:2]:
        (root / place(name)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(copy[0] / place(name), root / place(name))
    return root


def pictures(facts) -> list[str]:
    """Names of pictures that are there: a session's, one of each source first."""
    shown = sorted(set(facts.shown[1][:370]))
    first = [next(n for n in shown if n.startswith(start)) for start in ("COCO", "n0", "bath")]
    return [*first, *(name for name in shown if name not in first)]


def place(name: str) -> Path:
    kind = "COCO" if name.startswith("COCO") else "ImageNet" if name.endswith(".JPEG") else "Scene"
    return PRESENTED / kind / name


def reader(root, **options) -> Bold5000:
    return Bold5000(build(Bold5000Options, {"root": str(root), **options}, "options of dataset 'bold5000'"))


def mask_file(root: Path, subject: int, roi: str) -> Path:
    name = layout.MISPRINTS.get((subject, roi), roi)
    return root / "derivatives" / "spm" / f"sub-CSI{subject}" / f"sub-CSI{subject}_mask-{name}.nii.gz"


# Betas


@pytest.mark.parametrize(
    ("subject", "session", "kind"), [*((1, 1, kind) for kind in TYPES), (1, 2, TYPED), (4, 1, TYPED)]
)
def test_betas_of_volumes_are_nibabels(copy, subject, session, kind):
    root, _ = copy
    data = reader(root, betas=kind, subjects=(subject,), sessions=(session,))
    table = data.voxels(subject)
    trials = data.read_session(subject, session, table)
    inside = np.any(
        [nibabel.load(mask_file(root, subject, h + r)).get_fdata() > 0 for r in ROIS for h in HEMISPHERES], 0
    )
    volume = nibabel.load(root / f"CSI{subject}_GLMbetas-{kind}_ses-{session:02d}.nii.gz").get_fdata()
    assert volume.shape[3] == layout.trials_of(subject, session) == len(trials.trial)
    np.testing.assert_array_equal(trials.betas, volume[inside].T)
    np.testing.assert_array_equal(table.coordinates, np.argwhere(inside))
    assert trials.betas.dtype == np.dtype("<f4") and data.scale == 1.0
    assert np.isnan(table.ncsnr).all()


def test_labels_tell_hemispheres_apart(copy):
    root, facts = copy
    for subject in (1, 4):
        table = reader(root, voxelset="brainmask", subjects=(subject,)).voxels(subject)
        assert len(table.coordinates) == np.prod(BOX) and set(table.labels) == set(ROIS)
        for roi, labels in table.labels.items():
            left, right = (facts.masks[subject, h + roi].ravel() for h in HEMISPHERES)
            expected = [1 if is_left else 2 if is_right else 0 for is_left, is_right in zip(left, right, strict=True)]
            assert labels.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(parts=st.sets(st.tuples(st.sampled_from(ROIS), st.sampled_from(["", ":LH", ":RH"])), min_size=1))
def test_any_voxel_set(copy, parts):
    root, facts = copy
    table = reader(root, voxelset=" | ".join(roi + side for roi, side in sorted(parts)), subjects=(1,)).voxels(1)
    expected = np.zeros(BOX, bool)
    for roi, side in parts:
        left, right = (facts.masks[1, h + roi] for h in HEMISPHERES)
        expected |= {"": left | right, ":LH": left, ":RH": right & ~left}[side]  # a voxel of both is the left's
    assert table.coordinates.tolist() == np.argwhere(expected).tolist()


@settings(max_examples=30, deadline=None)
@given(
    masks=hnp.arrays(
        st.sampled_from(["|u1", "<i2", "<f4", "<f8"]), (2, *BOX), elements=st.sampled_from([0, 0, 1, 2, 100])
    )
)
def test_any_mask(tmp_path_factory, masks):
    root = tmp_path_factory.mktemp("masks")
    for volume, hemisphere in zip(masks, HEMISPHERES, strict=True):
        path = mask_file(root, 1, f"{hemisphere}PPA")
        path.parent.mkdir(parents=True, exist_ok=True)
        layout.save(path, volume)
    labels = Volumes(SourceFiles(str(root)), TYPED).maps(1)["PPA"]
    for at in np.ndindex(BOX):
        assert labels[at] == (1 if masks[(0, *at)] > 0 else 2 if masks[(1, *at)] > 0 else 0)


def test_nan_outside_the_brain_is_kept(own):
    path = own / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz"
    volume = np.asarray(nibabel.load(path).dataobj).copy()
    volume[2, 1] = np.nan
    layout.save(path, volume)
    data = reader(own, voxelset="brainmask", subjects=(1,), sessions=1)
    betas = data.read_session(1, 1, data.voxels(1)).betas
    np.testing.assert_array_equal(betas, volume.reshape(-1, 370).T)
    assert np.isnan(betas).any()


@pytest.mark.parametrize(("subject", "session"), [(1, 1), (1, 6), (1, 15), (4, 9)])
def test_betas_of_arrays_are_numpys(copy, subject, session):
    root, _ = copy
    data = reader(root, space="rois", subjects=(subject,), sessions=(session,))
    table = data.voxels(subject)
    trials = data.read_session(subject, session, table)
    start = sum(layout.trials_of(subject, before) for before in range(1, session))
    stop = start + layout.trials_of(subject, session)
    loaded = {
        (roi, h): np.load(root / ARRAYS / f"CSI{subject}_GLMbetas-{TYPED}_allses_{h}{roi}.npy")
        for roi in ROIS
        for h in HEMISPHERES
    }
    whole = np.concatenate(list(loaded.values()), axis=1)  # as MinD-Vis joins them: ROI by ROI, left first
    np.testing.assert_array_equal(trials.betas, whole[start:stop])
    assert trials.trial.tolist() == list(range(start, stop))
    assert table.coordinates.tolist() == [[column] for column in range(whole.shape[1])]
    owner = [key for key, values in loaded.items() for _ in range(values.shape[1])]
    for roi in ROIS:
        assert table.labels[roi].tolist() == [(of == roi) * (1 + HEMISPHERES.index(h)) for of, h in owner]
    assert trials.bytes_read == whole[start:stop].nbytes


@settings(max_examples=25, deadline=None)
@given(parts=st.sets(st.tuples(st.sampled_from(ROIS), st.sampled_from(HEMISPHERES)), min_size=1))
def test_any_voxel_set_of_arrays(copy, parts):
    """Taking the left for the right hemisphere, or one ROI for another, gives other numbers."""
    root, facts = copy
    data = reader(root, space="rois", voxelset=" | ".join(f"{r}:{h}" for r, h in sorted(parts)), subjects=(4,))
    trials = data.read_session(4, 1, data.voxels(4))
    chosen = [facts.arrays[4, h + roi][:370] for roi in ROIS for h in HEMISPHERES if (roi, h) in parts]
    np.testing.assert_array_equal(trials.betas, np.concatenate(chosen, axis=1))
    assert trials.bytes_read == data.reads(4, 1, 0)[1] == sum(values.nbytes for values in chosen)


# Trials and stimuli


def test_trials_show_what_the_lists_say(copy):
    root, facts = copy
    data = reader(root)
    for subject, names in facts.shown.items():
        numbers, repeats = [], []
        for session in range(1, layout.SESSIONS[subject] + 1):
            shown = data.trials(subject, session)
            assert len(shown.trial) == layout.trials_of(subject, session)
            assert shown.trial.tolist() == list(range(len(numbers), len(numbers) + len(shown.trial)))
            numbers += shown.stimulus.tolist()
            repeats += shown.repeat.tolist()
        assert [facts.names[number] for number in numbers] == names
        seen = Counter()
        for name, repeat in zip(names, repeats, strict=True):
            assert repeat == seen[name]
            seen[name] += 1


def test_presentation_lists_say_the_same(copy, own):
    root, facts = copy
    layout.write_run_lists(own, facts)
    assert "\nrep_" in (own / STIMULI / "Stimuli_Presentation_Lists/CSI1/CSI1_sess15/CSI_sess15_run10.txt").read_text()
    for subject in (1, 2, 3):
        (own / f"CSI{subject}_imgnames.txt").unlink()
    moved = own / STIMULI / "Stimuli_Presentation_Lists" / "CSI4" / "CSI4_imgnames.txt"
    (own / "CSI4_imgnames.txt").rename(moved)
    assert reader(own).design.digest == reader(root).design.digest
    assert reader(own).source() == reader(root).source()
    path = own / STIMULI / "Stimuli_Presentation_Lists/CSI2/CSI2_sess07/CSI_sess07_run03.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:36]))
    with pytest.raises(BadDataError, match=r"CSI_sess07_run03.txt names 36 images, a run has 37"):
        reader(own).sessions()


def test_numbers_do_not_depend_on_what_is_read(copy):
    root, facts = copy
    one, other = reader(root, subjects=(4,)), reader(root, space="rois", subjects=(1,))
    assert one.design.names == other.design.names == tuple(facts.names)
    assert one.stimuli_source() == other.stimuli_source()
    assert one.source() != other.source()


def test_test_pictures_are_never_trained_on(copy):
    """Split by stimulus: of the 113 no showing is a training or validation trial, of others none is a test trial."""
    root, facts = copy
    data, split = reader(root), splits.Split()
    shared = np.flatnonzero(data.design.shared)
    assert {facts.names[number] for number in shared} == set(facts.repeated)
    for subject in (1, 2, 3, 4):
        for session in (1, layout.SESSIONS[subject]):
            shown = data.trials(subject, session)
            roles = split.roles(shown.stimulus, np.isin(shown.stimulus, shared))
            for number, role in zip(shown.stimulus, roles, strict=True):
                assert (splits.ROLES[role] == "test") == (facts.names[number] in facts.repeated)
            assert set(roles.tolist()) == {0, 1, 2}


def test_pictures_labels_and_origins(copy):
    root, facts = copy
    data, names = reader(root), pictures(facts)[:60]
    numbers = [facts.names.index(name) for name in names]
    scenes = (root / STIMULI / "Image_Labels" / "scene_final_labels.txt").read_text().split()
    for name, number, stimulus in zip(names, numbers, data.stimuli(numbers), strict=True):
        with Image.open(root / place(name)) as image:
            np.testing.assert_array_equal(stimulus.image, np.asarray(image))
        assert (stimulus.number, stimulus.captions, stimulus.shared) == (number, (), name in facts.repeated)
        if name.startswith("COCO"):
            assert stimulus.label is None
        elif name.endswith(".JPEG"):
            assert stimulus.label == f"thing {name[1:9]}, other name"
        else:
            assert stimulus.label == max((s for s in scenes if name.startswith(s)), key=len) == name[:-5]
    origins = data.origins(numbers[:3])
    assert origins == [f"coco-train2017:{int(names[0][15:27])}", f"imagenet:{names[1][:-5]}", f"scene:{names[2][:-4]}"]
    assert bold5000_stimuli.origin_of("COCO_val2014_000000000042.jpg") == "coco:42"  # of either part in 2017
    with pytest.raises(MissingDataError, match="pictures 0 to 4915, not 4916"):
        list(data.stimuli([4916]))


def test_grey_and_cmyk_pictures_are_rgb(copy, own):
    names, facts = pictures(copy[1])[:2], copy[1]
    for name, mode in zip(names, ("L", "CMYK"), strict=True):
        Image.new(mode, (5, 4)).save(own / place(name), "JPEG")
    images = [s.image for s in reader(own).stimuli([facts.names.index(name) for name in names])]
    assert [image.shape for image in images] == [(4, 5, 3)] * 2


@pytest.mark.parametrize("files", [("captions_train2014.json",), ("captions_train2017.json", "captions_val2017.json")])
def test_captions_of_coco(copy, tmp_path, files):
    root, facts = copy
    names = [name for name in pictures(facts) if name.startswith("COCO")][:6]
    for part, file in enumerate(files):
        own = names[:5][part :: len(files)]
        entries = [{"id": i, "image_id": int(n[15:27]), "caption": f" {n} {i}"} for n in own for i in (2, 1)]
        (tmp_path / file).write_text(json.dumps({"annotations": entries}))
    data = reader(root, annotations=str(tmp_path))
    assert data.caption_source == "COCO annotations"
    assert data.stimuli_source() != reader(root).stimuli_source()
    others = [name for name in pictures(facts) if not name.startswith("COCO")][:2]
    numbers = [facts.names.index(name) for name in (*names[:5], *others)]
    expected = [(f"{name} 1", f"{name} 2") for name in names[:5]] + [(), ()]
    assert [stimulus.captions for stimulus in data.stimuli(numbers)] == expected
    with pytest.raises(MissingDataError, match=rf"no caption of COCO image {int(names[5][15:27])}"):
        list(data.stimuli([facts.names.index(names[5])]))
    with pytest.raises(MissingDataError, match=r"has no captions_train2014.json or captions_train2017.json and"):
        list(reader(root, annotations=str(root)).stimuli(numbers))


def test_without_label_files(copy, own):
    shutil.rmtree(own / STIMULI / "Image_Labels")
    numbers = [copy[1].names.index(name) for name in pictures(copy[1])[:2]]
    assert [stimulus.label for stimulus in reader(own).stimuli(numbers)] == [None, None]
    assert reader(own).stimuli_source() != reader(copy[0]).stimuli_source()


# Counts


def first_line(text: str) -> str:
    return text.partition("\n")[0] + "\n"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "CSI1_imgnames.txt",
            lambda t, f: t + f.names[0] + "\n",
            r"CSI1_imgnames.txt names .* 5255 trials; CSI1 has 5254",
        ),
        ("CSI4_imgnames.txt", lambda t, f: t[: t.rindex("\n", 0, -1) + 1], r"of 3107 trials; CSI4 has 3108"),
        (
            "CSI2_imgnames.txt",
            lambda t, f: t.replace(f.repeated[0], f.repeated[1]),
            r"names 4915 images; CSI2 saw 4916",
        ),
        (
            "CSI3_imgnames.txt",
            lambda t, f: t.replace(f.repeated[50], f.repeated[51], 1),
            r"CSI3_imgnames.txt: numbers of images by how often they were shown are \{1: 4803, 2: 1, 3: 3",
        ),
        (
            "CSI1_imgnames.txt",
            lambda t, f: t.replace("COCO_train2014_", "COCO_val2014_", 1),
            r"name \{'COCO': 2001.*'COCO_val2014_.*' are in .*CSI1_imgnames.txt only",
        ),
        (str(REPEATED), lambda t, f: first_line(t), r"113_list.txt names 1 pictures in 1 lines, not 113"),
        (str(REPEATED), lambda t, f: t + first_line(t), r"names 113 pictures in 114 lines"),
        (
            str(REPEATED),
            lambda t, f: t.replace(f.repeated[7], next(n for n in f.names if n not in f.repeated)),
            r"113_list.txt is not what .*CSI1_imgnames.txt shows more than once: 2 pictures differ",
        ),
    ],
)
def test_lists_that_do_not_add_up(copy, own, file, change, message):
    text = (own / file).read_text()
    assert change(text, copy[1]) != text
    (own / file).write_text(change(text, copy[1]))
    with pytest.raises(BadDataError, match=message):
        reader(own).sessions()


# What is not there, or not right


def test_options_and_names(copy, tmp_path):
    root, _ = copy
    with pytest.raises(UnknownNameError, match="Did you mean 'TYBEB-FITHRF'"):
        reader(root, betas="TYPEB-FITHRF")
    with pytest.raises(UnknownNameError, match="unknown space 'func1pt8mm'"):
        reader(root, space="func1pt8mm")
    with pytest.raises(UnknownNameError, match=r"unknown ROI 'EarlyVi' .* Did you mean 'EarlyVis'"):
        reader(root, voxelset="EarlyVi").voxels(1)
    with pytest.raises(UnknownNameError, match="unknown label of LOC 'L'"):
        reader(root, voxelset="LOC:L").voxels(1)
    with pytest.raises(BadDataError, match=r"'RSC:3' of subject 1 selects no voxel; its ROIs have {'RSC': \d+} in "):
        reader(root, voxelset="RSC:3").voxels(1)
    with pytest.raises(OptionError, match=r"no subject 5: BOLD5000 has subjects 1 to 4"):
        reader(root, subjects=(5,)).sessions()
    with pytest.raises(OptionError, match="no session 16: CSI1 has sessions 1 to 15"):
        reader(root, subjects=(1,), sessions=(16,)).sessions()
    with pytest.raises(OptionError, match="no session 10: CSI4 has sessions 1 to 9"):
        reader(root).trials(4, 10)
    assert (reader(root).name, reader(root, name="mirror").name) == ("bold5000", "mirror")
    assert reader(root, voxelset="(LOC)").label == f"{TYPED}.func2mm.LOC"


def test_sessions_that_are_missing(copy, own):
    root, _ = copy
    assert reader(root).sessions() == [(1, 1), (1, 2), (4, 1)]
    assert reader(root, sessions=1).sessions() == [(1, 1), (4, 1)]
    assert len(reader(root, space="rois").sessions()) == 15 + 9
    with pytest.raises(MissingDataError, match=r"session 3: there is no CSI1_GLMbetas-TYPED-.*_ses-03.nii.gz in /"):
        reader(root, subjects=(1,), sessions=3).sessions()
    with pytest.raises(MissingDataError, match=r"subject 2, session 1: there is no"):
        reader(root, subjects=(2,)).sessions()
    (own / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz").unlink()
    with pytest.raises(MissingDataError, match="subject 1, session 1"):  # never silently from the second on
        reader(own).sessions()
    with pytest.raises(
        MissingDataError,
        match=r"has no betas TYPEA-ASSUMEHRF\.rois, such as .*CSI1_GLMbetas-TYPEA-ASSUMEHRF_allses_LHEarlyVis.npy",
    ):
        reader(root, betas="TYPEA-ASSUMEHRF", space="rois").sessions()


def test_files_that_are_missing(copy, own):
    shutil.rmtree(own / "derivatives" / "spm" / "sub-CSI4")
    with pytest.raises(MissingDataError, match=r"no ROI masks of CSI4 .* OpenNeuro ds001499"):
        reader(own).voxels(4)
    shutil.copytree(copy[0] / "derivatives" / "spm" / "sub-CSI4", own / "sub-CSI4")  # beside the betas
    assert reader(own).voxels(4).digest == reader(copy[0]).voxels(4).digest
    (own / ARRAYS / f"CSI1_GLMbetas-{TYPED}_allses_RHOPA.npy").unlink()
    with pytest.raises(MissingDataError, match=r"allses_RHOPA.npy"):
        reader(own, space="rois").voxels(1)
    (own / "CSI3_imgnames.txt").unlink()
    with pytest.raises(MissingDataError, match=r"neither CSI3_imgnames.txt nor .* all four subjects are needed"):
        reader(own).sessions()
    with pytest.raises(MissingDataError, match="no file"):
        missing = copy[1].names.index(pictures(copy[1])[40])
        (own / "CSI3_imgnames.txt").write_text((copy[0] / "CSI3_imgnames.txt").read_text())
        list(reader(own).stimuli([missing]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.transpose(2, 1, 0, 3), r"holds betas \(3, 4, 5, 370\).*the axes are in another order"),
        (lambda v: v[..., :333], r"holds betas \(5, 4, 3, 333\), masks and design need \(5, 4, 3, 370\)"),
        (lambda v: v[:4], r"holds betas \(4, 4, 3, 370\)"),
        (lambda v: np.rint(v * 300).astype(np.int16), r"holds betas of int16; .* float32 percent signal change"),
        (lambda v: v.astype(np.float64), "holds betas of float64"),
    ],
)
def test_volumes_of_another_kind(own, change, message):
    path = own / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz"
    layout.save(path, change(np.asarray(nibabel.load(path).dataobj)))
    data = reader(own)
    with pytest.raises(BadDataError, match=rf"{path.name} {message}"):
        data.read_session(1, 1, data.voxels(1))


def test_scaled_and_foreign_endian_volumes(copy, own):
    path = own / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz"
    image = nibabel.load(path)
    swapped = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))
    nibabel.save(swapped, path)
    data, right = reader(own), reader(copy[0])
    np.testing.assert_array_equal(
        data.read_session(1, 1, data.voxels(1)).betas, right.read_session(1, 1, right.voxels(1)).betas
    )
    content = bytearray(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine).to_bytes())
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content))
    header["scl_slope"], header["scl_inter"] = 0.5, 0
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(BadDataError, match=r"scl_slope 0.5, scl_inter 0.0; BOLD5000's betas have none"):
        data.read_session(1, 1, data.voxels(1))


def test_masks_and_arrays_of_other_shapes(own):
    layout.save(mask_file(own, 1, "LHPPA"), np.ones((5, 4, 2), np.uint8))
    with pytest.raises(BadDataError, match=r"mask-LHPPA.nii.gz has shape \(5, 4, 2\), the other hemisphere's"):
        reader(own).voxels(1)
    layout.save(mask_file(own, 1, "RHPPA"), np.ones((5, 4, 2), np.uint8))
    with pytest.raises(BadDataError, match=r"masks of CSI1 .* differ in shape"):
        reader(own).voxels(1)
    layout.save(mask_file(own, 1, "LHPPA"), np.full(BOX, np.nan, np.float32))
    with pytest.raises(BadDataError, match=r"mask-LHPPA.nii.gz: 60 voxels of the mask are NaN"):
        reader(own).voxels(1)
    path = own / ARRAYS / f"CSI1_GLMbetas-{TYPED}_allses_LHLOC.npy"
    for values in (np.load(path)[:-1], np.load(path).T, np.load(path).astype(np.int16), np.zeros(5254, np.float32)):
        np.save(path, np.ascontiguousarray(values))
        with pytest.raises(BadDataError, match=r"LHLOC.npy holds .*\(5254, voxels\) floating numbers are needed"):
            reader(own, space="rois").voxels(1)
        np.save(path, np.zeros((5254, 3), np.float32))


# Damage


def test_damaged_volumes(own):
    path, table = own / f"CSI4_GLMbetas-{TYPED}_ses-01.nii.gz", reader(own).voxels(4)
    data = reader(own)
    check_cuts(path, lambda: data.read_session(4, 1, table))
    assert check_flips(path, lambda: data.read_session(4, 1, table).betas) > 30


def test_damaged_masks(own):
    path = mask_file(own, 4, "LHLOC")
    check_cuts(path, lambda: reader(own).voxels(4))
    check_flips(path, lambda: reader(own).voxels(4).labels["LOC"], count=80)


def test_damaged_arrays(own):
    path = own / ARRAYS / f"CSI4_GLMbetas-{TYPED}_allses_RHLOC.npy"

    def read():
        data = reader(own, space="rois", subjects=(4,))
        return data.read_session(4, 2, data.voxels(4)).betas

    check_cuts(path, read)
    check_flips(path, read, count=60, first=128)


def test_damaged_lists(own):
    """Any wrong byte makes a name that nobody else has, or a count that is not BOLD5000's."""
    for name in ("CSI1_imgnames.txt", "CSI4_imgnames.txt", str(REPEATED)):
        # All but the last line's end: without it the list is still whole.
        path = own / name
        path.write_bytes(path.read_bytes().rstrip())
        check_cuts(path, lambda: reader(own).design.shown[4], count=6)
        check_flips(path, lambda: np.r_[tuple(reader(own).design.shown.values())], count=12)


def test_damaged_pictures_and_labels(copy, own):
    name = pictures(copy[1])[0]
    number = copy[1].names.index(name)
    check_cuts(own / place(name), lambda: list(reader(own).stimuli([number])))
    (own / place(name)).write_text("<html>not found</html>")
    with pytest.raises(CorruptFileError, match=f"{name} cannot be read as a picture"):
        list(reader(own).stimuli([number]))
    labels = own / STIMULI / "Image_Labels" / "imagenet_final_labels.txt"
    for content in (b"n01440764\n", b"tench, Tinca tinca\n", b"\xff\xfe\n"):
        with replaced(labels, content), pytest.raises(CorruptFileError, match=r"imagenet_final_labels.txt"):
            reader(own).stimuli_source()


# Buckets


def test_a_bucket_gives_the_same(copy, own, s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    Folder.at(f"s3://{s3_bucket}/b5k").upload(own)
    for options in ({"subjects": (4,)}, {"subjects": (4,), "space": "rois", "voxelset": "PPA:RH", "sessions": (9,)}):
        here, there = reader(own, **options), reader(f"s3://{s3_bucket}/b5k", **options)
        assert there.remote and there.source() == here.source()
        (pair,) = there.sessions()
        mine, theirs = (data.read_session(*pair, data.voxels(4)) for data in (here, there))
        np.testing.assert_array_equal(mine.betas, theirs.betas)
        assert mine.bytes_read == theirs.bytes_read
    number = copy[1].names.index(pictures(copy[1])[0])
    (mine,), (theirs,) = here.stimuli([number]), there.stimuli([number])
    np.testing.assert_array_equal(mine.image, theirs.image)
