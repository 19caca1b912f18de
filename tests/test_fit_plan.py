"""A fit's address: changed by whatever changes its state, by nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest
from stream_shards import TARGET

from bench.core import options, registry
from bench.core.errors import OptionError, UnknownNameError
from bench.core.identity import canonical_json
from bench.data.splits import Split
from bench.fitting.plan import DataDigests, FitPlan, plan_recipe, plan_stage
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node, Stage

DATA = DataDigests({"": "s", "hcp": "h"}, {TARGET: "t", "tiny-diffusion.other": "o"})
STAGE = Stage("ridge", options={"alpha": 10.0}, heads={"z": HeadSpec(TARGET)})


def planned(stage: Stage = STAGE, subjects=(1,), data: DataDigests = DATA, seed: int = 0, **changes) -> FitPlan:
    return plan_stage(stage, subjects, data, seed, **changes)


def test_the_address_is_golden():
    """Fits on other machines lie under it: it may only change with a version or a field of the plan."""
    plan = FitPlan(
        encoder=("ridge", 1),
        options={"alpha": 1.0},
        heads={"z": {"target": TARGET, "roi": None, "take": None, "digest": "t"}},
        subjects=(1,),
        shards="s",
        sessions=None,
        split={"name": "shared-test", "version": 1, "validation_percent": 10},
        normalise="session",
        seed=0,
    )
    assert plan.id == "8cd6f89bae001dae"


def test_options_are_filled_in():
    plan = planned()
    ridge = registry.load("encoder", "ridge")
    assert set(plan.options) == {field.name for field in dataclasses.fields(ridge.Options)}
    assert plan.encoder == ("ridge", ridge.version)
    spelt_out = dataclasses.replace(STAGE, options=dict(plan.options))
    assert planned(spelt_out).id == plan.id


def test_numbers_are_what_the_option_takes():
    """`alpha: 10` of a YAML file and `alpha: 10.0` are one fit."""
    assert planned(dataclasses.replace(STAGE, options={"alpha": 10})).id == planned().id


def test_the_same_plan_has_the_same_address():
    assert planned().id == planned().id
    assert len(planned().id) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "knn", "options": {}},
        {"options": {"alpha": 11.0}},
        {"options": {"alpha": 10.0, "standardise_voxels": True}},
        {"heads": {"y": HeadSpec(TARGET)}},
        {"heads": {"z": HeadSpec("tiny-diffusion.other")}},
        {"heads": {"z": HeadSpec(TARGET, roi="streams:early")}},
        {"heads": {"z": HeadSpec(TARGET, take=(0, 2))}},
        {"dataset": "hcp"},
        {"normalise": "subject"},
        {"averaging": "random-repeat"},
    ],
)
def test_whatever_the_stage_says_changes_the_address(change):
    assert planned(dataclasses.replace(STAGE, **change)).id != planned().id


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": (2,)},
        {"subjects": (1, 2)},
        {"seed": 1},
        {"sessions": (1, 2)},
        {"control": "shuffled"},
        {"data": DataDigests({"": "other"}, DATA.targets)},
        {"data": DataDigests(DATA.shards, {TARGET: "other"})},
        {"parent": planned(seed=3)},
    ],
)
def test_whatever_the_fit_reads_changes_the_address(change):
    assert planned(**change).id != planned().id


@pytest.mark.parametrize("change", [{"gpus": 1.0}, {"name": "other"}])
def test_what_changes_no_state_changes_no_address(change):
    assert planned(dataclasses.replace(STAGE, **change)).id == planned().id


def test_digests_of_other_data_change_nothing():
    more = DataDigests({**DATA.shards, "god": "g"}, {**DATA.targets, "x.y": "q"})
    assert planned(data=more).id == planned().id


def test_a_new_version_of_the_encoder_is_a_new_fit(monkeypatch):
    before = planned().id
    ridge = registry.load("encoder", "ridge")
    monkeypatch.setattr(ridge, "version", ridge.version + 1)
    assert planned().id != before


def test_another_split_is_another_fit():
    plan = planned()
    assert plan.split == dataclasses.asdict(Split())
    for key, value in {"name": "own", "version": 2, "validation_percent": 20}.items():
        assert dataclasses.replace(plan, split={**plan.split, key: value}).id != plan.id


def test_a_plan_survives_its_file():
    plan = planned(dataclasses.replace(STAGE, heads={"z": HeadSpec(TARGET, "streams:early", (0, 2))}), sessions=(1,))
    back = options.build(FitPlan, json.loads(canonical_json(plan)), "plan.json")
    assert back.id == plan.id


def test_data_that_was_not_opened_is_named():
    with pytest.raises(
        UnknownNameError, match=r"unknown target 'tiny-diffusion.latent' in the sweep's data\. .*laten'"
    ):
        planned(data=DataDigests({"": "s"}, {"tiny-diffusion.laten": "t"}))
    with pytest.raises(UnknownNameError, match=r"unknown data set 'hpc' in the sweep's data.* Did you mean 'hcp'"):
        planned(dataclasses.replace(STAGE, dataset="hpc"))


def recipe_of(*stages: Stage) -> Recipe:
    return Recipe("r", stages, {"out": Node("tiny-diffusion", inputs={"latent": "z"})})


FIRST = dataclasses.replace(STAGE, name="first")
SECOND = dataclasses.replace(STAGE, name="second", init_from="first")


def test_each_subject_has_its_fit():
    ((one, two),) = plan_recipe(recipe_of(STAGE), (1, 2), DATA, 0)
    assert (one.subjects, two.subjects) == ((1,), (2,))
    assert one.parent is two.parent is None


def test_a_joint_stage_is_one_fit():
    ((joint,),) = plan_recipe(recipe_of(dataclasses.replace(STAGE, subjects="joint")), (1, 2), DATA, 0)
    assert joint.subjects == (1, 2)


def test_a_chain_starts_each_subject_from_its_own_fit():
    first, second = plan_recipe(recipe_of(FIRST, SECOND), (1, 2), DATA, 0)
    assert [plan.parent for plan in second] == [plan.id for plan in first]


def test_each_subject_may_start_from_the_joint_fit():
    first, second = plan_recipe(recipe_of(dataclasses.replace(FIRST, subjects="joint"), SECOND), (1, 2), DATA, 0)
    assert [plan.parent for plan in second] == [first[0].id] * 2


def test_a_joint_stage_cannot_start_from_fits_of_single_subjects():
    chain = recipe_of(FIRST, dataclasses.replace(SECOND, subjects="joint"))
    with pytest.raises(OptionError, match="stage 'second': no fit of stage 'first' is for all subjects"):
        plan_recipe(chain, (1, 2), DATA, 0)


def test_pretraining_on_the_others_then_adapting_to_each_subject():
    others = dataclasses.replace(FIRST, subjects="others")
    first, second = plan_recipe(recipe_of(others, SECOND), (1, 2, 5), DATA, 0)
    assert [plan.subjects for plan in first] == [(2, 5), (1, 5), (1, 2)]
    assert [plan.subjects for plan in second] == [(1,), (2,), (5,)]
    assert [plan.parent for plan in second] == [plan.id for plan in first]
    with pytest.raises(OptionError, match=r"trains on the other subjects; there is only \[1\]"):
        plan_recipe(recipe_of(others, SECOND), (1,), DATA, 0)


def test_an_option_of_the_first_stage_changes_the_whole_chain():
    before = plan_recipe(recipe_of(FIRST, SECOND), (1,), DATA, 0)
    after = plan_recipe(recipe_of(dataclasses.replace(FIRST, options={"alpha": 2.0}), SECOND), (1,), DATA, 0)
    assert all(a[0].id != b[0].id for a, b in zip(before, after, strict=True))
