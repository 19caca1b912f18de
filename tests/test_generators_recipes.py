"""Recipes takagi and ip-adapter-ridge: what they say, and from small shards to a scored record on small checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_checkpoints
import yaml

from bench import sweep
from bench.core.errors import OptionError, UnknownNameError
from bench.core.storage import Folder
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.data.shards.pictures import read_images
from bench.data.simulate.presets import Preset
from bench.prepare import prepare
from bench.recipes import frozen_models
from bench.recipes.load import RECIPES_FOLDER, load_recipe
from bench.scoring.division import open_reasons_of
from bench.simulate import simulate

RECIPES = {
    "takagi": ("stable-diffusion", {"steps": 4}, {"samples": 2}),
    "ip-adapter-ridge": ("ip-adapter", {"steps": 2}, {}),
}


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights."""
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def changed(folder: Path, name: str, generators: dict, node: dict, **more: object) -> str:
    """Write a shipped recipe with other options; return its path."""
    content = yaml.safe_load((RECIPES_FOLDER / f"{name}.yaml").read_text())
    content["render"]["out"]["options"] |= node
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, "generators": generators, **more}))
    return str(path)


def test_takagi_says_what_was_published() -> None:
    loaded = load_recipe("takagi")
    heads = {name: (head.target, head.roi) for name, head in loaded.stages[0].heads.items()}
    assert heads == {
        "z": ("stable-diffusion.z", "streams:early"),
        "c": ("stable-diffusion.text", "streams:ventral"),
    }
    options = loaded.render["out"].options
    assert options == {"model": "v1.4", "sampler": "ddim", "steps": 50, "strength": 0.8, "guidance": 5.0}
    assert (loaded.samples, loaded.repeats, open_reasons_of(loaded)) == (5, "mean-before", [])
    assert loaded.stages[0].options["alphas"] == [10.0**power for power in range(-6, 1)]


def test_ip_adapter_ridge_says_what_was_published() -> None:
    loaded = load_recipe("ip-adapter-ridge")
    assert {name: head.target for name, head in loaded.stages[0].heads.items()} == {"tokens": "ip-adapter.tokens"}
    assert loaded.render["out"].options["model"] == "v1.5" and open_reasons_of(loaded) == []


@pytest.mark.parametrize("name", list(RECIPES))
def test_missing_weights_stop_a_sweep_before_anything_is_done(
    nothing_here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    runs = nothing_here / "runs"
    assert sweep.main(["--recipes", name, "--preset", "tiny", "--runs", str(runs)]) == 2
    message = capsys.readouterr().err
    assert "are not on this machine" in message and "download: true" in message
    assert not runs.exists() and not (nothing_here / "home").exists()


@pytest.fixture(scope="module")
def shards(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Trial shards of one subject and 60 trials: pictures of 512 px cost more than those of the tiny preset."""
    preset = Preset("mini", sessions=(1,), boxes=((11, 13, 11),), nsdgeneral=(124,), trials_per_session=60)
    root = simulate(preset, tmp_path_factory.mktemp("mini") / "nsd-sim", seed=0)
    return prepare(Nsd(NsdOptions(root=str(root))), Folder.at(tmp_path_factory.mktemp("mini-data")))


@pytest.mark.parametrize("name", list(RECIPES))
def test_from_small_shards_to_a_scored_record(shards: Folder, tmp_path: Path, name: str) -> None:
    generator, node, more = RECIPES[name]
    weights = {"weights": small_checkpoints.settings(generator, tmp_path / "weights")["weights"]}
    path = changed(tmp_path, name, {generator: weights}, node, **more)
    runs = tmp_path / "runs"
    arguments = ["--recipes", path, "--shards", shards.uri, "--runs", str(runs)]
    assert sweep.main([*arguments, "--subjects", "1", "--test-images", "2"]) == 0

    records = {r["name"]: r for r in (json.loads(p.read_text()) for p in runs.glob("scores/*/record.json"))}
    assert set(records) == {name, "shuffled", "mean-image", "chance", "oracle"}
    assert {record["status"] for record in records.values()} == {"ok"}
    row = records[name]
    assert row["division"] == "closed" and row["protocol"]["untrained"] is False
    assert {model["name"] for model in row["costs"]["models"]} == {"ridge", generator}
    assert {score["head"] for score in row["latents"]} >= set(load_recipe(name).stages[0].heads)

    link = row["identity"]["images"]["1"]
    keys, pictures = read_images(Folder.at(runs / "images" / link["id"]))[:2]
    samples = more.get("samples", 1)
    assert pictures.shape == (2 * samples, 3, 512, 512) and pictures.dtype == np.uint8
    assert sorted(set(keys["sample"].to_pylist())) == list(range(samples))
    assert len({picture.tobytes() for picture in pictures}) == 2 * samples
    described = link["description"]["node"]
    assert len(bytes.fromhex(described["weights"])) == 32
    assert described["options"]["steps"] == node["steps"] and str(tmp_path) not in json.dumps(row["identity"])


def test_options_of_a_generator_hold_for_targets_and_pictures(tmp_path: Path) -> None:
    given = {"stable-diffusion": {"model": "v1.5", "untrained": True, "steps": 3}}
    path = changed(tmp_path, "takagi", given, {})
    loaded = load_recipe(path)
    assert loaded.render["out"].options["untrained"] is True
    assert loaded.render["out"].options["steps"] == 50  # a node's own options come on top
    (chosen,) = frozen_models.of_targets([loaded]).values()
    assert chosen.options.model == "v1.5" and chosen.options.untrained
    assert frozen_models.untrained(loaded)
    assert not frozen_models.untrained(load_recipe("tiny-ridge"))


def test_options_of_a_generator_are_checked(tmp_path: Path) -> None:
    for generators, message in (
        (
            {"stable-difusion": {}},
            r"unknown generator 'stable-difusion' in generators of recipe 'takagi'.*Did you mean",
        ),
        ({"stable-diffusion": {"modell": "v1.5"}}, r"unknown option 'modell'.*Did you mean 'model'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            load_recipe(changed(tmp_path, "takagi", generators, {}))
    with pytest.raises(OptionError, match="untrained asks for random weights"):
        load_recipe(changed(tmp_path, "takagi", {"stable-diffusion": {"untrained": True, "weights": "w"}}, {}))
    with pytest.raises(OptionError, match="generators is a mapping from names, got"):
        load_recipe(changed(tmp_path, "takagi", ["stable-diffusion"], {}))


def test_two_recipes_cannot_want_other_targets_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = load_recipe(changed(tmp_path, "takagi", {"stable-diffusion": {"untrained": True}}, {}))
    options = {"stable-diffusion": {"untrained": True, "model": "v1.5"}}
    second = replace(load_recipe(changed(tmp_path / "other", "takagi", options, {})), name="second")
    assert len(frozen_models.of_targets([first, first])) == 1
    with pytest.raises(OptionError, match=r"recipes 'takagi' and 'second' set options of generator 'stable-diffusion'"):
        frozen_models.of_targets([first, second])
