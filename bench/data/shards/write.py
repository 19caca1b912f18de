"""Writes the files of trial and stimuli shards; a whole file that is already there is kept.

Pure functions of a dataset and a folder: `bench.prepare` runs them as Ray tasks. Kept files are read back and their
checksums taken anew, so that the manifest always seals what lies in the folder.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from bench.core.errors import BadDataError, CorruptFileError
from bench.core.storage import Folder, parquet
from bench.data.datasets.base import Dataset, Trials, VoxelTable
from bench.data.shards.manifest import (
    FileEntry,
    read_checked,
    session_path,
    stimuli_table,
    trials_table,
    voxels_path,
    voxels_table,
)

logger = logging.getLogger(__name__)

BYTES_READ = b"bytes_read"
"""Key of a session file's schema metadata: what reading the source took, so that a rerun still knows it."""
STIMULI_ROWS = 64
"""Rows of a row group of stimuli, so that a few pictures can be read alone."""

PNG_LEVEL = 4
"""Measured on scenes: half the time of PIL's own level 6 for 4 % more bytes."""


def write_session(
    dataset: Dataset, folder: Folder, subject: int, session: int, voxels: VoxelTable
) -> tuple[FileEntry, int]:
    """Write a session's file, unless a whole one is there.

    Returns:
        The file's manifest entry, and the bytes that were read from the source to make it.

    Raises:
        BadDataError: If the betas do not match the voxels or the design.
        CorruptFileError: If a source file is damaged.
        MissingDataError: If a source file is missing.
    """
    path = session_path(subject, session)
    shown = dataset.trials(subject, session)
    width = len(voxels.coordinates) * np.dtype(dataset.dtype).itemsize
    content = _kept(folder, path, shown, width) if folder.exists(path) else None
    if content is None:
        read = dataset.read_session(subject, session, voxels)
        where = f"subject {subject}, session {session}"
        _check_session(read, shown, read.betas, len(voxels.coordinates), where)
        if doubt := dataset.unit.doubt(read.betas, dataset.scale):
            # A doubt, not an error: a voxel set may hold little but noise, and what is stored is the source's own.
            logger.warning("%s of %s: %s", where, dataset.name, doubt)
        table = trials_table(read.trial, read.stimulus, read.repeat, read.betas)
        metadata = {BYTES_READ: str(read.bytes_read).encode()}
        made = parquet(table.replace_schema_metadata(metadata))
        folder.write_bytes(path, made)
        return entry_of(path, made, table.num_rows, subject, session), read.bytes_read
    bytes_read = int(pq.read_schema(pa.BufferReader(content)).metadata[BYTES_READ])
    return entry_of(path, content, len(shown.trial), subject, session), bytes_read


def entry_of(path: str, content: bytes | pa.Buffer, rows: int, subject: int = 0, session: int = 0) -> FileEntry:
    """Return the manifest entry of a file's content; only the files of sessions are read often enough for an xxh3."""
    sha256 = hashlib.sha256(content).hexdigest()
    return FileEntry(
        path, rows, len(content), sha256, subject, session, xxhash.xxh3_64_hexdigest(content) if session else ""
    )


def _kept(folder: Folder, path: str, shown: Trials, width: int) -> bytes | None:
    """Return the content of a session file that is whole and fits the design, else None."""
    content = folder.read_bytes(path)
    try:
        table = pq.read_table(pa.BufferReader(content))
        fits = BYTES_READ in (table.schema.metadata or {}) and table["betas"].type == pa.binary(width)
        fits = fits and not _differing(table, shown)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        logger.warning("%s/%s cannot be read and is made again: %s", folder, path, error)
        return None
    if not fits:
        logger.warning("%s/%s does not fit the design and is made again", folder, path)
    return content if fits else None


def _differing(table: pa.Table, shown: Trials) -> str:
    """Return the first column of a session's table that is not the design's, or ""."""
    for name in ("trial", "stimulus", "repeat"):
        if not np.array_equal(table[name].to_numpy(), getattr(shown, name)):
            return name
    return ""


def _check_session(read: Trials, shown: Trials, betas: np.ndarray, voxels: int, where: str) -> None:
    """Compare what a reader gave with the design and the voxel table."""
    if betas.shape != (len(shown.trial), voxels):
        raise BadDataError(f"{where}: betas of shape {betas.shape}, expected {(len(shown.trial), voxels)}")
    for name in ("trial", "stimulus", "repeat"):
        if not np.array_equal(getattr(read, name), getattr(shown, name)):
            raise BadDataError(f"{where}: column {name!r} is not the design's")


def write_voxels(folder: Folder, subject: int, voxels: VoxelTable) -> FileEntry:
    """Write a subject's voxel table; return its manifest entry."""
    path = voxels_path(subject)
    table = voxels_table(voxels.coordinates, voxels.ncsnr, voxels.labels)
    size, sha256 = folder.write_table(path, table)
    return FileEntry(path, table.num_rows, size, sha256, subject)


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
            return entry_of(path, content, len(numbers))
        logger.warning("%s/%s is not whole and is made again", folder, path)
    stimuli = list(dataset.stimuli(numbers))
    table = stimuli_table(
        [stimulus.number for stimulus in stimuli],
        [None if stimulus.image is None else png(stimulus.image) for stimulus in stimuli],
        [stimulus.captions for stimulus in stimuli],
        dataset.caption_source,
        [stimulus.label for stimulus in stimuli],
        [stimulus.shared for stimulus in stimuli],
        dataset.origins(numbers),
    )
    size, sha256 = folder.write_table(path, table, row_group_size=STIMULI_ROWS)
    return FileEntry(path, table.num_rows, size, sha256)


def _holds(content: bytes, numbers: Sequence[int]) -> bool:
    """Say whether a stimuli file can be read whole, has all columns and holds these stimuli in this order."""
    try:
        table = pq.read_table(pa.BufferReader(content))
        return "origin" in table.column_names and bool(table["stimulus"].to_pylist() == list(numbers))
    except (pa.ArrowInvalid, KeyError, OSError):
        return False


def png(image: np.ndarray) -> bytes:
    """Return a picture `(H, W, 3)` uint8 RGB as PNG, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def check_file(dataset: Dataset, folder: Folder, entry: FileEntry) -> None:
    """Compare a file with its manifest entry, and a session's rows with the design.

    Raises:
        MissingDataError: If the file is not there.
        CorruptFileError: If size, checksum or number of rows differ.
        BadDataError: If a session's rows are not the design's.
    """
    table = pq.read_table(pa.BufferReader(read_checked(folder, entry)))
    if table.num_rows != entry.rows:
        raise CorruptFileError(f"{folder}/{entry.path}: {table.num_rows} rows, its manifest says {entry.rows}")
    differing = _differing(table, dataset.trials(entry.subject, entry.session)) if entry.session else ""
    if differing:
        raise BadDataError(f"{folder}/{entry.path}: column {differing!r} is not the design's")
