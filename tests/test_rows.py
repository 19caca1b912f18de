"""From fits, predictions and pictures to rows: chains, latent scores, costs, models, and the page's pictures."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from scipy.stats import pearsonr
from tiny_system import KNN, LATENT, SUBJECTS, Tiny, keys, noisy, stored, true_pictures

from bench.core.errors import MissingDataError
from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shards.pictures import ImageSet
from bench.data.training_sets import ScoredPictures
from bench.fitting.candidates import Candidate
from bench.fitting.predictions import IDENTITY, Prediction, read_predictions
from bench.generators.choice import GeneratorChoice
from bench.predict import predict
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node, Search
from bench.records.parts import ModelSize
from bench.scoring import systems
from bench.scoring.controls import control_entries
from bench.scoring.entries import Entry
from bench.scoring.systems import System, generators, lineage, only_subject, system_entry
from bench.sweeping.gallery import GALLERY_IMAGES, gallery

COUNT = 12
PICTURES = ScoredPictures("nsd-sim", ("simulated:3",))
STAGE = dataclasses.replace(KNN, heads={"latent": HeadSpec(LATENT), "part": HeadSpec(LATENT, take=(2, 4))})
RECIPE = Recipe("mine", (STAGE,), {"out": Node("tiny-diffusion", inputs={"latent": "latent"})})


@pytest.fixture(scope="module")
def tested(tiny: Tiny) -> dict[int, tuple[int, ...]]:
    return dict.fromkeys(SUBJECTS, tiny.stimuli(COUNT))


@pytest.fixture(scope="module")
def system(tiny: Tiny, runs: Folder, tested: dict[int, tuple[int, ...]]) -> System:
    """Both subjects fitted and predicted; their pictures are the truth with noise, one with a rendering time."""
    best, records, jobs, shown = {}, {}, {}, {}
    for subject in SUBJECTS:
        plan = tiny.plan(STAGE, (subject,))
        records[plan.id] = tiny.fit(plan, runs)
        best[subject] = Candidate("mine", 0, {}, 0, ":session", plan, 0.25, Search())
        jobs[subject] = Prediction(plan, subject, tested[subject])
        pictures = noisy(true_pictures(tiny.data, tested[subject]), 30, subject)
        shown[subject] = stored(runs, keys(subject, tested[subject]), pictures, subject=subject)
    given = (tiny.test, tiny.train, tiny.targets, tiny.data.label_names)
    asked = [*jobs.values(), *map(systems.showings, jobs.values())]
    predict(asked, *given, runs, lambda units=1, note="": None)
    return System(RECIPE, best, records, 5, 0.25, jobs, shown)


@pytest.fixture(scope="module")
def row(system: System, tiny: Tiny, runs: Folder) -> Entry:
    return system_entry(system, tiny.train, tiny.targets, runs, PICTURES)


def test_a_row_leads_from_pictures_to_fits(row, system):
    assert (row.name, row.kind, row.control, row.tried, row.leakage) == ("mine", "system", None, 5, ())
    assert row.images is system.images
    for subject in SUBJECTS:
        (fit,) = row.fits[subject]
        assert fit.id == digest(fit.description) == system.best[subject].plan.id
        assert row.predictions[subject].id == digest(row.predictions[subject].description)
        assert row.predictions[subject].description["fit"] == fit.id


def test_the_shuffled_refit_is_a_control(system, tiny, runs):
    refit = system_entry(system, tiny.train, tiny.targets, runs, PICTURES, shuffled=True)
    assert (refit.name, refit.kind, refit.control) == ("shuffled", "control", "shuffled")
    assert [model.role for model in refit.costs.models] == ["encoder", "generator"]


def test_latent_scores_are_pearson_s_correlations(row, system, tiny, runs):
    scores = {(s.subject, s.head, s.name): s.value for s in row.latents}
    assert len(scores) == len(row.latents) == 6
    table = ray.get(tiny.targets[LATENT])
    for subject, candidate in system.best.items():
        record = system.records[candidate.plan.id]
        assert scores[subject, "all heads", "validation correlation"] == record.validation_correlation
        for head, part in (("latent", slice(None)), ("part", slice(2, 4))):
            made, predicted = read_predictions(runs / "predictions" / system.predictions[subject].id, head)
            places = [table.stimulus.tolist().index(s) for s in made["stimulus"].to_pylist()]
            truth = table.values[places][:, part].reshape(COUNT, -1)
            predicted = predicted.reshape(COUNT, -1)
            expected = np.mean([pearsonr(predicted[:, i], truth[:, i]).statistic for i in range(truth.shape[1])])
            assert scores[subject, head, "test correlation"] == pytest.approx(expected, abs=1e-5)


def test_latent_scores_stand_beside_what_noise_lets_through(row, system, runs):
    """The ceiling of a mean over three showings, by the variance of predictions from single ones."""
    for score in row.latents:
        if score.name != "test correlation":
            assert (score.ceiling, score.relative) == (None, None)  # validation trials are single showings
            continue
        job = systems.showings(system.predictions[score.subject])
        assert (job.repeats, len(job.test)) == ("each", COUNT)
        made, single = read_predictions(runs / "predictions" / job.id, score.head)
        stimuli, flat = made["stimulus"].to_numpy(), single.reshape(len(single), -1).astype(float)
        of = [flat[stimuli == s] for s in np.unique(stimuli)]
        noise = np.mean([part.var(axis=0, ddof=1) for part in of if len(part) > 1], axis=0)
        means = np.var([part.mean(axis=0) for part in of], axis=0, ddof=1)
        left = 1 - noise * np.mean([1 / len(part) for part in of]) / means
        assert score.ceiling == pytest.approx(np.sqrt(np.clip(left, 0, 1)).mean())
        assert score.relative == pytest.approx(score.value / score.ceiling)
        assert 0 < score.ceiling < 1


def test_a_ceiling_takes_a_hundred_pictures_of_many(system):
    many = dataclasses.replace(system.predictions[1], test=tuple(range(1000)), samples=5, post=("restandardise",))
    chosen = systems.showings(many)
    assert (len(chosen.test), chosen.test[0], chosen.test[-1]) == (100, 0, 999)
    assert (chosen.samples, chosen.post) == (1, ())


def test_every_node_of_a_graph_is_paid_for(runs, tested):
    """A selection costs nothing; the pictures that it chooses from do, once for all that share them."""
    drawn = stored(runs, keys(1, tested[1]), np.zeros((COUNT, 3, 8, 8), np.uint8), inputs={"latent": "head:z"}, n=1)
    sealed = drawn.folder.read_json("images.json")
    drawn.folder.write_json("images.json", {**sealed, "seconds": 7.5})
    last = [
        stored(
            runs, keys(1, tested[1]), np.zeros((COUNT, 3, 8, 8), np.uint8), inputs={"pictures": drawn.id}, blend={}, n=2
        ),
        stored(runs, keys(1, tested[1]), np.zeros((COUNT, 3, 8, 8), np.uint8), inputs={}, blend={drawn.id: 0.5}, n=3),
    ]
    assert systems._rendering(last) == 7.5


def test_costs_are_summed_over_subjects(row, system, runs):
    fits = [system.records[c.plan.id].costs for c in system.best.values()]
    for name, got in (("wall_seconds", row.costs.wall_seconds), ("cpu_seconds", row.costs.cpu_seconds)):
        assert got["fit"] == pytest.approx(sum(cost[name] for cost in fits))
    seconds = [(runs / "predictions" / job.id).read_json(IDENTITY)["seconds"] for job in system.predictions.values()]
    assert row.costs.wall_seconds["predict"] == pytest.approx(sum(seconds))
    assert row.costs.wall_seconds["render"] == 0.0
    assert row.costs.peak_memory_bytes == max(cost["peak_memory_bytes"] for cost in fits)
    encoder = row.costs.models[0]
    assert (encoder.name, encoder.role) == ("knn", "encoder")
    assert encoder.parameters == round(np.mean([cost["parameters"] for cost in fits]))
    assert encoder.bytes == round(np.mean([cost["state_bytes"] for cost in fits]))


def test_a_joint_fit_and_what_it_started_from_are_paid_for_once(tiny, runs, system):
    parent = system.best[1].plan
    child = dataclasses.replace(parent, seed=1, parent=parent.id, subjects=SUBJECTS)
    record = dataclasses.replace(system.records[parent.id], id=child.id)
    folder = runs / "fits" / child.id
    folder.write_json("plan.json", child)
    folder.write_json("fit.json", record)
    assert [plan.id for plan in lineage(child, runs)] == [child.id, parent.id]
    joint = Candidate("mine", 0, {}, 1, ":session", child, 0.25, Search())
    both = dataclasses.replace(system, best=dict.fromkeys(SUBJECTS, joint), records={child.id: record})
    made = system_entry(both, tiny.train, tiny.targets, runs, PICTURES)
    assert [link.id for link in made.fits[2]] == [child.id, parent.id]
    assert all(link.id == digest(link.description) for link in made.fits[1])
    assert made.costs.wall_seconds["fit"] == pytest.approx(2 * record.costs["wall_seconds"])
    assert made.costs.models[0].parameters == record.costs["parameters"]


def test_a_fit_without_a_record_is_named(tiny, runs, system):
    plan = dataclasses.replace(system.best[1].plan, seed=77)
    lost = {1: dataclasses.replace(system.best[1], plan=plan)}
    alone = dataclasses.replace(system, best=lost, records={plan.id: next(iter(system.records.values()))})
    with pytest.raises(MissingDataError, match=f"no record of fit {plan.id}"):
        system_entry(alone, tiny.train, tiny.targets, runs, PICTURES)


def test_generators_are_counted_with_their_weights():
    low, high = (Node("tiny-diffusion", {"strength": s}, {"latent": "latent"}) for s in (0.0, 0.5))
    graph = dataclasses.replace(RECIPE, render={"low": low, "high": high, "out": Node(blend={"low": 1.0})})
    (size,) = generators(graph)
    model = GeneratorChoice("tiny-diffusion", {}).load(torch.device("cpu"))
    expected = sum(p.numel() for net in (model.space.vae, model.unet) for p in net.parameters())
    assert size == ModelSize("tiny-diffusion", "generator", expected, size.bytes)
    assert 2 * expected <= size.bytes <= 4 * expected + 100_000  # numbers of two or four bytes, and headers
    assert generators(RECIPE) == (size,)


def test_controls_have_the_generator_of_what_they_bound(row, system):
    oracle = ImageSet("o", {}, Folder.at("nowhere"))
    found = {each.control: each for each in control_entries(row, system.images, oracle)}
    assert sorted(found) == ["chance", "mean-image", "oracle"]
    assert found["mean-image"].costs.models == ()
    assert found["oracle"].costs.models == found["chance"].costs.models == generators(RECIPE)
    assert found["oracle"].images == {1: oracle, 2: oracle}
    assert found["chance"].wrong_pairs
    assert found["chance"].fits == row.fits
    assert not found["oracle"].wrong_pairs
    assert found["oracle"].fits == {}


def test_a_row_cut_to_one_subject_keeps_all_else(row):
    cut = only_subject(row, 2)
    for part in (cut.images, cut.predictions, cut.fits):
        assert set(part) == {2}
    assert {score.subject for score in cut.latents} == {2}
    kept = ("name", "kind", "control", "open_reasons", "leakage", "tried", "costs", "wrong_pairs")
    assert all(getattr(cut, name) == getattr(row, name) for name in kept)
    chance = control_entries(row, row.images, row.images[1])[1]
    assert only_subject(chance, 1).wrong_pairs


def test_the_page_shows_fixed_pictures_beside_the_truth(row, tiny, runs, tested, system):
    better = {s: stored(runs, keys(s, tested[s]), true_pictures(tiny.data, tested[s]), best=s) for s in SUBJECTS}
    other = Entry("other", "system", None, {1: better[1]})
    items = gallery({"a": row, "b": other}, tiny.data, tested)
    places = [round(i) for i in np.linspace(0, COUNT - 1, GALLERY_IMAGES)]
    shown = [tested[1][place] for place in places]
    assert [(item.subject, item.stimulus) for item in items] == [(s, stimulus) for s in SUBJECTS for stimulus in shown]
    alone = gallery({"b": other}, tiny.data, tested)
    assert [item.stimulus for item in alone] == [item.stimulus for item in items]  # whatever the scores are
    truth = shard_set.pictures(tiny.data, shown)
    for item in items:
        np.testing.assert_array_equal(_pixels(item.truth), truth[item.stimulus])
        assert set(item.images) == ({"a", "b"} if item.subject == 1 else {"a"})
    np.testing.assert_array_equal(_pixels(items[0].images["b"]), _pixels(items[0].truth))


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_page_names_pictures_by_their_first_caption(row, tiny, tested):
    known = {}
    for entry in tiny.data.stimuli_manifest.files:
        table = pq.read_table(io.BytesIO(tiny.data.stimuli.read_bytes(entry.path)))
        known |= dict(zip(table["stimulus"].to_pylist(), table["captions"].to_pylist(), strict=True))
    items = gallery({"a": row}, tiny.data, tested)
    assert all(item.caption for item in items)
    assert [item.caption for item in items] == [known[item.stimulus][0] for item in items]
    found = shard_set.captions(tiny.data, tested[1])
    assert found == {stimulus: tuple(known[stimulus]) for stimulus in tested[1]}
    with pytest.raises(MissingDataError, match=r"holds no caption of stimuli \[999999\]"):
        shard_set.captions(tiny.data, [999_999])


def test_the_first_of_several_pictures_is_shown(tiny, runs, tested):
    stimuli = tested[1][:2]
    pictures = np.stack([np.full((3, 8, 8), value, np.uint8) for value in (10, 20, 30, 40)])
    images = stored(runs, keys(1, np.repeat(stimuli, 2), sample=[0, 1, 0, 1]), pictures, made="two samples")
    items = gallery({"a": Entry("a", "system", None, {1: images})}, tiny.data, {1: stimuli})
    assert [_pixels(item.images["a"]).max() for item in items] == [10, 30]
