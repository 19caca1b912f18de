"""What becomes rows of the board, how they are scored, and where a score lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.core.identity import digest, plain
from bench.core.storage import Folder
from bench.data.shard_set import ShardSet, tested_digest
from bench.data.shards.pictures import ImageSet
from bench.records.parts import (
    ControlName,
    Costs,
    Event,
    Finding,
    LatentScore,
    Link,
    StagePart,
    Step,
)
from eval.networks import _weights as network_weights
from eval.plugins import base as metric_plugins
from eval.protocols.base import Protocol, find
from eval.suite import Scores


@dataclass(frozen=True)
class Entry:
    """What becomes one row of the board.

    Attributes:
        name: The recipe, or the control.
        kind: A system that competes, or a control.
        control: Which control.
        images: Pictures by subject.
        predictions: What was rendered, by subject; empty for pictures that no prediction led to.
        fits: The fits behind it, by subject.
        open_reasons: Why it belongs to the open division.
        stages: What each training stage saw.
        declared: Declared steps.
        leakage: Findings of the audit.
        tried: Configurations that tuning looked at.
        latents: Scores in latent space.
        costs: What it cost so far.
        wrong_pairs: Score each picture against other pictures' truths: chance.
        untrained: Whether a generator behind it has random weights; it stands in a table of its own, unranked.
        events: What happened before scoring, for `events.jsonl`.
    """

    name: str
    kind: Literal["system", "control"]
    control: ControlName | None
    images: Mapping[int, ImageSet]
    predictions: Mapping[int, Link] = field(default_factory=dict)
    fits: Mapping[int, tuple[Link, ...]] = field(default_factory=dict)
    open_reasons: tuple[str, ...] = ()
    stages: tuple[StagePart, ...] = ()
    declared: tuple[Step, ...] = ()
    leakage: tuple[Finding, ...] = ()
    tried: int = 1
    latents: tuple[LatentScore, ...] = ()
    costs: Costs = field(default_factory=lambda: Costs({}, {}, {}))
    wrong_pairs: bool = False
    untrained: bool = False
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class ScoringTask:
    """How rows are scored: data, test pictures, protocol, weights, runs folder, seed, CPUs of one task, plug-ins."""

    data: ShardSet
    tested: Mapping[int, Sequence[int]]
    protocol: str
    weights: str | None
    runs: Folder
    seed: int = 0
    cpus: int = 1
    plugins: tuple[str, ...] = ()

    @property
    def chosen(self) -> Protocol:
        """The protocol."""
        return find(self.protocol)

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each network's weights, or `untrained:<seed>`, and of what plug-ins load."""
        own = {network.name: network_weights.digest(network, self.weights) for network in self.chosen.networks}
        more = [metric_plugins.find(plugin).digests(self.weights) for plugin in self.plugins]
        return {name: value for part in (own, *more) for name, value in part.items()}


@dataclass(frozen=True)
class SubjectScores:
    """One subject's part of a score: values, the digest of each picture, and seconds."""

    scores: Scores
    stimuli: tuple[int, ...]
    seeds: tuple[int, ...]
    pictures: tuple[str, ...]
    cpu_seconds: float
    wall_seconds: float
    peak_memory: int


def score_link(entry: Entry, task: ScoringTask) -> Link:
    """Return a score's content address and what it is made of."""
    description = {
        "score": 2,
        "protocol": [task.protocol, task.chosen.version],
        "weights": task.digests(),
        "images": {str(subject): images.id for subject, images in entry.images.items()},
        "truth": task.data.stimuli_manifest.content_digest,
        "tested": tested_digest({s: task.tested[s] for s in entry.images}),
        "wrong_pairs": entry.wrong_pairs,
        # Other words on the same pictures are another row: what was declared decides where it may stand.
        "declared": plain(entry.declared),
        "seed": task.seed,
    }
    if task.plugins:
        description["plugins"] = {each: metric_plugins.find(each).version for each in task.plugins}
    return Link(digest(description), description)
