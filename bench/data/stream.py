"""From shards to the batches an encoder sees: decoded once by Ray tasks, then shared by all fits of a node.

`load` runs one task for each session file that the manifest names for the subjects and sessions asked for (both prune:
no other file is opened). A task reads its file once, compares its checksum, and leaves one block of raw betas for each
part of the split in the object store, so that fitting never holds a test trial although the file is read only once.
Later epochs, and every other fit on the node, read the blocks from shared memory without a copy.

Plain tasks rather than a Ray Data pipeline: Ray Data joins what a task yields into one block, which would put test
trials into the memory that fits map, and costs 12 ms a block and a second copy (`tests/perf/RESULTS.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from bench.data.columns import from_column
from bench.data.shards import FileEntry, Manifest, read_checked, read_manifest, voxels_path
from bench.data.splits import ROLES, Split, SplitRole
from bench.data.stream_rules import Moments, Normalise, Rule, moments, rule, scaling
from bench.data.stream_trials import Betas, SubjectTrials
from bench.errors import BadDataError, CorruptFileError, MissingDataError
from bench.storage import Folder

FIT: tuple[SplitRole, ...] = ("train", "validation")
TEST: tuple[SplitRole, ...] = ("test",)


@dataclass(frozen=True)
class Query:
    """What to read.

    Attributes:
        shards: A set of trial shards.
        subjects: Which subjects.
        split: The rule that gives trials their roles.
        parts: Roles that are kept apart: each part has memory of its own.
        sessions: Which sessions, or None for all.
        normalise: Name of the z-scoring rule; statistics are those of all trials read, whatever the parts.
    """

    shards: Folder
    subjects: tuple[int, ...]
    split: Split
    parts: tuple[tuple[SplitRole, ...], ...] = (FIT, TEST)
    sessions: tuple[int, ...] | None = None
    normalise: Normalise = "session"


@dataclass(frozen=True)
class _Context:
    """What every task of a query needs besides its file."""

    query: Query
    manifest: Manifest
    shared: np.ndarray


@dataclass(frozen=True)
class _Part:
    """One session's trials of one part, without their betas."""

    columns: dict[str, np.ndarray]
    moments: Moments | None


def load(query: Query, shared: np.ndarray) -> list[dict[int, Any]]:
    """Read subjects into the object store.

    Args:
        query: What to read.
        shared: Sorted 0-based numbers of the shared stimuli (the test pictures).

    Returns:
        For each part, for each subject a Ray reference to its `SubjectTrials`.

    Raises:
        UnknownNameError: If there is no such z-scoring rule.
        MissingDataError: If a subject or session is not in the shards.
        CorruptFileError: If a session's file differs from its manifest. What is wrong with a voxel table or with
            statistics shows when the reference is fetched.
        BadDataError: If a session's rows or betas are not those of the manifest.
    """
    rule(query.normalise)
    manifest = read_manifest(query.shards)
    entries = {subject: _entries(manifest, subject, query.sessions) for subject in query.subjects}
    context = ray.put(_Context(query, manifest, shared))
    returns = 2 + len(query.parts)
    read = {s: [_read.options(num_returns=returns).remote(context, e) for e in entries[s]] for s in query.subjects}
    _wait([outputs[0] for sessions in read.values() for outputs in sessions])
    found: list[dict[int, Any]] = [{} for _ in query.parts]
    for subject, outputs in read.items():
        # References in a list are passed on as they are: the blocks stay where they were made.
        blocks = [[refs[2 + part] for refs in outputs] for part in range(len(query.parts))]
        made = _assemble.options(num_returns=len(query.parts)).remote(
            context, subject, blocks, *[r[1] for r in outputs]
        )
        for part, ref in zip(found, [made] if len(query.parts) == 1 else made, strict=True):
            part[subject] = ref
    return found


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


def _wait(done: list[Any]) -> None:
    """Wait for tasks; the first that fails raises its own error."""
    try:
        ray.get(done)
    except (CorruptFileError, MissingDataError, BadDataError) as error:
        # The other tasks are left to end by themselves: with several results a task, `ray.cancel` of Ray 2.60 aborts
        # this process when the task completes all the same.
        cause = getattr(error, "cause", error)
        raise type(cause)(str(cause)) from None


