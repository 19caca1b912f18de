"""What rows declare, and what the audit makes of it: training sets, outside pictures, checkpoints, selection."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
from board_records import draw, scored
from stream_shards import SHARED, trials_of
from tiny_system import keys, noisy, open_tiny, stored, true_pictures

from bench import score as stage
from bench.board.build import build
from bench.board.markdown import markdown
from bench.board.text import described
from bench.core import registry
from bench.core.errors import OptionError, UnknownNameError
from bench.core.identity import plain
from bench.core.storage import Folder
from bench.data import training_sets
from bench.data.splits import ROLES
from bench.data.stream.rules import Normalise
from bench.data.training_sets import TRAINING_SETS, Overlap, ScoredPictures, overlap
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node, Select, Stage
from bench.records.record import read_records, write_record
from bench.scoring.declaration import Declaration, parse
from bench.scoring.division import open_reasons_of, steps_of
from bench.scoring.leakage import audit, audit_declaration, audit_training_sets, generators_of

TEST = SHARED.tolist()
STAGE = Stage("ridge", heads={"z": HeadSpec("tiny-diffusion.latent")})
CLEAN = Recipe("mine", (STAGE,), {"out": Node("tiny-diffusion", inputs={"latent": "z"})})
NSD = ScoredPictures("nsd", ("coco-train2017:7", "coco-train2017:8", "coco-train2017:9"))
SIMULATED = ScoredPictures("nsd-sim", ("simulated:7", "simulated:8"))
COCO_TRAIN = "are COCO's training images of 2017"
TRUTH = Select("all", "truth", target="tiny-diffusion.latent")
BRAIN = Select("all", "brain", head="z")
FULL = Declaration(
    samples=1, selection="none", blend=False, checkpoint="validation", statistics="train", responses=(), images=()
)


@pytest.fixture
def trained_on(monkeypatch):
    """Says what the tiny generator was trained on."""

    def said(*names: str | None) -> None:
        sets = None if names == (None,) else names
        monkeypatch.setattr(registry.load("generator", "tiny-diffusion"), "trained_on", sets)

    return said


def selecting(select: Select) -> Recipe:
    nodes = {"all": CLEAN.render["out"], "out": Node(select=select)}
    return dataclasses.replace(CLEAN, render=nodes, samples=4)


def told(findings):
    return [(f.name, f.excludes, f.evidence.get("set", f.evidence.get("generator"))) for f in findings]


# -- training sets -----------------------------------------------------------------------------------------------------


def test_nsd_s_shared_images_are_in_coco_and_in_bold5000():
    assert overlap("coco-train2017", NSD) == Overlap("yes", f"3 of 3 test pictures {COCO_TRAIN}", 3)
    assert overlap("bold5000", NSD) == Overlap("yes", "all 1,000 shared images are BOLD5000's", 3)
    assert overlap("coco-val2017", NSD).holds == overlap("imagenet-1k", NSD).holds == "no"
    assert overlap("laion-5b", NSD).holds == "maybe"
    unknown = overlap("coco-train2017", ScoredPictures("my-own-data", (None, None)))
    assert unknown == Overlap("unknown", "nothing is known of where 2 of 2 test pictures of 'my-own-data' come from", 2)
    for name in TRAINING_SETS:  # what is drawn by a simulator stands in no other set
        assert overlap(name, SIMULATED) == Overlap("no", "not known to hold any")
        assert overlap(name, ScoredPictures("nsd-sim", ())).holds == "unknown"


def test_pictures_of_several_sources_are_counted_apart():
    mixed = ScoredPictures("bold5000", ("coco-train2017:1", "coco-train2017:2", "imagenet:n1_1", "scene:pier1", None))
    assert overlap("coco-train2017", mixed) == Overlap("yes", f"2 of 5 test pictures {COCO_TRAIN}", 2)
    assert overlap("laion-5b", mixed) == Overlap(
        "maybe", "4 of 5 test pictures were gathered from the web, as these were", 4
    )
    assert overlap("sun", mixed).pictures == 1 and overlap("imagenet-21k", mixed).holds == "yes"
    assert overlap("coco-val2017", mixed).holds == "unknown"  # the one without an origin may be in it
    assert overlap("coco-val2017", dataclasses.replace(mixed, origins=mixed.origins[:4])).holds == "no"
    both = ScoredPictures("other", ("coco-train2017:1", "coco:2"))
    assert overlap("coco-train2017", both) == Overlap("yes", f"1 of 2 test pictures {COCO_TRAIN}", 1)


def test_training_sets_speak_of_known_sources_and_data():
    sources = {source for each in TRAINING_SETS.values() for source in each.pictures}
    assert sources == {"coco-train2017", "coco-val2017", "coco", "imagenet", "scene", "things"}
    assert {name for each in TRAINING_SETS.values() for name in each.responses} <= set(registry.found("dataset"))
    with pytest.raises(UnknownNameError, match=r"unknown training set 'coco-train2107'.*Did you mean 'coco-train2017'"):
        overlap("coco-train2107", NSD)


@pytest.mark.parametrize("name", sorted(registry.found("generator")))
def test_what_generators_name_is_known(name):
    training_sets.check(registry.load("generator", name).trained_on or (), f"generator {name!r}")


def test_a_frozen_generator_that_saw_the_test_images_is_a_note(trained_on):
    trained_on("coco-train2017", "laion-2b-en", "imagenet-1k")
    found = audit_training_sets(CLEAN, NSD)
    assert told(found) == [("training-sets", False, "coco-train2017"), ("training-sets", False, "laion-2b-en")]
    assert found[0].finding == (
        f"generator 'tiny-diffusion' was trained on coco-train2017: 3 of 3 test pictures {COCO_TRAIN}"
    )
    assert audit_training_sets(CLEAN, SIMULATED) == ()


def test_a_generator_that_says_nothing_is_unknown(trained_on):
    trained_on(None)
    assert told(audit_training_sets(CLEAN, NSD)) == [("training-sets-unknown", False, "tiny-diffusion")]
    trained_on()
    assert audit_training_sets(CLEAN, NSD) == ()


def test_responses_to_the_test_images_exclude(trained_on):
    trained_on()
    pretrained = dataclasses.replace(STAGE, pretrained_on=("bold5000", "hcp"))
    (finding,) = audit_training_sets(dataclasses.replace(CLEAN, stages=(pretrained,)), NSD)
    assert (finding.excludes, finding.evidence["set"]) == (True, "bold5000")
    assert finding.finding == ("stage 'fit' was trained on bold5000 responses: all 1,000 shared images are BOLD5000's")
    own = dataclasses.replace(STAGE, dataset="bold5000")
    assert told(audit_training_sets(dataclasses.replace(CLEAN, stages=(own,)), NSD)) == [
        ("training-sets", True, "bold5000")
    ]


def test_removed_test_images_are_a_note_and_other_data_unknown(trained_on):
    trained_on()
    removed = dataclasses.replace(STAGE, pretrained_on=("bold5000",), test_images_removed=True)
    (finding,) = audit_training_sets(dataclasses.replace(CLEAN, stages=(removed,)), NSD)
    assert (finding.excludes, finding.evidence["removed"]) == (False, True)
    assert finding.finding.endswith("declared as removed before")
    own = dataclasses.replace(STAGE, dataset="our-scanner")
    assert told(audit_training_sets(dataclasses.replace(CLEAN, stages=(own,)), NSD)) == [
        ("training-sets-unknown", False, "our-scanner")
    ]


def test_a_stage_names_known_sets_only():
    with pytest.raises(UnknownNameError, match=r"'bold500' in stage 'fit': pretrained_on.*'bold5000'"):
        Stage("ridge", pretrained_on=("bold500",))


def test_generators_of_targets_graphs_and_selections_all_count():
    stage = dataclasses.replace(STAGE, heads={"z": HeadSpec("a.x")})
    nodes = {"all": Node("b"), "out": Node(select=Select("all", "truth", target="c.y"))}
    assert generators_of(Recipe("mine", (stage,), nodes, samples=2)) == ["a", "b", "c"]


# -- selection, splits, statistics -------------------------------------------------------------------------------------


def test_selection_by_truth_excludes_and_by_brain_does_not():
    (finding,) = audit(selecting(TRUTH), [trials_of(1)], TEST)
    assert (finding.name, finding.excludes) == ("selection-by-truth", True)
    assert finding.finding == "render node 'out' selects its samples by the true picture (tiny-diffusion.latent)"
    assert audit(selecting(BRAIN), [trials_of(1)], TEST) == ()


def test_selection_by_truth_leads_no_board():
    assert [selecting(each).selects_by_truth for each in (TRUTH, BRAIN)] == [True, False]
    assert not CLEAN.selects_by_truth


def test_selection_is_declared_and_opens_the_division():
    assert open_reasons_of(selecting(TRUTH)) == [
        "render node 'out' selects one of 4 samples by the true picture in tiny-diffusion.latent"
    ]
    assert open_reasons_of(selecting(BRAIN)) == ["render node 'out' selects one of 4 samples by predicted head 'z'"]
    (step,) = steps_of(selecting(BRAIN))
    assert (step.kind, step.name, step.what["by"], step.what["samples"]) == ("select", "out", "brain", 4)
    assert described(plain(step)) == "select out: by brain, head z, pictures all, samples 4, similarity cosine"
    blend = dataclasses.replace(
        CLEAN, render=CLEAN.render | {"mix": Node(blend={"out": 0.25})}, post=("restandardise",)
    )
    assert [described(plain(s)) for s in steps_of(blend)] == [
        "post restandardise: version 1",
        "blend mix: weights 0.25 out",
    ]
    assert steps_of(CLEAN) == ()


def test_a_fit_that_could_read_the_test_split_is_found():
    """Its stimuli are no test pictures, so nothing overlaps: early stopping by the test split is a leak of its own."""
    trials = trials_of(1)
    role = trials.role.copy()
    role[:3] = ROLES.index("test")
    (finding,) = audit(CLEAN, [dataclasses.replace(trials, role=role)], TEST)
    assert (finding.name, finding.excludes) == ("test-split-in-fit", True)
    assert finding.evidence == {"subject": 1, "trials": 3}


def test_rules_of_z_scoring_that_use_test_trials_are_found():
    found = {}
    for rule in get_args(Normalise):
        changed = dataclasses.replace(CLEAN, stages=(dataclasses.replace(STAGE, normalise=rule),))
        findings = audit(changed, [], TEST)
        assert len(open_reasons_of(changed)) == len(findings)
        found[rule] = [(f.name, f.excludes, f.evidence) for f in findings]
    leaky = {rule for rule, findings in found.items() if findings}
    assert leaky == {"session-all", "global-own"}
    for rule in leaky:
        assert found[rule] == [("test-statistics", True, {"stage": "fit", "normalise": rule})]


# -- pictures made elsewhere -------------------------------------------------------------------------------------------


def test_what_is_not_declared_is_noted():
    (note,) = audit_declaration(Declaration(), NSD)
    assert (note.name, note.excludes) == ("not-declared", False)
    assert note.evidence["fields"] == [
        "samples", "selection", "blend", "checkpoint", "statistics", "responses", "images"
    ]  # fmt: skip
    assert audit_declaration(FULL, NSD) == ()
    assert Declaration().steps == ()


@pytest.mark.parametrize(
    ("said", "name", "excludes"),
    [
        ("selection=truth", "selection-by-truth", True),
        ("checkpoint=test", "test-split-in-fit", True),
        ("statistics=test", "test-statistics", True),
        ("responses=bold5000", "training-sets", True),
        ("images=coco-train2017", "training-sets", False),
    ],
)
def test_each_declared_leak_is_found(said, name, excludes):
    found = [f for f in audit_declaration(parse([said]), NSD) if f.name != "not-declared"]
    assert [(f.name, f.excludes) for f in found] == [(name, excludes)]


def test_declared_choices_open_the_division():
    said = parse(["selection=brain", "samples=16", "blend=true", "images=none", "responses=hcp,god"])
    assert said.open_reasons == ["declared: one of 16 samples selected by the brain", "declared: pictures are blended"]
    assert (said.images, said.responses) == ((), ("hcp", "god"))
    (step,) = said.steps
    assert step.what == {
        "samples": 16, "selection": "brain", "blend": True, "responses": ("hcp", "god"), "images": ()
    }  # fmt: skip
    assert FULL.open_reasons == []


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        (["selection"], OptionError, "--declare takes NAME=VALUE with NAME one of samples, selection"),
        (["selecton=truth"], UnknownNameError, "unknown option 'selecton' in --declare. Did you mean 'selection'"),
        (["selection=oracle"], OptionError, "--declare: selection: .*'none', 'brain' or 'truth'"),
        (["samples=0"], OptionError, "samples=0: at least 1"),
        (["samples=1", "samples=2"], OptionError, "names 'samples' twice"),
        (["images=coco"], UnknownNameError, "unknown training set 'coco' in --declare images"),
    ],
)
def test_wrong_declarations_are_named(pairs, error, message):
    with pytest.raises(error, match=message):
        parse(pairs)


def test_the_stage_records_what_was_declared(tiny_shards, tmp_path, capsys):
    """The same pictures under other words are another row; both stand on the board, the leaky one without a rank."""
    tiny, runs = open_tiny(tiny_shards), Folder.at(tmp_path)
    stimuli = tiny.stimuli(4)
    pictures = noisy(true_pictures(tiny.data, stimuli), 40, 0)
    images = stored(runs, keys(1, stimuli), pictures, made="elsewhere")
    given = ["--shards", tiny.data.shards.uri, "--runs", runs.uri, "--images", f"1={images.folder}"]
    honest = ["selection=none", "samples=1", "blend=false", "checkpoint=validation", "statistics=train"]
    assert stage.main([*given, "--name", "honest", "--declare", *honest, "responses=none", "images=none"]) == 0
    assert stage.main([*given, "--name", "oracle-of-16", "--declare", "selection=truth", "samples=16"]) == 0
    assert "selection-by-truth" in capsys.readouterr().err
    records = {record.name: record for record in read_records(runs)}
    assert (records["honest"].leakage, records["honest"].declared[0].kind) == ((), "declared")
    assert records["oracle-of-16"].oracle
    assert records["oracle-of-16"].division_reasons[1:] == ("declared: one of 16 samples selected by the truth",)
    assert [f.name for f in records["oracle-of-16"].leakage] == ["selection-by-truth", "not-declared"]


def test_the_board_shows_oracles_notes_and_declared_steps(tmp_path):
    def row(name, quality, recipe):
        notes = (*audit(recipe, [trials_of(1)], TEST), *audit_training_sets(recipe, NSD))
        more = {"division": "open", "division_reasons": tuple(open_reasons_of(recipe))}
        return scored(name, draw(quality, seed=len(name)), leakage=notes, declared=steps_of(recipe), **more)

    pairs = [row("brain", 0.5, selecting(BRAIN)), row("oracle of 4", 0.9, selecting(TRUTH))]
    for record, samples in pairs:
        write_record(Folder.at(tmp_path) / "scores" / record.id, record, samples)
    assert {r.name: r.declared for r in read_records(Folder.at(tmp_path))} == {r.name: r.declared for r, _ in pairs}
    board = build([record for record, _ in pairs], {record.id: samples for record, samples in pairs})
    (table,) = board["tables"]
    assert [(row["name"], row["rank"], row["role"]) for row in table["rows"]] == [
        ("brain", 1, "system"),
        ("oracle of 4", None, "oracle"),
    ]
    (excluded,) = board["excluded"]
    assert (excluded["kind"], [f["name"] for f in excluded["evidence"]]) == ("oracle", ["selection-by-truth"])
    text = markdown(board)
    assert "*oracle of 4* (oracle: selects by the truth, not ranked)" in text
    assert "- brain: select out: by brain, head z, pictures all, samples 4, similarity cosine" in text
    assert np.isfinite(table["rows"][1]["metrics"]["ssim"]["value"])
