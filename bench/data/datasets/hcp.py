"""HCP visual cortex at rest: fMRI without pictures, on which encoders are pretrained (MinD-Vis, CnD).

`HCP/npz/<subject>/HCP_visual_voxel.npz` holds V1 to V4 of one subject, each `(1200, voxels)`: one resting-state run
of the Human Connectome Project (3T, TR 0.72 s), cut out with HCP_MMP1's areas. Chen et al. 2023 (MinD-Vis) average
groups of ten frames into 120 samples a subject; `frames` says how many. What the samples' order means is lost then.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.data import roi
from bench.data.datasets.base import Dataset, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.source_files import SourceFiles
from bench.errors import BadDataError, CorruptFileError, MissingDataError, OptionError

ATLAS = "HCP_MMP1"
AREAS = {"V1": 1, "V2": 4, "V3": 5, "V4": 6}
"""The file's areas in its order, with their numbers in the atlas."""
FRAMES = 1200
FILE = "HCP_visual_voxel.npz"
TERMS = (
    "HCP data may be used under the WU-Minn HCP Consortium's Open Access Data Use Terms only, accepted on "
    "db.humanconnectome.org."
)


@dataclass(frozen=True)
class HcpOptions:
    """Where the files are and which of them to read.

    Attributes:
        root: Folder with `npz/<subject>/HCP_visual_voxel.npz`, or its s3:// address.
        voxelset: ROI expression over `HCP_MMP1`: `HCP_MMP1` is V1 to V4.
        subjects: HCP's subject numbers, such as 100307, or None for all.
        sessions: There is one, number 1; None or (1,).
        frames: Frames averaged to one sample; 1 keeps every frame.
        signed: Sign requests to a bucket with the environment's credentials.
        name: Name on shards.
    """

    root: str
    voxelset: str = ATLAS
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | None = None
    frames: int = 10
    signed: bool = False
    name: str = "hcp"


