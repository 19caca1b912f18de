"""The tiny preset opened for tests of single stages, and its trials read once more by plain loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shard_set import ShardSet
from bench.data.shards.pictures import ImageSet, write_images
from bench.data.splits import ROLES, Split
from bench.fitting.inputs import FitInputs
from bench.fitting.plan import DataDigests, FitPlan, plan_stage
from bench.fitting.trial import FitRecord, run_fit
from bench.recipes.parts import HeadSpec, Stage
from bench.targets import targets

SUBJECTS = (1, 2)
LATENT = "tiny-diffusion.latent"
KNN = Stage("knn", options={"k": 3}, heads={"latent": HeadSpec(LATENT)})


@dataclass(frozen=True)
class Tiny:
    """The opened data: references to trials and targets as the sweep's stages get them."""

    data: ShardSet
    train: Mapping[int, Any]
    test: Mapping[int, Any]
    targets: Mapping[str, Any]
    digests: DataDigests

    def stimuli(self, count: int) -> tuple[int, ...]:
        """The first test stimuli that both subjects saw."""
        return shard_set.tested_stimuli(self.test, count)[1]

    def plan(self, stage: Stage = KNN, subjects=(1,), **changes: Any) -> FitPlan:
        return plan_stage(stage, subjects, self.digests, 0, **changes)

    def fit(self, plan: FitPlan, runs: Folder) -> FitRecord:
        trials = {subject: ray.get(self.train[subject]) for subject in plan.subjects}
        tables = {name: ray.get(ref) for name, ref in self.targets.items()}
        inputs = FitInputs(trials, tables, self.data.label_names)
        return run_fit(plan, inputs, runs, torch.device("cpu"), lambda step, metrics: None)


def open_tiny(shards: Folder) -> Tiny:
    data = shard_set.open_data(shards)
    refs, digests = shard_set.target_refs(
        {LATENT: targets(data.stimuli, data.folder, "tiny-diffusion", {}, ["latent"])["latent"]}
    )
    train, test = data.load(SUBJECTS)
    return Tiny(
        data,
        train,
        test,
        refs,
        DataDigests({"": data.manifest.content_digest}, digests),
    )


def raw_trials(data: ShardSet, subject: int) -> dict[str, np.ndarray]:
    """A subject's trials straight from its files, with roles and z-scores of training trials, session by session."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("stimulus", "repeat", "role", "z")}
    for file in sorted(Path(data.shards.path).glob(f"subject={subject}/session=*/*.parquet")):
        table = pq.read_table(file, partitioning=None)
        betas = np.stack([np.frombuffer(b, data.manifest.dtype) for b in table["betas"].to_pylist()]).astype(float)
        stimulus = table["stimulus"].to_numpy()
        role = np.array(ROLES)[Split().roles(stimulus, np.isin(stimulus, data.shared))]
        train = betas[role == "train"]
        z = (betas - train.mean(axis=0)) / train.std(axis=0)
        for name, values in (("stimulus", stimulus), ("repeat", table["repeat"].to_numpy()), ("role", role), ("z", z)):
            parts[name].append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def keys(subject: int, stimuli, repeat=-1, sample=0) -> pa.Table:
    """Rows of one picture a stimulus, or of as many as `repeat` and `sample` name."""
    n = len(stimuli)
    return pa.table(
        {
            "subject": pa.array([subject] * n, pa.int32()),
            "stimulus": pa.array(stimuli, pa.int32()),
            "repeat": pa.array(np.broadcast_to(repeat, n), pa.int8()),
            "sample": pa.array(np.broadcast_to(sample, n), pa.int8()),
        }
    )


def true_pictures(data: ShardSet, stimuli) -> np.ndarray:
    """`(N, 3, H, W)` uint8 of the stimuli in their order."""
    found = shard_set.pictures(data, stimuli)
    return np.stack([found[s] for s in stimuli]).transpose(0, 3, 1, 2).copy()


def noisy(pictures: np.ndarray, amount: float, seed: int) -> np.ndarray:
    noise = amount * np.random.default_rng(seed).standard_normal(pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def stored(runs: Folder, rows: pa.Table, pictures: np.ndarray, **description: Any) -> ImageSet:
    """Finished pictures in a folder of their own."""
    address = digest(description)
    images = ImageSet(address, description, runs / "images" / address)
    write_images(images.folder, rows, np.arange(rows.num_rows), pictures, description)
    return images
