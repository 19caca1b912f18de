"""The NSD reader against whole volumes read with nibabel, and against the mistakes found in the field."""

import os
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
from nsd_copy import BETAS, BOX, SPACE, write_copy, write_pictures

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.options import build
from bench.data.datasets._occurrences import occurrences
from bench.data.datasets.nsd import layout, volumes
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.data.datasets.nsd.design import read_design
from bench.data.simulate.nsd_copy import volumes as nsd_volumes


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return write_copy(tmp_path_factory.mktemp("nsd"), {1: (1, 2), 2: (1,)})


@pytest.fixture
def own(copy, tmp_path):
    """The copy in a folder of its own, to be damaged."""
    root = tmp_path / "nsd"
    shutil.copytree(copy.root, root)
    return write_like(copy, root)


def write_like(copy, root: Path):
    return type(copy)(root, copy.design, copy.volumes, copy.betas, copy.ncsnr)


def reader(copy, **options) -> Nsd:
    return Nsd(build(NsdOptions, {"root": str(copy.root), **options}, "options of dataset 'nsd'"))


def whole_volume_betas(copy, subject, session, mask) -> np.ndarray:
    """Reference: the whole 4-D volume through nibabel, masked on the NIfTI axes."""
    volume = nibabel.load(copy.betas_path(subject, session, "nifti")).get_fdata()
    return volume[mask].T


@pytest.mark.parametrize("files", ["hdf5", "nifti", "auto"])
@pytest.mark.parametrize(("subject", "session"), [(1, 1), (1, 2), (2, 1)])
def test_betas_are_those_of_the_whole_volume(copy, files, subject, session):
    nsd = reader(copy, files=files)
    voxels = nsd.voxels(subject)
    trials = nsd.read_session(subject, session, voxels)
    expected = whole_volume_betas(copy, subject, session, copy.volumes["nsdgeneral"] > 0)
    assert trials.betas.dtype == np.dtype("<i2")
    assert np.array_equal(trials.betas, expected)
    np.testing.assert_allclose(trials.betas * nsd.scale, expected / 300, rtol=1e-12)  # not x 0.1, not raw


def test_hdf5_axes_are_reversed_nifti_axes(copy):
    with h5py.File(copy.betas_path(1, 1, "hdf5")) as file:
        raw = file["betas"]
        assert raw.shape == (750, *BOX[::-1])
        assert raw.chunks == (750, 1, 1, 1)
        assert raw.compression is None
        nifti = np.asarray(nibabel.load(copy.betas_path(1, 1, "nifti")).dataobj)
        for t, x, y, z in [(0, 0, 0, 0), (3, 5, 0, 0), (700, 0, 7, 0), (749, 0, 0, 4), (11, 2, 6, 3)]:
            assert raw[t, z, y, x] == nifti[x, y, z, t]


def test_any_subset_and_order_of_voxels_reads_the_same_from_both_files(copy):
    rng = np.random.default_rng(3)
    everywhere = np.argwhere(np.ones(BOX, bool)).astype(np.int32)
    for count in (1, 2, 17, len(everywhere)):
        coordinates = rng.permutation(everywhere)[:count]
        expected = np.stack([copy.betas[1, 2][tuple(c)] for c in coordinates], axis=1)
        hdf5, from_hdf5 = volumes.read_hdf5(copy.betas_path(1, 2, "hdf5"), coordinates, BOX, 750)
        nifti, from_nifti = volumes.read_nifti(copy.betas_path(1, 2, "nifti"), coordinates, BOX, 750)
        assert np.array_equal(hdf5, expected)
        assert np.array_equal(nifti, expected)
        assert from_hdf5 == count * 750 * 2
        assert from_nifti == copy.betas_path(1, 2, "nifti").stat().st_size


