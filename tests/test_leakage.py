"""The leakage audit: a fit that could read a test picture, and steps that use the test set, lose their rank."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from board_records import dataset, draw, protocol, scored
from stream_shards import SHARED, trials_of

from bench.board.build import build
from bench.data.splits import ROLES, Split
from bench.leakage import audit
from bench.post import STEPS, PostStep
from bench.recipe import HeadSpec, Node, Recipe, Stage
from bench.record import read_records, read_samples, write_record
from bench.storage import Folder

STAGE = Stage("ridge", heads={"z": HeadSpec("tiny-diffusion.latent")})
CLEAN = Recipe("mine", (STAGE,), {"out": Node("tiny-diffusion", inputs={"latent": "z"})})
TEST = SHARED.tolist()


class LeakySplit(Split):
    """A split by trial: every second showing of a shared picture is for training."""

    def roles(self, stimuli: np.ndarray, shared: np.ndarray) -> np.ndarray:
        role = super().roles(stimuli, shared)
        seen = np.array([(stimuli[:i] == s).sum() % 2 for i, s in enumerate(stimuli)], bool)
        return np.where(shared & seen, ROLES.index("train"), role).astype(np.int8)


def leaky_trials(subject: int):
    """What a fit would read under the leaky split, and which test pictures are among it."""
    stimulus = np.concatenate([np.arange(60, 100), np.arange(85, 100)]).astype(np.int32)
    role = LeakySplit().roles(stimulus, np.isin(stimulus, SHARED))
    keep = role != ROLES.index("test")
    trials = dataclasses.replace(trials_of(subject), stimulus=stimulus[keep], role=role[keep])
    return trials, sorted(set(stimulus[keep].tolist()) & set(TEST))


def test_a_split_by_stimulus_is_clean():
    assert audit(CLEAN, [trials_of(1), trials_of(2)], TEST) == ()


def test_a_split_by_trial_is_caught():
    trials, leaked = leaky_trials(2)
    (finding,) = audit(CLEAN, [trials_of(1), trials], TEST)
    assert leaked == TEST
    assert finding.name == "stimulus-overlap"
    assert finding.finding == f"{len(leaked)} test pictures are among the fit's trials"
    assert finding.evidence == {"subject": 2, "stimuli": len(leaked), "trials": len(leaked)}


def test_one_validation_trial_is_enough():
    trials = trials_of(1)
    shown = int(trials.stimulus[trials.rows("validation")[0]])
    (finding,) = audit(CLEAN, [trials], [*TEST, shown])
    assert finding.evidence["stimuli"] == 1
    assert finding.evidence["trials"] == (trials.stimulus == shown).sum()


def test_pictures_that_are_not_scored_do_not_count():
    trials, leaked = leaky_trials(1)
    assert audit(CLEAN, [trials], [s for s in TEST if s not in leaked] + [1000]) == ()


def test_steps_with_test_statistics_are_found(monkeypatch):
    harmless = PostStep(1, False, lambda predictions, targets: predictions)
    monkeypatch.setattr("bench.post.STEPS", {**STEPS, "harmless": harmless})
    recipe = dataclasses.replace(CLEAN, post=("harmless", "restandardise"))
    (finding,) = audit(recipe, [trials_of(1)], TEST)
    assert (finding.name, finding.evidence) == ("test-statistics", {"step": "restandardise"})
    assert recipe.open_reasons == ["post step 'restandardise' uses statistics of the test predictions"]
    assert audit(dataclasses.replace(CLEAN, post=("harmless",)), [trials_of(1)], TEST) == ()


@pytest.fixture
def runs(tmp_path) -> Folder:
    return Folder.at(tmp_path)


def test_the_record_carries_it_and_the_board_does_not_rank_the_row(runs):
    findings = audit(CLEAN, [leaky_trials(1)[0]], TEST)
    pairs = [
        scored("honest", draw(0.5, seed=1), part=dataset(), rules=protocol()),
        scored("leaky", draw(0.9, seed=2), part=dataset(), rules=protocol(), leakage=findings),
    ]
    for record, samples in pairs:
        write_record(runs / "scores" / record.id, record, samples)
    records = read_records(runs)
    assert {record.name: record.leakage for record in records} == {"honest": (), "leaky": findings}
    board = build(records, {record.id: read_samples(runs, record) for record in records})
    (table,) = board["tables"]
    rows = {row["name"]: row for row in table["rows"]}
    assert (rows["honest"]["rank"], rows["honest"]["role"]) == (1, "system")
    assert (rows["leaky"]["rank"], rows["leaky"]["role"]) == (None, "leaky")
    assert rows["leaky"]["metrics"]["pixcorr"]["value"] > rows["honest"]["metrics"]["pixcorr"]["value"]
    (excluded,) = board["excluded"]
    assert (excluded["name"], excluded["kind"]) == ("leaky", "leaky")
    assert excluded["reason"] == "stimulus-overlap: 10 test pictures are among the fit's trials"
    assert excluded["evidence"][0]["evidence"] == dict(findings[0].evidence)
