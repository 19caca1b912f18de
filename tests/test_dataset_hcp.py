"""HCP's frames without pictures, against plain NumPy on the same files."""

import numpy as np
import pytest
import ray
from layouts import hcp

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.storage import Folder
from bench.data.datasets.hcp import Hcp, HcpOptions
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import read_manifest, session_path
from bench.data.splits import Split
from bench.data.stream.load import Query, load
from bench.fitting.subject_stream import SubjectStream
from bench.prepare import prepare, verify


@pytest.fixture
def copy(tmp_path):
    return tmp_path / "root", hcp.write(tmp_path / "root")


def reader(root, **options) -> Hcp:
    return Hcp(HcpOptions(root=str(root), **options))


@pytest.mark.parametrize(("frames", "samples"), [(1, 1200), (10, 120), (7, 171), (1200, 1)])
def test_samples_are_means_of_consecutive_frames(copy, frames, samples):
    root, facts = copy
    data = reader(root, frames=frames)
    for subject, areas in facts.areas.items():
        read = data.read_session(subject, 1, data.voxels(subject))
        whole = np.concatenate([areas[name] for name in ("V1", "V2", "V3", "V4")], axis=1)
        expected = [whole[i * frames : (i + 1) * frames].mean(axis=0) for i in range(samples)]
        np.testing.assert_allclose(read.betas, expected, atol=1e-6)
        assert read.betas.shape == (samples, whole.shape[1])
        assert set(read.stimulus.tolist()) == {-1}


def test_areas_are_chosen_by_name(copy):
    root, facts = copy
    data = reader(root, voxelset="HCP_MMP1:V4 | HCP_MMP1:V2")
    read = data.read_session(100307, 1, data.voxels(100307))
    areas = facts.areas[100307]
    first = np.concatenate([areas["V2"], areas["V4"]], axis=1)[:10].mean(axis=0)
    np.testing.assert_allclose(read.betas[0], first, atol=1e-6)
    assert data.voxels(100307).labels["HCP_MMP1"].tolist() == [4] * 5 + [6] * 2
    with pytest.raises(UnknownNameError, match="V9"):
        reader(root, voxelset="HCP_MMP1:V9").voxels(100307)


def test_shards_and_unlabelled_batches(copy, tmp_path, ray_session):
    data = reader(copy[0])
    shards = prepare(data, Folder.at(tmp_path / "data"), advance=lambda units, note: None)
    assert verify(data, Folder.at(tmp_path / "data"), advance=lambda units, note: None) == 4
    manifest = read_manifest(shards)
    stored = from_column(shards.read_table(session_path(100307, 1))["betas"], np.dtype("<f4"), (17,))
    assert stored.shape == (120, 17) and manifest.voxels == {"100307": 17, "211417": 17}
    fit, _ = load(Query(shards, (100307,), Split()), np.array([], int))
    trials = ray.get(fit[100307])
    batches = list(SubjectStream(trials, {}).batches("unlabelled", 0, 50))
    rows = np.concatenate([batch.voxels.numpy() for batch in batches])
    assert rows.shape == (120, 17) and all(not batch.targets for batch in batches)
    expected = (stored - stored.mean(axis=0)) / stored.std(axis=0)
    order = np.lexsort(rows.T), np.lexsort(expected.T)
    np.testing.assert_allclose(rows[order[0]], expected[order[1]], atol=2e-2)


def test_mistakes(copy, tmp_path):
    root, _ = copy
    with pytest.raises(OptionError, match="frames must be 1 to 1200, got 0"):
        reader(root, frames=0)
    with pytest.raises(MissingDataError, match=r"no betas of subject 5, .* no npz/5/HCP_visual_voxel\.npz in /"):
        reader(root, subjects=(5,)).sessions()
    with pytest.raises(MissingDataError, match=r"has no betas rest-mean10\.fslr32k"):
        reader(tmp_path / "nowhere").sessions()
    with pytest.raises(MissingDataError, match="has no pictures, number 3"):
        list(reader(root).stimuli([3]))
    with pytest.raises(OptionError, match="one session a subject"):
        reader(root).trials(100307, 2)


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        ("cut", CorruptFileError, "cannot be read as npz"),
        ("empty", CorruptFileError, "cannot be read as npz"),
        ("missing area", CorruptFileError, "lacks V3"),
        ("short", BadDataError, r"V1 is \(600, 7\)"),
        ("nan", BadDataError, "finite"),
        ("pickle", CorruptFileError, "cannot be read as npz"),
    ],
)
def test_damaged_files_are_named(copy, harm, error, message):
    root, facts = copy
    path = root / "npz/100307/HCP_visual_voxel.npz"
    areas = dict(facts.areas[100307])
    if harm in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 if harm == "cut" else 0])
    elif harm == "missing area":
        np.savez(path, **{name: area for name, area in areas.items() if name != "V3"})
    elif harm == "short":
        np.savez(path, **{**areas, "V1": areas["V1"][:600]})
    elif harm == "nan":
        areas["V2"][5, 1] = np.nan
        np.savez(path, **areas)
    else:
        np.savez(path, **{**areas, "V1": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(error, match=message) as raised:
        reader(root).voxels(100307)
    assert "HCP_visual_voxel.npz" in str(raised.value)