def test_voxels_are_in_canonical_order_with_labels_and_ncsnr(copy):
    table = reader(copy).voxels(1)
    mask = copy.volumes["nsdgeneral"] > 0
    slow = [(x, y, z) for x in range(BOX[0]) for y in range(BOX[1]) for z in range(BOX[2]) if mask[x, y, z]]
    assert table.coordinates.tolist() == [list(place) for place in slow]
    assert table.labels["streams"].tolist() == [copy.volumes["streams"][place] for place in slow]
    assert np.array_equal(table.ncsnr, [copy.ncsnr[place] for place in slow], equal_nan=True)
    assert np.isnan(table.ncsnr).any()
    assert sorted(table.labels) == ["nsdgeneral", "streams"]


def test_minus_one_is_not_taken_into_a_mask(copy):
    table = reader(copy, voxelset="streams").voxels(1)
    assert len(table.coordinates) == (copy.volumes["streams"] > 0).sum()
    assert len(table.coordinates) < (copy.volumes["streams"] != 0).sum()
    early = reader(copy, voxelset="streams:early & nsdgeneral").voxels(1)
    assert len(early.coordinates) == ((copy.volumes["streams"] == 1) & (copy.volumes["nsdgeneral"] > 0)).sum()


def test_pictures_of_trials_come_through_subjectim(copy):
    nsd = reader(copy)
    raw = scipy.io.loadmat(copy.root / layout.DESIGN)
    for subject, session in nsd.sessions():
        shown = nsd.trials(subject, session)
        own_pictures = raw["masterordering"][0, (session - 1) * 750 : session * 750].astype(int)
        expected = [int(raw["subjectim"][subject - 1, number - 1]) - 1 for number in own_pictures]
        assert shown.stimulus.tolist() == expected
        assert shown.trial.tolist() == list(range((session - 1) * 750, session * 750))
    first, other = nsd.trials(1, 1).stimulus, nsd.trials(2, 1).stimulus
    same = first == other
    assert np.array_equal(same, raw["masterordering"][0, :750] <= 1000)  # only the shared pictures agree


def test_repeats_count_over_all_trials_of_a_subject(copy):
    nsd = reader(copy)
    seen: dict[int, int] = {}
    for session in range(1, 41):
        shown = nsd.trials(2, session)
        for stimulus, repeat in zip(shown.stimulus, shown.repeat, strict=True):
            assert repeat == seen.get(int(stimulus), 0)
            seen[int(stimulus)] = repeat + 1
    assert set(seen.values()) == {3}
    assert len(seen) == 10_000
    assert occurrences(np.array([5, 5, 1, 5, 1])).tolist() == [0, 1, 0, 2, 1]
    assert occurrences(np.array([4])).tolist() == [0]


def test_rep_columns_are_the_planned_trials_from_one(copy):
    nsd = reader(copy)
    info = pd.read_csv(copy.root / layout.STIMULUS_INFO)
    assert info.shape == (73_000, 41)
    shown = nsd.trials(1, 2)
    for trial, stimulus, repeat in list(zip(shown.trial, shown.stimulus, shown.repeat, strict=True))[:50]:
        assert info.loc[stimulus, f"subject1_rep{repeat}"] == trial + 1
    assert int(info["shared1000"].sum()) == 1000
    assert (info.loc[info["shared1000"], [f"subject{s}" for s in range(1, 9)]] == 1).all(axis=None)


REAL_DESIGN = os.environ.get("RECONBENCH_NSD_EXPDESIGN")


@pytest.mark.skipif(REAL_DESIGN is None, reason="RECONBENCH_NSD_EXPDESIGN does not point to NSD's nsd_expdesign.mat")
def test_the_real_design():
    design = read_design(Path(str(REAL_DESIGN)))
    assert design.trials(1, 1).stimulus[:5].tolist() == [46002, 61882, 828, 67573, 16020]
    assert design.trials(2, 1).stimulus[:5].tolist() == [46002, 42019, 22499, 61982, 48144]
    assert (design.subjects, design.sessions, design.starts[-1]) == (8, 40, 30_000)
    assert (design.shared.min(), design.shared.max(), design.shared.size) == (2950, 72948, 1000)
    until = np.concatenate([design.trials(1, session).stimulus for session in range(1, 38)])
    assert np.isin(design.shared, until).sum() == 982
    assert len(np.unique(until)) == 9841


