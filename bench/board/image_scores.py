"""How well each shown image was reconstructed, and where that lies among all test images of the same subject.

The numbers come from the per-image tables of the records; only the images of the gallery are written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.board.ranking import DECIMALS
from bench.records.parts import Column
from bench.records.record import Record

Place = tuple[int, int]
"""Subject and stimulus."""


def image_scores(
    record: Record, samples: pa.Table, wanted: Iterable[Place]
) -> dict[Place, dict[str, dict[str, int | float]]]:
    """Return a record's per-image scores of some images, with their positions.

    Args:
        record: The record; its protocol says which side of a metric is better.
        samples: Its per-image table; samples of an image are averaged, as the protocol does.
        wanted: Subjects and stimuli to return.

    Returns:
        For each image that the table holds, by metric: `value`; `rank` among the subject's test images, 1 the best;
        `tied`, how many other images share the value; `of`, how many images have one. Metrics without a value of that
        image (such as those of whole sets) are left out.
    """
    columns = [column for column in record.protocol.metrics if column.name in samples.column_names]
    means = samples.group_by(["subject", "stimulus"], use_threads=False).aggregate([(c.name, "mean") for c in columns])
    subjects, stimuli = means["subject"].to_numpy(), means["stimulus"].to_numpy()
    values = {column.name: means[f"{column.name}_mean"].to_numpy().astype(np.float64) for column in columns}
    found: dict[Place, dict[str, dict[str, int | float]]] = {}
    for subject, stimulus in wanted:
        at = np.flatnonzero((subjects == subject) & (stimuli == stimulus))
        if at.size:
            own, place = subjects == subject, int(at[0])
            cells = {c.name: _position(values[c.name][own], values[c.name][place], c) for c in columns}
            found[subject, stimulus] = {name: cell for name, cell in cells.items() if cell is not None}
    return found


def _position(values: NDArray[np.float64], mine: float, column: Column) -> dict[str, int | float] | None:
    """Return one value and its place among the subject's images; None where the image has no value."""
    if not np.isfinite(mine):
        return None
    known = values[np.isfinite(values)]
    better = known > mine if column.higher_is_better else known < mine
    return {
        "value": round(float(mine), DECIMALS),
        "rank": int(better.sum()) + 1,
        "tied": int((known == mine).sum()) - 1,
        "of": len(known),
    }


def filled(gallery: Mapping[str, Any], records: Iterable[Record], samples: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return a gallery with the scores of its images under the records at hand.

    Args:
        gallery: Content of `gallery.json`; scores that it holds are replaced.
        records: The records of the board.
        samples: Per-image tables by record id.
    """
    places = [(item["subject"], item["stimulus"]) for item in gallery["items"]]
    # Rows share pictures' records across tables, and a record's table is read once for all of its images.
    shown = {record for item in gallery["items"] for record in item["images"]}
    known = {r.id: image_scores(r, samples[r.id], places) for r in records if r.id in shown and r.id in samples}
    items = []
    for item, place in zip(gallery["items"], places, strict=True):
        scores = {record: known[record].get(place, {}) for record in item["images"] if record in known}
        items.append({**item, "scores": scores})
    return {**gallery, "items": items}
