"""What readers of a dataset whose files lie below one root share: options, sessions, voxel sets, their messages."""

from __future__ import annotations

import abc
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.core.errors import BadDataError, MissingDataError, OptionError, UnknownNameError
from bench.data import roi
from bench.data.datasets.base import Dataset, VoxelTable
from bench.data.sources.files import SourceFiles


@dataclass(frozen=True, kw_only=True)
class RootOptions:
    """Where the files are and which of them to read; a reader extends it with its defaults and its own options.

    Attributes:
        root: Folder with the dataset's own files, or its s3:// address.
        voxelset: ROI expression: the voxels that go into the shards.
        subjects: Subjects from 1, or None for all that have betas.
        sessions: Sessions from 1, or their number counted from the first, or None for all that have betas.
        signed: Sign requests to a bucket with the environment's credentials, as a private mirror asks.
        name: Name on shards and boards; "" for the dataset's own.
    """

    root: str
    voxelset: str
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | int | None = None
    signed: bool = False
    name: str = ""


class SingleRoot(Dataset):
    """Reads a dataset below one root: a reader says what its files are called and what is in them.

    Attributes:
        files: The files below the root.
    """

    Options: ClassVar[type[RootOptions]]

    reader: ClassVar[str]
    """Name in the registry, in the shards' digest and, unless an option says otherwise, on boards: `god`."""

    title: ClassVar[str]
    """Name in messages, as its makers write it: `GOD`."""

    SUBJECTS: ClassVar[Sequence[int]]
    """The subjects the experiment has, ascending."""

    SESSIONS: ClassVar[int] = 1
    """How many sessions of a subject the files tell apart."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    """Options that name one of several things, and the names allowed."""

    def __init__(self, options: RootOptions) -> None:
        super().__init__(options)
        for option, allowed in self.choices.items():
            if (value := getattr(options, option)) not in allowed:
                raise UnknownNameError(option, value, allowed, f"options of dataset {self.reader!r}")
        # A misspelt expression is told at once, not when the first worker looks for its voxels.
        roi.parse(options.voxelset)
        self.files = SourceFiles(options.root, options.signed)
        self._tables: dict[int, VoxelTable] = {}

    @functools.cached_property
    def name(self) -> str:  # type: ignore[override]
        """The dataset's name on shards and boards."""
        return str(self.options.name or self.reader)

    # What decides the shards

    @property
    @abc.abstractmethod
    def form(self) -> str:
        """What is read, as the shards' folder name begins: `<betas>.<space>`."""

    @property
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"{self.form}.{roi.slug(self.options.voxelset)}"

    @property
    @abc.abstractmethod
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """For each atlas its labels by name: they serve ROI expressions when shards are read."""

    def origin(self) -> Mapping[str, Any]:
        """Return what decides which stimulus a trial showed; a reader adds its design's or its images' digest."""
        return {"reader": self.reader, "version": self.version}

    def content(self) -> Mapping[str, Any]:
        """Return what decides the betas: the digest of each subject's voxels, and what a reader adds."""
        return {"voxels": {subject: self.voxels(int(subject)).digest for subject in self.sessions_by_subject()}}

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content."""
        return {
            **self.origin(),
            **self.content(),
            # One spelling: blanks and needless brackets must not make other shards.
            "voxelset": roi.canonical(self.options.voxelset),
            "label_names": self.label_names,
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides the stimuli: no more than the origin, unless a reader says what."""
        return self.origin()

    def sessions_by_subject(self) -> dict[str, list[int]]:
        """Return the sessions to prepare of each subject, both ascending; keys are text, as JSON has them."""
        found: dict[str, list[int]] = {}
        for subject, session in self.sessions():
            found.setdefault(str(subject), []).append(session)
        return found

    # Sessions

    @abc.abstractmethod
    def present(self, subject: int) -> Collection[int]:
        """Return the sessions of a subject that have betas."""

    @abc.abstractmethod
    def keys(self, subject: int, session: int) -> Sequence[str]:
        """Return where a session's betas may lie below the root, for messages: any one of these would do."""

    def candidates(self) -> Sequence[int]:
        """Return the subjects to look for where none were asked for."""
        return self.SUBJECTS

    def check(self, subject: int, session: int) -> None:
        """Raise unless the experiment has a session, whether there are files of it or not.

        Raises:
            OptionError: If it has no such subject or session.
        """
        if subject not in self.SUBJECTS:
            held = f"subjects {self.SUBJECTS[0]} to {self.SUBJECTS[-1]}"
            raise OptionError(f"no subject {subject}: {self.title} has {held}")
        if not 1 <= session <= self.SESSIONS:
            held = "one session a subject, session 1" if self.SESSIONS == 1 else f"sessions 1 to {self.SESSIONS}"
            raise OptionError(f"no session {session}: {self.title} has {held}")

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, session) pairs to prepare, sorted.

        Raises:
            MissingDataError: If a session that was asked for, or one between two that are there, has no betas, or
                there are none at all.
            OptionError: If the experiment has no such subject or session.
        """
        asked = self.options.subjects
        pairs = []
        for subject in sorted(set(self.candidates() if asked is None else asked)):
            # Every experiment has a session 1: this is about the subject, whose files may have no names otherwise.
            self.check(subject, 1)
            present = self.present(subject)
            # Who was not asked for may be missing; who was asked for must not vanish without a word.
            if present or asked is not None:
                pairs += [(subject, session, session in present) for session in self._wanted(present)]
        for subject, session, there in pairs:
            self.check(subject, session)
            if not there:
                raise self.missing(subject, session)
        if not pairs:
            names = " or ".join(self.keys(self.SUBJECTS[0], 1))
            raise MissingDataError(
                f"{self.files.root} has no betas {self.form}, such as {names}, or no session was chosen"
            )
        return [(subject, session) for subject, session, _ in pairs]

    def _wanted(self, present: Collection[int]) -> Sequence[int]:
        """Return the sessions asked for, or all up to the last that has betas."""
        asked = self.options.sessions
        if isinstance(asked, int):
            return range(1, asked + 1)
        if asked is not None:
            return sorted(set(asked))
        # One missing in between must be noticed; a subject asked for without any begins to fail at its first.
        return range(1, max(present, default=1) + 1)

    def missing(self, subject: int, session: int) -> MissingDataError:
        """Return the error that says which file a session lacks."""
        names = " or ".join(self.keys(subject, session))
        return MissingDataError(
            f"no betas of subject {subject}, session {session}: there is no {names} in {self.files.root}"
        )

    # Voxels and stimuli

    @abc.abstractmethod
    def read_voxels(self, subject: int) -> VoxelTable:
        """Read the voxels of the voxel set; errors as in `voxels`."""

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set in canonical order with the labels of all ROIs; read once.

        Raises:
            BadDataError: If the voxel set selects none.
            UnknownNameError: If the subject has no such ROI or atlas, or the atlas no such label.
        """
        # Kept, and pickled with the reader: the digest asks for every subject's table before any session is read.
        if subject not in self._tables:
            self._tables[subject] = self.read_voxels(subject)
        return self._tables[subject]

    def select(
        self, subject: int, labels: Mapping[str, np.ndarray], names: Mapping[str, Mapping[str, int]]
    ) -> np.ndarray:
        """Return which voxels the voxel set takes.

        Args:
            subject: Whose, for messages.
            labels: For each ROI or atlas of the subject its label numbers: arrays of one shape, `(V,)` or a volume.
            names: For each of them its labels by name. `label_names` may be of more subjects, whose files would have
                to be read.

        Returns:
            Booleans of that shape, at least one of them true.

        Raises:
            BadDataError: If it takes none.
            UnknownNameError: If there is no such ROI, or it has no such label.
        """
        voxelset, where = self.options.voxelset, f"voxel set {self.options.voxelset!r} of subject {subject}"
        named = roi.parse(voxelset).atlases
        for atlas in named:
            if atlas not in labels:
                raise UnknownNameError("ROI", atlas, labels, where)
        chosen = roi.mask(voxelset, labels, names)
        if not chosen.any():
            # Only those the expression names: THINGS-fMRI has 222.
            sizes = {atlas: int((labels[atlas] > 0).sum()) for atlas in named}
            raise BadDataError(f"{where} selects no voxel; its ROIs have {sizes} in {self.files.root}")
        return chosen

    def check_number(self, number: int, count: int) -> None:
        """Raise unless a stimulus number is one of the dataset's `count` pictures.

        Raises:
            MissingDataError: If it is not; Python would take -1 for the last picture.
        """
        if not 0 <= number < count:
            raise MissingDataError(f"{self.title} has pictures 0 to {count - 1}, not {number}")
