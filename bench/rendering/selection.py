"""Choosing one of a picture's samples: encoded by a frozen generator, compared with a reference in the same space.

MindEye1 compares with the brain-predicted CLIP embedding, which is fair; MindBridge and BrainGuard with the true
picture's, which is an oracle (`bench.scoring.leakage` keeps such rows out of the ranking).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch

from bench.core import cluster
from bench.core.errors import BadDataError, MissingDataError
from bench.core.seeds import picture_seed
from bench.data.shards.targets import TargetTable
from bench.generators.base import Stimuli
from bench.generators.choice import GeneratorChoice
from bench.generators.encoding import ENCODE_BATCH, checked_values
from bench.recipes.base import Recipe
from bench.recipes.parts import Select
from bench.rendering.requests import Request

VERSION = 1
"""Raised whenever the same pictures and references give another choice: part of the pictures' identity."""
Similarity = Literal["cosine", "correlation"]


@dataclass(frozen=True)
class Space:
    """Where samples are compared.

    Attributes:
        generator: The frozen model that encodes them.
        target: Which of its targets.
        take: First and one-past-last index on the target's first axis, or None for all.
    """

    generator: GeneratorChoice
    target: str
    take: tuple[int, int] | None = None

    def identity(self) -> dict[str, Any]:
        """Return what decides an encoding, as plain data."""
        return {**self.generator.identity(render=False), "target": self.target, "take": self.take}


def encoded(space: Space, pictures: np.ndarray, stimuli: Sequence[int]) -> np.ndarray:
    """Encode pictures in Ray tasks, on GPUs where the cluster has some.

    Args:
        space: Where they are compared.
        pictures: `(N, 3, H, W)` uint8.
        stimuli: `(N,)` what each shows; targets that are samples of a posterior get the stimulus' own seed.

    Returns:
        `(N, *shape)` float32.
    """
    gpus = cluster.gpus()
    slots = gpus or int(ray.cluster_resources().get("CPU", 1))
    batches = -(-len(pictures) // ENCODE_BATCH)
    # Tasks end where batches end, so that no encoding depends on how many of them run.
    rows = ENCODE_BATCH * max(1, -(-batches // slots))
    shared = ray.put(pictures)
    task = _encode.options(num_cpus=1, num_gpus=1 if gpus else 0)
    pending = [
        task.remote(space, shared, first, rows, list(stimuli[first : first + rows]))
        for first in range(0, len(pictures), rows)
    ]
    values = np.concatenate(ray.get(pending)).astype(np.float32)
    return values if space.take is None else values[:, space.take[0] : space.take[1]]


@ray.remote
def _encode(space: Space, pictures: np.ndarray, first: int, rows: int, stimuli: list[int]) -> np.ndarray:
    """Encode some of the pictures."""
    torch.set_num_threads(1)
    generator = space.generator.load(torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
    mine, parts = torch.from_numpy(pictures[first : first + rows].copy()), []
    for start in range(0, len(mine), ENCODE_BATCH):
        batch = mine[start : start + ENCODE_BATCH]
        n = len(batch)
        seeds = [picture_seed(stimulus) for stimulus in stimuli[start : start + n]]
        made = generator.encode(Stimuli(batch, [()] * n, [None] * n), [space.target], seeds)[space.target]
        parts.append(checked_values(made, space.generator, space.target, n))
    return np.concatenate(parts)


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return for each row the mean over the rows of its group, `(N, *shape)`.

    A sampling encoder predicts another latent for each sample: each would vote for itself. Their mean is the one
    prediction that all samples of a picture are compared with.
    """
    total = np.zeros((int(groups.max()) + 1, *values.shape[1:]), np.float64)
    np.add.at(total, groups, values)
    count = np.bincount(groups).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray((total / count)[groups])


def similarities(shown: np.ndarray, reference: np.ndarray, kind: Similarity) -> np.ndarray:
    """Return the similarity of each row of two `(N, *shape)` arrays, `(N,)` float64; 0 where a side has no length.

    Raises:
        BadDataError: If the shapes differ.
    """
    if shown.shape != reference.shape:
        raise BadDataError(f"samples are encoded as {shown.shape[1:]}, they are compared with {reference.shape[1:]}")
    a, b = (np.asarray(side, np.float64).reshape(len(side), -1) for side in (shown, reference))
    if kind == "correlation":
        a, b = (side - side.mean(axis=1, keepdims=True) for side in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.where(norms == 0, np.inf, norms))


def best(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the row of the highest score in each group, ascending; the first of equal ones.

    Args:
        scores: `(N,)`.
        groups: `(N,)` numbers of groups.
    """
    order = np.lexsort((np.arange(len(scores)), -scores, groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.sort(order[first])


def space_of(recipe: Recipe, select: Select) -> Space:
    """Return where a selection compares: its target's space, or that of its head."""
    head = recipe.stages[-1].heads[select.head] if select.head is not None else None
    generator, _, target = (head.target if head else select.target or "").partition(".")
    chosen = GeneratorChoice(generator, recipe.generators.get(generator, {}))  # as its targets were made
    return Space(chosen, target, head.take if head else None)


def selection_description(request: Request, select: Select) -> dict[str, Any]:
    """Return what a selection does, for the address of its pictures."""
    truth = request.digests.get(select.target) if select.target else None
    by = {"by": select.by, "head": select.head, "truth": truth, "similarity": select.similarity}
    return {"select": VERSION, **by, "space": space_of(request.recipe, select).identity()}


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
    shown = encoded(space_of(request.recipe, select), pictures, stimuli.tolist())
    return best(similarities(shown, reference, select.similarity), groups)


def _reference(
    request: Request, select: Select, rows: np.ndarray, groups: np.ndarray, stimuli: np.ndarray
) -> np.ndarray:
    """Return what each sample is compared with: the prediction for its picture, or the true picture's target."""
    if select.head is not None:
        return group_means(request.source.heads[select.head][rows], groups)
    if select.target is None or select.target not in request.targets:
        raise MissingDataError(f"selection by truth needs target shards {select.target}; run the targets stage")
    table: TargetTable = ray.get(request.targets[select.target])
    return table.of(stimuli)
