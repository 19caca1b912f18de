"""What preparing a dataset will write: sessions, stimuli, content addresses; and whether it is there already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.errors import CorruptFileError, MissingDataError, OtherConfigurationError
from bench.core.identity import digest, plain
from bench.core.storage import Folder
from bench.data import terms
from bench.data.datasets.base import Dataset, VoxelTable
from bench.data.shards.manifest import MANIFEST, read_manifest

STIMULI_PART = 500
"""Pictures in one file of a stimuli set."""


@dataclass(frozen=True)
class Plan:
    """What will be written.

    Attributes:
        pairs: The (subject, session) pairs.
        voxels: Voxel table of each subject.
        stimuli: Sorted 0-based numbers of the pictures that the sessions show.
        source: What decides the trial shards' content.
        stimuli_source: What decides the stimuli's content.
        shards: Folder of the trial shards.
        stimuli_folder: Folder of the stimuli.
    """

    pairs: tuple[tuple[int, int], ...]
    voxels: dict[int, VoxelTable]
    stimuli: np.ndarray
    source: dict[str, Any]
    stimuli_source: dict[str, Any]
    shards: Folder
    stimuli_folder: Folder

    @property
    def parts(self) -> list[list[int]]:
        """The stimuli of each file."""
        return [self.stimuli[i : i + STIMULI_PART].tolist() for i in range(0, len(self.stimuli), STIMULI_PART)]


def plan(dataset: Dataset, data: Folder) -> Plan:
    """Return what preparing a dataset will write, from its design, its masks and what says where data are valid.

    Raises:
        OptionError: If the dataset's files would be fetched and its terms are not accepted.
        MissingDataError: If a session that was asked for has no file.
        BadDataError: If a voxel set selects no voxel.
    """
    terms.require(dataset)
    pairs = tuple(dataset.sessions())
    shown = np.unique(np.concatenate([dataset.trials(*pair).stimulus for pair in pairs]))
    shown = shown[shown >= 0]
    stimuli_source = plain({**dataset.stimuli_source(), "numbers": digest(shown.tolist())})
    source = plain({**dataset.source(), "stimuli": digest(stimuli_source)})
    folder = data / dataset.name
    return Plan(
        pairs=pairs,
        voxels={subject: dataset.voxels(subject) for subject in sorted({subject for subject, _ in pairs})},
        stimuli=shown,
        source=source,
        stimuli_source=stimuli_source,
        shards=folder / f"{dataset.label}@{digest(source)}",
        stimuli_folder=folder / f"stimuli@{digest(stimuli_source)}",
    )


def units(wanted: Plan) -> int:
    """Return how many units of work a plan is: its sessions and files of stimuli."""
    return len(wanted.pairs) + len(wanted.parts)


def finished(folder: Folder, source: dict[str, Any], rows: int) -> bool:
    """Say whether a set is sealed, of this configuration, and has all its files."""
    if not folder.exists(MANIFEST):
        return False
    manifest = read_manifest(folder)
    if manifest.source != source:
        keys = [k for k in sorted({*source, *manifest.source}) if source.get(k) != manifest.source.get(k)]
        raise OtherConfigurationError(f"{folder} was made with another configuration: {', '.join(keys)} differ")
    missing = sorted({entry.path for entry in manifest.files} - set(folder.files()))
    if missing:
        raise MissingDataError(f"{folder} lacks {missing[0]}, which its manifest names; delete {MANIFEST} and rerun")
    counted = sum(entry.rows for entry in manifest.files if entry.session or manifest.kind == "stimuli")
    if counted != rows:
        raise CorruptFileError(f"{folder}/{MANIFEST} counts {counted} rows, the design has {rows}")
    return True