def test_pictures_captions_and_shared_flags(copy):
    nsd = reader(copy)
    numbers = np.unique(nsd.trials(1, 1).stimulus)[:40]
    shared = copy.design.sharedix[0] - 1
    val = next(n for n in range(73_000) if n % 20 == 7 and n not in shared)
    pictures = write_pictures(copy, np.union1d(numbers, [shared[0], val]))
    wanted = [int(shared[0]), val, *(int(n) for n in numbers[::-1])]
    for number, stimulus in zip(wanted, nsd.stimuli(wanted), strict=True):
        assert stimulus.number == number
        assert np.array_equal(stimulus.image, pictures[number])
        assert stimulus.captions == tuple(f"picture {number}, sentence {i}" for i in range(5))
        assert stimulus.shared == (number in shared)
    assert next(reader(copy, captions=False).stimuli([val])).captions == ()
    assert nsd.caption_source == "COCO 2017 annotations"
    with pytest.raises(MissingDataError, match="no caption of COCO image"):
        list(nsd.stimuli([int(numbers[-1]) + 1]))


def test_captions_that_are_not_there_say_where_they_belong(own):
    write_pictures(own, np.array([0, 1]))
    (own.root / layout.captions("train2017")).unlink()
    with pytest.raises(MissingDataError, match=r"annotations_trainval2017\.zip"):
        list(reader(own).stimuli([0]))


def test_sessions_asked_for_and_found(copy):
    assert reader(copy).sessions() == [(1, 1), (1, 2), (2, 1)]
    assert reader(copy, subjects=[1], sessions=2).sessions() == [(1, 1), (1, 2)]
    assert reader(copy, subjects=[1], sessions=[2]).sessions() == [(1, 2)]
    with pytest.raises(MissingDataError, match=r"no betas of subject 2, session 2: .*betas_session02\.hdf5 or"):
        reader(copy, sessions=2).sessions()
    with pytest.raises(OptionError, match="no subject 9: the design has subjects 1 to 8"):
        reader(copy, subjects=[9], sessions=1).sessions()
    with pytest.raises(OptionError, match="no session 41: the design has sessions 1 to 40"):
        reader(copy, subjects=[1], sessions=[41]).sessions()
    with pytest.raises(MissingDataError, match="no betas of subject 3"):
        reader(copy, subjects=[3]).sessions()


def test_a_gap_between_sessions_is_a_missing_session(own):
    for files in ("hdf5", "nifti"):
        own.betas_path(1, 1, files).unlink()
    with pytest.raises(MissingDataError, match="no betas of subject 1, session 1"):
        reader(own).sessions()
    assert reader(own, sessions=[2], subjects=[1]).sessions() == [(1, 2)]


def test_names_outside_the_allowed_ones_get_the_nearest(copy):
    with pytest.raises(UnknownNameError, match=r"space 'func1p8mm'.*Did you mean 'func1pt8mm'"):
        reader(copy, space="func1p8mm")
    with pytest.raises(UnknownNameError, match="Did you mean 'betas_fithrf'"):
        reader(copy, betas="beta_fithrf")
    with pytest.raises(UnknownNameError, match=r"atlas 'stream' in voxel set.*Did you mean 'streams'"):
        reader(copy, voxelset="stream:early").voxels(1)
    with pytest.raises(UnknownNameError, match="Did you mean 'early'"):
        reader(copy, voxelset="streams:erly").voxels(1)
    with pytest.raises(UnknownNameError, match="Did you mean 'voxelset'"):
        reader(copy, voxel_set="nsdgeneral")
    with pytest.raises(OptionError, match="files"):
        reader(copy, files="mat")
    with pytest.raises(OptionError, match="local folder or an s3:// address"):
        Nsd(NsdOptions(root="gs://natural-scenes-dataset"))


def test_a_mask_without_voxels(own):
    empty = np.where(own.volumes["nsdgeneral"] > 0, 0, own.volumes["nsdgeneral"])
    nsd_volumes.write_nifti(own.root / layout.roi_volume(1, SPACE, "nsdgeneral"), empty, SPACE)
    with pytest.raises(BadDataError, match="voxel set 'nsdgeneral' selects no voxel of subj01"):
        reader(own).voxels(1)


