"""Floors and ceilings: the mean of training pictures, true latents, pictures beside wrong truths."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from tiny_system import KNN, LATENT, SUBJECTS, Tiny, raw_trials

from bench.core.errors import MissingDataError
from bench.data.shards.pictures import SEAL, read_images
from bench.data.shards.targets import TargetTable
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node
from bench.scoring.controls import mean_images, oracle_source
from eval.statistics.bootstrap import derangement

RECIPE = Recipe("mine", (KNN,), {"out": Node("tiny-diffusion", inputs={"latent": "latent"})})


def all_pictures(tiny: Tiny) -> dict[int, np.ndarray]:
    """Every stimulus' picture, straight from the files."""
    found = {}
    for entry in tiny.data.stimuli_manifest.files:
        table = pq.read_table(io.BytesIO(tiny.data.stimuli.read_bytes(entry.path)))
        for stimulus, image in zip(table["stimulus"].to_pylist(), table["image"].to_pylist(), strict=True):
            found[stimulus] = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(np.float64)
    return found


def test_the_mean_image_is_that_of_training_pictures_alone(tiny, runs):
    stimuli, pictures = tiny.stimuli(5), all_pictures(tiny)
    made = mean_images(tiny.data, tiny.train, dict.fromkeys(SUBJECTS, stimuli), runs)
    assert sorted(made) == [1, 2]
    for subject in SUBJECTS:
        trials = raw_trials(tiny.data, subject)
        train, validation = (
            set(trials["stimulus"][trials["role"] == role].tolist()) for role in ("train", "validation")
        )
        assert train
        assert validation - train
        mean = sum(pictures[s] for s in train) / len(train)
        table, values = read_images(made[subject].folder)
        assert table["stimulus"].to_pylist() == list(stimuli)
        assert set(table["subject"].to_pylist()) == {subject}
        assert set(table["seed"].to_pylist()) == {0}
        for value in values:
            np.testing.assert_allclose(value.transpose(1, 2, 0), mean, atol=0.5 + 1e-9)
        wide = train | validation
        assert np.abs(sum(pictures[s] for s in wide) / len(wide) - mean).max() > 0.5
    assert made[1].id != made[2].id


def test_the_mean_image_is_made_once_and_its_address_names_the_test_pictures(tiny, runs):
    stimuli = tiny.stimuli(5)
    (first,) = mean_images(tiny.data, {1: tiny.train[1]}, {1: stimuli}, runs).values()
    before = first.folder.read_bytes(SEAL)
    (again,) = mean_images(tiny.data, {1: tiny.train[1]}, {1: stimuli}, runs).values()
    (fewer,) = mean_images(tiny.data, {1: tiny.train[1]}, {1: stimuli[:3]}, runs).values()
    assert again == first
    assert first.folder.read_bytes(SEAL) == before
    assert fewer.id != first.id


def test_subjects_that_saw_the_same_pictures_keep_their_own_rows(tiny, runs):
    trials = ray.get(tiny.train[1])
    same = {1: tiny.train[1], 2: ray.put(dataclasses.replace(trials, subject=2))}
    made = mean_images(tiny.data, same, dict.fromkeys(SUBJECTS, tiny.stimuli(4)), runs)
    for subject, images in made.items():
        assert set(read_images(images.folder)[0]["subject"].to_pylist()) == {subject}


def test_the_oracle_gets_the_true_latents_in_the_order_of_stimuli(tiny):
    tested = {1: (40, 7, 12), 2: (7, 90)}
    table: TargetTable = ray.get(tiny.targets[LATENT])
    known = table.stimulus.tolist()
    tested = {subject: tuple(known[s] for s in mine) for subject, mine in tested.items()}
    source = oracle_source(RECIPE, tiny.targets, tiny.digests.targets, tested)
    expected = [known[s] for s in (7, 12, 40, 90)]
    assert source.keys["stimulus"].to_pylist() == expected
    assert set(source.keys["subject"].to_pylist()) == {0}
    for row, stimulus in enumerate(expected):
        np.testing.assert_array_equal(source.heads["latent"][row], table.values[known.index(stimulus)])


def test_a_slice_of_a_target_has_a_slice_of_its_truth(tiny):
    stage = dataclasses.replace(KNN, heads={"part": HeadSpec(LATENT, take=(1, 3))})
    cut = Recipe("cut", (stage,), {"out": Node("tiny-diffusion", inputs={"latent": "part"})})
    tested = {1: tiny.stimuli(3)}
    whole = oracle_source(RECIPE, tiny.targets, tiny.digests.targets, tested)
    part = oracle_source(cut, tiny.targets, tiny.digests.targets, tested)
    np.testing.assert_array_equal(part.heads["part"], whole.heads["latent"][:, 1:3])


def test_the_oracle_s_address_names_targets_slices_and_stimuli(tiny):
    tested = {1: tiny.stimuli(3)}
    stage = dataclasses.replace(KNN, heads={"latent": HeadSpec(LATENT, take=(0, 4))})
    ids = {
        oracle_source(RECIPE, tiny.targets, tiny.digests.targets, tested).id,
        oracle_source(RECIPE, tiny.targets, {LATENT: "other"}, tested).id,
        oracle_source(RECIPE, tiny.targets, tiny.digests.targets, {1: tiny.stimuli(2)}).id,
        oracle_source(dataclasses.replace(RECIPE, stages=(stage,)), tiny.targets, tiny.digests.targets, tested).id,
    }
    assert len(ids) == 4
    same = {2: tiny.stimuli(3), 1: tiny.stimuli(2)}
    assert oracle_source(RECIPE, tiny.targets, tiny.digests.targets, same).id in ids


def test_a_stimulus_without_a_target_is_named(tiny):
    with pytest.raises(MissingDataError, match=r"no target for stimuli \[999999\]"):
        oracle_source(RECIPE, tiny.targets, tiny.digests.targets, {1: (999_999,)})


@pytest.mark.parametrize("n", [2, 3, 16])
def test_chance_never_meets_its_own_truth(n):
    rng = np.random.default_rng(0)
    orders = [derangement(n, rng) for _ in range(50)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert not any((order == np.arange(n)).any() for order in orders)
