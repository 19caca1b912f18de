"""One row of the board as JSON data, from one record and its table's floors and ceilings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.board.groups import CEILINGS, Group
from bench.board.ranking import Standing
from bench.core.identity import plain
from bench.records.parts import MetricValue
from bench.records.record import Record
from eval.statistics.bootstrap import normalise


def row(record: Record, table: Group, standing: Standing | None) -> dict[str, Any]:
    """Return a record's row.

    Args:
        record: The record.
        table: The table that it stands in.
        standing: Its rank; None for controls, leaky systems and unranked tables.
    """
    place = plain(standing) if standing else {"rank": None, "rank_interval": None, "borda": None}
    return {
        **place,
        "name": record.name,
        "record_id": record.id,
        "kind": record.kind,
        "control": record.control,
        "role": _role(record),
        "division_reasons": list(record.division_reasons),
        "metrics": _metrics(record, table),
        "latents": plain(record.latents),
        "stages": plain(record.stages),
        "declared": plain(record.declared),
        "leakage": plain(record.leakage),
        "configurations_tried": record.configurations_tried,
        "costs": costs(record),
        "data": {"betas": record.dataset.betas, "space": record.dataset.space, "voxelset": record.dataset.voxelset},
        "source_digest": record.source_digest,
        "commit": record.commit,
        "finished": record.finished,
    }


def _role(record: Record) -> str:
    """Return what a row is on the board: `system`, `oracle`, `leaky`, `ceiling` or `floor`.

    An oracle is a system that is excluded only because it selects by the truth.
    """
    if record.kind == "control":
        return "ceiling" if record.control in CEILINGS else "floor"
    if not record.excluded:
        return "system"
    return "oracle" if record.oracle else "leaky"


def _metrics(record: Record, table: Group) -> dict[str, Any]:
    """Return every metric of a record, over subjects and by subject, raw and normalised."""
    floor, ceiling = reference(record, table, "mean-image"), reference(record, table, "oracle")
    found = {}
    for name, metric in record.metrics.items():
        by_subject = {subject: _cell(values[name]) for subject, values in record.per_subject.items()}
        share = normalised(metric, floor.metrics[name], ceiling.metrics[name]) if floor and ceiling else None
        found[name] = _cell(metric) | {"normalised": share, "per_subject": by_subject}
    return found


def _cell(metric: MetricValue) -> dict[str, Any]:
    """Return a metric's numbers; its direction stands in the head of the table."""
    cell: dict[str, Any] = plain(metric)
    del cell["higher_is_better"]
    return cell


def normalised(metric: MetricValue, floor: MetricValue, ceiling: MetricValue) -> float | None:
    """Return (score - mean image) / (oracle - mean image), unclipped; None where that is not defined."""
    if metric.value is None or floor.value is None or ceiling.value is None:
        return None
    share = float(normalise(np.asarray(metric.value), np.asarray(floor.value), np.asarray(ceiling.value)))
    return None if math.isnan(share) else share


def reference(record: Record, table: Group, control: str) -> Record | None:
    """Return the control that a record is measured against.

    Where a table has several (an oracle for each generator), it is the one whose generator is the record's own.

    Returns:
        The control; None where there is none or the choice is not clear.
    """
    found = [candidate for candidate in table.controls if candidate.control == control]
    if len(found) > 1:
        found = [candidate for candidate in found if _generators(candidate) == _generators(record)]
    return found[0] if len(found) == 1 else None


def _generators(record: Record) -> set[str]:
    """Return the names of the generators among a record's models."""
    return {model.name for model in record.costs.models if model.role == "generator"}


def costs(record: Record) -> dict[str, Any]:
    """Return totals in seconds, seconds by stage, memory, bytes read, and the size of what was trained and loaded."""
    cost = record.costs
    seconds: Mapping[str, Mapping[str, float]] = {
        "gpu_seconds": cost.gpu_seconds,
        "cpu_seconds": cost.cpu_seconds,
        "wall_seconds": cost.wall_seconds,
    }
    # Summed by stage name, so that the order in which a record lists its stages cannot change the last digit.
    totals = {name: sum(by[stage] for stage in sorted(by)) for name, by in seconds.items()}
    return {
        **totals,
        "by_stage": {name: dict(by) for name, by in seconds.items()},
        "peak_memory_bytes": cost.peak_memory_bytes,
        "bytes_read": cost.bytes_read,
        "parameters": sum(model.parameters for model in cost.models),
        "bytes": sum(model.bytes for model in cost.models),
        "models": sorted((plain(model) for model in cost.models), key=lambda m: (m["role"], m["name"])),
    }
