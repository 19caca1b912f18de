"""NSD's surface betas, fsaverage and native, against whole files read with nibabel and h5py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data import patience
from bench.data.columns import from_column
from bench.data.datasets.nsd import Nsd, NsdOptions
from bench.data.nsd import layout, surfaces
from bench.data.shards import session_path
from bench.data.simulate import nsd_files
from bench.data.simulate.design import simulate_design
from bench.data.source_files import SourceFiles
from bench.errors import BadDataError, CorruptFileError, MissingDataError, UnknownNameError
from bench.prepare import prepare
from bench.storage import Folder

BETAS = "betas_fithrf_GLMdenoise_RR"
COUNTS = {"lh": 40, "rh": 33}
TRIALS = 750


@dataclass(frozen=True)
class Surface:
    """Whole label maps, ncsnr and betas `(trials, V)`, the left hemisphere's vertices first."""

    root: Path
    labels: dict[str, np.ndarray]
    ncsnr: np.ndarray
    betas: np.ndarray


def both(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values["lh"], values["rh"]], axis=-1)


def write_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.freesurfer.mghformat.MGHImage(values.reshape(-1, 1, 1, *values.shape[1:]), np.eye(4))
    nibabel.save(image, path)


def write_surface(root: Path, space: str) -> Surface:
    rng = np.random.default_rng(5)
    design = simulate_design(0)
    nsd_files.write_design(root, design)
    nsd_files.write_stimulus_info(root, design)
    folder = layout.label_folder(None if space == "fsaverage" else 1)
    labels = {
        atlas: {side: rng.integers(0, top + 1, count).astype(np.int32) for side, count in COUNTS.items()}
        for atlas, top in (("nsdgeneral", 1), ("streams", 7))
    }
    for atlas, sides in labels.items():
        for side, values in sides.items():
            write_map(root / folder / f"{side}.{atlas}.mgz", values)
    place = root / layout.betas_folder(1, space, BETAS)
    ncsnr = {side: rng.random(count).astype(np.float32) for side, count in COUNTS.items()}
    betas = {}
    for side, count in COUNTS.items():
        write_map(place / f"{side}.ncsnr.mgh", ncsnr[side])
        if space == "fsaverage":
            betas[side] = rng.normal(0, 2, (TRIALS, count)).astype("<f4")
            betas[side][:, 3] = np.nan  # a vertex outside the subject's valid data
            write_map(place / f"{side}.betas_session01.mgh", betas[side].T.astype(">f4"))
        else:
            betas[side] = rng.integers(-900, 900, (TRIALS, count)).astype("<i2")
            with h5py.File(place / f"{side}.betas_session01.hdf5", "w", libver="earliest") as file:
                file.create_dataset("betas", data=betas[side], chunks=(TRIALS, 1))
    return Surface(root, {atlas: both(sides) for atlas, sides in labels.items()}, both(ncsnr), both(betas))


@pytest.fixture(scope="module", params=["fsaverage", "nativesurface"])
def space(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def surface(space, tmp_path_factory) -> Surface:
    return write_surface(tmp_path_factory.mktemp(space), space)


@pytest.fixture
def own(space, tmp_path) -> Surface:
    return write_surface(tmp_path / "own", space)


def reader(surface: Surface, space: str, **options) -> Nsd:
    return Nsd(NsdOptions(root=str(surface.root), space=space, captions=False, **options))


def test_vertices_run_through_the_left_hemisphere_first(surface, space):
    table = reader(surface, space, voxelset="streams:early | nsdgeneral").voxels(1)
    wanted = np.flatnonzero((surface.labels["streams"] == 1) | (surface.labels["nsdgeneral"] > 0))
    assert table.coordinates.tolist() == [[vertex] for vertex in wanted]
    assert table.labels["streams"].tolist() == surface.labels["streams"][wanted].tolist()
    assert np.array_equal(table.ncsnr, surface.ncsnr[wanted])


def test_betas_are_the_whole_files(surface, space):
    nsd = reader(surface, space)
    voxels = nsd.voxels(1)
    read = nsd.read_session(1, 1, voxels)
    expected = surface.betas[:, surface.labels["nsdgeneral"] > 0]
    assert read.betas.dtype == np.dtype(nsd.dtype) == expected.dtype
    assert np.array_equal(read.betas, expected, equal_nan=space == "fsaverage")
    assert nsd.scale == (1.0 if space == "fsaverage" else 1 / 300)  # fsaverage is psc already
    path, needed = nsd.reads(1, 1, len(voxels.coordinates))
    assert "lh.betas_session01" in path and "rh.betas_session01" in path
    footer = 40  # of two MGH files: scan parameters, which are not read
    assert needed <= read.bytes_read + footer


def test_fsaverage_keeps_nan_and_sign(surface, space):
    if space != "fsaverage":
        pytest.skip("native surfaces store 0 for NaN")
    nsd = reader(surface, space, voxelset="streams")
    read = nsd.read_session(1, 1, nsd.voxels(1))
    outside = [place for place, (vertex,) in enumerate(nsd.voxels(1).coordinates) if vertex in (3, COUNTS["lh"] + 3)]
    assert outside and np.isnan(read.betas[:, outside]).all()
    assert np.isnan(read.betas).sum() == TRIALS * len(outside)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_vertices_in_any_order(surface, space, data):
    side = data.draw(st.sampled_from(["lh", "rh"]))
    count = COUNTS[side]
    vertices = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), dtype=np.int64)
    suffix, read = ("mgh", surfaces.read_mgh) if space == "fsaverage" else ("hdf5", surfaces.read_hdf5)
    key = f"{layout.betas_folder(1, space, BETAS)}/{side}.betas_session01.{suffix}"
    values, _ = read(SourceFiles(str(surface.root)).open(key), vertices, count, TRIALS)
    start = 0 if side == "lh" else COUNTS["lh"]
    assert np.array_equal(values, surface.betas[:, start + vertices], equal_nan=space == "fsaverage")


