"""From shards to the batches an encoder sees: decoded once with Ray Data, then shared by all fits of a node.

`load` runs one Ray Data pipeline over the session files that the manifest names for the subjects and sessions asked
for (both prune: no other file is opened). Every file's checksum is compared while it is read, the ROI's columns are
cut out in the reading task, and each subject's trials end as one `SubjectTrials` in the object store. Later epochs,
and every other fit on the node, read them from shared memory without a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from bench.data.columns import from_column
from bench.data.shards import FileEntry, Manifest, read_checked, read_manifest, voxels_path
from bench.data.splits import ROLES, Split, SplitRole
from bench.errors import BadDataError, CorruptFileError, MissingDataError
from bench.storage import Folder

Normalise = Literal["session", "subject", "none"]


@dataclass(frozen=True)
class SubjectTrials:
    """The trials of one subject, decoded once; arrays lie in shared memory and are read-only.

    Attributes:
        subject: Its number.
        coordinates: `(V, 3)` or `(V, 1)` int32, see the voxel table.
        labels: For each atlas `(V,)` int16.
        betas: `(N, V)` in the shards' dtype, in the order of trials.
        trial, stimulus, repeat, session: `(N,)` integers.
        role: `(N,)` int8 indices into `splits.ROLES`.
        mean, scale: `(S, V)` float32, z = (beta - mean[s]) * scale[s] with s the row of `sessions`.
        sessions: `(S,)` session numbers.
    """

    subject: int
    coordinates: np.ndarray
    labels: Mapping[str, np.ndarray]
    betas: np.ndarray
    trial: np.ndarray
    stimulus: np.ndarray
    repeat: np.ndarray
    session: np.ndarray
    role: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    sessions: np.ndarray

    @property
    def n_voxels(self) -> int:
        """V."""
        return int(self.betas.shape[1])

    def rows(self, role: SplitRole) -> np.ndarray:
        """Return the indices of a role's trials, in the order of trials."""
        return np.flatnonzero(self.role == ROLES.index(role))

    def z(self, rows: np.ndarray) -> np.ndarray:
        """Return normalised betas of some trials: `(len(rows), V)` float32."""
        place = np.searchsorted(self.sessions, self.session[rows])
        values = np.empty((len(rows), self.n_voxels), np.float32)
        # Row by row: a row stays in cache for all three operations, and no statistics are copied for every trial.
        for out, row, session in zip(values, rows, place, strict=True):
            np.subtract(self.betas[row], self.mean[session], out=out, casting="unsafe", dtype=np.float32)
            out *= self.scale[session]
        return values


@dataclass(frozen=True)
class Query:
    """What to read.

    Attributes:
        shards: A set of trial shards.
        subjects: Which subjects.
        sessions: Which sessions, or None for all.
        split: The rule that gives trials their roles.
        roles: Roles to keep. Statistics always come from training trials, also where only test trials are kept.
        normalise: z-scoring rule; `none` gives percent signal change.
    """

    shards: Folder
    subjects: tuple[int, ...]
    split: Split
    roles: tuple[SplitRole, ...]
    sessions: tuple[int, ...] | None = None
    normalise: Normalise = "session"


def load(query: Query, shared: np.ndarray) -> dict[int, Any]:
    """Read subjects into the object store.

    Args:
        query: What to read.
        shared: Sorted 0-based numbers of the shared stimuli (the test pictures).

    Returns:
        For each subject a Ray reference to its `SubjectTrials`.

    Raises:
        MissingDataError: If a subject or session is not in the shards.
        CorruptFileError: If a session's file differs from its manifest. What is wrong with a voxel table or with the
            betas shows when the reference is fetched.
    """
    manifest = read_manifest(query.shards)
    entries = [entry for subject in query.subjects for entry in _entries(manifest, subject, query.sessions)]
    tables = _read_sessions(query.shards, entries)
    by_subject: dict[int, list[Any]] = {subject: [] for subject in query.subjects}
    for subject, ref in zip(ray.get([_subject_of.remote(ref) for ref in tables]), tables, strict=True):
        by_subject[subject].append(ref)
    common = ray.put((query, manifest, shared))
    return {subject: _assemble.remote(common, subject, *refs) for subject, refs in by_subject.items()}


def _entries(manifest: Manifest, subject: int, sessions: Sequence[int] | None) -> list[FileEntry]:
    """Return the session files to read for a subject.

    Raises:
        MissingDataError: If a session that was asked for is not in the manifest.
    """
    entries = manifest.sessions(subject)
    if sessions is None:
        return entries
    missing = sorted(set(sessions) - {entry.session for entry in entries})
    if missing:
        have = [entry.session for entry in entries]
        raise MissingDataError(f"shards {manifest.digest}: subject {subject} has sessions {have}, not {missing}")
    return [entry for entry in entries if entry.session in sessions]


