"""Turns a dataset's own files into trial shards: python bench/prepare.py --root nsd --subjects 1,2 --sessions 1-10.

Sessions and parts of the stimuli are Ray tasks. Files appear whole, a rerun keeps them, and the manifests, written
last, seal them. See `bench.data.shards.manifest` for the layout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import ray

from bench.core import cluster, options, registry, tasks
from bench.core.console import Advance, console, guard, numbers, parser, progress
from bench.core.identity import digest
from bench.core.storage import Folder, home
from bench.data import terms
from bench.data.datasets.base import Dataset
from bench.data.shards.manifest import FileEntry, Manifest, read_manifest
from bench.data.shards.plan import Plan, finished, plan, units
from bench.data.shards.stimuli import write_stimuli
from bench.data.shards.trials import check_file, write_session, write_voxels

TASK_MEMORY = 300 << 20
"""Bytes a task needs for its libraries, besides the data it holds."""
COPIES = 5
"""Copies of a session's betas that a task holds at once: as read, in order, as a table, as a file; 4.7 measured."""

_write_session, _write_stimuli, _check_file = map(ray.remote, (write_session, write_stimuli, check_file))


def prepare(dataset: Dataset, data: Folder, advance: Advance | None = None, shared: bool = False) -> Folder:
    """Write a dataset's trial shards and stimuli; return the shards' folder.

    Args:
        dataset: The reader, with its options.
        data: Where shards go, local or S3; they lie in a folder named after the dataset.
        advance: Counts sessions and stimuli files as done; None shows a display of its own.
        shared: Whether every node of the cluster sees the dataset's root and a local `data`. Else all tasks run on
            this node.

    Raises:
        OtherConfigurationError: If a manifest in the folder is of another configuration.
        MissingDataError: If a source file is missing, or one that a manifest names.
        BadDataError: If a source's shapes or values cannot be right.
        CorruptFileError: If a source file is damaged.
    """
    wanted = plan(dataset, data)
    shared = shared or (dataset.remote and not data.is_local)  # what lies in buckets is seen by every node
    done_stimuli = finished(wanted.stimuli_folder, wanted.stimuli_source, len(wanted.stimuli))
    done_trials = finished(wanted.shards, wanted.source, sum(len(dataset.trials(*pair).trial) for pair in wanted.pairs))
    if done_stimuli and done_trials:
        return wanted.shards
    cluster.connect()
    reader = ray.put(dataset)
    with nullcontext(advance) if advance else progress("prepare", units(wanted)) as count:
        if done_stimuli:
            count(len(wanted.parts), "stimuli")
        else:
            _stimuli(reader, wanted, dataset.name, count, shared)
        if done_trials:
            count(len(wanted.pairs), "sessions")
        else:
            _trials(reader, wanted, dataset, count, shared)
    return wanted.shards


def _stimuli(reader: Any, wanted: Plan, name: str, advance: Advance, shared: bool) -> None:  # noqa: ANN401
    """Write the stimuli set; `reader` is a reference to the dataset."""
    placement = tasks.placement(shared, TASK_MEMORY * 2)

    def submit(part: int) -> Any:  # noqa: ANN401 - a Ray reference
        return (
            ray.remote(write_stimuli)
            .options(**placement)
            .remote(reader, wanted.stimuli_folder, part, wanted.parts[part])
        )

    files = []
    for entry in tasks.ordered(submit, range(len(wanted.parts))):
        files.append(entry)
        advance(1, f"stimuli {sum(e.rows for e in files)}")
    manifest = Manifest("stimuli", name, digest(wanted.stimuli_source), wanted.stimuli_source, _sorted(files))
    manifest.write(wanted.stimuli_folder)


def _trials(reader: Any, wanted: Plan, dataset: Dataset, advance: Advance, shared: bool) -> None:  # noqa: ANN401
    """Write the trial shards; `reader` is a reference to the dataset."""
    tables = {subject: ray.put(table) for subject, table in wanted.voxels.items()}
    files = [write_voxels(wanted.shards, subject, table) for subject, table in wanted.voxels.items()]

    itemsize = np.dtype(dataset.dtype).itemsize

    def submit(pair: tuple[int, int]) -> Any:  # noqa: ANN401 - a Ray reference
        betas = len(dataset.trials(*pair).trial) * len(wanted.voxels[pair[0]].coordinates) * itemsize
        placement = tasks.placement(shared, TASK_MEMORY + COPIES * betas)
        return _write_session.options(**placement).remote(reader, wanted.shards, *pair, tables[pair[0]])

    bytes_read = 0
    for entry, read in tasks.ordered(submit, wanted.pairs):
        files.append(entry)
        bytes_read += read
        advance(1, f"subject {entry.subject} session {entry.session}")
    Manifest(
        kind="trials",
        dataset=dataset.name,
        digest=digest(wanted.source),
        source=wanted.source,
        files=_sorted(files),
        dtype=dataset.dtype,
        scale=dataset.scale,
        unit=dataset.unit.name,
        voxels={str(subject): len(table.coordinates) for subject, table in wanted.voxels.items()},
        left_out={str(subject): table.left_out for subject, table in wanted.voxels.items() if table.left_out},
        stimuli=wanted.stimuli_folder.name,
        bytes_read=bytes_read,
    ).write(wanted.shards)


def _sorted(files: Iterable[FileEntry]) -> tuple[FileEntry, ...]:
    return tuple(sorted(files, key=lambda entry: entry.path))


