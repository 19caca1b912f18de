"""From the scores of a row's subjects to its record: the identity chain, the values over subjects, the costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from bench.core import cluster
from bench.core.identity import source_digest
from bench.data.shard_set import tested_digest
from bench.data.splits import Split
from bench.records import provenance, record
from bench.records.parts import (
    Chain,
    Column,
    Costs,
    DatasetPart,
    Event,
    Link,
    MetricValue,
    ProtocolPart,
    now,
)
from bench.scoring.entries import Entry, ScoringTask, SubjectScores, score_link
from eval.plugins import base as metric_plugins
from eval.statistics.crossed import bootstrap_over_subjects, grid
from eval.suite import MetricResult, Scores


def write_score(entry: Entry, done: Mapping[int, SubjectScores], task: ScoringTask, started: str) -> None:
    """Write the record of a row whose subjects are all scored."""
    link = score_link(entry, task)
    subjects = sorted(done)
    per_subject = {str(s): {m.name: _value(m) for m in done[s].scores.metrics} for s in subjects}
    environment = provenance.environment()
    events = [*entry.events]
    events += [Event(now(), "scored", str(s), None, {"wall_seconds": done[s].wall_seconds}) for s in subjects]
    written = record.Record(
        id=link.id,
        name=entry.name,
        kind=entry.kind,
        control=entry.control,
        identity=_chain(entry, link),
        dataset=_dataset(task, subjects),
        protocol=_protocol(task, done[subjects[0]].scores, entry.untrained),
        division="open" if entry.open_reasons else "closed",
        division_reasons=entry.open_reasons,
        source_digest=source_digest(),
        packages=environment["packages"],
        hardware=environment["hardware"],
        created=started,
        finished=now(),
        costs=_costs(entry.costs, done),
        metrics=_over_subjects(done, task.seed),
        per_subject=per_subject,
        latents=entry.latents,
        stages=entry.stages,
        declared=entry.declared,
        leakage=entry.leakage,
        configurations_tried=entry.tried,
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


def _over_subjects(done: Mapping[int, SubjectScores], seed: int) -> dict[str, MetricValue]:
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


def _chain(entry: Entry, link: Link) -> Chain:
    """Return the identity chain of a row."""
    return Chain(
        score=link,
        images={str(s): Link(images.id, images.description) for s, images in entry.images.items()},
        predictions={str(s): each for s, each in entry.predictions.items()},
        fits={str(s): each for s, each in entry.fits.items()},
    )


def _dataset(task: ScoringTask, subjects: Sequence[int]) -> DatasetPart:
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


def _protocol(task: ScoringTask, scores: Scores, untrained: bool) -> ProtocolPart:
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


def _costs(before: Costs, done: Mapping[int, SubjectScores]) -> Costs:
    """Return a row's costs with those of scoring added."""
    return replace(
        before,
        cpu_seconds={**before.cpu_seconds, "score": sum(scored.cpu_seconds for scored in done.values())},
        wall_seconds={**before.wall_seconds, "score": sum(scored.wall_seconds for scored in done.values())},
        peak_memory_bytes=max([before.peak_memory_bytes or 0, *(scored.peak_memory for scored in done.values())]),
    )


def _samples(done: Mapping[int, SubjectScores]) -> pa.Table:
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
