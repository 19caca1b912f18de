"""BOLD5000, release 2.0: single-trial betas by GLMsingle while four people saw 4,916 pictures (Chang et al. 2019)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.core.errors import MissingDataError
from bench.core.identity import digest
from bench.data.datasets._single_root import RootOptions, SingleRoot
from bench.data.datasets.base import BetaUnit, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.datasets.bold5000 import layout, stimuli
from bench.data.datasets.bold5000.betas import LABELS, Betas, RoiArrays, Volumes
from bench.data.datasets.bold5000.design import Design, read_design

SPACES: Mapping[str, type[Betas]] = {"func2mm": Volumes, "rois": RoiArrays}


@dataclass(frozen=True, kw_only=True)
class Bold5000Options(RootOptions):
    """Which of BOLD5000's files to read; what is not named here is as in `RootOptions`.

    Attributes:
        root: Folder with the betas and lists of release 2.0, `BOLD5000_Stimuli` and the masks; see
            `bench.data.datasets.bold5000.layout`.
        betas: Beta version as its files spell it: `TYPEA-ASSUMEHRF`, `TYBEB-FITHRF`, `TYPEC-FITHRF-GLMDENOISE` or
            `TYPED-FITHRF-GLMDENOISE-RR`.
        space: `func2mm` (volumes at the voxels of the ROI masks) or `rois` (the ROI arrays of MinD-Vis, of the last
            beta version only).
        voxelset: ROI expression of EarlyVis, LOC, OPA, PPA, RSC (`LOC:LH` is the left one's) and, for volumes,
            `brainmask`: voxels outside the brain are NaN, which z-scoring refuses, and `LOC & brainmask` leaves out.
        subjects: Subjects from 1 (CSI1), or None for all that have betas.
        annotations: Local folder with COCO's `captions_train2014.json`, or both of 2017, for the captions of COCO's
            pictures; "" leaves them without. Pictures of ImageNet and SUN have none.
    """

    betas: str = "TYPED-FITHRF-GLMDENOISE-RR"
    space: str = "func2mm"
    voxelset: str = " | ".join(layout.ROIS)
    annotations: str = ""


class Bold5000(SingleRoot):
    """Reads BOLD5000's own files; see `bench.data.datasets.bold5000` for the parts."""

    version = 1
    Options = Bold5000Options
    terms = (
        "BOLD5000's responses are in the public domain (CC0); its pictures and their labels are not: they are COCO's, "
        "ImageNet's and the SUN database's, each under the terms of its source."
    )
    dtype = "<f4"
    scale = 1.0
    unit = BetaUnit("percent signal change", 0.3, 30.0, "GLMsingle's betas: Chang et al. 2019, release 2.0")
    reader = "bold5000"
    title = "BOLD5000"
    SUBJECTS = layout.SUBJECTS
    choices: ClassVar[Mapping[str, Collection[str]]] = {"space": SPACES, "betas": layout.BETAS}

    def __init__(self, options: Bold5000Options) -> None:
        super().__init__(options)
        self.caption_source = "COCO annotations" if options.annotations else "none"
        self.betas = SPACES[options.space](self.files, options.betas)

    @functools.cached_property
    def design(self) -> Design:
        """The experiment design, 0-based."""
        return read_design(self.files)

    @functools.cached_property
    def _labels(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """Labels of ImageNet's synsets, and of the scenes."""
        return stimuli.read_labels(self.files)

    @functools.cached_property
    def _coco_captions(self) -> Mapping[int, tuple[str, ...]]:
        """COCO's captions by image id; none where no folder of them was named."""
        return stimuli.captions_of(self.options.annotations) if self.options.annotations else {}

    @property
    def form(self) -> str:
        """Beta version and space."""
        return f"{self.options.betas}.{self.options.space}"

    @property
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """Left and right of every ROI; `brainmask` is no ROI and goes into no shard."""
        return dict.fromkeys(layout.ROIS, LABELS)

    def origin(self) -> Mapping[str, Any]:
        """Return the reader's version and the design."""
        return {**super().origin(), "design": self.design.digest}

    def content(self) -> Mapping[str, Any]:
        """Return beta version, space, voxels and sessions."""
        return {
            **super().content(),
            "betas": self.options.betas,
            "space": self.options.space,
            "sessions": self.sessions_by_subject(),
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures, labels and captions."""
        return {**self.origin(), "captions": self.caption_source, "labels": digest(list(self._labels))}

    def present(self, subject: int) -> Collection[int]:
        """Return the sessions of a subject that have betas."""
        return self.betas.sessions(subject)

    def keys(self, subject: int, session: int) -> Sequence[str]:
        """Return the file of a session's betas, or the first of several."""
        return (self.betas.file(subject, session),)

    def check(self, subject: int, session: int) -> None:
        """Raise `OptionError` unless the design has a session: CSI4 has fewer than the others."""
        self.design.rows(subject, session)

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed.

        Raises:
            OptionError: If there is no such subject or session.
        """
        return self.design.trials(subject, session)

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return the file of a session's betas (the first of several) and how many bytes of them are read."""
        del voxels  # all of a row, or of a compressed file, is read whatever the number of voxels
        rows, table = self.design.rows(subject, session), self.voxels(subject)
        path = self.files.where(self.betas.file(subject, session))
        return path, self.betas.needed(subject, session, rows, table.coordinates)

    def read_voxels(self, subject: int) -> VoxelTable:
        """Read the voxels of the voxel set with the labels of all ROIs; ncsnr is not published."""
        maps = self.betas.maps(subject)
        coordinates = np.argwhere(self.select(subject, maps, self.label_names)).astype(np.int32)
        # brainmask chooses voxels and is none of the ROIs that `label_names` tells of.
        labels = {atlas: values[tuple(coordinates.T)] for atlas, values in maps.items() if atlas != "brainmask"}
        return VoxelTable(coordinates, np.full(len(coordinates), np.nan, np.float32), labels)

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a session with betas in percent signal change, NaN where the source has it.

        Raises:
            BadDataError: If the betas do not match the masks or the design's trials.
            CorruptFileError: If a file is damaged.
            MissingDataError: If the session has none.
        """
        shown, rows = self.trials(subject, session), self.design.rows(subject, session)
        values = self.betas.read(subject, session, rows, voxels.coordinates)
        bytes_read = self.betas.needed(subject, session, rows, voxels.coordinates)
        return shown.with_betas(values, bytes_read)

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield pictures with labels and captions, in the order of the numbers.

        Raises:
            MissingDataError: If a picture, or COCO's captions, are missing.
            CorruptFileError: If a picture is damaged.
        """
        for number in numbers:
            name = self._name(number)
            image = stimuli.read_picture(self.files, name)
            label = stimuli.label_of(name, *self._labels)
            yield Stimulus(number, image, self._captions(name), label, bool(self.design.shared[number]))

    def _name(self, number: int) -> str:
        """Return the name of a picture by its number."""
        self.check_number(number, len(self.design.names))
        return self.design.names[number]

    def _captions(self, name: str) -> tuple[str, ...]:
        """Return COCO's captions of a picture, none for those that are not COCO's."""
        image = stimuli.coco_id(name)
        if not self.options.annotations or image is None:
            return ()
        # Annotations of the wrong year would otherwise pass for pictures without captions.
        if image not in self._coco_captions:
            raise MissingDataError(f"{self.options.annotations} has no caption of COCO image {image} ({name})")
        return self._coco_captions[image]

    def origins(self, numbers: Sequence[int]) -> list[str | None]:
        """Return what pictures are in COCO and ImageNet; the scenes were found by a search engine."""
        return [stimuli.origin_of(self._name(number)) for number in numbers]
