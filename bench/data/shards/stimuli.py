"""Stimuli: pictures with captions, labels and origins, one Parquet row a stimulus; written, and read by column."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.core.errors import MissingDataError
from bench.core.storage import Folder
from bench.data.datasets.base import Dataset
from bench.data.shards.manifest import FileEntry, Manifest, read_checked
from bench.data.shards.pictures import png_of

logger = logging.getLogger(__name__)

ROW_GROUP = 64
"""Rows of a row group, so that a few pictures can be read alone."""
PNG_LEVEL = 4
"""Measured on scenes: half the time of PIL's own level 6 for 4 % more bytes."""


def stimuli_table(
    stimulus: Sequence[int],
    image: Sequence[bytes | None],
    captions: Sequence[Sequence[str]],
    caption_source: str,
    labels: Sequence[str | None],
    shared: Sequence[bool],
    origins: Sequence[str | None],
) -> pa.Table:
    """Return rows of a stimuli table.

    Args:
        stimulus: 0-based stimulus numbers.
        image: Encoded pictures (PNG), RGB; None where a simulation drew none.
        captions: For each picture its captions, possibly none.
        caption_source: Where the captions come from ("COCO 2017 annotations", "simulator").
        labels: For each picture its class label, or None.
        shared: Whether all subjects were to see it (NSD's shared 1000): the test pictures.
        origins: What each picture is in its own source (`coco-train2017:396550`), or None: see `Dataset.origins`.
    """
    return pa.table(
        {
            "stimulus": pa.array(stimulus, pa.int32()),
            "image": pa.array(image, pa.binary()),
            "captions": pa.array([list(c) for c in captions], pa.list_(pa.string())),
            "caption_source": pa.array([caption_source] * len(stimulus), pa.string()),
            "label": pa.array(labels, pa.string()),
            "shared": pa.array(shared, pa.bool_()),
            "origin": pa.array(origins, pa.string()),
        }
    )


def write_stimuli(dataset: Dataset, folder: Folder, part: int, numbers: Sequence[int]) -> FileEntry:
    """Write one part of a stimuli set, unless a whole one is there; return its manifest entry.

    Raises:
        MissingDataError: If the source lacks a picture or its captions.
        CorruptFileError: If a source file is damaged.
    """
    path = f"part-{part}.parquet"
    if folder.exists(path):
        content = folder.read_bytes(path)
        if _holds(content, numbers):
            return FileEntry.of(path, content, len(numbers))
        logger.warning("%s/%s is not whole and is made again", folder, path)
    stimuli = list(dataset.stimuli(numbers))
    table = stimuli_table(
        [stimulus.number for stimulus in stimuli],
        [
            None if stimulus.image is None else png_of(stimulus.image.transpose(2, 0, 1), PNG_LEVEL)
            for stimulus in stimuli
        ],
        [stimulus.captions for stimulus in stimuli],
        dataset.caption_source,
        [stimulus.label for stimulus in stimuli],
        [stimulus.shared for stimulus in stimuli],
        dataset.origins(numbers),
    )
    size, sha256 = folder.write_table(path, table, row_group_size=ROW_GROUP)
    return FileEntry(path, table.num_rows, size, sha256)


def _holds(content: bytes, numbers: Sequence[int]) -> bool:
    """Say whether a stimuli file can be read whole, has all columns and holds these stimuli in this order."""
    try:
        table = pq.read_table(pa.BufferReader(content))
        return "origin" in table.column_names and bool(table["stimulus"].to_pylist() == list(numbers))
    except (pa.ArrowInvalid, KeyError, OSError):
        return False


def read_stimuli(folder: Folder, manifest: Manifest, columns: Sequence[str]) -> pa.Table:
    """Return columns of a set of stimuli.

    Raises:
        MissingDataError: If a file is missing.
        CorruptFileError: If a file differs from its manifest.
    """
    parts = [pq.read_table(pa.BufferReader(read_checked(folder, e)), columns=list(columns)) for e in manifest.files]
    return pa.concat_tables(parts)


def read_column(folder: Folder, manifest: Manifest, stimuli: Iterable[int], column: str, what: str) -> dict[int, Any]:
    """Return one column for some stimuli, by stimulus.

    Args:
        folder: The set.
        manifest: Its manifest.
        stimuli: 0-based numbers.
        column: Name of the column.
        what: What it holds, for the message: `picture`.

    Raises:
        MissingDataError: If a stimulus is not in the set, or nothing of it in the column.
        CorruptFileError: If a file differs from its manifest.
    """
    wanted = {int(stimulus) for stimulus in stimuli}
    table = read_stimuli(folder, manifest, ["stimulus", column])
    table = table.filter(np.isin(table["stimulus"].to_numpy(), sorted(wanted))).drop_null()
    found = dict(zip(table["stimulus"].to_pylist(), table[column].to_pylist(), strict=True))
    if missing := sorted(wanted - set(found)):
        raise MissingDataError(f"{folder} holds no {what} of stimuli {missing[:5]} ({len(missing)} in all)")
    return found
