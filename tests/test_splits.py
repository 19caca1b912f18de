"""The split: by stimulus, the same everywhere and always; and the audit that tells when a fit saw a test picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_shards import trials_of

from bench.data.splits import ROLES, Split
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node, Stage
from bench.scoring.leakage import audit

TRAIN, VALIDATION, TEST = range(3)


def roles(stimuli, shared=()) -> np.ndarray:
    stimuli = np.asarray(stimuli)
    return Split().roles(stimuli, np.isin(stimuli, list(shared)))


def test_golden_roles():
    """Fits, predictions and rows of other laboratories rest on these: a change needs a new version."""
    assert Split().version == 1
    assert ROLES == ("train", "validation", "test")
    held_out = np.flatnonzero(roles(np.arange(150), shared=[0, 2]) == VALIDATION)
    assert held_out.tolist() == [s for s in GOLDEN if s != 2]


GOLDEN = [1, 2, 11, 13, 21, 23, 32, 45, 66, 104, 107, 124, 126, 133, 144, 145, 146]


def test_shared_pictures_are_test_whatever_their_hash():
    stimuli = np.arange(1000)
    assert (roles(stimuli, shared=range(0, 1000, 3))[::3] == TEST).all()
    assert not (roles(stimuli, shared=range(0, 1000, 3))[1::3] == TEST).any()


def test_share_of_validation():
    assert np.mean(roles(np.arange(73_000)) == VALIDATION) == pytest.approx(0.10, abs=0.004)
    split = Split(validation_percent=25)
    stimuli = np.arange(20_000)
    share = np.mean(split.roles(stimuli, np.zeros(20_000, bool)) == VALIDATION)
    assert share == pytest.approx(0.25, abs=0.012)


@given(st.lists(st.integers(0, 72_999), max_size=60), st.randoms())
@settings(max_examples=50, deadline=None)
def test_a_role_is_the_stimulus_alone(stimuli, random):
    """Not the trial, nor its place, nor what else is there: repeats of a picture always stand together."""
    shared = {s for s in stimuli if s % 5 == 0}
    alone = {s: int(roles([s], shared)[0]) for s in stimuli}
    shuffled = stimuli * 3
    random.shuffle(shuffled)
    assert roles(shuffled, shared).tolist() == [alone[s] for s in shuffled]


def test_a_larger_validation_share_contains_the_smaller():
    stimuli, none = np.arange(3000), np.zeros(3000, bool)
    small = Split(validation_percent=10).roles(stimuli, none) == VALIDATION
    large = Split(validation_percent=20).roles(stimuli, none) == VALIDATION
    assert (large | ~small).all()
    assert (large & ~small).any()


def test_no_trials():
    assert roles(np.array([], dtype=np.int32)).shape == (0,)


RECIPE = Recipe(
    name="r",
    stages=(Stage("ridge", heads={"z": HeadSpec("tiny-diffusion.latent")}),),
    render={"out": Node("tiny-diffusion", inputs={"latent": "z"})},
)


def test_a_clean_fit_has_no_findings():
    assert audit(RECIPE, [trials_of(1), trials_of(2)], test=[90, 91]) == ()


def test_a_test_picture_among_a_fits_trials_is_found():
    leaky = trials_of(2)
    stimulus = leaky.stimulus.copy()
    stimulus[[0, 3, 5]] = [90, 91, 90]
    found = audit(RECIPE, [trials_of(1), dataclasses.replace(leaky, stimulus=stimulus)], test=[90, 91, 92])
    assert [finding.name for finding in found] == ["stimulus-overlap"]
    assert found[0].evidence == {"subject": 2, "stimuli": 2, "trials": 3}


def test_statistics_of_the_test_set_are_found():
    recipe = dataclasses.replace(RECIPE, post=("restandardise",))
    assert [finding.name for finding in audit(recipe, [trials_of(1)], test=[90])] == ["test-statistics"]
