"""The published linear systems at laptop size: what their recipes say, and one sweep of them from shards to board."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import sweep
from bench.core.console import Advance
from bench.core.storage import Folder
from bench.data.shards.pictures import write_images
from bench.generators.choice import GeneratorChoice
from bench.recipes.load import RECIPES_FOLDER, load_recipe, recipe_names
from bench.rendering.jobs import RenderJob
from bench.scoring.division import open_reasons_of
from bench.sweeping import flow
from bench.sweeping.settings import DEFAULT_RECIPES

LINEAR = ("tiny-takagi", "tiny-brain-diffuser", "tiny-ip-adapter")


def test_the_default_sweep_runs_them() -> None:
    assert set(LINEAR) <= set(DEFAULT_RECIPES) <= set(recipe_names())


@pytest.mark.parametrize("name", LINEAR)
def test_they_are_quick_and_closed(name: str) -> None:
    loaded = load_recipe(name)
    assert (loaded.search.trials, loaded.samples, open_reasons_of(loaded)) == (1, 1, [])
    assert {stage.encoder for stage in loaded.stages} == {"ridge"}
    assert "# Deviations:" in (RECIPES_FOLDER / f"{name}.yaml").read_text()


def test_takagis_heads_see_their_own_voxels() -> None:
    heads = load_recipe("tiny-takagi").stages[0].heads
    assert {name: head.roi for name, head in heads.items()} == {"latent": "streams:early", "text": "streams:ventral"}


def test_brain_diffuser_has_a_penalty_a_head_and_two_models() -> None:
    loaded = load_recipe("tiny-brain-diffuser")
    stage = loaded.stages[0]
    assert set(stage.options["alpha"]) == set(stage.heads) == {"latent", "tokens", "text"}
    assert [(name, node.generator) for name, node in loaded.render_order()] == [
        ("low", "tiny-diffusion"),
        ("out", "tiny-guided"),
    ]
    assert loaded.render["out"].inputs == {"image": "low", "tokens": "tokens", "text": "text"}


def test_one_deployment_renders_takagi_and_ip_adapter() -> None:
    """Starting a deployment costs more than its pictures: equal options let the render stage start one."""
    nodes = [load_recipe(name).render["out"] for name in ("tiny-takagi", "tiny-ip-adapter")]
    one, other = (GeneratorChoice(node.generator or "", node.options).identity(render=True) for node in nodes)
    assert one == other


def test_the_controls_are_those_of_the_best_of_comparable_recipes() -> None:
    """Tokens and text are easier to predict than the latent; whoever predicts them alone is no winner for that."""
    scores = {"tiny-ridge": 0.62, "tiny-braid-mlp": 0.64, "tiny-knn": 0.4, "tiny-takagi": 0.7, "tiny-ip-adapter": 0.75}
    fitted = [flow.RecipeFits(load_recipe(name), {}, {}, 1, score) for name, score in scores.items()]
    for given in (fitted, fitted[::-1]):
        assert flow._winner(given).recipe.name == "tiny-braid-mlp"
    assert flow._winner(fitted[3:]).recipe.name == "tiny-ip-adapter"


def render_here(jobs: Sequence[RenderJob], advance: Advance, **_: object) -> None:
    """Render in this process what the render stage renders through Serve, whose own tests are elsewhere."""
    for job in jobs:
        generator = GeneratorChoice(job.generator, job.options).load(torch.device("cpu"))
        pictures = generator.render({name: torch.from_numpy(v) for name, v in job.inputs.items()}, list(job.seeds))
        write_images(job.out, job.keys, job.seeds, pictures.numpy(), job.identity)
        advance(len(pictures), job.generator)


@pytest.fixture(scope="module")
def finished(tiny_shards: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a sweep over the three. Never change what is in it."""
    runs = tmp_path_factory.mktemp("linear") / "runs"
    chosen = ["--recipes", ",".join(LINEAR), "--subjects", "1", "--test-images", "24"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.rendering.graph.render", render_here)
        assert sweep.main(["--shards", tiny_shards.uri, "--runs", str(runs), *chosen]) == 0
    return runs


def records(runs: Path) -> dict[str, dict[str, Any]]:
    """Return every row's record by name."""
    found = [json.loads(path.read_text()) for path in runs.glob("scores/*/record.json")]
    return {record["name"]: record for record in found}


def test_they_stand_on_the_board(finished: Path) -> None:
    rows = records(finished)
    assert set(rows) == {*LINEAR, "shuffled", "mean-image", "chance", "oracle"}
    assert {rows[name]["division"] for name in LINEAR} == {"closed"}
    assert {rows[name]["configurations_tried"] for name in LINEAR} == {1}
    for name in LINEAR:
        for metric in ("pixcorr", "scene-low"):
            assert rows[name]["metrics"][metric]["value"] > rows["chance"]["metrics"][metric]["value"]


def test_the_second_models_start_is_the_first_models_picture(finished: Path) -> None:
    images = records(finished)["tiny-brain-diffuser"]["identity"]["images"]["1"]
    start = images["description"]["inputs"]["image"]
    low = json.loads((finished / "images" / start / "images.json").read_text())
    assert low["identity"]["node"]["generator"] == "tiny-diffusion"
    assert low["identity"]["source"] == images["description"]["source"]
