"""Ranks of systems and paired differences to floors, from the per-image values of the records.

Everything is paired: a resample draws the same subjects and images for both sides, so that what is hard for all drops
out and only differences between systems remain.
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
from eval.statistics import LEVEL, RESAMPLES, borda

SEED = 0
FLOORS = ("mean-image", "shuffled")
# The last bits of a mean over resamples differ between processors, and the board must not.
_DECIMALS = 10

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """A system's place: its rank, the bootstrap interval of its rank, and its Borda points, the mean over metrics."""

    rank: int
    rank_interval: tuple[int, int]
    borda: float


def standings(systems: Sequence[Record], samples: Mapping[str, pa.Table]) -> dict[str, Standing]:
    """Rank the systems of a table by `eval.statistics.borda`.

    Args:
        systems: Records of one table.
        samples: Per-image tables by record id.

    Returns:
        Standings by record id; none where the systems have no ranked metric in common.

    Raises:
        BadDataError: If a system was scored on other test images than its neighbours.
    """
    columns = _shared_columns(systems)
    if not columns:
        return {}
    ordered = sorted(systems, key=lambda record: record.id)
    values = _values(ordered, [column.name for column in columns], samples)
    tables = {record.id: _by_subject(own) for record, own in zip(ordered, values, strict=True)}
    ranks = borda(tables, [column.higher_is_better for column in columns], RESAMPLES, LEVEL, SEED)
    return {rank.row: Standing(rank.rank, (rank.low, rank.high), round(rank.points, _DECIMALS)) for rank in ranks}


def _by_subject(values: Array) -> list[Array]:
    """Return `(images, metrics)` of each subject from `(metrics, subjects, images)`, without images it lacks."""
    return [subject[:, np.isfinite(subject).all(axis=0)].T for subject in values.swapaxes(0, 1)]


def _shared_columns(systems: Sequence[Record]) -> list[Column]:
    """Return the ranked metrics that every system has a value for."""
    columns = [column for column in systems[0].protocol.metrics if column.ranked]
    return [c for c in columns if all(record.metrics[c.name].value is not None for record in systems)]


def differences(system: Record, controls: Sequence[Record], samples: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Compare a system with the mean image and with shuffled pairs, paired over images and subjects.

    Subjects and images are crossed: all subjects saw the same pictures, so a picture is drawn for all of them at once.

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
        delta = values[0] - values[1]
        middle = _means(delta, np.ones((1, delta.shape[1])), np.ones((1, delta.shape[2])))[0]
        ends = np.quantile(_resampled(delta), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        for index, column in enumerate(columns):
            found.append(_difference(system, control, column, middle[index], ends[:, index], delta.shape[2]))
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


def _resampled(values: Array) -> Array:
    """Return means over drawn subjects and drawn images, `(resamples, metrics)`, of `(metrics, subjects, images)`."""
    subjects, images = values.shape[1:]
    draw = np.random.default_rng(SEED)
    of_subjects = draw.multinomial(subjects, np.full(subjects, 1 / subjects), size=RESAMPLES)
    of_images = draw.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return _means(values, of_subjects.astype(np.float64), of_images.astype(np.float64))


def _means(values: Array, of_subjects: Array, of_images: Array) -> Array:
    """Return means over subjects of means over images.

    Args:
        values: `(metrics, subjects, images)`, NaN where a subject lacks an image.
        of_subjects: `(resamples, subjects)`, how often each was drawn.
        of_images: `(resamples, images)`, how often each was drawn.

    Returns:
        `(resamples, metrics)`.
    """
    there = np.isfinite(values)
    sums = np.tensordot(of_images, np.where(there, values, 0.0), axes=(1, 2))
    counts = np.tensordot(of_images, there.astype(np.float64), axes=(1, 2))
    weights = np.where(counts > 0, of_subjects[:, None], 0.0)  # (resamples, metrics, subjects)
    total = (sums / np.maximum(counts, 1.0) * weights).sum(axis=2) / weights.sum(axis=2)
    return np.asarray(total)