def verify(dataset: Dataset, data: Folder, advance: Advance | None = None, shared: bool = False) -> int:
    """Compare every file of a prepared dataset with its manifest, and every session's rows with the design.

    The design itself is compared with what else the dataset says was shown: NSD's behavioural responses.

    Returns:
        The number of files.

    Raises:
        MissingDataError: If the dataset is not prepared, or a file is missing.
        CorruptFileError: If a file differs from its manifest.
        BadDataError: If rows differ from the design.
    """
    wanted = plan(dataset, data)
    dataset.crosscheck()
    sets = [wanted.stimuli_folder, wanted.shards]
    files = [(folder, entry) for folder in sets for entry in read_manifest(folder).files]
    trials = sum(len(dataset.trials(*pair).trial) for pair in wanted.pairs)
    finished(wanted.stimuli_folder, wanted.stimuli_source, len(wanted.stimuli))
    finished(wanted.shards, wanted.source, trials)
    cluster.connect()
    reader = ray.put(dataset)
    placement = tasks.placement(shared, TASK_MEMORY * 2)

    def submit(item: tuple[Folder, FileEntry]) -> Any:  # noqa: ANN401 - a Ray reference
        return _check_file.options(**placement).remote(reader, *item)

    with nullcontext(advance) if advance else progress("verify", len(files)) as count:
        for (_, entry), _ in zip(files, tasks.ordered(submit, files), strict=True):
            count(1, entry.path)
    return len(files)


def dry_run(dataset: Dataset, data: Folder) -> list[str]:
    """Return lines that say what preparing would read and write, from the design, the masks and what is valid."""
    wanted = plan(dataset, data)
    lines, total_read, total_written = [], 0, 0
    for subject, session in wanted.pairs:
        voxels = len(wanted.voxels[subject].coordinates)
        path, read = dataset.reads(subject, session, voxels)
        written = len(dataset.trials(subject, session).trial) * voxels * np.dtype(dataset.dtype).itemsize
        lines.append(f"read {read / 1e9:8.4f} GB  write {written / 1e9:8.4f} GB  {path}")
        total_read, total_written = total_read + read, total_written + written
    left_out = [
        f"subject {subject}: {table.left_out} of {table.left_out + len(table.coordinates)} voxels have no valid data: "
        "left out"
        for subject, table in wanted.voxels.items()
        if table.left_out
    ]
    return [
        *lines,
        *left_out,
        f"read {total_read / 1e9:8.4f} GB  write {total_written / 1e9:8.4f} GB  in all, "
        f"and {len(wanted.stimuli)} pictures",
        f"to {wanted.shards}",
        f"to {wanted.stimuli_folder}",
    ]


def _parser() -> argparse.ArgumentParser:
    """Return the stage's argument parser."""
    result = parser(
        "prepare",
        "Turn a dataset's own files into trial shards. Only the chosen voxels are read; a rerun continues.",
        "reconbench prepare --root /data/nsd --subjects 1,2,5,7 --voxelset 'nsdgeneral | streams:early'",
    )
    result.add_argument("--dataset", default="nsd", help=f"one of {', '.join(sorted(registry.found('dataset')))}")
    result.add_argument("--root", required=True, help="the dataset's own files: a folder or s3://")
    result.add_argument("--data", default=str(home() / "data"), help="where shards go: folder or s3://")
    result.add_argument("--betas", help="beta version (NSD: betas_fithrf_GLMdenoise_RR)")
    result.add_argument("--space", help="space of the betas (NSD: func1pt8mm)")
    result.add_argument("--voxelset", help="ROI expression: the voxels to keep (NSD: nsdgeneral)")
    result.add_argument("--subjects", type=numbers, help="such as 1,2,5-7 (all that have betas)")
    result.add_argument("--sessions", type=numbers, help="such as 1-10 (all that have a file)")
    result.add_argument("--annotations", help="NSD: folder with COCO's captions_*.json, which its bucket does not hold")
    result.add_argument("--no-captions", action="store_true", help="NSD: pictures without captions")
    result.add_argument("--trials", help="GOD: perception or imagery; NSD-imagery: vision or imagery")
    result.add_argument("--signed", action="store_true", help="NSD: sign requests with the environment's credentials")
    result.add_argument(
        "--accept-terms", action="store_true", help="accept the terms of use, once, to fetch from s3://"
    )
    result.add_argument("--shared", action="store_true", help="every node of the cluster sees --root and --data")
    result.add_argument("--dry-run", action="store_true", help="only say what would be read and written")
    result.add_argument("--verify", action="store_true", help="compare what is prepared with manifests and design")
    return result


def _dataset(given: argparse.Namespace) -> Dataset:
    """Return the reader that the command line asks for; options that were not given keep the reader's defaults."""
    names = ("root", "betas", "space", "voxelset", "subjects", "sessions", "annotations", "trials")
    chosen = {name: getattr(given, name) for name in names}
    # A switch that was not given leaves the option to the reader: not every dataset has it.
    chosen |= {"captions": False if given.no_captions else None, "signed": given.signed or None}
    reader = registry.load("dataset", given.dataset)
    known = {name: value for name, value in chosen.items() if value is not None}
    made: Dataset = reader(options.build(reader.Options, known, f"options of dataset {given.dataset!r}"))
    return made


def _run(argv: Sequence[str]) -> int:
    """Parse the command line and prepare."""
    given = _parser().parse_args(argv)
    dataset, data = _dataset(given), Folder.at(given.data)
    screen = console()
    if dataset.terms:
        screen.print(dataset.terms, markup=False)
        if given.accept_terms:
            terms.accept(dataset)
    if given.dry_run:
        lines = dry_run(dataset, data)
    elif given.verify:
        lines = [f"{verify(dataset, data, shared=given.shared)} files are as their manifests and the design say"]
    else:
        lines = [f"trial shards in {prepare(dataset, data, shared=given.shared)}"]
    for line in lines:
        screen.print(line, markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage from a command line; return its exit status."""
    return guard(_run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
