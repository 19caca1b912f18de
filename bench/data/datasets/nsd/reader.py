"""What NSD, NSD-synthetic and NSD-imagery share: betas, atlases and noise ceilings in NSD's spaces."""

from __future__ import annotations

import abc
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.core.errors import BadDataError
from bench.data import roi
from bench.data.datasets._single_root import RootOptions, SingleRoot
from bench.data.datasets.base import BetaUnit, VoxelTable
from bench.data.datasets.nsd import atlases
from bench.data.datasets.nsd.spaces import BetasFiles, space_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(RootOptions):
    """Options of whatever lies in NSD's spaces, beside those of every dataset below one root.

    Attributes:
        root: Folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`: a local copy, `s3://natural-scenes-dataset`
            or a mirror.
        betas: Beta version.
        space: `func1pt8mm` or `func1mm` (volumes), `fsaverage` or `nativesurface` (both hemispheres, left first).
        files: Read HDF5 or NIfTI volumes; `auto` takes HDF5 where there is one. Both hold the same numbers.
    """

    voxelset: str = "nsdgeneral"
    betas: str
    space: str = "func1pt8mm"
    files: Literal["auto", "hdf5", "nifti"] = "auto"


class SpaceReader(SingleRoot):
    """Reads what lies in NSD's spaces.

    Attributes:
        space: Where the betas, atlases and noise ceilings lie.
    """

    SUBJECTS = range(1, 9)
    unit = BetaUnit("percent signal change", 0.3, 30.0, "about 2 in cortex: Allen et al. 2022")

    def __init__(self, options: SpaceOptions) -> None:
        super().__init__(options)
        kinds = ("hdf5", "nifti") if options.files == "auto" else (options.files,)
        self.space = space_of(self.files, options.space, self.betas_folder, kinds)
        self.dtype, self.scale = self.space.dtype, self.space.scale

    @property
    def betas_folder(self) -> str:
        """Name of the folders that hold the beta version."""
        return str(self.options.betas)

    @property
    def form(self) -> str:
        """Beta version and space."""
        return f"{self.options.betas}.{self.options.space}"

    @functools.cached_property
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """For each atlas of any prepared subject its label names."""
        subjects = sorted({subject for subject, _ in self.sessions()})
        # Of all of them, since not every subject has every atlas.
        names = {atlas for subject in subjects for atlas in self.space.atlases(subject)}
        return {atlas: atlases.read_names(self.files, subjects, atlas) for atlas in sorted(names)}

    def content(self) -> Mapping[str, Any]:
        """Return beta version, space and voxels."""
        return {**super().content(), "betas": self.options.betas, "space": self.options.space}

    @abc.abstractmethod
    def stem(self, session: int) -> str:
        """Return the file name of a session's betas without what says its kind."""

    @abc.abstractmethod
    def trials_stored(self, subject: int, session: int) -> int:
        """Return how many trials a session's betas hold: more than are read where some showed no stimulus."""

    def present(self, subject: int) -> Collection[int]:
        """Return the sessions of a subject that have files of an allowed kind."""
        return {n for n in range(1, self.SESSIONS + 1) if self.space.find(subject, self.stem(n)) is not None}

    def keys(self, subject: int, session: int) -> Sequence[str]:
        """Return the files, of any allowed kind, that a session's betas may lie in."""
        return self.space.candidates(subject, self.stem(session))

    def betas_of(self, subject: int, session: int) -> BetasFiles:
        """Return the files of a session's betas.

        Raises:
            MissingDataError: If the session has none.
        """
        found = self.space.find(subject, self.stem(session))
        if found is None:
            raise self.missing(subject, session)
        return found

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return the betas file of a session and how many of its bytes are read.

        Raises:
            MissingDataError: If the session has none.
        """
        betas = self.betas_of(subject, session)
        return self.space.where(betas), self.space.needed(betas, voxels, self.trials_stored(subject, session))

    def read_voxels(self, subject: int) -> VoxelTable:
        """Read the voxels of the voxel set that have valid data in every prepared session of the subject.

        With ncsnr and the labels of all atlases. Vertices without data in only one session go too: shards have the
        same columns in every session, and NaN can neither be z-scored nor fitted on.
        """
        table = atlases.read_table(self.space, subject, self.options.voxelset, self.label_names)
        own = (session for other, session in self.sessions() if other == subject)
        sessions = ((self.betas_of(subject, n), self.trials_stored(subject, n)) for n in own)
        valid = self.space.valid(subject, sessions, roi.parse(self.options.voxelset).atlases[0])
        if valid is None:
            return table
        chosen = table.only(valid[tuple(table.coordinates.T)])
        where = f"subject {subject}, voxel set {self.options.voxelset!r}"
        if not len(chosen.coordinates):
            raise BadDataError(f"{where}: none of {chosen.left_out} vertices has valid data in every session")
        if chosen.left_out:
            logger.warning("%s: %d vertices have no valid data and are left out", where, chosen.left_out)
        return chosen

    def read_betas(self, subject: int, session: int, voxels: VoxelTable) -> tuple[np.ndarray, int]:
        """Return all betas of a session as stored, `(trials stored, V)`, and the bytes read.

        Raises:
            BadDataError: If the betas do not match the mask's volume or the design's trials.
            CorruptFileError: If the file is truncated.
            MissingDataError: If the session has no file.
        """
        # Whichever atlas the voxels are of: any of them tells the shape of the betas' volume.
        atlas = roi.parse(self.options.voxelset).atlases[0]
        betas, trials = self.betas_of(subject, session), self.trials_stored(subject, session)
        return self.space.read(subject, betas, voxels.coordinates, atlas, trials)
