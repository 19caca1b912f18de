"""NSD's surface betas, fsaverage and native, against whole files read with nibabel and h5py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, UnknownNameError
from bench.core.storage import Folder
from bench.data.datasets.nsd import layout, surfaces
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.data.shard_set import open_data
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import read_manifest, session_path, voxels_path
from bench.data.simulate.design import simulate_design
from bench.data.simulate.nsd_copy import tables as nsd_files
from bench.data.sources import retries
from bench.data.sources.files import SourceFiles
from bench.prepare import dry_run, prepare

BETAS = "betas_fithrf_GLMdenoise_RR"
COUNTS = {"lh": 40, "rh": 33}
TRIALS = 750
MISSING = {("lh", 1): [3, 8, 9], ("rh", 1): [3], ("lh", 2): [3, 20], ("rh", 2): [3, 32]}
"""Vertices that hold no valid data by hemisphere and session: as the head moves, other ones at the edge."""


@dataclass(frozen=True)
class Surface:
    """Whole label maps, ncsnr and betas `(trials, V)` by session, the left hemisphere's vertices first."""

    root: Path
    labels: dict[str, np.ndarray]
    ncsnr: np.ndarray
    betas: dict[int, np.ndarray]

    def chosen(self, mask: np.ndarray) -> np.ndarray:
        """The vertices of a mask that are finite in all trials of all sessions, one by one."""
        finite = [all(np.isfinite(betas[:, v]).all() for betas in self.betas.values()) for v in range(len(mask))]
        return np.flatnonzero(mask & np.array(finite))


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
    place.mkdir(parents=True)
    ncsnr = {side: rng.random(count).astype(np.float32) for side, count in COUNTS.items()}
    for side in COUNTS:
        write_map(place / f"{side}.ncsnr.mgh", ncsnr[side])
    betas = {session: write_session(place, rng, space, session) for session in (1, 2)}
    return Surface(root, {atlas: both(sides) for atlas, sides in labels.items()}, both(ncsnr), betas)


def write_session(place: Path, rng: np.random.Generator, space: str, session: int) -> np.ndarray:
    """Write a session as NSD stores it, NaN as 0 on native surfaces; return its betas as stored."""
    sides = {}
    for side, count in COUNTS.items():
        missing = MISSING[side, session]
        if space == "fsaverage":
            sides[side] = rng.normal(0, 2, (TRIALS, count)).astype("<f4")
            sides[side][:, missing] = np.nan
            write_map(place / f"{side}.betas_session{session:02d}.mgh", sides[side].T.astype(">f4"))
        else:
            sides[side] = rng.integers(-900, 900, (TRIALS, count)).astype("<i2")
            sides[side][:, missing] = 0
            with h5py.File(place / f"{side}.betas_session{session:02d}.hdf5", "w", libver="earliest") as file:
                file.create_dataset("betas", data=sides[side], chunks=(TRIALS, 1))
    return both(sides)


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
    wanted = surface.chosen((surface.labels["streams"] == 1) | (surface.labels["nsdgeneral"] > 0))
    assert table.coordinates.tolist() == [[vertex] for vertex in wanted]
    assert table.labels["streams"].tolist() == surface.labels["streams"][wanted].tolist()
    assert np.array_equal(table.ncsnr, surface.ncsnr[wanted])


def test_betas_are_the_whole_files(surface, space):
    nsd = reader(surface, space)
    voxels = nsd.voxels(1)
    read = nsd.read_session(1, 1, voxels)
    expected = surface.betas[1][:, surface.chosen(surface.labels["nsdgeneral"] > 0)]
    assert read.betas.dtype == np.dtype(nsd.dtype) == expected.dtype
    assert np.array_equal(read.betas, expected)
    assert nsd.scale == (1.0 if space == "fsaverage" else 1 / 300)  # fsaverage is psc already
    path, needed = nsd.reads(1, 1, len(voxels.coordinates))
    assert "lh.betas_session01" in path and "rh.betas_session01" in path
    footer = 40  # of two MGH files: scan parameters, which are not read
    assert needed <= read.bytes_read + footer


def test_only_fsaverage_says_where_data_are_missing(surface, space):
    table = reader(surface, space, voxelset="streams | nsdgeneral").voxels(1)
    mask = (surface.labels["streams"] > 0) | (surface.labels["nsdgeneral"] > 0)
    vertices = table.coordinates[:, 0].tolist()
    assert table.left_out == mask.sum() - len(vertices)
    if space == "nativesurface":  # 0 may be a beta: nothing is left out
        assert vertices == np.flatnonzero(mask).tolist()
    else:
        gone = {3, 8, 9, 20, COUNTS["lh"] + 3, COUNTS["lh"] + 32}
        assert vertices == [v for v in np.flatnonzero(mask).tolist() if v not in gone]
        assert table.left_out > 0


