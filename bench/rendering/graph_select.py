"""Select nodes of render graphs: which sample of each picture goes on, and what that choice is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from bench.core.errors import MissingDataError
from bench.fitting.subject_stream import TargetTable
from bench.generators.choice import GeneratorChoice
from bench.recipes.base import Recipe, Select
from bench.rendering import selection
from bench.rendering.selection import Space

if TYPE_CHECKING:
    from bench.rendering.graph import Request


def space_of(recipe: Recipe, select: Select) -> Space:
    """Return where a selection compares: its target's space, or that of its head."""
    head = recipe.stages[-1].heads[select.head] if select.head is not None else None
    generator, _, target = (head.target if head else select.target or "").partition(".")
    chosen = GeneratorChoice(generator, recipe.generators.get(generator, {}))  # as its targets were made
    return Space(chosen, target, head.take if head else None)


def described(request: Request, select: Select) -> dict[str, Any]:
    """Return what a selection does, for the address of its pictures."""
    truth = request.digests.get(select.target) if select.target else None
    by = {"by": select.by, "head": select.head, "truth": truth, "similarity": select.similarity}
    return {"select": selection.VERSION, **by, "space": space_of(request.recipe, select).identity()}


def choose(request: Request, select: Select, keys: pa.Table, rows: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Return which pictures are the best sample of their subject, stimulus and showing, ascending.

    Args:
        request: The graph and what feeds it.
        select: How to choose.
        keys: Keys of the pictures.
        rows: `(N,)` rows of the source that they answer.
        pictures: `(N, 3, H, W)` uint8.

    Raises:
        MissingDataError: If the true targets that it compares with were not given.
    """
    columns = np.stack([keys[name].to_numpy() for name in ("subject", "stimulus", "repeat")])
    groups = np.unique(columns, axis=1, return_inverse=True)[1].reshape(-1)
    # Where each picture has one sample, as those from true latents have, nothing is encoded.
    if len(np.unique(groups)) == len(rows):
        return np.arange(len(rows))
    stimuli = keys["stimulus"].to_numpy()
    reference = _reference(request, select, rows, groups, stimuli)
    shown = selection.encoded(space_of(request.recipe, select), pictures, stimuli.tolist())
    return selection.best(selection.similarities(shown, reference, select.similarity), groups)


def _reference(
    request: Request, select: Select, rows: np.ndarray, groups: np.ndarray, stimuli: np.ndarray
) -> np.ndarray:
    """Return what each sample is compared with: the prediction for its picture, or the true picture's target."""
    if select.head is not None:
        return selection.group_means(request.source.heads[select.head][rows], groups)
    if select.target is None or select.target not in request.targets:
        raise MissingDataError(f"selection by truth needs target shards {select.target}; run the targets stage")
    table: TargetTable = ray.get(request.targets[select.target])
    return table.of(stimuli)
