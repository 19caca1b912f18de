"""prepare and simulate: what lies in the folders, resuming, sealing, S3, and what a user may get wrong."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image

from bench import prepare as stage
from bench import simulate as simulate_stage
from bench.core.errors import (
    BadDataError,
    CorruptFileError,
    MissingDataError,
    OptionError,
    OtherConfigurationError,
    UnknownNameError,
)
from bench.core.storage import Folder
from bench.data.datasets.nsd import layout
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import MANIFEST, read_manifest, session_path
from bench.data.shards.plan import plan
from bench.data.simulate.presets import TINY
from bench.data.simulate.scenes.sampling import captions, draw, sample_scene, stimulus_seed
from bench.prepare import dry_run, prepare, verify
from bench.simulate import simulate

BETAS = "betas_fithrf_GLMdenoise_RR"
FOLDER = f"nsddata_betas/ppdata/subj01/func1pt8mm/{BETAS}"
PAIRS = [(1, 1), (1, 2), (2, 1)]


def reader(root, **changes) -> Nsd:
    return Nsd(replace(NsdOptions(root=str(root)), **changes))


@pytest.fixture
def own_nsd(tiny_nsd, tmp_path):
    """The tiny NSD in a folder of its own, to be damaged."""
    return Path(shutil.copytree(tiny_nsd, tmp_path / "own"))


@pytest.fixture
def own_shards(tiny_shards, tmp_path) -> Folder:
    """The prepared folder, copied, to be damaged."""
    shutil.copytree(Path(tiny_shards.uri).parent, tmp_path / "data" / "nsd-sim")
    return Folder.at(tmp_path / "data" / "nsd-sim" / tiny_shards.name)


def data_of(shards: Folder) -> Folder:
    return Folder.at(Path(shards.uri).parent.parent)


def test_keys_of_the_simulated_nsd_are_those_of_the_bucket(tiny_nsd):
    names = {path.relative_to(tiny_nsd).as_posix() for path in tiny_nsd.rglob("*") if path.is_file()}
    for key in (
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        "nsddata_stimuli/stimuli/nsd/annotations/captions_train2017.json",
        "nsddata_stimuli/stimuli/nsd/annotations/captions_val2017.json",
        "nsddata/ppdata/subj02/behav/responses.tsv",
        "nsddata/ppdata/subj01/func1pt8mm/brainmask.nii.gz",
        "nsddata/ppdata/subj01/func1pt8mm/roi/lh.prf-visualrois.nii.gz",
        "nsddata/freesurfer/subj01/label/lh.streams.mgz.ctab",
        f"{FOLDER}/betas_session01.hdf5",
        f"{FOLDER}/betas_session02.nii.gz",
        f"{FOLDER}/ncsnr.nii.gz",
        "simulated.json",
    ):
        assert key in names, key
    assert not [name for name in names if "part" in Path(name).name or name == simulate_stage.STARTED]


def test_types_and_shapes_of_the_simulated_nsd(tiny_nsd):
    design = scipy.io.loadmat(tiny_nsd / layout.DESIGN)
    expected = {
        "masterordering": ((1, 30000), np.uint16),
        "subjectim": ((8, 10000), np.int32),
        "sharedix": ((1, 1000), np.int32),
        "basiccnt": ((3, 40), np.uint16),
        "stimpattern": ((40, 12, 75), np.uint8),
    }
    for name, (shape, dtype) in expected.items():
        assert (design[name].shape, design[name].dtype) == (shape, dtype), name
    with h5py.File(tiny_nsd / layout.STIMULI) as file:
        assert (file["imgBrick"].shape, file["imgBrick"].dtype) == ((73_000, 64, 64, 3), np.uint8)
        assert file["imgBrick"].id.get_num_chunks() < 1000  # pictures that nobody saw take no space
    image = nibabel.load(tiny_nsd / FOLDER / "betas_session01.nii.gz")
    assert image.header.get_data_dtype() == np.int16
    raw_header = nibabel.Nifti1Header.from_fileobj(nibabel.openers.Opener(tiny_nsd / FOLDER / "betas_session01.nii.gz"))
    assert (float(raw_header["scl_slope"]), int(raw_header["qform_code"]), int(raw_header["sform_code"])) == (0.0, 0, 1)
    assert image.header["pixdim"][4] == pytest.approx(4 / 3)
    box = np.array(image.shape[:3])
    assert np.allclose(image.affine[:3, 3], -(box - 1) / 2 * 1.8)
    rows = (tiny_nsd / layout.responses(1)).read_text().splitlines()
    assert len(rows) == 1 + 2 * 750
    assert len(rows[0].split("\t")) == 19


def test_responses_agree_with_the_design(tiny_nsd):
    table = np.genfromtxt(tiny_nsd / layout.responses(1), names=True, deletechars="", delimiter="\t")
    nsd = reader(tiny_nsd)
    shown = [nsd.design.trials(1, session) for session in (1, 2)]
    assert np.array_equal(table["73KID"] - 1, np.concatenate([s.stimulus for s in shown]))
    assert np.array_equal(table["ISOLD"] == 1, np.concatenate([s.repeat for s in shown]) > 0)
    assert np.isnan(table["MEMORYRECENT"][table["ISOLD"] == 0]).all()
    counts = [np.sum((table["SESSION"] == 1) & (table["RUN"] == run)) for run in range(1, 13)]
    assert counts == [63, 62] * 6
    assert table["TRIAL"][:64].tolist() == [*range(1, 64), 1]


def test_simulated_pictures_and_captions_are_those_of_the_scenes(tiny_nsd):
    nsd = reader(tiny_nsd)
    wanted = nsd.trials(2, 1).stimulus[[0, 7, 100]].tolist()
    for number, stimulus in zip(wanted, nsd.stimuli(wanted), strict=True):
        scene = sample_scene(stimulus_seed(number, 0))
        assert np.array_equal(stimulus.image, draw(scene, 64))
        assert list(stimulus.captions) == captions(scene)


def test_simulating_again_and_with_another_seed(tiny_nsd, own_nsd, ray_session, tmp_path):
    before = (tiny_nsd / FOLDER / "betas_session01.hdf5").stat().st_mtime_ns
    assert simulate("tiny", tiny_nsd, seed=0) == tiny_nsd
    assert (tiny_nsd / FOLDER / "betas_session01.hdf5").stat().st_mtime_ns == before
    with pytest.raises(OtherConfigurationError, match="seed is 0, asked for 1"):
        simulate("tiny", own_nsd, seed=1)
    (own_nsd / layout.SIMULATED).unlink()
    with pytest.raises(OtherConfigurationError, match="not empty and holds no simulation"):
        simulate("tiny", own_nsd, seed=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        simulate("tinny", tmp_path / "x")
    with pytest.raises(OptionError, match="seed -1 is negative"):
        simulate("tiny", tmp_path / "x", seed=-1)


def test_an_interrupted_simulation_continues_to_the_same_files(tiny_nsd, own_nsd, ray_session):
    identity = (own_nsd / layout.SIMULATED).read_bytes()
    (own_nsd / layout.SIMULATED).unlink()
    (own_nsd / simulate_stage.STARTED).write_bytes(identity)
    for key in (f"{FOLDER}/betas_session02.nii.gz", layout.STIMULI, layout.captions("val2017"), layout.DESIGN):
        (own_nsd / key).unlink()
    kept = (own_nsd / FOLDER / "betas_session01.hdf5").stat().st_mtime_ns
    counted = []
    simulate("tiny", own_nsd, seed=0, advance=lambda units=1, note="": counted.append(units))
    assert sum(counted) == simulate_stage.units(TINY)
    assert (own_nsd / FOLDER / "betas_session01.hdf5").stat().st_mtime_ns == kept
    assert (own_nsd / layout.SIMULATED).read_bytes() == identity
    for key in (f"{FOLDER}/betas_session02.nii.gz", layout.captions("val2017")):
        assert (own_nsd / key).read_bytes() == (tiny_nsd / key).read_bytes()
    wanted = reader(tiny_nsd).trials(1, 2).stimulus[:20].tolist()
    for one, other in zip(reader(tiny_nsd).stimuli(wanted), reader(own_nsd).stimuli(wanted), strict=True):
        assert np.array_equal(one.image, other.image)


def test_shards_hold_the_whole_volumes_betas(tiny_nsd, tiny_shards):
    manifest = read_manifest(tiny_shards)
    assert (manifest.kind, manifest.dataset, manifest.dtype, manifest.scale) == ("trials", "nsd-sim", "<i2", 1 / 300)
    assert (manifest.unit, manifest.left_out) == ("percent signal change", {})
    for subject, session in PAIRS:
        name = layout.session_betas(layout.betas_folder(subject, "func1pt8mm", BETAS), session, "nifti")
        roi = nibabel.load(tiny_nsd / layout.roi_volume(subject, "func1pt8mm", "nsdgeneral")).get_fdata()
        expected = np.asarray(nibabel.load(tiny_nsd / name).dataobj)[roi > 0].T
        table = tiny_shards.read_table(session_path(subject, session))
        betas = from_column(table["betas"], np.dtype(manifest.dtype), (manifest.voxels[str(subject)],))
        assert np.array_equal(betas, expected)
        assert betas.std() > 100  # numbers x 300, not psc
        shown = reader(tiny_nsd).trials(subject, session)
        assert table["trial"].to_pylist() == shown.trial.tolist()
        assert table["stimulus"].to_pylist() == shown.stimulus.tolist()
        assert table["repeat"].to_pylist() == shown.repeat.tolist()


def test_stimuli_are_those_shown_and_no_others(tiny_nsd, tiny_shards):
    manifest = read_manifest(tiny_shards)
    folder = Folder.at(Path(tiny_shards.uri).parent / manifest.stimuli)
    sealed = read_manifest(folder)
    rows = [row for entry in sealed.files for row in folder.read_table(entry.path).to_pylist()]
    nsd = reader(tiny_nsd)
    shown = sorted({int(n) for pair in PAIRS for n in nsd.trials(*pair).stimulus})
    assert [row["stimulus"] for row in rows] == shown
    assert len(sealed.files) == -(-len(shown) // 500)
    assert {row["stimulus"] for row in rows if row["shared"]} == set(shown) & set(nsd.design.shared.tolist())
    for row, stimulus in zip(rows[::50], nsd.stimuli(shown[::50]), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), stimulus.image)
        assert tuple(row["captions"]) == stimulus.captions
        assert row["caption_source"] == "simulator"


def test_voxel_tables(tiny_nsd, tiny_shards):
    voxels = reader(tiny_nsd).voxels(2)
    table = tiny_shards.read_table("voxels/subject-2.parquet").to_pandas()
    assert np.array_equal(table[["x", "y", "z"]], voxels.coordinates)
    assert np.array_equal(table["ncsnr"], voxels.ncsnr, equal_nan=True)
    assert np.array_equal(table["atlas:streams"], voxels.labels["streams"])
    assert read_manifest(tiny_shards).source["label_names"]["streams"]["early"] == 1


def test_bytes_read_are_the_masked_voxels_only(tiny_nsd, tiny_shards):
    manifest = read_manifest(tiny_shards)
    assert manifest.bytes_read == sum(200 * 2 * manifest.voxels[str(subject)] for subject, _ in PAIRS)
    whole = sum((tiny_nsd / FOLDER / f"betas_session0{n}.hdf5").stat().st_size for n in (1, 2))
    assert manifest.bytes_read < 0.2 * whole


def test_a_second_run_reads_nothing(own_nsd, own_shards, ray_session):
    for path in (own_nsd / "nsddata_betas").rglob("betas_session*"):
        path.write_bytes(b"")  # any reading would fail
    assert prepare(reader(own_nsd), data_of(own_shards)).uri == own_shards.uri


def test_a_broken_run_keeps_whole_sessions_and_ends_in_the_same_manifest(tiny_shards, own_nsd, tmp_path, ray_session):
    data = Folder.at(tmp_path / "data")
    damaged = own_nsd / FOLDER / "betas_session02.hdf5"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match=r"betas_session02\.hdf5 cannot be read as HDF5"):
        prepare(reader(own_nsd), data)
    folder = data / "nsd-sim" / tiny_shards.name
    assert not folder.exists(MANIFEST)
    assert folder.exists(session_path(1, 1))
    assert not folder.exists(session_path(1, 2))
    damaged.write_bytes(whole)
    (own_nsd / FOLDER / "betas_session01.hdf5").write_bytes(b"")  # reading the kept session again would fail
    assert prepare(reader(own_nsd), data) == folder
    assert folder.read_bytes(MANIFEST) == tiny_shards.read_bytes(MANIFEST)


@pytest.mark.parametrize("harm", ["truncated", "other rows", "other width"])
def test_a_bad_session_file_left_behind_is_made_again(tiny_nsd, tiny_shards, own_shards, ray_session, harm):
    path = session_path(2, 1)
    content = own_shards.read_bytes(path)
    (Path(own_shards.uri) / MANIFEST).unlink()
    if harm == "truncated":
        own_shards.write_bytes(path, content[: len(content) // 2])
    else:
        table = own_shards.read_table(path)
        other = own_shards.read_table(session_path(1, 1)).replace_schema_metadata(table.schema.metadata)
        own_shards.write_table(path, table.slice(1) if harm == "other rows" else other)
    prepare(reader(tiny_nsd), data_of(own_shards))
    assert own_shards.read_bytes(path) == content
    assert own_shards.read_bytes(MANIFEST) == tiny_shards.read_bytes(MANIFEST)


def test_another_configuration_is_another_folder(tiny_nsd, tiny_shards, ray_session, tmp_path):
    changes = [{}, {"subjects": (1,)}, {"sessions": 1}, {"voxelset": "streams:early"}, {"captions": False}]
    plans = [plan(reader(tiny_nsd, **change), Folder.at(tmp_path)) for change in changes]
    assert plans[0].shards.name == tiny_shards.name
    assert len({p.shards.name for p in plans}) == len(plans)
    assert plans[3].stimuli_folder == plans[0].stimuli_folder  # pictures do not depend on voxels
    assert plans[4].stimuli_folder != plans[0].stimuli_folder


def test_a_manifest_of_another_configuration(tiny_nsd, own_shards, ray_session):
    manifest = own_shards.read_json(MANIFEST)
    manifest["source"]["voxelset"] = "streams"
    own_shards.write_json(MANIFEST, manifest)
    with pytest.raises(OtherConfigurationError, match="another configuration: voxelset differ"):
        prepare(reader(tiny_nsd), data_of(own_shards))


def test_a_file_missing_from_a_sealed_set(tiny_nsd, own_shards, ray_session):
    (Path(own_shards.uri) / session_path(1, 2)).unlink()
    with pytest.raises(MissingDataError, match=re.escape(session_path(1, 2))):
        prepare(reader(tiny_nsd), data_of(own_shards))


def test_verify_names_the_file_that_differs(tiny_nsd, own_shards, ray_session):
    nsd, data = reader(tiny_nsd), data_of(own_shards)
    assert verify(nsd, data) == 3 + 2 + len(plan(nsd, data).parts)
    path = session_path(1, 2)
    content = bytearray(own_shards.read_bytes(path))
    content[len(content) // 2] ^= 1
    own_shards.write_bytes(path, bytes(content))
    with pytest.raises(CorruptFileError, match=f"{re.escape(path)}: sha256 .* its manifest says"):
        verify(nsd, data)
    own_shards.write_bytes(path, bytes(content[:-1]))
    with pytest.raises(CorruptFileError, match=f"{re.escape(path)}: {len(content) - 1} bytes"):
        verify(nsd, data)


def test_verify_compares_rows_with_the_design(tiny_nsd, own_shards, ray_session):
    """A set that is consistent in itself but tells of other pictures, as the 10,000-image ids would."""
    path = session_path(2, 1)
    table = own_shards.read_table(path)
    wrong = table.set_column(
        1, table.field(1), pq.read_table(io.BytesIO(own_shards.read_bytes(path)))["repeat"].cast("int32")
    )
    size, sha256 = own_shards.write_table(path, wrong)
    manifest = own_shards.read_json(MANIFEST)
    for entry in manifest["files"]:
        if entry["path"] == path:
            entry.update(size=size, sha256=sha256)
    own_shards.write_json(MANIFEST, manifest)
    with pytest.raises(BadDataError, match="column 'stimulus' is not the design's"):
        verify(reader(tiny_nsd), data_of(own_shards))


def test_verify_of_nothing(tiny_nsd, tmp_path, ray_session):
    with pytest.raises(MissingDataError, match="not a finished set"):
        verify(reader(tiny_nsd), Folder.at(tmp_path))


def test_s3_gets_the_same_bytes(tiny_nsd, tiny_shards, s3_bucket, ray_session):
    data = Folder.at(f"s3://{s3_bucket}/lab/data")
    shards = prepare(reader(tiny_nsd), data)
    assert shards.uri == f"s3://{s3_bucket}/lab/data/nsd-sim/{tiny_shards.name}"
    assert sorted(shards.files()) == sorted(tiny_shards.files())
    for name in tiny_shards.files():
        assert shards.read_bytes(name) == tiny_shards.read_bytes(name), name
    assert prepare(reader(tiny_nsd), data) == shards
    assert verify(reader(tiny_nsd), data) == 3 + 2 + len(plan(reader(tiny_nsd), data).parts)


def test_dry_run_says_what_is_read_and_written_and_writes_nothing(tiny_nsd, tmp_path):
    lines = dry_run(reader(tiny_nsd), Folder.at(tmp_path / "data"))
    assert [line for line in lines if line.endswith("betas_session02.hdf5")]
    total = sum(200 * 2 * count for count in (124, 124, 112))
    assert f"read {total / 1e9:8.4f} GB  write {total / 1e9:8.4f} GB  in all" in lines[3]
    whole = (tiny_nsd / FOLDER / "betas_session01.nii.gz").stat().st_size
    assert f"read {whole / 1e9:8.4f} GB" in dry_run(reader(tiny_nsd, files="nifti"), Folder.at(tmp_path))[0]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "{root}", "--voxelset", "stream"], "Did you mean 'streams'"),
        (["--root", "{root}", "--subjects", "9"], "no subject 9: the design has subjects 1 to 8"),
        (["--root", "{root}", "--sessions", "1-3"], "no betas of subject 1, session 3"),
        (["--root", "{root}", "--dataset", "nds"], "Did you mean 'nsd'"),
        (["--root", "{root}", "--space", "func1"], "Did you mean 'func1mm'"),
        (["--root", "{root}/nowhere"], "no file"),
        (["--root", "{root}", "--verify"], "not a finished set"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_with_2(tiny_nsd, tmp_path, capsys, arguments, message):
    given = [argument.format(root=tiny_nsd) for argument in arguments]
    assert stage.main([*given, "--data", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ") and "\n" not in error
    assert not (tmp_path / "data").exists()


def test_an_error_in_a_worker_is_one_line_too(own_nsd, tmp_path, ray_session, capsys):
    (own_nsd / FOLDER / "betas_session01.hdf5").write_bytes(b"")
    assert stage.main(["--root", str(own_nsd), "--data", str(tmp_path / "data")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "betas_session01.hdf5 cannot be read as HDF5" in lines[-1]
    assert not [line for line in lines if "Traceback" in line]
    assert not list((tmp_path / "data").rglob("betas*/manifest.json"))


def test_command_lines(tiny_nsd, own_shards, ray_session, capsys):
    data = str(data_of(own_shards))
    assert stage.main(["--root", str(tiny_nsd), "--data", data]) == 0
    assert stage.main(["--root", str(tiny_nsd), "--data", data, "--verify"]) == 0
    assert stage.main(["--root", str(tiny_nsd), "--data", data, "--dry-run", "--sessions", "1"]) == 0
    assert simulate_stage.main(["--preset", "tiny", "--out", str(tiny_nsd)]) == 0
    assert simulate_stage.main(["--preset", "demo", "--out", str(tiny_nsd)]) == 2
    printed = capsys.readouterr().err
    for text in ("trial shards in", "files are as their manifests", "GB", "simulated NSD (tiny)", "another simulation"):
        assert text in printed


@pytest.mark.parametrize("name", ["prepare", "simulate"])
def test_stages_run_as_scripts_from_anywhere(tmp_path, name):
    script = Path(__file__).parent.parent / "bench" / f"{name}.py"
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: reconbench {name}" in done.stdout
    assert "example:" in done.stdout


def test_simulated_json_says_preset_seed_and_version(tiny_nsd):
    content = json.loads((tiny_nsd / layout.SIMULATED).read_text())
    assert (content["name"], content["seed"], content["version"]) == ("tiny", 0, simulate_stage.VERSION)
    assert content["trials_per_session"] == 200
