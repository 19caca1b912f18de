"""THINGS-fMRI: three people saw 8,740 pictures of 720 concepts in 12 sessions (Hebart et al. 2023).

All 100 test concepts are training concepts too, with other pictures. A stimulus' label is its concept, so a decoder of
labels has seen the labels of the test.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import roi
from bench.data.datasets.base import Dataset, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.pictures import decode
from bench.data.source_files import RangeFile, SourceFiles
from bench.data.things.responses import Table, read_betas, read_table
from bench.data.things.tables import SESSIONS, TRIALS_PER_SESSION, Experiment, Images, read_experiment
from bench.data.things.voxels import label_names, read_voxels
from bench.errors import BadDataError, MissingDataError, OptionError, UnknownNameError
from bench.identity import digest

TERMS = (
    "THINGS-fMRI's responses are in the public domain (CC0); the pictures of the THINGS database are not: they may be "
    "used for academic research only, under the terms on things-initiative.org."
)
SUBJECTS = (1, 2, 3)


@dataclass(frozen=True)
class ThingsOptions:
    """Where the files are and which of them to read.

    Attributes:
        root: Folder that holds `betas_csv` (figshare 20492835), or its s3:// address.
        images: Folder of the THINGS database's pictures, `<concept>/<concept>_12s.jpg`, or its s3:// address; "" is
            `images` below the root.
        voxelset: ROI expression of V1, V2, V3, hV4, VO1... (`prf` is all of these), lEBA, rEBA... IT (`floc`), and
            `glasser-V1`... (`glasser`); see `bench.data.things.voxels`.
        subjects: Subjects from 1, or None for all that have responses.
        sessions: Sessions from 1, or their number counted from the first, or None for all 12.
        signed: Sign requests to a bucket with the environment's credentials, as a private mirror asks.
        name: Name on shards and boards.
    """

    root: str
    images: str = ""
    voxelset: str = "prf | floc"
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | int | None = None
    signed: bool = False
    name: str = "things"


class Things(Dataset):
    """Reads the table format of THINGS-fMRI; see `bench.data.things` for the parts."""

    version = 1
    Options = ThingsOptions
    terms = TERMS
    caption_source = "none"
    dtype = "<f4"
    scale = 1.0
    """Betas are in standard deviations of a voxel's time course after its noise was regressed out, run by run (about
    0.1 from trial to trial): they are not percent signal change, and no factor makes them so."""

    def __init__(self, options: ThingsOptions) -> None:
        super().__init__(options)
        roi.parse(options.voxelset)
        self.name = options.name
        self.files = SourceFiles(options.root, options.signed)
        self.pictures = SourceFiles(options.images or f"{options.root.rstrip('/')}/images", options.signed)
        self._experiments: dict[int, Experiment] = {}
        self._tables: dict[int, Table] = {}
        self._voxels: dict[int, tuple[VoxelTable, np.ndarray]] = {}

    @property
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"betas_csv.t1w2mm.{roi.slug(self.options.voxelset)}"

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content; `label_names` serve ROI expressions at read time."""
        chosen = self.sessions()
        subjects = sorted({subject for subject, _ in chosen})
        return {
            **self.stimuli_source(),
            "voxelset": roi.canonical(self.options.voxelset),
            "sessions": {str(subject): [n for s, n in chosen if s == subject] for subject in subjects},
            "shown": {str(subject): digest(self._stimuli_of(subject).tolist()) for subject in subjects},
            "voxels": {str(subject): self.voxels(subject).digest for subject in subjects},
            "label_names": {
                atlas: names
                for subject in subjects
                for atlas, names in label_names(self._local(subject, "VoxelMetadata.csv")).items()
            },
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures and labels."""
        return {"reader": "things", "version": self.version, "images": self.images.digest}

    def _key(self, subject: int, part: str) -> str:
        return f"betas_csv/sub-{subject:02d}_{part}"

    def _local(self, subject: int, part: str) -> Path:
        return self.files.local(self._key(subject, part))

    def _responses(self, subject: int) -> Path | RangeFile:
        """Return a subject's responses: 16.6 GB, of which only what is needed is read."""
        return self.files.path_or_file(self._key(subject, "ResponseData.h5"))

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, session) pairs to prepare, sorted.

        Raises:
            MissingDataError: If a subject that was asked for has no responses, or none has.
            OptionError: If there is no such subject or session.
        """
        wanted, numbers = self.options.subjects, self.options.sessions
        asked = SUBJECTS if wanted is None else sorted(set(wanted))
        if unknown := sorted(set(asked) - set(SUBJECTS)):
            raise OptionError(f"no subject {unknown[0]}: THINGS-fMRI has subjects 1 to 3")
        if isinstance(numbers, int):
            numbers = tuple(range(1, numbers + 1))
        chosen = range(1, SESSIONS + 1) if numbers is None else sorted(set(numbers))
        for session in chosen:
            self._check_session(session)
        present = [s for s in asked if self.files.exists(self._key(s, "ResponseData.h5"))]
        absent = [subject for subject in asked if subject not in present]
        if not present or not chosen or (wanted is not None and absent):
            lacking = self._key((absent or [1])[0], "ResponseData.h5")
            raise MissingDataError(f"no responses: there is no {self.files.where(lacking)}, or no session is chosen")
        return [(subject, session) for subject in present for session in chosen]

    def _check_session(self, session: int) -> None:
        if not 1 <= session <= SESSIONS:
            raise OptionError(f"no session {session}: THINGS-fMRI has sessions 1 to {SESSIONS}")

    def _experiment(self, subject: int) -> Experiment:
        """Return what a subject was shown."""
        if subject not in self._experiments:
            self._experiments[subject] = read_experiment(self._local(subject, "StimulusMetadata.csv"), subject)
        return self._experiments[subject]

    @functools.cached_property
    def images(self) -> Images:
        """The images' numbering; every subject saw the same ones.

        Raises:
            BadDataError: If a subject's images are not those of the first.
        """
        subjects = sorted({subject for subject, _ in self.sessions()})
        first = self._experiment(subjects[0]).images
        for subject in subjects[1:]:
            if self._experiment(subject).images.digest != first.digest:
                where = self.files.where(self._key(subject, "StimulusMetadata.csv"))
                raise BadDataError(f"{where}: images, concepts or test images are not those of subject {subjects[0]}")
        return first

    def _stimuli_of(self, subject: int) -> np.ndarray:
        """Return the stimulus of all trials of a subject, `(9840,)` int64."""
        return self.images.numbers(self._experiment(subject).names)

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed; `trial` is the makers' `trial_id`.

        Raises:
            OptionError: If there is no such session.
            BadDataError: If the trials are not THINGS-fMRI's.
        """
        self._check_session(session)
        shown = self._experiment(subject)
        own = shown.session == session
        return Trials(shown.trial[own], self._stimuli_of(subject)[own], shown.repeat[own])

    def _table(self, subject: int) -> Table:
        """Return where a subject's responses keep what."""
        if subject not in self._tables:
            self._tables[subject] = read_table(self._responses(subject), SESSIONS * TRIALS_PER_SESSION)
        return self._tables[subject]

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return a subject's responses and how many of their bytes are read."""
        table, trials = self._table(subject), self.trials(subject, session).trial
        where = self.files.where(self._key(subject, "ResponseData.h5"))
        return where, voxels * table.span(trials)[1] * table.itemsize

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set with the labels of all ROIs.

        Raises:
            BadDataError: If the voxel set selects none, or the responses are of other voxels.
            UnknownNameError: If there is no such ROI.
        """
        return self._chosen(subject)[0]

    def _chosen(self, subject: int) -> tuple[VoxelTable, np.ndarray]:
        """Return the voxels of the voxel set, and their `voxel_id`s `(V,)`."""
        if subject not in self._voxels:
            path = self._local(subject, "VoxelMetadata.csv")
            every, held = read_voxels(path, subject), self._table(subject).voxel
            # Compared before any betas are read: a table cut at the end of a row looks whole by itself.
            if not np.array_equal(np.sort(every.number), np.sort(held)):
                raise BadDataError(
                    f"{path} has {len(every.number)} voxels, the responses beside it {len(held)}, or other ones"
                )
            labels, voxelset = every.labels, self.options.voxelset
            where = f"voxel set {voxelset!r} of subject {subject}"
            for atlas in roi.parse(voxelset).atlases:
                if atlas not in labels:
                    raise UnknownNameError("ROI", atlas, labels, where)
            columns = roi.columns(voxelset, labels, {name: {name: 1} for name in labels})
            if not len(columns):
                raise BadDataError(f"{where} selects no voxel of {path}")
            own = {atlas: values[columns] for atlas, values in labels.items()}
            table = VoxelTable(every.coordinates[columns], every.ncsnr[columns], own)
            self._voxels[subject] = table, every.number[columns]
        return self._voxels[subject]

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a session, reading their columns of the voxels' rows only.

        Raises:
            BadDataError: If the responses' voxels or trials are not those of the tables.
            CorruptFileError: If the file is damaged.
        """
        shown = self.trials(subject, session)
        table, numbers = self._chosen(subject)
        # Coordinates name voxels everywhere else; only the responses know them by voxel_id.
        place = {tuple(at): number for at, number in zip(table.coordinates.tolist(), numbers, strict=True)}
        wanted = np.array([place[tuple(at)] for at in voxels.coordinates.tolist()], dtype=np.int64)
        values, bytes_read = read_betas(self._responses(subject), self._table(subject), wanted, shown.trial)
        return SessionTrials(shown.trial, shown.stimulus, shown.repeat, values, bytes_read)

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield pictures with their concept as label, in the order of the numbers; the 100 test images are shared.

        Raises:
            MissingDataError: If a picture is missing.
            CorruptFileError: If a picture is damaged.
        """
        for number in numbers:
            key, concept = self._picture(number), self.images.concepts[number]
            if not self.pictures.exists(key):
                raise MissingDataError(
                    f"no picture {self.pictures.where(key)}: the responses come without pictures; get the THINGS "
                    "database from things-initiative.org and set option images to its folder of concepts"
                )
            with self.pictures.open(key) as file:
                image = decode(file.range(0, self.pictures.size(key)), self.pictures.where(key))
            yield Stimulus(number, image, (), concept, self.images.test[number])

    def _picture(self, number: int) -> str:
        """Return the key of a picture."""
        if not 0 <= number < len(self.images.names):
            raise MissingDataError(f"THINGS-fMRI has pictures 0 to {len(self.images.names) - 1}, not {number}")
        return f"{self.images.concepts[number]}/{self.images.names[number]}"

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """Return what pictures are in their source, for audits across datasets: `things:dog/dog_12s.jpg`."""
        return [f"things:{self._picture(number)}" for number in numbers]
