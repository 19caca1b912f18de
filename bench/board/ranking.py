"""Ranks of systems and paired differences to floors, from the per-image values of the records.

Images and subjects are crossed: every resample draws images once for all subjects and all systems, and subjects once
for all systems, so that what is hard for one is hard for all and only differences between systems remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.errors import BadDataError
from bench.record import Column, Record

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
FLOORS = ("mean-image", "shuffled")
# Means over resamples differ in their last bits between processors; beyond this they are noise.
_DECIMALS = 10
_CHUNK = 250

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """A system's place: its rank, the bootstrap interval of its rank, and its Borda points."""

    rank: int
    rank_interval: tuple[int, int]
    borda: float


def standings(systems: Sequence[Record], samples: Mapping[str, pa.Table]) -> dict[str, Standing]:
    """Rank the systems of a table.

    Args:
        systems: Records of one table.
        samples: Per-image tables by record id.

    Returns:
        Standings by record id.

    Raises:
        BadDataError: If a system was scored on other test images than its neighbours.
    """
    columns = _shared_columns(systems)
    if not columns:
        return {}
    ordered = sorted(systems, key=lambda record: record.id)
    direction = np.array([1.0 if column.higher_is_better else -1.0 for column in columns])
    values = _values(ordered, [column.name for column in columns], samples)
    own = borda(_means(values, np.ones((1, values.shape[2])), np.ones((1, values.shape[3]))) * direction)[0]
    drawn = np.concatenate([borda(means * direction) for means in _resampled(values)])
    intervals = _rank_intervals(drawn)
    ranks = _shared_ranks(intervals, own)
    return {
        record.id: Standing(rank, interval, float(points))
        for record, rank, interval, points in zip(ordered, ranks, intervals, own, strict=True)
    }


def _shared_columns(systems: Sequence[Record]) -> list[Column]:
    """Return the ranked metrics that every system has a value for."""
    columns = [column for column in systems[0].protocol.metrics if column.ranked]
    return [c for c in columns if all(record.metrics[c.name].value is not None for record in systems)]


def borda(scores: Array) -> Array:
    """Count Borda points: one for every system beaten in a metric, half for a tie.

    Args:
        scores: `(resamples, systems, metrics)`, higher is better.

    Returns:
        `(resamples, systems)` points.
    """
    above = (scores[:, :, None] > scores[:, None]).sum(axis=(2, 3))
    equal = (scores[:, :, None] == scores[:, None]).sum(axis=(2, 3)) - scores.shape[2]  # less the tie with itself
    return np.asarray(above + 0.5 * equal, dtype=np.float64)


