"""Stimuli -> target shards: a generator's frozen encoders over a stimuli set, in a Ray Data actor pool.

A target set is named by what decides its content (generator, version, weights, options that matter, stimuli), so one
that is there is never made again. Parts are written one by one and the manifest last; a rerun after a break makes only
the missing parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import ray.data

from bench.core import cluster, console
from bench.core.errors import BadDataError
from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data.shards.manifest import FileEntry, Manifest, read_manifest
from bench.generators.choice import GeneratorChoice, settings_from
from bench.generators.encoding import PART_ERRORS, EncodingJob, PartMaker, TargetPart

PART_ROWS = 512
"""Rows of a part: the grain of resuming. Fixed, so that the same set always has the same files."""

_ERRORS = {kind.__name__: kind for kind in PART_ERRORS}


def targets(
    stimuli: Folder,
    out: Folder,
    generator: str,
    options: Mapping[str, Any],
    names: Sequence[str] = (),
    advance: console.Advance | None = None,
) -> dict[str, Folder]:
    """Make target shards of a stimuli set; all targets of the generator in one pass over the stimuli.

    Args:
        stimuli: A finished `stimuli@<digest>` folder.
        out: The dataset's folder, in which `targets/<generator>.<target>@<digest>` appear.
        generator: Name of the generator.
        options: What to set of its options; those about rendering do not count here.
        names: Which of its targets; all by default.
        advance: Counts finished parts.

    Returns:
        The folder of each target. `Manifest.source` in it says what it was made from.

    Raises:
        UnknownNameError: If the generator, an option or a target does not exist.
        MissingWeightsError: If the generator's weights are not on this machine.
        CorruptFileError: If a stimuli file differs from its manifest.
    """
    chosen = GeneratorChoice(generator, options)
    manifest, sources, folders = _plan(stimuli, out, chosen, names)
    missing = {name: folder for name, folder in folders.items() if not _finished(folder)}
    units = _units(manifest)
    if not missing:
        if advance:
            advance(len(units), "already there")
        return folders
    cluster.connect()
    entries: dict[str, list[FileEntry]] = {name: [] for name in missing}
    for row in _encoded(units, EncodingJob(chosen, stimuli, missing)):
        for name in missing:
            entries[name].append(FileEntry(row["name"], row["rows"], row[f"size:{name}"], row[f"sha256:{name}"]))
        if advance:
            advance(1, chosen.name)
    for name, folder in missing.items():
        _seal(folder, manifest, chosen, name, sources[name], entries[name])
    return folders


def parts(stimuli: Folder) -> int:
    """Return how many parts the targets of a stimuli set have: the units that `advance` counts."""
    return len(_units(read_manifest(stimuli)))


def _plan(
    stimuli: Folder, out: Folder, chosen: GeneratorChoice, names: Sequence[str]
) -> tuple[Manifest, dict[str, dict[str, Any]], dict[str, Folder]]:
    """Return the stimuli's manifest, and for each target what decides its content and where it goes."""
    manifest = read_manifest(stimuli)
    if manifest.kind != "stimuli":
        raise BadDataError(f"{stimuli} is a set of {manifest.kind}, not of stimuli")
    for name in names:
        chosen.target(name)
    same = {**chosen.identity(render=False), "stimuli": manifest.content_digest}
    sources = {name: {**same, "target": name} for name in names or chosen.kind.targets}
    folders = {
        name: out / "targets" / f"{chosen.name}.{name}@{digest(source)}" for name, source in sorted(sources.items())
    }
    return manifest, sources, folders


def _finished(folder: Folder) -> bool:
    """Say whether a target set is whole."""
    return folder.exists("manifest.json") and read_manifest(folder).kind == "targets"


def _units(manifest: Manifest) -> list[TargetPart]:
    """Cut the stimuli files into parts of at most `PART_ROWS` rows."""
    units: list[TargetPart] = []
    for entry in manifest.files:
        for first in range(0, entry.rows, PART_ROWS):
            rows = min(PART_ROWS, entry.rows - first)
            units.append(TargetPart(entry, first, rows, f"part-{len(units):05d}.parquet"))
    return units


def _encoded(units: Sequence[TargetPart], job: EncodingJob) -> Iterator[dict[str, Any]]:
    """Run the actor pool; yield for each part its name, rows, and each target's size and sha256."""
    gpus = cluster.gpus()
    slots = gpus or int(ray.cluster_resources().get("CPU", 1))
    # Ray Data warns that its progress bars are off; the stage has its own.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One part a block, so that every actor of the pool gets work.
    items = ray.data.from_items([{"part": index} for index in range(len(units))], override_num_blocks=len(units))
    encoded = items.map_batches(
        PartMaker,
        fn_constructor_args=(job, list(units)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(slots, len(units)))),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in encoded.iter_rows():
        if row["error"]:
            raise _ERRORS[row["error"]](row["message"])
        yield row


def _seal(
    folder: Folder,
    stimuli: Manifest,
    chosen: GeneratorChoice,
    name: str,
    source: Mapping[str, Any],
    entries: Sequence[FileEntry],
) -> None:
    """Write the manifest of a target set whose parts are all there."""
    spec = chosen.target(name)
    Manifest(
        kind="targets",
        dataset=stimuli.dataset,
        digest=digest(source),
        source=dict(source),
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        dtype=np.dtype(spec.dtype).str,
        shape=spec.shape,
        stimuli=f"stimuli@{stimuli.digest}",
        bytes_read=sum(entry.size for entry in stimuli.files),
    ).write(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage from the command line; returns the exit status."""
    return console.guard(_run, argv)


def _run(argv: Sequence[str]) -> int:
    """Parse arguments and make the targets."""
    arguments = console.parser(
        "targets",
        "Run a generator's frozen encoders over a stimuli set; writes one set of target shards a target.",
        "reconbench targets --stimuli .reconbench/data/simulated/stimuli@0123456789abcdef --generator tiny-diffusion",
    )
    arguments.add_argument("--stimuli", required=True, help="stimuli@<digest> folder, a path or s3://")
    arguments.add_argument("--generator", default="tiny-diffusion", help="its name in recipes")
    arguments.add_argument("--targets", nargs="+", metavar="NAME", help="which targets; by default all")
    arguments.add_argument("--set", action="append", metavar="NAME=VALUE", help="an option of the generator")
    arguments.add_argument("--out", help="dataset folder; by default the folder the stimuli lie in")
    chosen = arguments.parse_args(argv)
    stimuli = Folder.at(chosen.stimuli)
    out = Folder.at(chosen.out) if chosen.out else Folder(stimuli.uri.rpartition("/")[0])
    settings = settings_from(chosen.set or [])
    with console.progress("targets", parts(stimuli)) as advance:
        folders = targets(stimuli, out, chosen.generator, settings, chosen.targets or [], advance)
    for name, folder in folders.items():
        console.console().print(f"{chosen.generator}.{name}  {folder}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
