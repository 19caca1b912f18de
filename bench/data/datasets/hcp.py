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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError
from bench.data.datasets._single_root import RootOptions, SingleRoot
from bench.data.datasets.base import BetaUnit, SessionTrials, Stimulus, Trials, VoxelTable

ATLAS = "HCP_MMP1"
AREAS = {"V1": 1, "V2": 4, "V3": 5, "V4": 6}
"""The file's areas in its order, with their numbers in the atlas."""
FRAMES = 1200
FILE = "HCP_visual_voxel.npz"


@dataclass(frozen=True, kw_only=True)
class HcpOptions(RootOptions):
    """Which of HCP's files to read; what is not named here is as in `RootOptions`.

    Attributes:
        root: Folder with `npz/<subject>/HCP_visual_voxel.npz`, or its s3:// address.
        voxelset: ROI expression over `HCP_MMP1`: `HCP_MMP1` is V1 to V4.
        subjects: HCP's subject numbers, such as 100307, or None for all.
        sessions: Session 1, or None for it: there is one.
        frames: Frames averaged to one sample; 1 keeps every frame.
    """

    voxelset: str = ATLAS
    frames: int = 10


class Hcp(SingleRoot):
    """Reads resting-state frames as trials without a stimulus."""

    version = 1
    Options = HcpOptions
    terms = (
        "HCP data may be used under the WU-Minn HCP Consortium's Open Access Data Use Terms only, accepted on "
        "db.humanconnectome.org."
    )
    caption_source = "none"
    dtype = "<f4"
    scale = 1.0
    unit = BetaUnit(
        "standard deviations of a voxel's run", 0.1, 3.0, "frames are normalised by voxel: Chen et al. 2023"
    )
    reader = "hcp"
    title = "HCP"
    SUBJECTS = range(1, 1_000_000)
    """HCP numbers people by six digits; which of them are there the folders say."""

    def __init__(self, options: HcpOptions) -> None:
        super().__init__(options)
        # More frames than the run has would leave no sample at all.
        if not 1 <= options.frames <= FRAMES:
            raise OptionError(f"frames must be 1 to {FRAMES}, got {options.frames}")

    @property
    def form(self) -> str:
        """How many frames a sample is the mean of."""
        return f"rest-mean{self.options.frames}.fslr32k"

    @property
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """The four areas by their numbers in the atlas."""
        return {ATLAS: AREAS}

    def content(self) -> Mapping[str, Any]:
        """Return the frames averaged, and the files' digests: a file has no design beside it that could decide."""
        return {"frames": self.options.frames, "files": {s: self._digest(int(s)) for s in self.sessions_by_subject()}}

    def _key(self, subject: int) -> str:
        return f"npz/{subject}/{FILE}"

    def keys(self, subject: int, session: int) -> Sequence[str]:
        """Return a subject's file."""
        del session
        return (self._key(subject),)

    @functools.cached_property
    def _folders(self) -> tuple[int, ...]:
        """The subjects that have a folder; listed once, since a bucket's listing is a request."""
        return tuple(sorted(int(name) for name in self.files.folders("npz") if re.fullmatch(r"\d+", name)))

    def candidates(self) -> Sequence[int]:
        """Return the subjects that have a folder."""
        return self._folders

    def present(self, subject: int) -> Collection[int]:
        """Return session 1 where a subject has a file."""
        return (1,) if self.files.exists(self._key(subject)) else ()

    def trials(self, subject: int, session: int) -> Trials:
        """Return the samples of a subject: trials without a stimulus (-1).

        Raises:
            OptionError: If there is no such subject or session.
        """
        self.check(subject, session)
        # -1 is no stimulus: such trials serve pretraining on betas alone and meet no target.
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
                # Only what is needed: the file may hold other arrays, which could be anything.
                areas = {name: np.asarray(held[name]) for name in AREAS if name in held.files}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise CorruptFileError(f"{path} cannot be read as npz: {error}") from None
        # All four are asked for, whatever the voxel set: its voxels are numbered through them.
        missing = sorted(set(AREAS) - set(areas))
        if missing:
            raise CorruptFileError(f"{path} lacks {', '.join(missing)}; {FILE} has {', '.join(AREAS)}")
        for name, area in areas.items():
            if area.ndim != 2 or len(area) != FRAMES or area.dtype.kind != "f" or not np.isfinite(area).all():
                raise BadDataError(f"{path}: {name} is {area.shape} {area.dtype}; finite ({FRAMES}, voxels) is needed")
        return list(areas.values())

    def _digest(self, subject: int) -> str:
        """Return the digest of a subject's file: it alone decides the samples."""
        # Of the bytes: to decompress and check the arrays would take longer.
        return hashlib.sha256(self.files.local(self._key(subject)).read_bytes()).hexdigest()[:16]

    def read_voxels(self, subject: int) -> VoxelTable:
        """Read the voxels of the voxel set, numbered through V1 to V4 as they lie in the file."""
        sizes = [area.shape[1] for area in self._areas(subject)]
        labels = np.repeat(np.array(list(AREAS.values()), np.int16), sizes)
        chosen = np.flatnonzero(self.select(subject, {ATLAS: labels}, self.label_names)).astype(np.int32)
        unknown = np.full(len(chosen), np.nan, np.float32)
        return VoxelTable(chosen[:, None], unknown, {ATLAS: labels[chosen]})

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the samples of a subject: means of groups of frames; frames that fill no group are left out.

        Raises:
            BadDataError: If the file's areas are not what HCP's files hold.
            CorruptFileError: If the file is damaged.
        """
        shown = self.trials(subject, session)
        frames = np.concatenate(self._areas(subject), axis=1)[:, voxels.coordinates[:, 0]]
        # In float64: means of many float32 frames would depend on the order of summation.
        used = frames[: len(shown.trial) * self.options.frames].astype(np.float64)
        means = used.reshape(len(shown.trial), self.options.frames, -1).mean(axis=1).astype(self.dtype)
        size = self.files.size(self._key(subject))
        return shown.with_betas(means, size)

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield nothing: there are no pictures.

        Raises:
            MissingDataError: If one is asked for.
        """
        # A generator, since `stimuli` is one: the error comes when the first is asked for.
        for number in numbers:
            raise MissingDataError(f"{self.name} has no pictures, number {number} was asked for")
        yield from ()
