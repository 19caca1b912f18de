"""The leakage audit: a fit that could read a test picture, and steps that use the test set, lose their rank."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import layouts
import numpy as np
import pandas as pd
import pytest
from board_records import dataset, draw, protocol, scored
from nsd_copy import write_copy, write_pictures
from stream_shards import SHARED, trials_of

from bench.board.build import build
from bench.core import registry
from bench.core.errors import MissingDataError
from bench.core.options import build as build_options
from bench.core.storage import Folder
from bench.data.datasets.base import Dataset
from bench.data.datasets.nsd import layout
from bench.data.shard_set import ShardSet, scored_pictures
from bench.data.shards.manifest import Manifest
from bench.data.shards.stimuli import write_stimuli
from bench.data.splits import ROLES, Split
from bench.data.training_sets import ScoredPictures
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node, Stage
from bench.recipes.post_steps import STEPS, PostStep
from bench.records.record import read_records, read_samples, write_record
from bench.scoring.declaration import parse
from bench.scoring.division import open_reasons_of
from bench.scoring.leakage import audit, audit_declaration, audit_training_sets

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
    monkeypatch.setattr("bench.recipes.post_steps.STEPS", {**STEPS, "harmless": harmless})
    recipe = dataclasses.replace(CLEAN, post=("harmless", "restandardise"))
    (finding,) = audit(recipe, [trials_of(1)], TEST)
    assert (finding.name, finding.evidence) == ("test-statistics", {"step": "restandardise"})
    assert open_reasons_of(recipe) == ["post step 'restandardise' uses statistics of the test predictions"]
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


# -- where the test pictures of each dataset come from -----------------------------------------------------------------

SESSION = {"nsd": (1, 1), "bold5000": (1, 1), "god": (1, 1), "things": (1, 1), "nsd-synthetic": (1, 1)}
"""A dataset's subject and session whose test pictures are scored."""


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> Callable[[str], Dataset]:
    """Return the reader of a dataset's small copy, written once."""

    @functools.cache
    def reader(name: str) -> Dataset:
        root = tmp_path_factory.mktemp(name) / name
        kind = registry.load("dataset", name)
        if name == "nsd":
            copy = write_copy(root, {1: (1,)})
            write_pictures(copy, kind(kind.Options(root=str(root))).trials(1, 1).stimulus, 4)
        else:
            layouts.load(name).write(root)
        return kind(build_options(kind.Options, {"root": str(root)}, name))

    return reader


def prepared(data: Dataset, folder: Folder, numbers: list[int]) -> ShardSet:
    """Write stimuli as `prepare` does, and open them."""
    stimuli = folder / "stimuli@0"
    entry = write_stimuli(data, stimuli, 0, numbers)
    manifest = Manifest("stimuli", data.name, "0", {}, (entry,))
    manifest.write(stimuli)
    shards = dataclasses.replace(manifest, kind="trials", stimuli="stimuli@0")
    return ShardSet(folder / "shards", shards, stimuli, manifest, np.array(numbers))


@pytest.fixture
def pictures(readers, tmp_path) -> Callable[[str], tuple[ScoredPictures, list[int]]]:
    """Return what is known of a dataset's test pictures by its shards, and their numbers."""

    def of(name: str) -> tuple[ScoredPictures, list[int]]:
        data = readers(name)
        shown = np.unique(data.trials(*SESSION[name]).stimulus)
        test = [each.number for each in data.stimuli(shown[shown >= 0].tolist()) if each.shared]
        assert test
        return scored_pictures(prepared(data, Folder.at(tmp_path / name), test), test), test

    return of


def declared(known: ScoredPictures, *names: str) -> dict[str, tuple[str, int]]:
    """Return what the audit finds of training sets that pictures were declared to be made with."""
    found = audit_declaration(parse([f"images={','.join(names)}"]), known)
    return {f.evidence["set"]: (f.evidence["holds"], f.evidence["pictures"]) for f in found if "set" in f.evidence}


ASKED = ("coco-train2017", "coco-val2017", "imagenet-21k", "imagenet-1k", "sun", "things-images", "laion-5b")


