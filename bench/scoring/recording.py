"""From the scores of a row's subjects to its record: the identity chain, the values over subjects, the costs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch

from bench.core import cluster
from bench.core.identity import digest, plain, source_digest
from bench.core.storage import Folder
from bench.data.shard_set import ShardSet, tested_digest
from bench.data.shards.pictures import ImageSet
from bench.data.splits import Split
from bench.records import provenance, record
from bench.records.parts import (
    Chain,
    Column,
    ControlName,
    Costs,
    DatasetPart,
    Event,
    Finding,
    LatentScore,
    Link,
    MetricValue,
    ProtocolPart,
    StagePart,
    Step,
)
from eval.networks import _weights as network_weights
from eval.plugins import base as metric_plugins
from eval.protocols.base import Protocol, find
from eval.statistics.crossed import bootstrap_over_subjects, grid
from eval.suite import MetricResult, Scores


@dataclass(frozen=True)
class Row:
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
class Task:
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
class Scored:
    """One subject's part of a score: values, the digest of each picture, and seconds."""

    scores: Scores
    stimuli: tuple[int, ...]
    seeds: tuple[int, ...]
    pictures: tuple[str, ...]
    cpu_seconds: float
    wall_seconds: float
    peak_memory: int


def score_link(row: Row, task: Task) -> Link:
    """Return a score's content address and what it is made of."""
    description = {
        "score": 2,
        "protocol": [task.protocol, task.chosen.version],
        "weights": task.digests(),
        "images": {str(subject): images.id for subject, images in row.images.items()},
        "truth": task.data.stimuli_manifest.content_digest,
        "tested": tested_digest({s: task.tested[s] for s in row.images}),
        "wrong_pairs": row.wrong_pairs,
        # Other words on the same pictures are another row: what was declared decides where it may stand.
        "declared": plain(row.declared),
        "seed": task.seed,
    }
    if task.plugins:
        description["plugins"] = {each: metric_plugins.find(each).version for each in task.plugins}
    return Link(digest(description), description)


def write_score(row: Row, done: Mapping[int, Scored], task: Task, started: str) -> None:
    """Write the record of a row whose subjects are all scored."""
    link = score_link(row, task)
    subjects = sorted(done)
    per_subject = {str(s): {m.name: _value(m) for m in done[s].scores.metrics} for s in subjects}
    environment = provenance.environment()
    events = [*row.events]
    events += [Event(now(), "scored", str(s), None, {"wall_seconds": done[s].wall_seconds}) for s in subjects]
    written = record.Record(
        id=link.id,
        name=row.name,
        kind=row.kind,
        control=row.control,
        identity=_chain(row, link),
        dataset=_dataset(task, subjects),
        protocol=_protocol(task, done[subjects[0]].scores, row.untrained),
        division="open" if row.open_reasons else "closed",
        division_reasons=row.open_reasons,
        source_digest=source_digest(),
        packages=environment["packages"],
        hardware=environment["hardware"],
        created=started,
        finished=now(),
        costs=_costs(row.costs, done),
        metrics=_over_subjects(done, task.seed),
        per_subject=per_subject,
        latents=row.latents,
        stages=row.stages,
        declared=row.declared,
        leakage=row.leakage,
        configurations_tried=row.tried,
        commit=provenance.commit(),
        ray={"version": ray.__version__, "settings": cluster.apply_settings()},
        determinism={"seed": task.seed, "tf32": bool(torch.backends.cuda.matmul.allow_tf32)},
    )
    record.write_record(task.runs / record.SCORES / link.id, written, _samples(done), events)


def _value(metric: MetricResult) -> MetricValue:
    """Return a metric's result as it stands on a record."""
    return MetricValue(
        metric.value, metric.n, metric.standard_error, metric.interval, metric.higher_is_better, metric.status
    )


def _over_subjects(done: Mapping[int, Scored], seed: int) -> dict[str, MetricValue]:
    """Return each metric over subjects: the mean of the subjects' values."""
    values = {}
    of = [done[subject] for subject in sorted(done)]
    for metric in of[0].scores.metrics:
        if metric.value is None:
            values[metric.name] = _value(metric)
            continue
        laid = grid([each.scores.per_image[metric.name] for each in of], [each.stimuli for each in of])
        estimate = bootstrap_over_subjects(laid, seed=seed)
        interval = (estimate.low, estimate.high)
        error = None if np.isnan(estimate.standard_error) else estimate.standard_error
        values[metric.name] = MetricValue(estimate.value, estimate.n, error, interval, metric.higher_is_better)
    return values


def _chain(row: Row, link: Link) -> Chain:
    """Return the identity chain of a row."""
    return Chain(
        score=link,
        images={str(s): Link(images.id, images.description) for s, images in row.images.items()},
        predictions={str(s): each for s, each in row.predictions.items()},
        fits={str(s): each for s, each in row.fits.items()},
    )


def _dataset(task: Task, subjects: Sequence[int]) -> DatasetPart:
    """Return the data part of a record."""
    betas, space, voxelset = task.data.shards.name.partition("@")[0].split(".", 2)
    split = Split()
    return DatasetPart(
        name=task.data.manifest.dataset,
        shards=task.data.manifest.content_digest,
        content=task.data.stimuli_manifest.content_digest,
        betas=betas,
        space=space,
        voxelset=voxelset,
        split=split.name,
        split_version=split.version,
        subjects=tuple(subjects),
        test_stimuli=len(task.tested[subjects[0]]),
        test_digest=tested_digest({s: task.tested[s] for s in subjects}),
    )


def _protocol(task: Task, scores: Scores, untrained: bool) -> ProtocolPart:
    """Return the protocol part of a record."""
    columns = tuple(
        Column(m.name, m.label, m.higher_is_better, m.chance, m.ranked, m.kind) for m in task.chosen.metrics
    )
    # What is no part of the protocol never ranks: rows of one protocol would be ranked by different numbers.
    for plugin in map(metric_plugins.find, task.plugins):
        columns += tuple(Column(c.name, c.label, c.higher_is_better, c.chance, False, "plugin") for c in plugin.columns)
    digests = dict(scores.weights)
    random = scores.untrained or untrained
    return ProtocolPart(scores.protocol, scores.version, columns, digests, random, task.chosen.summary)


def _costs(before: Costs, done: Mapping[int, Scored]) -> Costs:
    """Return a row's costs with those of scoring added."""
    return replace(
        before,
        cpu_seconds={**before.cpu_seconds, "score": sum(scored.cpu_seconds for scored in done.values())},
        wall_seconds={**before.wall_seconds, "score": sum(scored.wall_seconds for scored in done.values())},
        peak_memory_bytes=max([before.peak_memory_bytes or 0, *(scored.peak_memory for scored in done.values())]),
    )


def _samples(done: Mapping[int, Scored]) -> pa.Table:
    """Return the per-image table: one row a subject and test picture; `sample` is -1 where it is a mean of several."""
    parts = []
    for subject, scored in sorted(done.items()):
        n = len(scored.stimuli)
        columns: dict[str, Any] = {
            "subject": pa.array(np.full(n, subject), pa.int64()),
            "stimulus": pa.array(scored.stimuli, pa.int64()),
            "sample": pa.array(np.full(n, 0 if scored.scores.samples == 1 else -1), pa.int64()),
            "seed": pa.array(scored.seeds, pa.int64()),
            "image_sha256": pa.array(scored.pictures, pa.string()),
        }
        columns |= {name: pa.array(values, pa.float64()) for name, values in scored.scores.per_image.items()}
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def now() -> str:
    """Return the time as it stands on records: UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