def test_shards_hold_the_surface_with_its_nan(own, space, tmp_path, ray_session):
    nsd = reader(own, space)
    numbers = np.unique(nsd.trials(1, 1).stimulus)
    nsd_files.write_stimuli(own.root, iter([(numbers, np.zeros((len(numbers), 4, 4, 3), np.uint8))]), 4)
    shards = prepare(nsd, Folder.at(tmp_path / "data"), advance=lambda units, note: None)
    table = shards.read_table(session_path(1, 1))
    expected = own.betas[:, own.labels["nsdgeneral"] > 0]
    stored = from_column(table["betas"], np.dtype(nsd.dtype), expected.shape[1:])
    assert np.array_equal(stored, expected, equal_nan=space == "fsaverage")


def test_one_hemisphere_is_not_a_session(own, space):
    suffix = "mgh" if space == "fsaverage" else "hdf5"
    (own.root / layout.betas_folder(1, space, BETAS) / f"rh.betas_session01.{suffix}").unlink()
    with pytest.raises(MissingDataError, match=rf"rh\.betas_session01\.{suffix}"):
        reader(own, space, subjects=(1,), sessions=1).sessions()


def test_an_atlas_of_one_hemisphere_is_no_atlas(own, space):
    (own.root / layout.label_folder(None if space == "fsaverage" else 1) / "rh.streams.mgz").unlink()
    with pytest.raises(UnknownNameError, match="unknown atlas 'streams'"):
        reader(own, space, voxelset="streams").voxels(1)


def test_damaged_files_are_named(own, space):
    folder = own.root / layout.betas_folder(1, space, BETAS)
    path = next(folder.glob("lh.betas_session01.*"))
    content = path.read_bytes()
    nsd = reader(own, space)
    voxels = nsd.voxels(1)
    end = 284 + TRIALS * COUNTS["lh"] * 4 if space == "fsaverage" else len(content)  # scan parameters follow in MGH
    for cut in (0, 100, 300, len(content) // 2, end - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(CorruptFileError, match=path.name.replace(".", r"\.")):
            nsd.read_session(1, 1, voxels)
    rng = np.random.default_rng(0)
    write_map(folder / "lh.betas_session01.mgh", rng.normal(size=(COUNTS["lh"], 8)).astype(np.float32))
    if space == "fsaverage":
        with pytest.raises(BadDataError, match=r"holds betas \(40, 1, 1, 8\)"):
            nsd.read_session(1, 1, voxels)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("betas", data=np.zeros((COUNTS["lh"], TRIALS), "<i2"))
        with pytest.raises(BadDataError, match=r"holds betas \(40, 750\)"):
            nsd.read_session(1, 1, voxels)


def test_labels_that_are_no_labels(own, space):
    path = own.root / layout.label_folder(None if space == "fsaverage" else 1) / "lh.streams.mgz"
    write_map(path, np.full(COUNTS["lh"], 1.5, np.float32))
    with pytest.raises(BadDataError, match=r"lh\.streams\.mgz goes from 1\.5"):
        reader(own, space).voxels(1)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptFileError, match=r"lh\.streams\.mgz cannot be read as MGH"):
        reader(own, space).voxels(1)
    write_map(path, np.zeros((COUNTS["lh"], 2), np.float32))
    with pytest.raises(BadDataError, match="one number a vertex"):
        reader(own, space).voxels(1)


def test_a_surface_in_a_bucket(surface, space, s3_bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    Folder.at(f"s3://{s3_bucket}/nsd").upload(surface.root)
    there = Nsd(NsdOptions(root=f"s3://{s3_bucket}/nsd", space=space, captions=False))
    here = reader(surface, space)
    assert np.array_equal(
        there.read_session(1, 1, there.voxels(1)).betas, here.read_session(1, 1, here.voxels(1)).betas, equal_nan=True
    )
