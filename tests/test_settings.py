"""What a sweep is, and that one runs folder belongs to one configuration."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench.core.errors import OtherConfigurationError
from bench.core.identity import digest
from bench.core.storage import Folder
from bench.recipes.base import with_options
from bench.recipes.load import load_recipe
from bench.sweeping.settings import SWEEP_FILE, Settings, claim, held


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(recipes=("tiny-knn",), runs=Folder.at(tmp_path / "runs"), data=Folder.at(tmp_path / "data"))


RECIPES = [load_recipe("tiny-knn")]

NEUTRAL = {
    "runs": Folder("/elsewhere"),
    "data": Folder("s3://other/data"),
    "weights": "/weights",
    "batch_size": 7,
    "replicas": 3,
    "cpus": 5,
}
DECISIVE = {
    "preset": "tiny",
    "subjects": (1,),
    "sessions": (1, 2),
    "trials": 9,
    "protocol": "mindeye2",
    "test_images": 5,
    "exact_images": 12,
    "seed": 1,
    "shards": Folder("/data/nsd/b3.func1pt8mm.nsdgeneral@0123"),
}


def test_every_field_is_known_to_be_neutral_or_decisive():
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert set(NEUTRAL) | set(DECISIVE) | {"recipes"} == fields


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_places_and_machines_change_nothing(settings, name):
    other = dataclasses.replace(settings, **{name: NEUTRAL[name]})
    assert digest(other.identity(RECIPES)) == digest(settings.identity(RECIPES))


@pytest.mark.parametrize("name", sorted(DECISIVE))
def test_whatever_decides_results_changes_the_identity(settings, name):
    other = dataclasses.replace(settings, **{name: DECISIVE[name]})
    assert digest(other.identity(RECIPES)) != digest(settings.identity(RECIPES))


def test_shards_are_named_by_their_address_not_their_place(settings):
    one, other = (dataclasses.replace(settings, shards=Folder(place + "/set@12")) for place in ("/a", "s3://b"))
    assert one.identity(RECIPES) == other.identity(RECIPES)


def test_what_a_recipe_says_is_part_of_the_identity(settings):
    changed = [with_options(RECIPES[0], {"fit.k": 3})]
    assert settings.identity(changed) != settings.identity(RECIPES)


def test_a_folder_is_claimed_once_and_continued(settings):
    assert held(settings, RECIPES) is False
    claim(settings, RECIPES)
    content = settings.runs.read_bytes(SWEEP_FILE)
    assert json.loads(content) == settings.identity(RECIPES)
    assert held(settings, RECIPES) is True
    assert held(dataclasses.replace(settings, batch_size=1), RECIPES) is True
    assert settings.runs.read_bytes(SWEEP_FILE) == content


def test_a_folder_of_another_configuration_is_refused(settings):
    claim(settings, RECIPES)
    content = settings.runs.read_bytes(SWEEP_FILE)
    with pytest.raises(OtherConfigurationError) as caught:
        held(dataclasses.replace(settings, seed=4, subjects=(1, 2)), RECIPES)
    assert str(caught.value) == (
        f"{settings.runs} belongs to a sweep of another configuration (seed: there 0, now 4; "
        "subjects: there None, now [1, 2]). Choose another --runs folder."
    )
    assert settings.runs.read_bytes(SWEEP_FILE) == content


def test_other_recipes_are_named(settings):
    claim(settings, RECIPES)
    with pytest.raises(OtherConfigurationError, match="recipes: there tiny-knn, now tiny-ridge"):
        held(settings, [load_recipe("tiny-ridge")])


def test_a_long_difference_is_shortened(settings):
    claim(settings, RECIPES)
    with pytest.raises(OtherConfigurationError, match=r"sessions: there None, now \[1, 2, 3.*\.\.\.\)"):
        held(dataclasses.replace(settings, sessions=tuple(range(1, 60))), RECIPES)
