"""The leakage audit of a run: what a fit saw that its test must not have shown it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench import post
from bench.data.stream import SubjectTrials
from bench.recipe import Recipe
from bench.record_parts import Finding


def audit(recipe: Recipe, train: Sequence[SubjectTrials], test: Sequence[int]) -> tuple[Finding, ...]:
    """Return the findings; empty means audited and clean.

    Args:
        recipe: The system.
        train: Everything the fit could read: training and validation trials of its subjects.
        test: The test stimuli that are scored.
    """
    found = [_overlap(trials, test) for trials in train]
    found += [_statistics(name) for name in recipe.post if post.step(name).uses_test_statistics]
    return tuple(finding for finding in found if finding is not None)


def _overlap(trials: SubjectTrials, test: Sequence[int]) -> Finding | None:
    """Return a finding where a test picture was shown in trials that the fit could read."""
    common = np.intersect1d(trials.stimulus, np.asarray(test))
    if not len(common):
        return None
    rows = int(np.isin(trials.stimulus, common).sum())
    evidence: dict[str, Any] = {"subject": trials.subject, "stimuli": len(common), "trials": rows}
    return Finding("stimulus-overlap", f"{len(common)} test pictures are among the fit's trials", evidence)


def _statistics(name: str) -> Finding:
    """Return the finding of a post step that standardises with the test set's own statistics."""
    return Finding("test-statistics", f"post step {name!r} uses statistics of the test predictions", {"step": name})