def _read_sessions(folder: Folder, entries: Sequence[FileEntry]) -> list[Any]:
    """Return references to one Arrow table a block, read and checked by Ray Data in the entries' order.

    Raises:
        CorruptFileError, MissingDataError, BadDataError: If a file is not what the manifest says, with its name.
    """
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True  # else a corrupt file's message is lost on the way back
    # The error is raised with its own message; Ray's log would put two tracebacks of its insides before it.
    for name in ("ray.data._internal.execution", "ray.data.exceptions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    items = [{"path": entry.path, "place": i} for i, entry in enumerate(entries)]
    reader = _SessionReader(folder, tuple(entries))
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        tables = dataset.map_batches(reader, batch_size=1, batch_format="pyarrow", zero_copy_batch=True)
        try:
            return list(tables.materialize().to_arrow_refs())
        except (CorruptFileError, MissingDataError, BadDataError) as error:
            # Ray Data puts advice about its own retries, on further lines, behind the message.
            cause = getattr(error, "cause", error)
            raise type(cause)(str(cause).partition("\n")[0]) from None


@dataclass(frozen=True)
class _SessionReader:
    """Reads the session file that a row names; a callable, so that Ray Data ships it with its folder."""

    folder: Folder
    entries: tuple[FileEntry, ...]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the trials of one session file with their subject and session."""
        entry = self.entries[batch["place"][0].as_py()]
        table = pq.read_table(pa.BufferReader(read_checked(self.folder, entry)), partitioning=None)
        if table.num_rows != entry.rows:
            raise BadDataError(f"{self.folder}/{entry.path}: {table.num_rows} rows, its manifest says {entry.rows}")
        # Subjects differ in width, and the blocks of a dataset share a schema.
        betas = table["betas"].combine_chunks().cast(pa.large_binary())
        rows = np.full(table.num_rows, 1, dtype=np.int32)
        return pa.table(
            {
                "subject": rows * entry.subject,
                "session": rows * entry.session,
                "trial": table["trial"],
                "stimulus": table["stimulus"],
                "repeat": table["repeat"],
                "betas": betas,
            }
        )


@ray.remote(num_cpus=0.1)
def _subject_of(table: pa.Table) -> int:
    """Return whose trials a block holds; runs where the block lies, so that betas never travel to the driver."""
    return int(table["subject"][0].as_py())


@ray.remote(num_cpus=1)
def _assemble(common: tuple[Query, Manifest, np.ndarray], subject: int, *tables: pa.Table) -> SubjectTrials:
    """Return one subject's trials from its session tables, with roles, statistics and the wanted rows."""
    query, manifest, shared = common
    column = {
        name: np.concatenate([t[name].to_numpy() for t in tables])
        for name in ("trial", "stimulus", "repeat", "session")
    }
    betas = np.concatenate([_decode(t["betas"], manifest, subject) for t in tables])
    role = query.split.roles(column["stimulus"], np.isin(column["stimulus"], shared))
    sessions = np.unique(column["session"])
    mean, scale = statistics(betas, column["session"], sessions, role == ROLES.index("train"), query.normalise)
    if query.normalise == "none":
        scale *= manifest.scale  # stored numbers to percent signal change
    keep = np.isin(role, [ROLES.index(r) for r in query.roles])
    voxels = _voxels(query.shards, manifest, subject)
    axes = [axis for axis in ("x", "y", "z", "vertex") if axis in voxels.column_names]
    return SubjectTrials(
        subject=subject,
        coordinates=np.stack([voxels[axis].to_numpy() for axis in axes], axis=1),
        labels={n.removeprefix("atlas:"): voxels[n].to_numpy() for n in voxels.column_names if n.startswith("atlas:")},
        betas=betas[keep],
        role=role[keep],
        mean=mean,
        scale=scale,
        sessions=sessions,
        **{name: values[keep] for name, values in column.items()},
    )


def _decode(column: pa.ChunkedArray, manifest: Manifest, subject: int) -> np.ndarray:
    """Return a session's `(T, V)` numbers from a large-binary column.

    Raises:
        BadDataError: If a trial does not hold V numbers.
    """
    dtype, voxels = np.dtype(manifest.dtype), manifest.voxels[str(subject)]
    width, values = voxels * dtype.itemsize, column.combine_chunks()
    lengths = pc.unique(pc.binary_length(values)).to_pylist()
    if lengths != [width]:
        raise BadDataError(
            f"shards {manifest.digest}: trials of subject {subject} hold {lengths} bytes; its {voxels} voxels of "
            f"{dtype} make {width}"
        )
    return from_column(values.cast(pa.binary(width)), dtype, (voxels,))


def _voxels(folder: Folder, manifest: Manifest, subject: int) -> pa.Table:
    """Return a subject's voxel table, compared with the manifest.

    Raises:
        BadDataError: If it has another number of rows than the subject has voxels.
    """
    path, expected = voxels_path(subject), manifest.voxels[str(subject)]
    table = pq.read_table(pa.BufferReader(read_checked(folder, manifest.entry(path))))
    if table.num_rows != expected:
        raise BadDataError(f"{folder}/{path}: {table.num_rows} voxels, the betas of subject {subject} have {expected}")
    return table


def statistics(
    betas: np.ndarray, session: np.ndarray, sessions: np.ndarray, train: np.ndarray, rule: Normalise
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the inverse standard deviation that z-score each session, from training trials only.

    Args:
        betas: `(N, V)` raw betas.
        session: `(N,)` session of each trial.
        sessions: `(S,)` sorted distinct sessions.
        train: `(N,)` which trials are training trials.
        rule: Statistics of each session, of all sessions together, or none (mean 0, scale 1).

    Returns:
        Two `(S, V)` float32 arrays. The scale of a constant voxel is 0, so its z-score is 0; constant up to rounding
        counts as constant.

    Raises:
        BadDataError: If a session has no training trial, or training betas hold NaN.
    """
    shape = (len(sessions), betas.shape[1])
    mean, scale = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    if rule == "none":
        return mean, scale
    for row, number in enumerate(sessions):
        chosen = train & (session == number) if rule == "session" else train
        if not chosen.any():
            raise BadDataError(f"session {number} has no training trial to normalise by")
        values = betas[chosen].astype(np.float64)
        deviation = values.std(axis=0)
        if not np.isfinite(deviation).all():
            raise BadDataError(
                f"session {number}: {int((~np.isfinite(deviation)).sum())} voxels hold NaN in training trials"
            )
        average = values.mean(axis=0)
        varies = deviation > np.finfo(np.float32).eps * np.abs(average)
        mean[row] = average
        scale[row] = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    return mean, scale