def test_a_label_volume_with_nan_or_fractions(own):
    path = own.root / layout.roi_volume(1, SPACE, "streams")
    for value, message in ((np.nan, "1 voxels are NaN"), (0.5, "whole label numbers"), (-2, "from -2")):
        volume = own.volumes["streams"].astype(np.float32)
        volume[0, 0, 0] = value
        nsd_volumes.write_nifti(path, volume, SPACE)
        with pytest.raises(BadDataError, match=message):
            reader(own).voxels(1)


def test_an_atlas_of_another_box(own):
    nsd_volumes.write_nifti(
        own.root / layout.roi_volume(1, SPACE, "streams"), own.volumes["streams"].transpose(2, 1, 0), SPACE
    )
    with pytest.raises(BadDataError, match=r"streams.* has shape \(5, 8, 6\), the voxel set's maps have \(6, 8, 5\)"):
        reader(own).voxels(1)


@pytest.mark.parametrize("files", ["hdf5", "nifti"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.transpose(2, 1, 0, 3), "the axes are in another order"),
        (lambda v: v[..., :749], "differs in trials?"),
        (lambda v: v[:, :7], "differs in y"),
        (lambda v: v.astype(np.float32) / 300, "holds betas of float32; NSD's volumes are int16"),
    ],
)
def test_betas_that_do_not_match_mask_or_design(own, files, change, message):
    volume = change(own.betas[1, 1])
    path = own.betas_path(1, 1, files)
    if files == "nifti":
        nsd_volumes.write_nifti(path, volume, SPACE)
    else:
        with h5py.File(path, "w") as file:
            file["betas"] = volume.transpose(3, 2, 1, 0)
    nsd = reader(own, files=files)
    with pytest.raises(BadDataError, match=message) as error:
        nsd.read_session(1, 1, nsd.voxels(1))
    assert str(path) in str(error.value)


def test_nifti_betas_with_a_scale_of_their_own(own):
    image = nibabel.Nifti1Image(own.betas[1, 1], np.eye(4))
    image.header.set_slope_inter(1 / 300, 0)
    nibabel.save(image, own.betas_path(1, 1, "nifti"))
    nsd = reader(own, files="nifti")
    with pytest.raises(BadDataError, match="scl_slope"):
        nsd.read_session(1, 1, nsd.voxels(1))