def _rank_intervals(points: Array) -> list[tuple[int, int]]:
    """Return each system's interval of ranks from `(resamples, systems)` Borda points; ties take the better rank."""
    ranks = 1 + (points[:, None] > points[:, :, None]).sum(axis=2)
    ends = np.quantile(ranks, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf")
    return [(int(low), int(high)) for low, high in ends.T]


def _shared_ranks(intervals: Sequence[tuple[int, int]], points: Array) -> list[int]:
    """Return ranks: walking down by Borda points, a system opens a new rank when it overlaps with none above it."""
    order = sorted(range(len(points)), key=lambda index: (-points[index], intervals[index]))
    ranks = [1] * len(points)
    lowest = 0
    for place, index in enumerate(order):
        low, high = intervals[index]
        ranks[index] = ranks[order[place - 1]] if place and low <= lowest else place + 1
        lowest = max(lowest, high)
    return ranks


def differences(system: Record, controls: Sequence[Record], samples: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Compare a system with the mean image and with shuffled pairs, paired over images and subjects.

    Args:
        system: The best system of a table.
        controls: The table's controls.
        samples: Per-image tables by record id.

    Returns:
        One entry a floor and metric: difference of means over subjects and its bootstrap interval.
    """
    found = []
    for control in (c for name in FLOORS for c in controls if c.control == name):
        columns = _shared_columns([system, control])
        values = _values([system, control], [column.name for column in columns], samples)
        delta = values[:1] - values[1:]
        drawn = np.concatenate([means[:, 0] for means in _resampled(delta)])
        middle = _means(delta, np.ones((1, delta.shape[2])), np.ones((1, delta.shape[3])))[0, 0]
        ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        for index, column in enumerate(columns):
            found.append(_difference(system, control, column, middle[index], ends[:, index], delta.shape[3]))
    return found


def _difference(system: Record, control: Record, column: Column, middle: float, ends: Array, n: int) -> dict[str, Any]:
    """Return one comparison as JSON data."""
    low, high = (round(float(end), _DECIMALS) for end in ends)
    return {
        "system": system.id,
        "control": control.id,
        "metric": column.name,
        "difference": round(float(middle), _DECIMALS),
        "interval": [low, high],
        "n": n,
        "better": low > 0 if column.higher_is_better else high < 0,
    }


def _values(records: Sequence[Record], metrics: Sequence[str], samples: Mapping[str, pa.Table]) -> Array:
    """Return `(records, metrics, subjects, images)`, samples of an image averaged; NaN where a subject lacks an image.

    Raises:
        BadDataError: If the records were scored on different images, or one has no per-image table.
    """
    tables = []
    for record in records:
        if record.id not in samples:
            raise BadDataError(f"score {record.id} ({record.name}) has no per-image table, which its place needs")
        tables.append(
            samples[record.id]
            .group_by(["subject", "stimulus"], use_threads=False)
            .aggregate([(m, "mean") for m in metrics])
        )
    keys = [list(zip(t["subject"].to_pylist(), t["stimulus"].to_pylist(), strict=True)) for t in tables]
    for record, own in zip(records, keys, strict=True):
        if set(own) != set(keys[0]):
            raise BadDataError(f"scores {records[0].id} and {record.id} hold different test images, yet share a table")
    subjects = {subject: place for place, subject in enumerate(sorted({subject for subject, _ in keys[0]}))}
    stimuli = {stimulus: place for place, stimulus in enumerate(sorted({stimulus for _, stimulus in keys[0]}))}
    values = np.full((len(records), len(metrics), len(subjects), len(stimuli)), np.nan)
    for index, (table, own) in enumerate(zip(tables, keys, strict=True)):
        rows, columns = [subjects[subject] for subject, _ in own], [stimuli[stimulus] for _, stimulus in own]
        for place, metric in enumerate(metrics):
            values[index, place, rows, columns] = table[f"{metric}_mean"].to_numpy()
    return values


def _resampled(values: Array) -> list[Array]:
    """Return means over resampled subjects and images, `(resamples, records, metrics)` in chunks."""
    subjects, images = values.shape[2:]
    draw = np.random.default_rng(SEED)
    chunks = []
    for start in range(0, RESAMPLES, _CHUNK):
        size = min(_CHUNK, RESAMPLES - start)
        of_subjects = draw.multinomial(subjects, np.full(subjects, 1 / subjects), size=size)
        of_images = draw.multinomial(images, np.full(images, 1 / images), size=size)
        chunks.append(_means(values, of_subjects.astype(np.float64), of_images.astype(np.float64)))
    return chunks


def _means(values: Array, of_subjects: Array, of_images: Array) -> Array:
    """Return means over subjects of means over images.

    Args:
        values: `(records, metrics, subjects, images)`, NaN where a subject lacks an image.
        of_subjects: `(resamples, subjects)`, how often each was drawn.
        of_images: `(resamples, images)`, how often each was drawn.

    Returns:
        `(resamples, records, metrics)`, rounded so that the last bits of a processor do not decide ties.
    """
    there = np.isfinite(values)
    sums = np.einsum("abci,ri->rabc", np.where(there, values, 0.0), of_images, optimize=True)
    counts = np.einsum("abci,ri->rabc", there.astype(np.float64), of_images, optimize=True)
    weights = np.where(counts > 0, of_subjects[:, None, None], 0.0)
    means = sums / np.maximum(counts, 1.0)
    total = (means * weights).sum(axis=3) / weights.sum(axis=3)
    return np.asarray(np.round(total, _DECIMALS))
