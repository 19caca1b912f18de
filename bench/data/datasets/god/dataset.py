"""Generic Object Decoding: five people saw 1,200 training and 50 test images, and imagined (Horikawa & Kamitani 2017).

All perceived trials of a subject are session 1. The scanning sessions are not told apart, because training and test
images were shown in different ones: z-scoring a test session by training trials of its own would find none.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench.core.errors import BadDataError, OptionError
from bench.core.identity import digest
from bench.data.datasets._occurrences import occurrences
from bench.data.datasets._single_root import RootOptions, SingleRoot
from bench.data.datasets.base import BetaUnit, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.datasets.god.images import TRAINING, Images, Pictures, images_of, synset_of
from bench.data.datasets.god.responses import (
    IMAGERY,
    SUBJECTS,
    TEST,
    TRAIN,
    Bdpy,
    Npz,
    Responses,
    RowLabels,
    Voxels,
    check_rows,
)

FORMS: Mapping[str, type[Responses]] = {"bdpy": Bdpy, "npz": Npz}


@dataclass(frozen=True, kw_only=True)
class GodOptions(RootOptions):
    """Which of GOD's files to read; what is not named here is as in `RootOptions`.

    Attributes:
        root: Folder with `Subject1.h5`... or MinD-Vis' `sbj_1.npz`... (also in its `npz` or `Kamitani/npz`), and with
            pictures: `images/image_training` and `images/image_test`, or `images_256.npz` with its label files.
        betas: Form of the responses: `bdpy` (`Subject1.h5`) or `npz` (`sbj_1.npz`).
        trials: `perception` (training and test images), or `imagery`: test trials without a picture before the eyes,
            whose stimulus is the test image of the imagined category. Never both: nothing may be trained on imagery.
        voxelset: ROI expression of `ROI_VC`, `ROI_LVC`, `ROI_HVC`, `ROI_V1`, ... `ROI_PPA`.
        sessions: Session 1, or None for it: the files hold one.
    """

    betas: str = "bdpy"
    trials: Literal["perception", "imagery"] = "perception"
    voxelset: str = "ROI_VC"


class God(SingleRoot):
    """Reads the makers' files or MinD-Vis'; see `bench.data.datasets.god` for the parts."""

    version = 1
    Options = GodOptions
    terms = (
        "Generic Object Decoding's responses may be used under the licence named at their source (figshare 7387130, "
        "OpenNeuro ds001246); its pictures are ImageNet's, each its owner's, and are sent by the makers on request."
    )
    caption_source = "none"
    dtype = "<f4"
    scale = 1.0
    unit = BetaUnit("percent signal change", 0.3, 30.0, "amplitudes over a block's volumes: Horikawa & Kamitani 2017")
    reader = "god"
    title = "GOD"
    SUBJECTS = SUBJECTS
    choices: ClassVar[Mapping[str, Collection[str]]] = {"betas": FORMS}

    def __init__(self, options: GodOptions) -> None:
        super().__init__(options)
        # Told at once: MinD-Vis' arrays hold training and test trials only.
        if options.trials == "imagery" and options.betas == "npz":
            raise OptionError("betas 'npz' hold no imagery trials; read them from bdpy's Subject1.h5...")
        self.responses = FORMS[options.betas](self.files)
        self.pictures = Pictures(self.files)
        self._shown: dict[int, RowLabels] = {}
        self._voxels: dict[int, Voxels] = {}

    @property
    def form(self) -> str:
        """Form of the responses, and what the trials are."""
        return f"{self.options.betas}.{self.options.trials}"

    @property
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """Every ROI of any prepared subject is an atlas of its own with one label: ROIs overlap."""
        return _names_of(*(self._all_voxels(subject).labels for subject, _ in self.sessions()))

    def origin(self) -> Mapping[str, Any]:
        """Return the reader's version and the images."""
        return {**super().origin(), "images": self.images.digest}

    def content(self) -> Mapping[str, Any]:
        """Return form, kind of trials, voxels, sessions and what they showed."""
        shown = {str(s): self.trials(s, session) for s, session in self.sessions()}
        return {
            **super().content(),
            "betas": self.options.betas,
            "trials": self.options.trials,
            "sessions": self.sessions_by_subject(),
            "shown": {s: digest([trials.trial.tolist(), trials.stimulus.tolist()]) for s, trials in shown.items()},
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures and labels."""
        return {**self.origin(), "pictures": self.pictures.kind}

    def present(self, subject: int) -> Collection[int]:
        """Return session 1 where a subject has a file."""
        return (1,) if self.responses.present(subject) else ()

    def keys(self, subject: int, session: int) -> Sequence[str]:
        """Return a subject's file."""
        del session
        return (self.responses.file(subject),)

    def _all_shown(self, subject: int) -> RowLabels:
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
        # Every subject and not just the first: a stimulus number means the same picture in all shards.
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
            OptionError: If there is no such subject or session.
            BadDataError: If the file's imagery trials, which were asked for, are not 50 x 10.
        """
        self.check(subject, session)
        shown, where = self._all_shown(subject), self.files.where(self.responses.file(subject))
        if self.options.trials == "perception":
            rows = shown.rows(TRAIN, TEST)
            stimulus = self.images.numbers([shown.names[row] for row in rows])
            return Trials(rows, stimulus, occurrences(stimulus))
        # Counted here, where it was asked for: files without imagery serve perception.
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

    def read_voxels(self, subject: int) -> VoxelTable:
        """Read the voxels of the voxel set with the labels of all ROIs; ncsnr is not published."""
        every = self._all_voxels(subject)
        chosen = np.flatnonzero(self.select(subject, every.labels, _names_of(every.labels)))
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
        return shown.with_betas(values, bytes_read)

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield pictures with their synset as label, in the order of the numbers; the 50 test images are shared.

        Raises:
            MissingDataError: If a picture is missing.
            CorruptFileError: If a picture is damaged.
        """
        # All of them before the first picture, which is looked up by place: -1 would be the last one.
        for number in numbers:
            self.check_number(number, len(self.images.names))
        for number, image in zip(numbers, self.pictures.read(self.images, numbers), strict=True):
            yield Stimulus(number, image, (), synset_of(self.images.names[number]), number >= TRAINING)

    def origins(self, numbers: Sequence[int]) -> list[str | None]:
        """Return what pictures are in ImageNet: `imagenet:n01518878_10042`."""
        return [f"imagenet:{self.images.names[number]}" for number in numbers]


def _names_of(*labels: Mapping[str, np.ndarray]) -> Mapping[str, Mapping[str, int]]:
    """Return the label names of all ROIs of some subjects: `ROI_V1` has the label `V1`."""
    return {atlas: {atlas.removeprefix("ROI_"): 1} for atlas in sorted({atlas for own in labels for atlas in own})}
