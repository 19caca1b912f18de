"""Trial shards: a session's rows and a subject's voxels, written, kept where they are whole, and checked.

Pure functions of a dataset and a folder: `bench.prepare` runs them as Ray tasks. Kept files are read back and their
checksums taken anew, so that the manifest always seals what lies in the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.core.errors import BadDataError, CorruptFileError
from bench.core.storage import Folder, parquet
from bench.data.datasets.base import Dataset, Trials, VoxelTable
from bench.data.shards.columns import to_column
from bench.data.shards.manifest import FileEntry, read_checked, session_path, voxels_path

logger = logging.getLogger(__name__)

BYTES_READ = b"bytes_read"
"""Key of a session file's schema metadata: what reading the source took, so that a rerun still knows it."""


def trials_table(trial: np.ndarray, stimulus: np.ndarray, repeat: np.ndarray, betas: np.ndarray) -> pa.Table:
    """Return the rows of one session.

    Args:
        trial: `(T,)` 0-based trial number of the subject, counted over all sessions.
        stimulus: `(T,)` 0-based stimulus.
        repeat: `(T,)` 0-based showing of that stimulus to that subject.
        betas: `(T, V)` in the source's own dtype.
    """
    return pa.table(
        {
            "trial": pa.array(trial, pa.int32()),
            "stimulus": pa.array(stimulus, pa.int32()),
            "repeat": pa.array(repeat, pa.int8()),
            "betas": to_column(betas),
        }
    )


def voxels_table(coordinates: np.ndarray, ncsnr: np.ndarray, labels: Mapping[str, np.ndarray]) -> pa.Table:
    """Return the rows of a subject's voxel table, in the order of the betas' columns.

    Args:
        coordinates: `(V, 3)` voxel indices on the NIfTI axes (columns x, y, z), or `(V, 1)` vertex numbers.
        ncsnr: `(V,)` noise-ceiling SNR as published with the betas; NaN where unknown.
        labels: For each atlas `(V,)` its label numbers (-1 not cortex, 0 unlabelled, 1...N).
    """
    axes = ("x", "y", "z") if coordinates.shape[1] == 3 else ("vertex",)
    columns = {axis: pa.array(coordinates[:, i], pa.int32()) for i, axis in enumerate(axes)}
    columns["ncsnr"] = pa.array(ncsnr, pa.float32())
    columns.update({f"atlas:{name}": pa.array(values, pa.int16()) for name, values in sorted(labels.items())})
    return pa.table(columns)


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
        return FileEntry.of(path, made, table.num_rows, subject, session), read.bytes_read
    bytes_read = int(pq.read_schema(pa.BufferReader(content)).metadata[BYTES_READ])
    return FileEntry.of(path, content, len(shown.trial), subject, session), bytes_read


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