@pytest.mark.parametrize("space", ["fsaverage"], indirect=True)  # native surfaces store 0 for NaN
def test_the_sessions_prepared_decide_together(surface, space):
    mask = surface.labels["streams"] > 0
    tables = {}
    for sessions in ((1,), (2,), (1, 2), (2, 1)):
        betas = {session: surface.betas[session] for session in sessions}
        expected = dataclasses.replace(surface, betas=betas).chosen(mask)
        tables[sessions] = reader(surface, space, voxelset="streams", sessions=sessions).voxels(1)
        assert tables[sessions].coordinates[:, 0].tolist() == expected.tolist()
    assert tables[1, 2].digest == tables[2, 1].digest
    assert len({tables[key].digest for key in ((1,), (2,), (1, 2))}) == 3  # each of its own address


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_pattern_of_nan_gives_the_vertices_finite_everywhere(patterned, data):
    """NaN of any vertices in either session: the columns are those with numbers in all trials of both."""
    place = patterned.root / layout.betas_folder(1, "fsaverage", BETAS)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    betas = {}
    for session in (1, 2):
        betas[session] = rng.normal(0, 2, (TRIALS, sum(COUNTS.values()))).astype("<f4")
        share = data.draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
        betas[session][:, rng.random(betas[session].shape[1]) < share] = data.draw(st.sampled_from([np.nan, np.inf]))
        for side, own in (("lh", slice(COUNTS["lh"])), ("rh", slice(COUNTS["lh"], None))):
            write_map(place / f"{side}.betas_session{session:02d}.mgh", betas[session][:, own].T.astype(">f4"))
    here = dataclasses.replace(patterned, betas=betas)
    nsd, mask = reader(here, "fsaverage", voxelset="streams"), patterned.labels["streams"] > 0
    expected = here.chosen(mask)
    if not len(expected):
        with pytest.raises(BadDataError, match=rf"'streams': none of {mask.sum()} vertices has valid data"):
            nsd.voxels(1)
        return
    table = nsd.voxels(1)
    assert table.coordinates[:, 0].tolist() == expected.tolist() and table.left_out == mask.sum() - len(expected)
    assert np.array_equal(table.labels["nsdgeneral"], patterned.labels["nsdgeneral"][expected])
    assert np.array_equal(table.ncsnr, patterned.ncsnr[expected])
    for session in (2, 1):
        assert np.array_equal(nsd.read_session(1, session, table).betas, betas[session][:, expected])


@pytest.fixture(scope="module")
def patterned(tmp_path_factory) -> Surface:
    return write_surface(tmp_path_factory.mktemp("patterned"), "fsaverage")


@pytest.mark.parametrize("space", ["fsaverage"], indirect=True)  # native surfaces store 0 for NaN
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_in_a_valid_vertex_names_file_session_and_trial(own, space, value):
    sides = own.betas[2][:, COUNTS["lh"] :].copy()
    vertex = next(int(v) for v in own.chosen(own.labels["nsdgeneral"] > 0) if v >= COUNTS["lh"]) - COUNTS["lh"]
    sides[17, vertex] = value
    path = own.root / layout.betas_folder(1, space, BETAS) / "rh.betas_session02.mgh"
    write_map(path, sides.T.astype(">f4"))
    nsd = reader(own, space)
    voxels = nsd.voxels(1)
    nsd.read_session(1, 1, voxels)
    message = (
        rf"rh\.betas_session02\.mgh: 1 vertices .* NaN or infinite, such as vertex {vertex} in trial 17 \(from 0\)"
    )
    with pytest.raises(BadDataError, match=message):
        nsd.read_session(1, 2, voxels)


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
    assert np.array_equal(values, surface.betas[1][:, start + vertices], equal_nan=space == "fsaverage")


def test_shards_of_a_surface_hold_numbers_and_are_z_scored(own, space, tmp_path, ray_session, caplog):
    nsd = reader(own, space)
    numbers = np.unique(np.concatenate([nsd.trials(1, session).stimulus for session in (1, 2)]))
    nsd_files.write_stimuli(own.root, iter([(numbers, np.zeros((len(numbers), 4, 4, 3), np.uint8))]), 4)
    told = dry_run(nsd, Folder.at(tmp_path / "data"))
    shards = prepare(nsd, Folder.at(tmp_path / "data"), advance=lambda units, note: None)
    mask, manifest = own.labels["nsdgeneral"] > 0, read_manifest(shards)
    chosen = own.chosen(mask)
    left_out = {"1": int(mask.sum()) - len(chosen)} if space == "fsaverage" else {}
    assert manifest.voxels == {"1": len(chosen)} and manifest.left_out == left_out
    for session in (1, 2):
        table = shards.read_table(session_path(1, session))
        stored = from_column(table["betas"], np.dtype(nsd.dtype), (len(chosen),))
        assert np.array_equal(stored, own.betas[session][:, chosen])
    assert shards.read_table(voxels_path(1))["vertex"].to_pylist() == chosen.tolist()
    fit, _ = open_data(shards).load([1])
    trials = ray.get(fit[1])
    assert np.isfinite(trials.z(np.arange(len(trials.trial)))).all()
    words = f"{left_out.get('1')} vertices have no valid data and are left out"
    assert (words in caplog.text) == bool(left_out)
    assert any("have no valid data: left out" in line for line in told) == bool(left_out)


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
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    Folder.at(f"s3://{s3_bucket}/nsd").upload(surface.root)
    there = Nsd(NsdOptions(root=f"s3://{s3_bucket}/nsd", space=space, captions=False))
    here = reader(surface, space)
    for session in (1, 2):
        betas = there.read_session(1, session, there.voxels(1)).betas
        assert np.array_equal(betas, here.read_session(1, session, here.voxels(1)).betas)
    assert there.voxels(1).digest == here.voxels(1).digest
