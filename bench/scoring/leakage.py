"""The leakage audit of a run: what it saw of its test that it must not have seen, and what readers should know.

A finding either excludes the row from the ranking (a fit that saw test images, a choice made by the truth) or is a note
(a frozen generator whose training images hold the test images: nobody can undo that, and all share it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.core import registry
from bench.data import training_sets
from bench.data.stream.rules import leaks
from bench.data.stream.trials import SubjectTrials
from bench.data.training_sets import ScoredPictures
from bench.recipes import post_steps
from bench.recipes.base import Recipe
from bench.recipes.parts import Stage
from bench.records.parts import SELECTION, Finding
from bench.scoring.declaration import Declaration


def audit(recipe: Recipe, train: Sequence[SubjectTrials], test: Sequence[int]) -> tuple[Finding, ...]:
    """Return the findings that exclude a run of ours; empty means audited and clean.

    Args:
        recipe: The system.
        train: Everything the fit could read: training and validation trials of its subjects.
        test: The test stimuli that are scored.
    """
    found = [_overlap(trials, test) for trials in train]
    found += [_open_test_role(trials) for trials in train]
    found += [_statistics(name) for name in recipe.post if post_steps.step(name).uses_test_statistics]
    found += [_normalised(stage) for stage in recipe.stages if leaks(stage.normalise)]
    found += [
        _selected(f"render node {name!r}", node.select.target or "")
        for name, node in recipe.render.items()
        if node.select is not None and node.select.by == "truth"
    ]
    return tuple(finding for finding in found if finding is not None)


def _overlap(trials: SubjectTrials, test: Sequence[int]) -> Finding | None:
    """Return a finding where a test picture was shown in trials that the fit could read."""
    common = np.intersect1d(trials.stimulus, np.asarray(test))
    if not len(common):
        return None
    rows = int(np.isin(trials.stimulus, common).sum())
    evidence: dict[str, Any] = {"subject": trials.subject, "stimuli": len(common), "trials": rows}
    return Finding("stimulus-overlap", f"{len(common)} test pictures are among the fit's trials", evidence)


def _open_test_role(trials: SubjectTrials) -> Finding | None:
    """Return a finding where the test split was open to a fit: it could stop or choose its checkpoint by it."""
    rows = len(trials.rows("test"))
    if not rows:
        return None
    what = f"{rows} trials of the test split were open to the fit: it could stop or choose its checkpoint by them"
    return Finding("test-split-in-fit", what, {"subject": trials.subject, "trials": rows})


def _statistics(name: str) -> Finding:
    """Return the finding of a post step that standardises with the test set's own statistics."""
    return Finding("test-statistics", f"post step {name!r} uses statistics of the test predictions", {"step": name})


def _normalised(stage: Stage) -> Finding:
    """Return the finding of betas that were z-scored with test trials among the statistics."""
    what = f"stage {stage.name!r} z-scores betas by rule {stage.normalise!r}, whose statistics hold test trials"
    return Finding("test-statistics", what, {"stage": stage.name, "normalise": stage.normalise})


def _selected(where: str, space: str) -> Finding:
    """Return the finding of best-of-N by the true picture."""
    what = f"{where} selects its samples by the true picture" + (f" ({space})" if space else "")
    return Finding(SELECTION, what, {"space": space})


def audit_training_sets(recipe: Recipe, pictures: ScoredPictures) -> tuple[Finding, ...]:
    """Return what is known of test images in other sets that a system's models were trained on.

    Args:
        recipe: The system.
        pictures: The test pictures that are scored.
    """
    found: list[Finding] = []
    for stage in recipe.stages:
        outside = (*stage.pretrained_on, *([stage.dataset] if stage.dataset else []))
        for name in outside:
            if name not in training_sets.TRAINING_SETS:  # a data set of the sweep's own, under a name of its own
                what = f"stage {stage.name!r} was trained on {name}, of which nothing is known"
                found.append(Finding("training-sets-unknown", what, {"stage": stage.name, "set": name}, excludes=False))
                continue
            found += _trained(f"stage {stage.name!r}", name, pictures, stage.test_images_removed)
    for name in generators_of(recipe):
        sets = registry.load("generator", name).trained_on
        if sets is None:
            what = f"generator {name!r} does not name its training sets"
            found.append(Finding("training-sets-unknown", what, {"generator": name}, excludes=False))
        else:
            found += [f for each in sets for f in _trained(f"generator {name!r}", each, pictures, removed=False)]
    return tuple(found)


def generators_of(recipe: Recipe) -> list[str]:
    """Return the names of all frozen models behind a recipe: of its targets, its render graph and its selections."""
    targets = {head.generator for stage in recipe.stages for head in stage.heads.values()}
    nodes = {node.generator for node in recipe.render.values() if node.generator}
    spaces = {node.select.target.split(".")[0] for node in recipe.render.values() if node.select and node.select.target}
    return sorted(targets | nodes | spaces)


def _trained(who: str, name: str, pictures: ScoredPictures, removed: bool) -> Iterator[Finding]:
    """Yield what training on a set means: responses to test images exclude, pictures alone are a note."""
    found, kind = training_sets.overlap(name, pictures), training_sets.find(name).kind
    if found.holds == "no":
        return
    evidence = {"set": name, "kind": kind, "holds": found.holds, "removed": removed}
    evidence |= {"pictures": found.pictures, "of": len(pictures.origins)}
    if removed:
        what = f"{who} was trained on {name}, {found.why}: declared as removed before"
        yield Finding("training-sets", what, evidence, excludes=False)
        return
    what = f"{who} was trained on {name}" + (" responses" if kind == "responses" else "") + f": {found.why}"
    yield Finding("training-sets", what, evidence, excludes=kind == "responses" and found.holds == "yes")


def audit_declaration(declared: Declaration, pictures: ScoredPictures) -> tuple[Finding, ...]:
    """Return the findings of pictures made elsewhere, from what their makers declare; what they do not is a note.

    Args:
        declared: The declaration.
        pictures: The test pictures that are scored.
    """
    found: list[Finding] = []
    if declared.selection == "truth":
        found.append(_selected("the pictures' maker", ""))
    if declared.checkpoint == "test":
        what = "early stopping or the checkpoint was chosen by the test set"
        found.append(Finding("test-split-in-fit", what, {"checkpoint": "test"}))
    if declared.statistics == "test":
        what = "statistics of test trials or test predictions were used"
        found.append(Finding("test-statistics", what, {"statistics": "test"}))
    for who, names in (("the encoder", declared.responses or ()), ("a frozen model", declared.images or ())):
        for name in names:
            found += _trained(who, name, pictures, declared.test_images_removed)
    if silent := declared.silent:
        what = f"not declared, so not audited: {', '.join(silent)}"
        found.append(Finding("not-declared", what, {"fields": silent}, excludes=False))
    return tuple(found)