@ray.remote(num_cpus=1)
def _read(context: _Context, entry: FileEntry) -> tuple[Any, ...]:
    """Read one session file; return its path, its trials by part, and a block of betas for each part."""
    query = context.query
    table = _table(query.shards, entry)
    betas = _betas(table, context.manifest, entry)
    columns = {name: table[name].to_numpy() for name in ("trial", "stimulus", "repeat")}
    columns["session"] = np.full(len(betas), entry.session, np.int32)
    columns["role"] = query.split.roles(columns["stimulus"], np.isin(columns["stimulus"], context.shared))
    chosen, parts, blocks = rule(query.normalise), [], []
    known: dict[tuple[SplitRole, ...], Moments] = {}  # most rules give all parts the same statistics
    for roles in query.parts:
        keep = np.flatnonzero(np.isin(columns["role"], _numbers(roles)))
        whose = _whose(chosen, roles)
        if chosen is not None and whose not in known:
            known[whose] = moments(betas, np.flatnonzero(np.isin(columns["role"], _numbers(whose))))
        parts.append(_Part({name: values[keep] for name, values in columns.items()}, known.get(whose)))
        blocks.append(betas if len(keep) == len(betas) else betas[keep])
    return (entry.path, parts, *blocks)


def _table(folder: Folder, entry: FileEntry) -> pa.Table:
    """Return a session's rows.

    Raises:
        CorruptFileError, MissingDataError, BadDataError: If the file is not what the manifest says.
    """
    table = pq.ParquetFile(pa.BufferReader(read_checked(folder, entry, quick=True))).read()
    if table.num_rows != entry.rows:
        raise BadDataError(f"{folder}/{entry.path}: {table.num_rows} rows, its manifest says {entry.rows}")
    return table


def _betas(table: pa.Table, manifest: Manifest, entry: FileEntry) -> np.ndarray:
    """Return a session's `(T, V)` numbers as a view of its column.

    Raises:
        BadDataError: If a trial does not hold V numbers.
    """
    dtype, voxels = np.dtype(manifest.dtype), manifest.voxels[str(entry.subject)]
    width, chunks = voxels * dtype.itemsize, table["betas"]
    column = (
        chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    )  # combining copies even a lone chunk
    if column.type != pa.binary(width):
        raise BadDataError(
            f"shards {manifest.digest}: trials of subject {entry.subject} hold {column.type}; its {voxels} voxels of "
            f"{dtype} make {width} bytes"
        )
    return from_column(column, dtype, (voxels,))


def _numbers(roles: Sequence[SplitRole]) -> list[int]:
    """Return the indices of roles."""
    return [ROLES.index(role) for role in roles]


def _whose(chosen: Rule | None, part: tuple[SplitRole, ...]) -> tuple[SplitRole, ...]:
    """Return the roles of the trials whose statistics normalise a part."""
    if chosen is not None and chosen.trials == "all":
        return ROLES
    return TEST if chosen is not None and chosen.trials == "own" and part == TEST else ("train",)


@ray.remote(num_cpus=1)
def _assemble(context: _Context, subject: int, blocks: list[list[Any]], *sessions: list[_Part]) -> Any:  # noqa: ANN401
    """Return one subject's trials of each part from what was read of its sessions."""
    query, manifest = context.query, context.manifest
    voxels = _voxels(query.shards, manifest, subject)
    axes = [axis for axis in ("x", "y", "z", "vertex") if axis in voxels.column_names]
    atlases = [name for name in voxels.column_names if name.startswith("atlas:")]
    numbers = [entry.session for entry in _entries(manifest, subject, query.sessions)]
    made = []
    for place, refs in enumerate(blocks):
        parts = [session[place] for session in sessions]
        statistics = [part.moments for part in parts if part.moments is not None]
        mean, scale = scaling(rule(query.normalise), statistics, numbers, voxels.num_rows)
        if query.normalise == "none":
            scale *= manifest.scale  # stored numbers to percent signal change
        made.append(
            SubjectTrials(
                subject=subject,
                coordinates=np.stack([voxels[axis].to_numpy() for axis in axes], axis=1),
                labels={name.removeprefix("atlas:"): voxels[name].to_numpy() for name in atlases},
                betas=Betas(tuple(refs)),
                mean=mean,
                scale=scale,
                sessions=np.array(numbers, np.int32),
                **{name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
            )
        )
    return made[0] if len(made) == 1 else tuple(made)


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