@pytest.mark.parametrize("files", ["hdf5", "nifti"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_betas(own, files, share):
    path = own.betas_path(1, 1, files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    nsd = reader(own, files=files)
    with pytest.raises(CorruptFileError, match=path.name):
        nsd.read_session(1, 1, nsd.voxels(1))


def test_hdf5_without_betas(own):
    with h5py.File(own.betas_path(1, 1, "hdf5"), "w") as file:
        file["beta"] = np.zeros(3)
    nsd = reader(own)
    with pytest.raises(CorruptFileError, match=r"no dataset 'betas'; it holds \['beta'\]"):
        nsd.read_session(1, 1, nsd.voxels(1))


def test_a_design_that_does_not_fit_together(own):
    path = own.root / layout.DESIGN
    fields = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    for change, error, message in [
        ({"sharedix": fields["sharedix"] - 1}, BadDataError, "not the images of sharedix"),
        ({"masterordering": fields["masterordering"][:, :-1]}, BadDataError, "stimpattern has 30000 images"),
        ({"subjectim": fields["subjectim"].astype(float) * np.nan}, BadDataError, "NaN"),
        ({"subjectim": fields["subjectim"][:, :9999]}, BadDataError, "subjectim has 9999 columns"),
        ({"stimpattern": None}, CorruptFileError, "lacks stimpattern"),
    ]:
        scipy.io.savemat(path, {k: v for k, v in {**fields, **change}.items() if v is not None})
        with pytest.raises(error, match=message):
            read_design(path)
    path.write_bytes(b"not a mat file" * 20)
    with pytest.raises(CorruptFileError, match="MATLAB 5"):
        read_design(path)


def test_stimulus_info_off_by_one(own):
    path = own.root / layout.STIMULUS_INFO
    table = pd.read_csv(path)
    table["shared1000"] = np.roll(table["shared1000"], 1)
    table.to_csv(path, index=False)
    with pytest.raises(BadDataError, match="shared1000 marks 1000 pictures, not the 1000 of the design"):
        _ = reader(own).info
    table["nsdId"] += 1
    table.to_csv(path, index=False)
    with pytest.raises(BadDataError, match="nsdId must count the rows from 0"):
        _ = reader(own).info


def test_half_written_and_hidden_files_are_no_atlases(own):
    folder = own.root / layout.functional_folder(1, SPACE) / "roi"
    for name in (".0f.part.streams.nii.gz", "._streams.nii.gz", "readme.txt"):
        (folder / name).write_bytes(b"half")
    assert sorted(reader(own).voxels(1).labels) == ["nsdgeneral", "streams"]


def test_ctab_files_win_and_must_agree(own):
    path = own.root / layout.label_names(1, "streams")
    path.write_text("0 Unknown\n1\tearly visual\n2   rest\n")
    with pytest.raises(BadDataError, match="unlike the files of subjects before"):
        _ = reader(own).label_names
    (own.root / layout.label_names(2, "streams")).unlink()
    nsd = reader(own, voxelset='streams:"early visual"')
    assert nsd.label_names["streams"] == {"early visual": 1, "rest": 2}
    assert len(nsd.voxels(1).coordinates) == (own.volumes["streams"] == 1).sum()
    path.write_text("0 Unknown\nearly\n")
    with pytest.raises(CorruptFileError, match="'early' is not a label number and a name"):
        _ = reader(own).label_names


def test_label_names_without_the_subjects_own_files(own):
    for subject in (1, 2):
        (own.root / layout.label_names(subject, "streams")).unlink()
    assert reader(own).label_names["streams"]["parietal"] == 7  # built in
    for key, name in (("nsddata/templates/streams.ctab", "drawn"), (layout.label_names(None, "streams"), "surface")):
        (own.root / key).parent.mkdir(parents=True, exist_ok=True)
        (own.root / key).write_text(f"0 Unknown\n1 {name}\n")
        assert reader(own).label_names["streams"] == {name: 1}


def test_source_says_what_decides_the_shards_and_no_paths(copy, own):
    first, moved = reader(copy, sessions=1), reader(own, sessions=1)
    assert first.source() == moved.source()
    assert str(copy.root) not in str(first.source())
    assert first.label == f"{BETAS}.{SPACE}.nsdgeneral"
    changed = own.volumes["nsdgeneral"].copy()
    changed[np.unravel_index(np.argmax(changed < 1), BOX)] = 1
    nsd_volumes.write_nifti(own.root / layout.roi_volume(1, SPACE, "nsdgeneral"), changed, SPACE)
    assert reader(own, sessions=1).source() != first.source()
    assert reader(copy, sessions=1, files="nifti").source() == first.source()
    assert reader(copy).source() != first.source()
    assert reader(copy, voxelset="(nsdgeneral)", sessions=1).source() == first.source()


def test_a_simulated_copy_is_never_called_nsd(own):
    assert reader(own).name == "nsd"
    assert "Terms and Conditions" in reader(own).terms
    (own.root / layout.SIMULATED).write_text('{"trials_per_session": 20}')
    nsd = reader(own)
    assert (nsd.name, nsd.terms, nsd.caption_source) == ("nsd-sim", "", "simulator")
    assert len(nsd.trials(1, 2).trial) == 20
    assert nsd.trials(1, 2).trial[0] == 750
    with pytest.raises(OptionError, match="simulated NSD: its name cannot be 'nsd'"):
        _ = reader(own, name="nsd").name


def test_missing_ncsnr_is_nan_and_said(own, caplog):
    (own.root / layout.betas_folder(1, SPACE, BETAS) / "ncsnr.nii.gz").unlink()
    assert np.isnan(reader(own).voxels(1).ncsnr).all()
    assert "noise ceiling of subject 1 is not known" in caplog.text
