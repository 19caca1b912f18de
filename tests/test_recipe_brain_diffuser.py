"""Brain-Diffuser from simulated shards to pictures: targets, fit, prediction, and both generators of its graph.

Every stage is the production code; the generators are small checkpoints of the true classes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import ray
import small_checkpoints
from tiny_system import Tiny

from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shards.pictures import ImageSet, read_images
from bench.data.simulate.presets import Preset
from bench.fitting.plan import DataDigests
from bench.fitting.predictions import Prediction, read_predictions
from bench.predict import predict
from bench.recipes.base import Recipe
from bench.recipes.load import load_recipe
from bench.rendering.graph import render_graphs
from bench.rendering.requests import Request, Source, source_of
from bench.simulate import simulate_shards
from bench.targets import targets

FEW = Preset("few", sessions=(1,), boxes=((10, 13, 12),), nsdgeneral=(112,), trials_per_session=60)
SUBJECT, PICTURES = 1, 3


def idle(units: int = 1, note: str = "") -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """For each generator of the recipe the options under which its small checkpoint loads."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: small_checkpoints.settings(name, folder) for name in ("vdvae", "versatile-diffusion")}


@pytest.fixture(scope="module")
def shipped(settings: dict[str, dict[str, object]]) -> Recipe:
    """The shipped recipe, its generators told where the small checkpoints are and to make small pictures."""
    loaded = load_recipe("brain-diffuser")
    nodes = {
        name: dataclasses.replace(node, options={**node.options, **settings[node.generator]})
        for name, node in loaded.render.items()
    }
    return dataclasses.replace(loaded, render=nodes)


@pytest.fixture(scope="module")
def opened(
    ray_session: None, shipped: Recipe, settings: dict[str, dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> Tiny:
    """Sixty simulated trials with the targets of the recipe's heads."""
    shards = simulate_shards(FEW, Folder.at(tmp_path_factory.mktemp("few")), pictures=True, advance=idle)
    data = shard_set.open_data(shards)
    made: dict[str, Folder] = {}
    for generator, given in settings.items():
        names = [h.target_name for h in shipped.stages[-1].heads.values() if h.generator == generator]
        folders = targets(data.stimuli, data.folder, generator, given, names)
        made |= {f"{generator}.{name}": folder for name, folder in folders.items()}
    refs, digests = shard_set.target_refs(made)
    train, test = data.load([SUBJECT])
    return Tiny(data, train, test, refs, DataDigests({"": data.manifest.content_digest}, digests))


@pytest.fixture(scope="module")
def predictions(opened: Tiny, shipped: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """What the fitted recipe predicts of three test pictures."""
    runs = Folder.at(tmp_path_factory.mktemp("brain-diffuser") / "runs")
    plan = opened.plan(shipped.stages[-1], subjects=(SUBJECT,))
    opened.fit(plan, runs)
    shown = shard_set.tested_stimuli(opened.test, PICTURES)[1]
    job = Prediction(plan, SUBJECT, shown, shipped.repeats, shipped.samples, shipped.post)
    (folder,) = predict([job], opened.test, opened.train, opened.targets, opened.data.label_names, runs, idle)
    return folder


@pytest.fixture(scope="module")
def rendered(shipped: Recipe, predictions: Folder) -> tuple[Source, ImageSet, Folder]:
    """The pictures of the recipe's graph."""
    runs = Folder.at(str(Path(predictions.path).parent.parent))
    source = source_of(predictions, list(shipped.stages[-1].heads))
    (images,) = render_graphs([Request(shipped, source)], runs, 0, 2, 1, idle)
    return source, images, runs


def test_every_head_is_predicted_in_the_shape_of_its_target(opened: Tiny, predictions: Folder) -> None:
    shapes = {"latents": (91_168,), "vision": (257, 768), "text": (77, 768)}
    for head, shape in shapes.items():
        rows, values = read_predictions(predictions, head)
        assert rows.num_rows == PICTURES and values.shape == (PICTURES, *shape)
        assert np.isfinite(values).all() and values.reshape(PICTURES, -1).std(axis=0).max() > 0
    assert {name.partition(".")[2] for name in opened.targets} == set(shapes)


@pytest.mark.parametrize(("head", "target"), [("vision", "versatile-diffusion.vision"), ("latents", "vdvae.latents")])
def test_predictions_have_the_statistics_of_the_training_targets(
    opened: Tiny, predictions: Folder, head: str, target: str
) -> None:
    """The published re-standardisation: over the test pictures each number has training's mean and deviation."""
    trials, table = ray.get(opened.train[SUBJECT]), ray.get(opened.targets[target])
    shown = set(trials.stimulus[trials.rows("train")].tolist())
    known = table.values[[stimulus in shown for stimulus in table.stimulus.tolist()]]
    assert 20 < len(known) < len(table.stimulus)
    _, found = read_predictions(predictions, head)
    # A number that is predicted all but constant is moved by rounding; there are a few among 91,168.
    assert np.isclose(found.mean(axis=0), known.mean(axis=0), rtol=1e-3, atol=1e-3).mean() > 0.999
    assert np.isclose(found.std(axis=0), known.std(axis=0), rtol=1e-2, atol=1e-3).mean() > 0.999


def test_the_graph_gives_a_picture_of_each_prediction(rendered: tuple[Source, ImageSet, Folder]) -> None:
    source, images, runs = rendered
    rows, pictures = read_images(images.folder)
    assert pictures.shape == (PICTURES, 3, 64, 64) and pictures.dtype == np.uint8
    assert rows["stimulus"].to_pylist() == source.keys["stimulus"].to_pylist()
    assert len({picture.tobytes() for picture in pictures}) == PICTURES and pictures.std() > 20
    low = images.description["inputs"]["image"]
    assert images.description["inputs"] == {"image": low, "vision": "head:vision", "text": "head:text"}
    _, first = read_images(runs / "images" / low)
    assert first.shape == (PICTURES, 3, 64, 64) and not np.array_equal(first, pictures)


def test_a_rerun_renders_nothing(
    shipped: Recipe, rendered: tuple[Source, ImageSet, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, images, runs = rendered

    def never(*_: object, **__: object) -> None:
        raise AssertionError("finished pictures were rendered again")

    monkeypatch.setattr("bench.rendering.jobs.run_plans", never)
    (again,) = render_graphs([Request(shipped, source)], runs, 0, 2, 1, idle)
    assert again == images
