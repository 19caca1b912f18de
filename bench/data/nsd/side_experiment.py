"""NSD-synthetic and NSD-imagery share this: one session a subject, betas in NSD's spaces, test pictures only."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench.data import roi
from bench.data.datasets.base import Dataset, SessionTrials, Trials, VoxelTable
from bench.data.nsd import atlases, layout
from bench.data.nsd.spaces import BetasFiles, space_of
from bench.data.source_files import SourceFiles
from bench.errors import MissingDataError, UnknownNameError

SUBJECTS = range(1, 9)
TERMS = (
    "The Natural Scenes Dataset, with its synthetic and imagery sessions, may be used under the NSD Terms and "
    "Conditions only, agreed to by a form on naturalscenesdataset.org."
)


@dataclass(frozen=True)
class SideOptions:
    """Where the files are and which of them to read.

    Attributes:
        root: Folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`, or its s3:// address.
        betas: `fithrf` (b2) or `fithrf_GLMdenoise_RR` (b3).
        space: `func1pt8mm` or `func1mm`.
        voxelset: ROI expression: the voxels that go into the shards.
        subjects: Subjects from 1, or None for all that have betas.
        sessions: There is one, number 1; None or (1,).
        files: Read HDF5 or NIfTI volumes; `auto` takes HDF5 where there is one.
        signed: Sign requests to a bucket with the environment's credentials, as a private mirror asks.
        name: Name on shards and boards; "" for the dataset's own.
    """

    root: str
    betas: str = "fithrf_GLMdenoise_RR"
    space: str = "func1pt8mm"
    voxelset: str = "nsdgeneral"
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | None = None
    files: Literal["auto", "hdf5", "nifti"] = "auto"
    signed: bool = False
    name: str = ""


class SideExperiment(Dataset):
    """Reads one session a subject; a subclass knows its trials and pictures.

    Every stimulus is marked shared: by the split, all trials are test trials and none can be fitted on.
    """

    experiment: ClassVar[str]
    """How the experiment's files call it, such as `nsdsynthetic`."""

    BETAS: ClassVar[tuple[str, ...]] = ("fithrf", "fithrf_GLMdenoise_RR")
    caption_source = "none"
    terms = TERMS

    def __init__(self, options: SideOptions) -> None:
        super().__init__(options)
        for kind, value, allowed in (("space", options.space, layout.SPACES[:2]), ("betas", options.betas, self.BETAS)):
            if value not in allowed:
                raise UnknownNameError(kind, value, allowed, f"options of {self.experiment}")
        roi.parse(options.voxelset)
        self.name = options.name or self.experiment.replace("nsd", "nsd-", 1)
        self.files = SourceFiles(options.root, options.signed)
        kinds = ("hdf5", "nifti") if options.files == "auto" else (options.files,)
        self.space = space_of(self.files, options.space, f"{self.experiment}betas_{options.betas}", kinds)
        self.dtype, self.scale = self.space.dtype, self.space.scale
        self._tables: dict[int, VoxelTable] = {}

    @functools.cached_property
    def label_names(self) -> dict[str, dict[str, int]]:
        """For each atlas of any prepared subject its label names."""
        subjects = [subject for subject, _ in self.sessions()]
        names = {atlas for s in subjects for atlas in self.space.atlases(s)}
        return {atlas: atlases.read_names(self.files, subjects, atlas) for atlas in sorted(names)}

    @property
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"{self.options.betas}.{self.options.space}.{roi.slug(self.options.voxelset)}"

    @abc.abstractmethod
    def origin(self) -> Mapping[str, Any]:
        """Return what decides which stimulus a trial showed and what it looked like."""

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content."""
        subjects = [subject for subject, _ in self.sessions()]
        return {
            **self.origin(),
            "betas": self.options.betas,
            "space": self.options.space,
            "voxelset": roi.canonical(self.options.voxelset),
            "voxels": {str(subject): self.voxels(subject).digest for subject in subjects},
            "label_names": self.label_names,
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides the pictures."""
        return self.origin()

    def _betas(self, subject: int) -> BetasFiles | None:
        return self.space.find(subject, f"betas_{self.experiment}")

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return (subject, 1) for every subject asked for, or that has betas.

        Raises:
            MissingDataError: If a subject that was asked for has no betas, or none has.
            OptionError: If another session than 1 is asked for.
        """
        if self.options.sessions not in (None, (1,)):
            raise MissingDataError(f"{self.name} has one session a subject, number 1, not {self.options.sessions}")
        wanted = self.options.subjects or [s for s in SUBJECTS if self._betas(s) is not None]
        for subject in wanted:
            if self._betas(subject) is None:
                names = " or ".join(self.space.candidates(subject, f"betas_{self.experiment}"))
                raise MissingDataError(f"no betas of subject {subject}: {self.options.root} has no {names}")
        if not wanted:
            raise MissingDataError(f"{self.options.root} has no {self.space.betas} in {self.options.space}")
        return [(subject, 1) for subject in sorted(set(wanted))]

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return the betas file and how many of its bytes are read.

        Raises:
            MissingDataError: If there is none.
        """
        betas = self._found(subject)
        return self.space.where(betas), self.space.needed(betas, voxels, self.stored_trials)

    def _found(self, subject: int) -> BetasFiles:
        found = self._betas(subject)
        if found is None:
            raise MissingDataError(f"no {self.space.betas} of subject {subject} in {self.options.root}")
        return found

    @property
    @abc.abstractmethod
    def stored_trials(self) -> int:
        """Trials in a betas file."""

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set in canonical order, with the labels of all atlases.

        Raises:
            BadDataError: If the voxel set selects none.
            UnknownNameError: If the subject has no such atlas, or the atlas no such label.
        """
        if subject not in self._tables:
            names = self.label_names
            self._tables[subject] = atlases.read_table(self.space, subject, self.options.voxelset, names)
        return self._tables[subject]

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials that show a stimulus, with raw int16 betas (percent signal change x 300).

        Raises:
            BadDataError: If the betas do not match the mask's volume or the design's trials.
            CorruptFileError: If the file is truncated.
            MissingDataError: If there is no file.
        """
        shown: Trials = self.trials(subject, session)
        atlas = roi.parse(self.options.voxelset).atlases[0]
        betas = self._found(subject)
        values, bytes_read = self.space.read(subject, betas, voxels.coordinates, atlas, self.stored_trials)
        return SessionTrials(shown.trial, shown.stimulus, shown.repeat, values[shown.trial], bytes_read)
