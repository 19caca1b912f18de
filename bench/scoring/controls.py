"""Floors and ceilings that always stand on the board: mean image, oracle, chance (shuffled is a refit, see `fit`).

- mean image: the mean training picture of the subject, given as the answer for every test picture;
- oracle: the winner's render graph fed with true latents: what a perfect encoder would score;
- chance: the winner's pictures paired with wrong truths (scored, not rendered: see `bench.score`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shard_set import ShardSet
from bench.data.shards.pictures import ImageSet, keys_of, write_images
from bench.data.shards.targets import TargetTable
from bench.data.stream.trials import SubjectTrials
from bench.recipes.base import Recipe
from bench.records.parts import Costs
from bench.rendering.requests import Source
from bench.scoring.entries import Entry


def mean_images(
    data: ShardSet, train: Mapping[int, Any], test: Mapping[int, Sequence[int]], runs: Folder
) -> dict[int, ImageSet]:
    """Return, for each subject, its mean training picture as the answer for every test picture.

    Args:
        data: The stimuli.
        train: References to each subject's training and validation trials.
        test: Test stimuli by subject.
        runs: The runs folder.
    """
    seen = {subject: training_stimuli(ray.get(ref)) for subject, ref in train.items()}
    pictures = shard_set.pictures(data, np.unique(np.concatenate(list(seen.values()))))
    images = {}
    for subject, stimuli in seen.items():
        description = {
            "images": 1,
            "control": "mean-image",
            "subject": subject,
            "stimuli": data.stimuli_manifest.content_digest,
            "train": digest(stimuli.tolist()),
            "test": digest(list(test[subject])),
        }
        address = digest(description)
        images[subject] = ImageSet(address, description, runs / "images" / address)
        mean = np.mean([pictures[int(s)] for s in stimuli], axis=0, dtype=np.float64)
        picture = np.rint(mean).astype(np.uint8).transpose(2, 0, 1)
        n = len(test[subject])
        same = np.broadcast_to(picture, (n, *picture.shape))
        write_images(images[subject].folder, keys_of(subject, test[subject]), np.zeros(n, np.int64), same, description)
    return images


def training_stimuli(trials: SubjectTrials) -> np.ndarray:
    """Return the sorted distinct stimuli of a subject's training trials."""
    return np.unique(trials.stimulus[trials.rows("train")])


def oracle_source(
    recipe: Recipe, tables: Mapping[str, Any], digests: Mapping[str, str], test: Mapping[int, Sequence[int]]
) -> Source:
    """Return the source that feeds a render graph with the true latents of all test stimuli.

    Pictures depend on the stimulus alone, so each is rendered once, for subject 0.

    Args:
        recipe: Whose graph.
        tables: References to target tables by `<generator>.<target>`.
        digests: Content digests of those targets.
        test: Test stimuli by subject.
    """
    stimuli = sorted({stimulus for mine in test.values() for stimulus in mine})
    heads, described = {}, {}
    for name, head in recipe.stages[-1].heads.items():
        table: TargetTable = ray.get(tables[head.target])
        heads[name] = table.sliced(head.take).of(np.asarray(stimuli))
        described[name] = [digests[head.target], head.take]
    return Source(digest({"oracle": described, "test": stimuli}), keys_of(0, stimuli), heads)


def control_entries(system: Entry, mean: Mapping[int, ImageSet], oracle: ImageSet) -> list[Entry]:
    """Return the floors and the ceiling that need no refit: mean image, chance and oracle.

    Args:
        system: The winner's row, whose pictures are paired with wrong truths for chance.
        mean: Mean-image pictures by subject.
        oracle: Pictures from true latents, the same for all subjects.
    """
    rendered = tuple(model for model in system.costs.models if model.role == "generator")
    costs = Costs({}, {}, {}, models=rendered)
    chain = system.images, system.predictions, system.fits
    return [
        Entry("mean-image", "control", "mean-image", mean, untrained=system.untrained),
        Entry("chance", "control", "chance", *chain, costs=costs, wrong_pairs=True, untrained=system.untrained),
        Entry(
            "oracle",
            "control",
            "oracle",
            dict.fromkeys(system.images, oracle),
            costs=costs,
            untrained=system.untrained,
        ),
    ]
