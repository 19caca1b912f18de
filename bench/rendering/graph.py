"""Evaluates render graphs: predictions (or true latents) become pictures, node by node, through the render stage.

Each node's pictures are an artefact of their own, `<runs>/images/<id>/`, addressed by what feeds it, so that two
recipes which share a first node share its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bench.core.console import Advance
from bench.core.errors import BadDataError
from bench.core.identity import digest
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.data.shards.pictures import KEY_COLUMNS, SEAL, ImageSet, read_images, write_images
from bench.generators.choice import GeneratorChoice
from bench.recipes.parts import Node, Select
from bench.rendering.jobs import RenderJob, render
from bench.rendering.requests import Request
from bench.rendering.selection import choose, selection_description


def render_graphs(
    requests: Sequence[Request],
    runs: Folder,
    seed: int,
    batch_size: int,
    replicas: int | None,
    advance: Advance,
) -> list[ImageSet]:
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
                walk.make_ready()
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
        self.images: dict[str, ImageSet] = {}
        self._rows: dict[str, np.ndarray] = {}
        self.waiting = list(request.recipe.render_order())
        self._asked: dict[str, ImageSet] = {}

    def _ready(self, node: Node) -> bool:
        """Say whether everything that feeds the node is there."""
        return node.feeders <= set(self.request.source.heads) | set(self.images)

    def _rows_of(self, node: Node) -> np.ndarray:
        """Return which rows of the source a node's pictures answer: all, or those that a selection before it left.

        Raises:
            BadDataError: If its feeders answer different rows.
        """
        left = [self._rows[feeder] for feeder in sorted(node.feeders) if feeder in self.images]
        if any(len(rows) != len(left[0]) or (rows != left[0]).any() for rows in left):
            raise BadDataError(f"a node of {self.request.recipe.name!r} mixes selected pictures with unselected ones")
        return left[0] if left else np.arange(self.request.source.keys.num_rows)

    def _keys(self, rows: np.ndarray) -> pa.Table:
        """Return the keys of some rows."""
        return self.request.source.keys.select(list(KEY_COLUMNS)).take(rows)

    def _images(self, name: str, node: Node) -> ImageSet:
        """Return the address of a node's pictures."""
        description = {
            "images": 1,
            "source": self.request.source.id,
            "node": selection_description(self.request, node.select) if node.select else _node_description(node),
            "inputs": {k: self._feeder(v) for k, v in sorted(_inputs(node).items())},
            "blend": {self.images[k].id: weight for k, weight in sorted((node.blend or {}).items())},
            "seed": self.seed,
        }
        address = digest(description)
        return ImageSet(address, description, self.runs / "images" / address)

    def _feeder(self, name: str) -> str:
        """Return what stands for an input in an address: a head's name, or the address of a node's pictures."""
        return self.images[name].id if name in self.images else f"head:{name}"

    def _seeds(self) -> np.ndarray:
        """Return the seed of every row."""
        stimulus, repeat, sample = (
            self.request.source.keys[name].to_pylist() for name in ("stimulus", "repeat", "sample")
        )
        named = zip(stimulus, repeat, sample, strict=True)
        return np.array([picture_seed(*name, base=self.seed) for name in named], dtype=np.int64)

    def next_jobs(self) -> list[RenderJob]:
        """Return the render jobs of all nodes that can be rendered now."""
        jobs = []
        for name, node in self.waiting:
            if node.generator is None or not self._ready(node):
                continue
            images = self._images(name, node)
            rows = self._rows_of(node)
            inputs = {key: self._values(feeder, rows) for key, feeder in node.inputs.items()}
            jobs.append(
                RenderJob(
                    generator=node.generator,
                    options=node.options,
                    keys=self._keys(rows),
                    inputs=inputs,
                    seeds=self._seeds()[rows],
                    out=images.folder,
                    identity=images.description,
                )
            )
            self._asked[name], self._rows[name] = images, rows
        return jobs

    def _values(self, feeder: str, rows: np.ndarray) -> np.ndarray:
        """Return what a head or an earlier node gives for some rows: latents, or `(N, 3, H, W)` uint8 pictures."""
        if feeder in self.images:
            return read_images(self.images[feeder].folder)[1]
        return self.request.source.heads[feeder][rows]

    def make_ready(self) -> None:
        """Blend and select at all nodes that need no generator and whose feeders are there."""
        for name, node in list(self.waiting):
            if node.generator is not None or not self._ready(node):
                continue
            images = self._images(name, node)
            self._rows[name] = self._chosen(images, node.select) if node.select else self._blended(images, node)
            self.images[name] = images
            self.waiting.remove((name, node))

    def _blended(self, images: ImageSet, node: Node) -> np.ndarray:
        """Write a blend of pictures; return the rows they answer."""
        rows, weights = self._rows_of(node), node.blend or {}
        total = sum(weight * self._values(feeder, rows).astype(np.float32) for feeder, weight in weights.items())
        mixed = np.clip(np.rint(total), 0, 255).astype(np.uint8)
        write_images(images.folder, self._keys(rows), self._seeds()[rows], mixed, images.description)
        return rows

    def _chosen(self, images: ImageSet, select: Select) -> np.ndarray:
        """Write the best sample of each subject's stimulus and showing; return their rows."""
        rows = self._rows[select.pictures]
        if images.folder.exists(SEAL):
            return self._found(images, rows)
        pictures = self._values(select.pictures, rows)
        best = choose(self.request, select, self._keys(rows), rows, pictures)
        chosen = rows[best]
        write_images(images.folder, self._keys(chosen), self._seeds()[chosen], pictures[best], images.description)
        return chosen

    def _found(self, images: ImageSet, rows: np.ndarray) -> np.ndarray:
        """Return the rows that an earlier run chose."""
        places = {tuple(key.values()): row for key, row in zip(self._keys(rows).to_pylist(), rows, strict=True)}
        table = read_images(images.folder)[0].select(list(KEY_COLUMNS))
        return np.array([places[tuple(key.values())] for key in table.to_pylist()])

    def settle(self) -> None:
        """Count the rendered nodes as done."""
        for name, node in list(self.waiting):
            if name in self._asked:
                self.images[name] = self._asked[name]
                self.waiting.remove((name, node))
        self._asked.clear()


def _inputs(node: Node) -> dict[str, str]:
    """Return what feeds a node by name: a generator's inputs, or the pictures that are selected from."""
    return {"pictures": node.select.pictures} if node.select else node.inputs


def _node_description(node: Node) -> dict[str, Any]:
    """Return what a node does, with its generator's version, weights digest and filled-in options."""
    if node.generator is None:
        return {"blend": 1}
    known = GeneratorChoice(node.generator, node.options).identity(render=True)
    return {
        "generator": node.generator,
        "version": known["version"],
        "weights": known["weights_digest"],
        "options": known["options"],
    }
