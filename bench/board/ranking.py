"""Ranks of systems from the per-image values of the records.

Everything is paired: a resample draws the same subjects and images for all systems, so that what is hard for all drops
out and only differences between systems remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.core.errors import BadDataError
from bench.records.parts import Column
from bench.records.record import Record
from eval.statistics.bootstrap import LEVEL, RESAMPLES
from eval.statistics.ranking import borda

SEED = 0
DECIMALS = 10
"""The last bits of a mean over resamples differ between processors, and the board must not."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """A system's place: its rank, the bootstrap interval of its rank, and its Borda points, the mean over metrics."""

    rank: int
    rank_interval: tuple[int, int]
    borda: float


def standings(systems: Sequence[Record], samples: Mapping[str, pa.Table]) -> dict[str, Standing]:
    """Rank the systems of a table by `eval.statistics.ranking.borda`.

    Args:
        systems: Records of one table.
        samples: Per-image tables by record id.

    Returns:
        Standings by record id; none where the systems have no ranked metric in common.

    Raises:
        BadDataError: If a system was scored on other test images than its neighbours.
    """
    columns = shared_columns(systems)
    if not columns:
        return {}
    ordered = sorted(systems, key=lambda record: record.id)
    values = values_of(ordered, [column.name for column in columns], samples)
    tables = {record.id: own for record, own in zip(ordered, values, strict=True)}
    ranks = borda(tables, [column.higher_is_better for column in columns], RESAMPLES, LEVEL, SEED)
    return {rank.row: Standing(rank.rank, (rank.low, rank.high), round(rank.points, DECIMALS)) for rank in ranks}


def shared_columns(systems: Sequence[Record]) -> list[Column]:
    """Return the ranked metrics that every system has a value for."""
    columns = [column for column in systems[0].protocol.metrics if column.ranked]
    return [c for c in columns if all(record.metrics[c.name].value is not None for record in systems)]


def values_of(records: Sequence[Record], metrics: Sequence[str], samples: Mapping[str, pa.Table]) -> Array:
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
