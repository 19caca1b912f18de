"""Generic Object Decoding: five people saw 1,200 training and 50 test images, and imagined (Horikawa & Kamitani 2017).

All perceived trials of a subject are session 1. The scanning sessions are not told apart, because training and test
images were shown in different ones: z-scoring a test session by training trials of its own would find none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.data import roi
from bench.data.datasets.base import Dataset, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.god.images import TRAINING, Images, Pictures, images_of, synset_of
from bench.data.god.responses import IMAGERY, SUBJECTS, TEST, TRAIN, Bdpy, Npz, Responses, Shown, Voxels, check_rows
from bench.data.nsd.design import occurrences
from bench.data.source_files import SourceFiles
from bench.errors import BadDataError, MissingDataError, OptionError, UnknownNameError
from bench.identity import digest

TERMS = (
    "Generic Object Decoding's responses may be used under the licence named at their source (figshare 7387130, "
    "OpenNeuro ds001246); its pictures are ImageNet's, each its owner's, and are sent by the makers on request."
)
FORMS: Mapping[str, type[Responses]] = {"bdpy": Bdpy, "npz": Npz}


@dataclass(frozen=True)
class GodOptions:
    """Where the files are and which of them to read.

    Attributes:
        root: Folder with `Subject1.h5`... or MinD-Vis' `sbj_1.npz`... (also in its `npz` or `Kamitani/npz`), and with
            pictures: `images/image_training` and `images/image_test`, or `images_256.npz` with its label files.
        betas: Form of the responses: `bdpy` (`Subject1.h5`) or `npz` (`sbj_1.npz`).
        trials: `perception` (training and test images), or `imagery`: test trials without a picture before the eyes,
            whose stimulus is the test image of the imagined category. Never both: nothing may be trained on imagery.
        voxelset: ROI expression of `ROI_VC`, `ROI_LVC`, `ROI_HVC`, `ROI_V1`, ... `ROI_PPA`.
        subjects: Subjects from 1, or None for all that have a file.
        sessions: Session 1, or None for it: the files hold one.
        signed: Sign requests to a bucket with the environment's credentials, as a private mirror asks.
        name: Name on shards and boards.
    """

    root: str
    betas: str = "bdpy"
    trials: Literal["perception", "imagery"] = "perception"
    voxelset: str = "ROI_VC"
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | int | None = None
    signed: bool = False
    name: str = "god"


class God(Dataset):
    """Reads the makers' files or MinD-Vis'; see `bench.data.god` for the parts."""

    version = 1
    Options = GodOptions
    terms = TERMS
    caption_source = "none"
    dtype = "<f4"
    scale = 1.0

    def __init__(self, options: GodOptions) -> None:
        super().__init__(options)
        if options.betas not in FORMS:
            raise UnknownNameError("betas", options.betas, FORMS, "options of dataset 'god'")
        if options.trials == "imagery" and options.betas == "npz":
            raise OptionError("betas 'npz' hold no imagery trials; read them from bdpy's Subject1.h5...")
        roi.parse(options.voxelset)
        self.name = options.name
        self.files = SourceFiles(options.root, options.signed)
        self.responses = FORMS[options.betas](self.files)
        self.pictures = Pictures(self.files)
        self._shown: dict[int, Shown] = {}
        self._voxels: dict[int, Voxels] = {}

    @property
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"{self.options.betas}.{self.options.trials}.{roi.slug(self.options.voxelset)}"

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content; `label_names` serve ROI expressions at read time."""
        subjects = [subject for subject, _ in self.sessions()]
        atlases = sorted({atlas for subject in subjects for atlas in self._all_voxels(subject).labels})
        shown = {
            str(s): digest([self.trials(s, 1).trial.tolist(), self.trials(s, 1).stimulus.tolist()]) for s in subjects
        }
        return {
            **self._origin(),
            "betas": self.options.betas,
            "trials": self.options.trials,
            "voxelset": roi.canonical(self.options.voxelset),
            "sessions": {str(subject): [1] for subject in subjects},
            "shown": shown,
            "voxels": {str(subject): self.voxels(subject).digest for subject in subjects},
            "label_names": {atlas: {atlas.removeprefix("ROI_"): 1} for atlas in atlases},
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures and labels."""
        return {**self._origin(), "pictures": self.pictures.kind}

    def _origin(self) -> dict[str, Any]:
        return {"reader": "god", "version": self.version, "images": self.images.digest}

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, 1) pairs to prepare, sorted.

        Raises:
            MissingDataError: If a subject that was asked for has no file, or none has.
            OptionError: If there is no such subject or session.
        """
        wanted = self.options.subjects
        asked = SUBJECTS if wanted is None else sorted(set(wanted))
        if unknown := sorted(set(asked) - set(SUBJECTS)):
            raise OptionError(f"no subject {unknown[0]}: GOD has subjects 1 to 5")
        numbers = self.options.sessions
        if numbers is not None and set(range(1, numbers + 1) if isinstance(numbers, int) else numbers) != {1}:
            raise OptionError(f"sessions {numbers}: GOD's files hold one session a subject, session 1")
        present = [subject for subject in asked if self.responses.present(subject)]
        absent = [subject for subject in asked if subject not in present]
        if not present or (wanted is not None and absent):
            raise MissingDataError(f"no responses: there is no {self.files.where(self.responses.file(absent[0]))}")
        return [(subject, 1) for subject in present]

    def _all_shown(self, subject: int) -> Shown:
        """Return what all rows of a subject's file are."""
        if subject not in self._shown:
            self._shown[subject] = self.responses.shown(subject)
        return self._shown[subject]

    @functools.cached_property
    def images(self) -> Images:
        """The images' numbering; every subject saw the same ones.

        Raises:
            BadDataError: If a subject's images are not those of the first.
        """
        found: dict[int, Images] = {}
        for subject, _ in self.sessions():
            shown, where = self._all_shown(subject), self.files.where(self.responses.file(subject))
            training, test = ([shown.names[row] for row in shown.rows(kind)] for kind in (TRAIN, TEST))
            found[subject] = images_of(training, test, where)
            first = min(found)
            if found[subject] != found[first]:
                other = sorted(set(found[subject].names) - set(found[first].names))
                raise BadDataError(f"{where} shows images that subject {first} did not see, such as {other[0]}")
        return found[min(found)]

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a subject saw or imagined; `trial` is the row of the file.

        Raises:
            OptionError: If it is not session 1.
            BadDataError: If the file's imagery trials, which were asked for, are not 50 x 10.
        """
        if session != 1:
            raise OptionError(f"no session {session}: GOD's files hold one session a subject, session 1")
        shown, where = self._all_shown(subject), self.files.where(self.responses.file(subject))
        if self.options.trials == "perception":
            rows = shown.rows(TRAIN, TEST)
            stimulus = self.images.numbers([shown.names[row] for row in rows])
            return Trials(rows, stimulus, occurrences(stimulus))
        rows = shown.rows(IMAGERY)
        check_rows(shown, (IMAGERY,), where)
        stimulus = self.images.imagined([shown.names[row] for row in rows], where)
        return Trials(rows, stimulus, occurrences(stimulus))

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return a subject's file and its size: all of it is read."""
        del session, voxels
        key = self.responses.file(subject)
        return self.files.where(key), self.files.size(key)

    def _all_voxels(self, subject: int) -> Voxels:
        """Return all voxels of a subject's file."""
        if subject not in self._voxels:
            self._voxels[subject] = self.responses.voxels(subject)
        return self._voxels[subject]

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set with the labels of all ROIs; ncsnr is not published.

        Raises:
            BadDataError: If the voxel set selects none.
            UnknownNameError: If the subject has no such ROI.
        """
        every = self._all_voxels(subject)
        voxelset, where = self.options.voxelset, f"voxel set {self.options.voxelset!r} of subject {subject}"
        for atlas in roi.parse(voxelset).atlases:
            if atlas not in every.labels:
                raise UnknownNameError("ROI", atlas, every.labels, where)
        names = {atlas: {atlas.removeprefix("ROI_"): 1} for atlas in every.labels}
        chosen = roi.columns(voxelset, every.labels, names)
        if not len(chosen):
            sizes = {atlas: int(labels.sum()) for atlas, labels in every.labels.items()}
            raise BadDataError(f"{where} selects no voxel; its ROIs have {sizes}")
        labels = {atlas: values[chosen] for atlas, values in every.labels.items()}
        return VoxelTable(every.coordinates[chosen], np.full(len(chosen), np.nan, np.float32), labels)

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a subject with responses in percent signal change, as float32.

        Raises:
            BadDataError: If the file's parts do not fit together.
            CorruptFileError: If the file is damaged.
        """
        shown = self.trials(subject, session)
        columns = self._all_voxels(subject).columns_at(voxels.coordinates)
        values = self.responses.read(subject, shown.trial, columns)
        bytes_read = self.reads(subject, session, len(columns))[1]
        return SessionTrials(shown.trial, shown.stimulus, shown.repeat, values, bytes_read)

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield pictures with their synset as label, in the order of the numbers; the 50 test images are shared.

        Raises:
            MissingDataError: If a picture is missing.
            CorruptFileError: If a picture is damaged.
        """
        for number in numbers:
            if not 0 <= number < len(self.images.names):
                raise MissingDataError(f"GOD has pictures 0 to {len(self.images.names) - 1}, not {number}")
        for number, image in zip(numbers, self.pictures.read(self.images, numbers), strict=True):
            yield Stimulus(number, image, (), synset_of(self.images.names[number]), number >= TRAINING)

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """Return what pictures are in their source, for audits across datasets: `imagenet:n01518878_10042`."""
        return [f"imagenet:{self.images.names[number]}" for number in numbers]