class Hcp(Dataset):
    """Reads resting-state frames as trials without a stimulus."""

    version = 1
    Options = HcpOptions
    terms = TERMS
    caption_source = "none"
    dtype = "<f4"
    scale = 1.0
    """The frames are normalised per voxel: they are in units of that normalisation, not percent signal change."""

    def __init__(self, options: HcpOptions) -> None:
        super().__init__(options)
        if not 1 <= options.frames <= FRAMES:
            raise OptionError(f"frames must be 1 to {FRAMES}, got {options.frames}")
        roi.parse(options.voxelset)
        self.name = options.name
        self.files = SourceFiles(options.root, options.signed)
        self._tables: dict[int, VoxelTable] = {}

    @property
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"rest-mean{self.options.frames}.fslr32k.{roi.slug(self.options.voxelset)}"

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content."""
        subjects = [subject for subject, _ in self.sessions()]
        return {
            "reader": "hcp",
            "version": self.version,
            "frames": self.options.frames,
            "voxelset": roi.canonical(self.options.voxelset),
            "files": {str(subject): self._digest(subject) for subject in subjects},
            "label_names": {ATLAS: dict(AREAS)},
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides the pictures: there are none."""
        return {"reader": "hcp", "version": self.version}

    def _key(self, subject: int) -> str:
        return f"npz/{subject}/{FILE}"

    @functools.cached_property
    def _subjects(self) -> tuple[int, ...]:
        """The subjects that have a file."""
        return tuple(sorted(int(name) for name in self.files.folders("npz") if re.fullmatch(r"\d+", name)))

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return (subject, 1) for every subject asked for, or that has a file.

        Raises:
            MissingDataError: If a subject has no file, or another session than 1 is asked for.
        """
        if self.options.sessions not in (None, (1,)):
            raise MissingDataError(f"{self.name} has one session a subject, number 1, not {self.options.sessions}")
        wanted = self.options.subjects or self._subjects
        for subject in wanted:
            if not self.files.exists(self._key(subject)):
                raise MissingDataError(f"no file {self.files.where(self._key(subject))}")
        if not wanted:
            raise MissingDataError(f"no subjects in {self.files.where('npz')}")
        return [(subject, 1) for subject in sorted(set(wanted))]

    def trials(self, subject: int, session: int) -> Trials:
        """Return the samples of a subject: trials without a stimulus (-1).

        Raises:
            OptionError: If there is no such session.
        """
        if session != 1:
            raise OptionError(f"{self.name} has one session a subject, number 1, not {session}")
        count = FRAMES // self.options.frames
        return Trials(np.arange(count), np.full(count, -1), np.zeros(count, np.int64))

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return a subject's file and its bytes: it is read whole.

        Raises:
            MissingDataError: If there is no such file.
        """
        key = self._key(subject)
        return self.files.where(key), self.files.size(key)

    def _areas(self, subject: int) -> list[np.ndarray]:
        """Return the areas of a subject, each `(1200, V)`, in the order of `AREAS`.

        Raises:
            CorruptFileError: If the file cannot be read or lacks an area.
            BadDataError: If an area is not `(1200, V)` finite numbers.
        """
        path = self.files.local(self._key(subject))
        try:
            with np.load(path, allow_pickle=False) as held:
                areas = {name: np.asarray(held[name]) for name in AREAS if name in held.files}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise CorruptFileError(f"{path} cannot be read as npz: {error}") from None
        missing = sorted(set(AREAS) - set(areas))
        if missing:
            raise CorruptFileError(f"{path} lacks {', '.join(missing)}; {FILE} has {', '.join(AREAS)}")
        for name, area in areas.items():
            if area.ndim != 2 or len(area) != FRAMES or area.dtype.kind != "f" or not np.isfinite(area).all():
                raise BadDataError(f"{path}: {name} is {area.shape} {area.dtype}; finite ({FRAMES}, voxels) is needed")
        return list(areas.values())

    def _digest(self, subject: int) -> str:
        """Return the digest of a subject's file: it alone decides the samples."""
        return hashlib.sha256(self.files.local(self._key(subject)).read_bytes()).hexdigest()[:16]

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set, numbered through V1 to V4 as they lie in the file.

        Raises:
            BadDataError: If the voxel set selects none.
            UnknownNameError: If it names another atlas than HCP_MMP1, or another area than V1 to V4.
        """
        if subject not in self._tables:
            sizes = [area.shape[1] for area in self._areas(subject)]
            labels = np.repeat(np.array(list(AREAS.values()), np.int16), sizes)
            chosen = roi.mask(self.options.voxelset, {ATLAS: labels}, {ATLAS: AREAS})
            if not chosen.any():
                raise BadDataError(f"voxel set {self.options.voxelset!r} selects no voxel of subject {subject}")
            places = np.flatnonzero(chosen).astype(np.int32)
            unknown = np.full(len(places), np.nan, np.float32)
            self._tables[subject] = VoxelTable(places[:, None], unknown, {ATLAS: labels[chosen]})
        return self._tables[subject]

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the samples of a subject: means of groups of frames; frames that fill no group are left out.

        Raises:
            BadDataError: If the file's areas are not what HCP's files hold.
            CorruptFileError: If the file is damaged.
        """
        shown = self.trials(subject, session)
        frames = np.concatenate(self._areas(subject), axis=1)[:, voxels.coordinates[:, 0]]
        used = frames[: len(shown.trial) * self.options.frames].astype(np.float64)
        means = used.reshape(len(shown.trial), self.options.frames, -1).mean(axis=1).astype(self.dtype)
        size = self.files.size(self._key(subject))
        return SessionTrials(shown.trial, shown.stimulus, shown.repeat, means, size)

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield nothing: there are no pictures.

        Raises:
            MissingDataError: If one is asked for.
        """
        for number in numbers:
            raise MissingDataError(f"{self.name} has no pictures, number {number} was asked for")
        yield from ()
