"""THINGS-fMRI: three people saw 8,740 pictures of 720 concepts in 12 sessions (Hebart et al. 2023).

All 100 test concepts are training concepts too, with other pictures. A stimulus' label is its concept, so a decoder of
labels has seen the labels of the test.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.errors import BadDataError, MissingDataError
from bench.core.identity import digest
from bench.data.datasets._single_root import RootOptions, SingleRoot
from bench.data.datasets.base import BetaUnit, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.datasets.things.responses import Table, read_betas, read_table
from bench.data.datasets.things.tables import SESSIONS, TRIALS_PER_SESSION, Experiment, Images, read_experiment
from bench.data.datasets.things.voxels import label_names, read_voxels
from bench.data.sources.files import SourceFiles
from bench.data.sources.pictures import decode
from bench.data.sources.ranges import RangeFile


@dataclass(frozen=True, kw_only=True)
class ThingsOptions(RootOptions):
    """Which of THINGS-fMRI's files to read; what is not named here is as in `RootOptions`.

    Attributes:
        root: Folder that holds `betas_csv` (figshare 20492835), or its s3:// address.
        images: Folder of the THINGS database's pictures, `<concept>/<concept>_12s.jpg`, or its s3:// address; "" is
            `images` below the root.
        voxelset: ROI expression of V1, V2, V3, hV4, VO1... (`prf` is all of these), lEBA, rEBA... IT (`floc`), and
            `glasser-V1`... (`glasser`); see `bench.data.datasets.things.voxels`.
    """

    images: str = ""
    voxelset: str = "prf | floc"


class Things(SingleRoot):
    """Reads the table format of THINGS-fMRI; see `bench.data.datasets.things` for the parts."""

    version = 1
    Options = ThingsOptions
    terms = (
        "THINGS-fMRI's responses are in the public domain (CC0); the pictures of the THINGS database are not: they may "
        "be used for academic research only, under the terms on things-initiative.org."
    )
    caption_source = "none"
    dtype = "<f4"
    scale = 1.0
    # Not percent signal change, and no factor makes them so: noise was regressed out run by run, then z-scored.
    unit = BetaUnit("standard deviations of a voxel's time course", 0.01, 1.0, "about 0.1: Hebart et al. 2023")
    reader = "things"
    title = "THINGS-fMRI"
    SUBJECTS = (1, 2, 3)
    SESSIONS = SESSIONS

    def __init__(self, options: ThingsOptions) -> None:
        super().__init__(options)
        # A root of their own: other people give the pictures out than the responses.
        self.pictures = SourceFiles(options.images or f"{options.root.rstrip('/')}/images", options.signed)
        self._experiments: dict[int, Experiment] = {}
        self._layouts: dict[int, Table] = {}
        self._numbers: dict[int, np.ndarray] = {}

    @property
    def form(self) -> str:
        """The one form the responses come in, and the subject's own anatomical space."""
        return "betas_csv.t1w2mm"

    @property
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """Every ROI of any prepared subject, and every family, is an atlas of its own with one label."""
        return {
            atlas: names
            for subject in self.sessions_by_subject()
            for atlas, names in label_names(self._local(int(subject), "VoxelMetadata.csv")).items()
        }

    def origin(self) -> Mapping[str, Any]:
        """Return the reader's version and the images with their concepts."""
        return {**super().origin(), "images": self.images.digest}

    def content(self) -> Mapping[str, Any]:
        """Return voxels, sessions and what all sessions showed."""
        chosen = self.sessions_by_subject()
        return {
            **super().content(),
            "sessions": chosen,
            "shown": {subject: digest(self._stimuli_of(int(subject)).tolist()) for subject in chosen},
        }

    def _key(self, subject: int, part: str) -> str:
        return f"betas_csv/sub-{subject:02d}_{part}"

    def _local(self, subject: int, part: str) -> Path:
        return self.files.local(self._key(subject, part))

    def _responses(self, subject: int) -> Path | RangeFile:
        """Return a subject's responses: 16.6 GB, of which only what is needed is read."""
        return self.files.path_or_file(self._key(subject, "ResponseData.h5"))

    def present(self, subject: int) -> Collection[int]:
        """Return all sessions where a subject has responses: one file holds them."""
        return range(1, SESSIONS + 1) if self.files.exists(self._key(subject, "ResponseData.h5")) else ()

    def keys(self, subject: int, session: int) -> Sequence[str]:
        """Return a subject's responses."""
        del session
        return (self._key(subject, "ResponseData.h5"),)

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
            OptionError: If there is no such subject or session.
            BadDataError: If the trials are not THINGS-fMRI's.
        """
        self.check(subject, session)
        shown = self._experiment(subject)
        # One table and one file of responses hold all sessions of a subject.
        own = shown.session == session
        return Trials(shown.trial[own], self._stimuli_of(subject)[own], shown.repeat[own])

    def _table(self, subject: int) -> Table:
        """Return where a subject's responses keep what."""
        if subject not in self._layouts:
            self._layouts[subject] = read_table(self._responses(subject), SESSIONS * TRIALS_PER_SESSION)
        return self._layouts[subject]

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return a subject's responses and how many of their bytes are read."""
        table, trials = self._table(subject), self.trials(subject, session).trial
        where = self.files.where(self._key(subject, "ResponseData.h5"))
        return where, voxels * table.span(trials)[1] * table.itemsize

    def read_voxels(self, subject: int) -> VoxelTable:
        """Read the voxels of the voxel set with the labels of all ROIs, and keep their `voxel_id`s.

        Raises:
            BadDataError: If the responses are of other voxels.
        """
        path = self._local(subject, "VoxelMetadata.csv")
        every, held = read_voxels(path, subject), self._table(subject).voxel
        # Compared before any betas are read: a table cut at the end of a row looks whole by itself.
        if not np.array_equal(np.sort(every.number), np.sort(held)):
            raise BadDataError(
                f"{path} has {len(every.number)} voxels, the responses beside it {len(held)}, or other ones"
            )
        # Taken once: the property draws 225 maps anew each time.
        labels = every.labels
        chosen = np.flatnonzero(self.select(subject, labels, {name: {name: 1} for name in labels}))
        self._numbers[subject] = every.number[chosen]
        own = {atlas: values[chosen] for atlas, values in labels.items()}
        return VoxelTable(every.coordinates[chosen], every.ncsnr[chosen], own)

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a session, reading their columns of the voxels' rows only.

        Raises:
            BadDataError: If the responses' voxels or trials are not those of the tables.
            CorruptFileError: If the file is damaged.
        """
        shown = self.trials(subject, session)
        table = self.voxels(subject)
        # Coordinates name voxels everywhere else; only the responses know them by voxel_id.
        number_at = {
            tuple(at): number for at, number in zip(table.coordinates.tolist(), self._numbers[subject], strict=True)
        }
        wanted = np.array([number_at[tuple(at)] for at in voxels.coordinates.tolist()], dtype=np.int64)
        values, bytes_read = read_betas(self._responses(subject), self._table(subject), wanted, shown.trial)
        return shown.with_betas(values, bytes_read)

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
        self.check_number(number, len(self.images.names))
        return f"{self.images.concepts[number]}/{self.images.names[number]}"

    def origins(self, numbers: Sequence[int]) -> list[str | None]:
        """Return what pictures are in the THINGS database: `things:dog/dog_12s.jpg`."""
        return [f"things:{self._picture(number)}" for number in numbers]
