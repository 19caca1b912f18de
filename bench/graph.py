"""Evaluates render graphs: predictions (or true latents) become pictures, node by node, through the render stage.

Each node's pictures are an artefact of their own, `<runs>/images/<id>/`, addressed by what feeds it, so that two
recipes which share a first node share its pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bench import options, registry
from bench.console import Advance
from bench.identity import digest
from bench.predict import read_predictions
from bench.recipe import Node, Recipe
from bench.render import RenderJob, read_images, render, write_images
from bench.seeds import seed_of
from bench.storage import Folder

KEYS = ("subject", "stimulus", "repeat", "sample")


@dataclass(frozen=True)
class Source:
    """What feeds a render graph.

    Attributes:
        id: Content address of the predictions, or of the true latents that stand in for them.
        keys: Rows: subject, stimulus, repeat, sample.
        heads: For each head `(N, *shape)` float32.
    """

    id: str
    keys: pa.Table
    heads: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Request:
    """A render graph over one source."""

    recipe: Recipe
    source: Source


@dataclass(frozen=True)
class Images:
    """Finished pictures: their content address, its description and where they lie."""

    id: str
    description: Mapping[str, Any]
    folder: Folder


def source_of(folder: Folder, heads: Sequence[str]) -> Source:
    """Return the source made of a predictions folder.

    Raises:
        MissingDataError: If the predictions are not finished or lack a head.
    """
    read = {head: read_predictions(folder, head) for head in heads}
    keys = next(iter(read.values()))[0]
    return Source(folder.name, keys, {head: values for head, (_, values) in read.items()})


def render_graphs(
    requests: Sequence[Request],
    runs: Folder,
    seed: int,
    batch_size: int,
    replicas: int | None,
    advance: Advance,
) -> list[Images]:
    """Return the pictures of every request's node `out`.

    Args:
        requests: Graphs and what feeds them.
        runs: The runs folder.
        seed: Base seed of all pictures; the same stimulus and sample get the same noise in every recipe and subject.
        batch_size: Pictures a render request; changes no picture.
        replicas: Render replicas, None for one a GPU (or one).
        advance: Called with a count of finished pictures and a note.
    """
    walks = [_Walk(request, runs, seed) for request in requests]
    while any(walk.waiting for walk in walks):
        jobs = {}
        for walk in walks:
            if walk.waiting:
                walk.blend_ready()
                jobs.update({job.out.uri: job for job in walk.next_jobs()})
        if jobs:
            render(list(jobs.values()), batch_size=batch_size, replicas=replicas, advance=advance)
        for walk in walks:
            walk.settle()
    return [walk.images["out"] for walk in walks]


class _Walk:
    """One request's way through its graph."""

    def __init__(self, request: Request, runs: Folder, seed: int) -> None:
        self.request, self.runs, self.seed = request, runs, seed
        self.images: dict[str, Images] = {}
        self.waiting = list(request.recipe.render_order())
        self._asked: dict[str, Images] = {}

    def _ready(self, node: Node) -> bool:
        """Say whether everything that feeds the node is there."""
        feeders = set(node.inputs.values()) | set(node.blend or {})
        return feeders <= set(self.request.source.heads) | set(self.images)

    def _images(self, name: str, node: Node) -> Images:
        """Return the address of a node's pictures."""
        description = {
            "images": 1,
            "source": self.request.source.id,
            "node": _described(node),
            "inputs": {k: self._feeder(v) for k, v in sorted(node.inputs.items())},
            "blend": {self.images[k].id: weight for k, weight in sorted((node.blend or {}).items())},
            "seed": self.seed,
        }
        address = digest(description)
        return Images(address, description, self.runs / "images" / address)

    def _feeder(self, name: str) -> str:
        """Return what stands for an input in an address: a head's name, or the address of a node's pictures."""
        return self.images[name].id if name in self.images else f"head:{name}"

    def _seeds(self) -> np.ndarray:
        """Return the seed of every row."""
        pairs = zip(self.request.source.keys["stimulus"].to_pylist(), self._samples(), strict=True)
        return np.array([seed_of(stimulus, sample, self.seed) for stimulus, sample in pairs], dtype=np.int64)

    def _samples(self) -> list[int]:
        """Return each row's sample, counted over the repeats of its stimulus, so that repeats get their own noise."""
        repeat, sample = self.request.source.keys["repeat"].to_pylist(), self.request.source.keys["sample"].to_pylist()
        return [max(r, 0) * 1000 + s for r, s in zip(repeat, sample, strict=True)]

    def next_jobs(self) -> list[RenderJob]:
        """Return the render jobs of all nodes that can be rendered now."""
        jobs = []
        for name, node in self.waiting:
            if node.generator is None or not self._ready(node):
                continue
            images = self._images(name, node)
            inputs = {key: self._values(feeder) for key, feeder in node.inputs.items()}
            keys = self.request.source.keys.select(list(KEYS))
            jobs.append(
                RenderJob(
                    generator=node.generator,
                    options=node.options,
                    keys=keys,
                    inputs=inputs,
                    seeds=self._seeds(),
                    out=images.folder,
                    identity=images.description,
                )
            )
            self._asked[name] = images
        return jobs

    def _values(self, feeder: str) -> np.ndarray:
        """Return what a head or an earlier node gives: latents, or `(N, 3, H, W)` uint8 pictures."""
        if feeder in self.images:
            return read_images(self.images[feeder].folder)[1]
        return self.request.source.heads[feeder]

    def blend_ready(self) -> None:
        """Blend the pictures of all blend nodes that can be blended now."""
        for name, node in list(self.waiting):
            if node.blend is None or not self._ready(node):
                continue
            images = self._images(name, node)
            total = sum(weight * self._values(feeder).astype(np.float32) for feeder, weight in node.blend.items())
            mixed = np.clip(np.rint(total), 0, 255).astype(np.uint8)
            keys = self.request.source.keys.select(list(KEYS))
            write_images(images.folder, keys, self._seeds(), mixed, images.description)
            self.images[name] = images
            self.waiting.remove((name, node))

    def settle(self) -> None:
        """Count the rendered nodes as done."""
        for name, node in list(self.waiting):
            if name in self._asked:
                self.images[name] = self._asked[name]
                self.waiting.remove((name, node))
        self._asked.clear()


def _described(node: Node) -> dict[str, Any]:
    """Return what a node does, with its generator's version, weights digest and filled-in options."""
    if node.generator is None:
        return {"blend": 1}
    cls = registry.load("generator", node.generator)
    filled = options.build(cls.Options, node.options, f"options of generator {node.generator!r}")
    return {
        "generator": node.generator,
        "version": cls.version,
        "weights": cls.weights_digest(filled),
        "options": asdict(filled),
    }


def oracle_heads(recipe: Recipe) -> dict[str, str]:
    """Return, for each head that feeds the graph, the target `<generator>.<target>` that is its truth.

    A head's truth is its own target: the stage that predicts it says which.
    """
    return {name: spec.target for name, spec in recipe.stages[-1].heads.items()}
