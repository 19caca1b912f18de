"""From shards to the batches an encoder sees: decoded once with Ray Data, then shared by all fits of a node.

`load` runs one Ray Data pipeline over the session files that the manifest names for the subjects and sessions asked for
(both prune: no other file is opened). Each file is read once and its checksum compared; a few files of a subject become
one row a part of the split: their trials, statistics, and raw betas in one binary value. Every row stays a block of its
own in the object store, so that fitting never holds a test trial although files are read only once. Later epochs, and
every other fit on the node, read the blocks from shared memory without a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.core.storage import Folder
from bench.data.shards.columns import from_binary_row, from_column
from bench.data.shards.manifest import FileEntry, Manifest, read_checked, read_manifest, voxels_path
from bench.data.splits import ROLES, Split, SplitRole
from bench.data.stream.blocks import COLUMNS, BlockWriter, SessionShare, statistics_of
from bench.data.stream.rules import Moments, Normalise, Rule, moments, rule, scaling
from bench.data.stream.trials import Betas, SubjectTrials

FIT: tuple[SplitRole, ...] = ("train", "validation")
TEST: tuple[SplitRole, ...] = ("test",)
GROUP_BYTES = 128 << 20
"""Bytes of session files that one task reads: Ray Data spends 12 ms on each block, whatever it holds."""


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
    groups = {subject: _groups(of_subject) for subject, of_subject in entries.items()}
    blocks = iter(_read_all(context, query, [group for subject in query.subjects for group in groups[subject]]))
    found: list[dict[int, Any]] = [{} for _ in query.parts]
    for subject in query.subjects:
        # A group's parts follow each other, so that every `len(parts)`-th block is of one part.
        own = list(islice(blocks, len(groups[subject]) * len(query.parts)))
        for part in range(len(query.parts)):
            refs = own[part :: len(query.parts)]
            found[part][subject] = _assemble.remote(context, subject, refs, *refs)
    return found


def _groups(entries: Sequence[FileEntry]) -> list[tuple[FileEntry, ...]]:
    """Cut a subject's session files into runs of at most `GROUP_BYTES`, or of one file where that is larger."""
    groups: list[tuple[FileEntry, ...]] = []
    for entry in entries:
        if groups and sum(e.size for e in groups[-1]) + entry.size <= GROUP_BYTES:
            groups[-1] = (*groups[-1], entry)
        else:
            groups.append((entry,))
    return groups


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


def _read_all(
    context: Any,  # noqa: ANN401 - a Ray reference
    query: Query,
    groups: Sequence[tuple[FileEntry, ...]],
) -> list[Any]:
    """Return references to a block for each part of each group of files, in their order, read and checked by Ray Data.

    Raises:
        CorruptFileError, MissingDataError, BadDataError: If a file is not what the manifest says, with its name.
    """
    settings = ray.data.DataContext.get_current().copy()
    settings.execution_options.preserve_order = True
    settings.raise_original_map_exception = True  # else a corrupt file's message is lost on the way back
    settings.target_max_block_size = 1  # a row is a block: parts are not joined, and a subject's betas are not cut
    # Only one operator computes, and all it makes is kept. Shares of the object store, reserved for each operator,
    # would let it run one task at a time; a task that waits until the driver took its first block leaves its CPU idle.
    settings.op_resource_reservation_enabled = False
    settings._max_num_blocks_in_streaming_gen_buffer = len(query.parts) + 1
    # The error is raised with its own message; Ray's log would put two tracebacks of its insides before it.
    for name in ("ray.data._internal.execution", "ray.data.exceptions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ray.data.DataContext.current(settings):
        items = ray.data.from_items([{"group": i} for i in range(len(groups))], override_num_blocks=len(groups))
        reader = _GroupReader(context, tuple(groups))
        read = items.map_batches(reader, batch_size=1, batch_format="pyarrow", zero_copy_batch=True)
        try:
            blocks: list[Any] = read.materialize().to_arrow_refs()
        except (CorruptFileError, MissingDataError, BadDataError) as error:
            # Ray Data puts advice about its own retries, on further lines, behind the message.
            cause = getattr(error, "cause", error)
            raise type(cause)(str(cause).partition("\n")[0]) from None
    if len(blocks) != len(groups) * len(query.parts):
        raise RuntimeError(f"{len(groups)} groups of {len(query.parts)} parts came as {len(blocks)} blocks")
    return blocks


@dataclass(frozen=True)
class _GroupReader:
    """Reads the session files that a row names; a callable, so that Ray Data ships it with its files."""

    context: Any
    groups: tuple[tuple[FileEntry, ...], ...]

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield a row for each part: the sessions' trials, statistics and betas."""
        context: _Context = ray.get(self.context)
        manifest, entries = context.manifest, self.groups[batch["group"][0].as_py()]
        trials, voxels = sum(entry.rows for entry in entries), manifest.voxels[str(entries[0].subject)]
        writers = [BlockWriter(trials, voxels, manifest.dtype) for _ in context.query.parts]
        for entry in entries:
            _add_session(context, entry, writers)
        while writers:  # so that a part's memory is free once the object store has it
            yield writers.pop(0).table()


def _add_session(context: _Context, entry: FileEntry, writers: Sequence[BlockWriter]) -> None:
    """Read one session file and add it to the block of each part."""
    query = context.query
    table = _table(query.shards, entry)
    betas = _betas(table, context.manifest, entry)
    columns = {name: table[name].to_numpy() for name in ("trial", "stimulus", "repeat")}
    columns["session"] = np.full(len(betas), entry.session, np.int32)
    columns["role"] = query.split.roles(columns["stimulus"], np.isin(columns["stimulus"], context.shared))
    chosen = rule(query.normalise)
    known: dict[tuple[SplitRole, ...], Moments] = {}  # most rules give all parts the same statistics
    for roles, writer in zip(query.parts, writers, strict=True):
        keep = np.flatnonzero(np.isin(columns["role"], _numbers(roles)))
        whose = _whose(chosen, roles)
        if chosen is not None and whose not in known:
            known[whose] = moments(betas, np.flatnonzero(np.isin(columns["role"], _numbers(whose))))
        writer.add(SessionShare({name: v[keep] for name, v in columns.items()}, known.get(whose), keep), betas)


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
def _assemble(context: _Context, subject: int, refs: list[Any], *blocks: pa.Table) -> SubjectTrials:
    """Return one subject's trials of one part from the blocks of its sessions, which stay where they are."""
    query, manifest = context.query, context.manifest
    voxels = _voxels(query.shards, manifest, subject)
    axes = [axis for axis in ("x", "y", "z", "vertex") if axis in voxels.column_names]
    atlases = [name for name in voxels.column_names if name.startswith("atlas:")]
    numbers = [entry.session for entry in _entries(manifest, subject, query.sessions)]
    statistics = [each for block in blocks for each in statistics_of(block)]
    mean, scale = scaling(rule(query.normalise), statistics, numbers, voxels.num_rows)
    if query.normalise == "none":
        scale *= manifest.scale  # stored numbers to percent signal change
    return SubjectTrials(
        subject=subject,
        coordinates=np.stack([voxels[axis].to_numpy() for axis in axes], axis=1),
        labels={name.removeprefix("atlas:"): voxels[name].to_numpy() for name in atlases},
        betas=Betas(tuple(refs), dtype=manifest.dtype, voxels=voxels.num_rows),
        mean=mean,
        scale=scale,
        sessions=np.array(numbers, np.int32),
        **{n: np.concatenate([from_binary_row(b[n], np.dtype(k)) for b in blocks]) for n, k in COLUMNS.items()},
    )


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