def test_origins_of_nsd(pictures, readers):
    known, test = pictures("nsd")
    table = pd.read_csv(f"{readers('nsd').options.root}/{layout.STIMULUS_INFO}", index_col="nsdId").loc[test]
    expected = [f"coco-{split}:{image}" for split, image in zip(table["cocoSplit"], table["cocoId"], strict=True)]
    assert known == ScoredPictures("nsd", tuple(expected))
    split = {name: int((table["cocoSplit"] == name).sum()) for name in ("train2017", "val2017")}
    assert split["train2017"] and sum(split.values()) == len(test)
    holds = {f"coco-{name}": ("yes", count) for name, count in split.items() if count}
    assert declared(known, *ASKED) == holds | {"laion-5b": ("maybe", len(test))}


def test_origins_of_bold5000(pictures, readers):
    known, test = pictures("bold5000")
    names = [readers("bold5000").design.names[number] for number in test]
    counts = {"coco": sum(name.startswith("COCO_") for name in names)}
    counts["imagenet"] = sum(name.endswith(".JPEG") for name in names)
    counts["scene"] = len(names) - sum(counts.values())
    assert min(counts.values()) > 0
    assert declared(known, *ASKED) == {
        "coco-train2017": ("yes", counts["coco"]),
        "imagenet-21k": ("yes", counts["imagenet"]),
        "imagenet-1k": ("maybe", counts["imagenet"]),
        "sun": ("maybe", counts["scene"]),
        "laion-5b": ("maybe", len(test)),
    }


def test_origins_of_god(pictures):
    known, test = pictures("god")
    assert len(test) == 50 and all(origin.startswith("imagenet:n") for origin in known.origins)
    held = {"imagenet-21k": ("yes", 50), "imagenet-1k": ("maybe", 50), "laion-5b": ("maybe", 50)}
    assert declared(known, *ASKED) == held


def test_origins_of_things(pictures):
    known, test = pictures("things")
    assert declared(known, *ASKED) == {"things-images": ("yes", len(test)), "laion-5b": ("maybe", len(test))}
    own = dataclasses.replace(STAGE, pretrained_on=("things-fmri", "god"))
    (finding,) = audit_training_sets(dataclasses.replace(CLEAN, stages=(own,)), known)
    assert finding.excludes and finding.evidence["set"] == "things-fmri"


def test_pictures_without_origins_are_unknown_to_every_set(pictures):
    known, test = pictures("nsd-synthetic")
    assert known.origins == (None,) * len(test)
    assert declared(known, *ASKED) == dict.fromkeys(ASKED, ("unknown", len(test)))


def test_simulated_pictures_are_in_no_set(tiny_nsd, tmp_path):
    kind = registry.load("dataset", "nsd")
    data = kind(kind.Options(root=str(tiny_nsd)))
    test = data.trials(1, 1).stimulus[:3].tolist()
    known = scored_pictures(prepared(data, Folder.at(tmp_path), test), test)
    assert known == ScoredPictures("nsd-sim", tuple(f"simulated:{number}" for number in sorted(test)))
    assert declared(known, *ASKED) == {}
    with pytest.raises(MissingDataError, match=r"does not hold stimuli \[73001\] \(1 in all\)"):
        scored_pictures(prepared(data, Folder.at(tmp_path), test), [*test, 73001])


def test_responses_to_pictures_of_the_same_source_are_a_note(pictures):
    known, test = pictures("god")
    for name, excludes in (("god", True), ("bold5000", False)):
        stage = dataclasses.replace(STAGE, pretrained_on=(name,))
        (finding,) = audit_training_sets(dataclasses.replace(CLEAN, stages=(stage,)), known)
        assert (finding.excludes, finding.evidence["of"]) == (excludes, len(test))
    assert finding.finding == (
        "stage 'fit' was trained on bold5000 responses: 50 of 50 test pictures are of a source whose pictures were "
        "shown for these"
    )


def test_stimuli_written_before_origins_are_made_again(readers, tmp_path, caplog):
    data, folder = readers("god"), Folder.at(tmp_path)
    entry = write_stimuli(data, folder, 0, [1200, 1201])
    folder.write_table("part-0.parquet", folder.read_table("part-0.parquet").drop_columns("origin"))
    assert write_stimuli(data, folder, 0, [1200, 1201]) == entry
    assert "is not whole and is made again" in caplog.text
