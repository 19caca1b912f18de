"""From a dataset's own files through the command line to shards and a fit: BOLD5000 and GOD."""

from pathlib import Path

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from bench.core import registry
from bench.core.options import build
from bench.core.storage import Folder
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import read_manifest, session_path
from bench.data.shards.targets import TargetTable
from bench.data.splits import ROLES, Split
from bench.data.stream.load import Query, load
from bench.fitting.inputs import FitInputs
from bench.fitting.plan import DataDigests, plan_stage
from bench.fitting.trial import run_fit
from bench.prepare import main
from bench.recipes.parts import HeadSpec, Stage

TARGET = "tiny-diffusion.latent"
CASES = {
    "bold5000 volumes": ("bold5000", 4, "EarlyVis | PPA:LH", "LOC", {}),
    "bold5000 arrays": ("bold5000", 4, "LOC | PPA", "LOC:RH", {"space": "rois"}),
    "god bdpy": ("god", 3, "ROI_VC", "ROI_V1 | ROI_FFA", {"betas": "bdpy"}),
    "god npz": ("god", 2, "ROI_LVC", "ROI_V1", {"betas": "npz"}),
}
"""Dataset, subject, voxel set, a head's ROI, more options."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    made = {}
    for name in ("bold5000", "god"):
        made[name] = tmp_path_factory.mktemp(name) / name
        layouts.load(name).write(made[name])
    return made


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_from_files_to_a_fit(ray_session, one_thread, roots, tmp_path, capsys, case):
    name, subject, voxelset, roi, more = CASES[case]
    root, data = str(roots[name]), tmp_path / "data"
    line = ["--dataset", name, "--root", root, "--data", str(data), "--subjects", str(subject), "--sessions", "1"]
    line += ["--voxelset", voxelset, *(word for option, value in more.items() for word in (f"--{option}", value))]
    assert main([*line, "--dry-run"]) == 0 and not data.exists()
    assert main(line) == 0
    assert main([*line, "--verify"]) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "files are as their manifests and the design say" in printed
    assert " ".join(registry.load("dataset", name).terms.split())[:60] in printed

    reader = registry.load("dataset", name)
    chosen = {"root": root, "subjects": (subject,), "sessions": (1,), "voxelset": voxelset, **more}
    dataset = reader(build(reader.Options, chosen, name))
    shards = next(folder for folder in (data / name).iterdir() if folder.name.startswith(dataset.label))
    read = check_shards(Folder.at(shards), dataset, subject)
    check_fit(Folder.at(shards), Folder.at(tmp_path / "runs"), dataset, subject, roi, read)


def check_shards(shards: Folder, dataset, subject: int):
    """Every number of the shards is the reader's; return what it read."""
    manifest = read_manifest(shards)
    read = dataset.read_session(subject, 1, dataset.voxels(subject))
    table = pq.read_table(f"{shards.path}/{session_path(subject, 1)}")
    for column in ("trial", "stimulus", "repeat"):
        np.testing.assert_array_equal(table[column].to_numpy(), getattr(read, column))
    betas = from_column(table["betas"].combine_chunks(), np.dtype(manifest.dtype), (read.betas.shape[1],))
    np.testing.assert_array_equal(betas, read.betas)
    assert (manifest.dtype, manifest.scale, manifest.bytes_read) == ("<f4", 1.0, read.bytes_read)
    parts = sorted(Path(shards.path, "..", manifest.stimuli).glob("part-*.parquet"), key=lambda p: int(p.stem[5:]))
    stimuli = pa.concat_tables([pq.read_table(part) for part in parts]).select(["stimulus", "label", "shared"])
    numbers = np.unique(read.stimulus).tolist()
    expected = [{"stimulus": s.number, "label": s.label, "shared": s.shared} for s in dataset.stimuli(numbers)]
    assert stimuli.to_pylist() == expected
    return read


def check_fit(shards: Folder, runs: Folder, dataset, subject: int, roi: str, read) -> None:
    """A fit sees the trials of training and validation pictures, and no other; its ROI is the dataset's."""
    shared = np.array([s.number for s in dataset.stimuli(np.unique(read.stimulus).tolist()) if s.shared])
    parts = load(Query(shards, (subject,), Split(), normalise="session"), shared)
    fit, test = (ray.get(part[subject]) for part in parts)
    roles = Split().roles(read.stimulus, np.isin(read.stimulus, shared))
    assert fit.trial.tolist() == read.trial[roles < 2].tolist()
    assert test.trial.tolist() == read.trial[roles == ROLES.index("test")].tolist() != []
    z = fit.z(fit.rows("train"))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-3)
    values = np.random.default_rng(0).standard_normal((int(read.stimulus.max()) + 1, 2, 3)).astype(np.float32)
    targets = {TARGET: TargetTable(np.arange(len(values), dtype=np.int32), values)}
    stage = Stage("ridge", options={"alpha": 10.0}, heads={"z": HeadSpec(TARGET, roi=roi)})
    digests = DataDigests(shards={"": read_manifest(shards).content_digest}, targets={TARGET: "small-targets"})
    plan = plan_stage(stage, (subject,), digests, 0)
    inputs = FitInputs({subject: fit}, targets, dataset.source()["label_names"])
    record = run_fit(plan, inputs, runs, torch.device("cpu"), lambda step, metrics: None)
    assert (record.status, record.costs["train_trials"]) == ("ok", len(fit.rows("train")))
