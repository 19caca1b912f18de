"""BOLD5000, release 2.0: single-trial betas by GLMsingle while four people saw 4,916 pictures (Chang et al. 2019)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.data import roi
from bench.data.bold5000 import layout, stimuli
from bench.data.bold5000.betas import LABELS, Betas, RoiArrays, Volumes
from bench.data.bold5000.design import Design, kind_of, read_design
from bench.data.datasets.base import Dataset, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.source_files import SourceFiles
from bench.errors import BadDataError, MissingDataError, OptionError, UnknownNameError
from bench.identity import digest

TERMS = (
    "BOLD5000's responses are in the public domain (CC0); its pictures and their labels are not: they are COCO's, "
    "ImageNet's and the SUN database's, each under the terms of its source."
)
SPACES: Mapping[str, type[Betas]] = {"func2mm": Volumes, "rois": RoiArrays}


@dataclass(frozen=True)
class Bold5000Options:
    """Where the files are and which of them to read.

    Attributes:
        root: Folder with the betas and lists of release 2.0, `BOLD5000_Stimuli` and the masks; see
            `bench.data.bold5000.layout`.
        betas: Beta version as its files spell it: `TYPEA-ASSUMEHRF`, `TYBEB-FITHRF`, `TYPEC-FITHRF-GLMDENOISE` or
            `TYPED-FITHRF-GLMDENOISE-RR`.
        space: `func2mm` (volumes at the voxels of the ROI masks) or `rois` (the ROI arrays of MinD-Vis, of the last
            beta version only).
        voxelset: ROI expression of EarlyVis, LOC, OPA, PPA, RSC (`LOC:LH` is the left one's) and, for volumes,
            `brainmask`: voxels outside the brain are NaN, which z-scoring refuses, and `LOC & brainmask` leaves out.
        subjects: Subjects from 1 (CSI1), or None for all that have betas.
        sessions: Sessions from 1, or their number counted from the first, or None for all that have betas.
        annotations: Local folder with COCO's `captions_train2014.json`, or both of 2017, for the captions of COCO's
            pictures; "" leaves them without. Pictures of ImageNet and SUN have none.
        signed: Sign requests to a bucket with the environment's credentials, as a private mirror asks.
        name: Name on shards and boards.
    """

    root: str
    betas: str = "TYPED-FITHRF-GLMDENOISE-RR"
    space: str = "func2mm"
    voxelset: str = " | ".join(layout.ROIS)
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | int | None = None
    annotations: str = ""
    signed: bool = False
    name: str = "bold5000"


class Bold5000(Dataset):
    """Reads BOLD5000's own files; see `bench.data.bold5000` for the parts."""

    version = 1
    Options = Bold5000Options
    terms = TERMS
    dtype = "<f4"
    scale = 1.0

    def __init__(self, options: Bold5000Options) -> None:
        super().__init__(options)
        for kind, value, allowed in (("space", options.space, SPACES), ("betas", options.betas, layout.BETAS)):
            if value not in allowed:
                raise UnknownNameError(kind, value, allowed, "options of dataset 'bold5000'")
        roi.parse(options.voxelset)
        self.name = options.name
        self.caption_source = "COCO annotations" if options.annotations else "none"
        self.files = SourceFiles(options.root, options.signed)
        self.betas = SPACES[options.space](self.files, options.betas)
        self._tables: dict[int, VoxelTable] = {}

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
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"{self.options.betas}.{self.options.space}.{roi.slug(self.options.voxelset)}"

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content; `label_names` serve ROI expressions at read time."""
        chosen = self.sessions()
        subjects = sorted({subject for subject, _ in chosen})
        return {
            **self._origin(),
            "betas": self.options.betas,
            "space": self.options.space,
            "voxelset": roi.canonical(self.options.voxelset),
            "sessions": {str(subject): [n for s, n in chosen if s == subject] for subject in subjects},
            "voxels": {str(subject): self.voxels(subject).digest for subject in subjects},
            "label_names": dict.fromkeys(layout.ROIS, LABELS),
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures, labels and captions."""
        return {**self._origin(), "captions": self.caption_source, "labels": digest(list(self._labels))}

    def _origin(self) -> dict[str, Any]:
        return {"reader": "bold5000", "version": self.version, "design": self.design.digest}

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, session) pairs to prepare, sorted.

        Raises:
            MissingDataError: If a session that was asked for has no betas, or there are none at all.
            OptionError: If there is no such subject or session.
        """
        pairs = []
        for subject in self._subjects():
            present = self.betas.sessions(subject)
            for session in self._sessions_of(subject, present):
                self.design.rows(subject, session)
                if session not in present:
                    where = self.files.where(self.betas.file(subject, session))
                    raise MissingDataError(f"no betas of subject {subject}, session {session}: there is no {where}")
                pairs.append((subject, session))
        if not pairs:
            raise MissingDataError(f"{self.options.root} has no betas {self.options.betas} in {self.options.space}")
        return pairs

    def _subjects(self) -> Sequence[int]:
        """Return the subjects asked for, or all that have betas, sorted."""
        if self.options.subjects is None:
            return [subject for subject in layout.SUBJECTS if self.betas.sessions(subject)]
        if unknown := sorted(set(self.options.subjects) - set(layout.SUBJECTS)):
            raise OptionError(f"no subject {unknown[0]}: BOLD5000 has subjects 1 to 4 (CSI1 to CSI4)")
        return sorted(set(self.options.subjects))

    def _sessions_of(self, subject: int, present: Sequence[int]) -> Sequence[int]:
        """Return the sessions asked for, or all up to the last that has betas."""
        wanted = self.options.sessions
        if isinstance(wanted, int):
            return range(1, wanted + 1)
        if wanted is not None:
            return sorted(set(wanted))
        # One missing in between must be noticed; a subject asked for without any begins to fail at its first.
        return range(1, max(present, default=1) + 1)

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

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set in canonical order with the labels of all ROIs; ncsnr is not published.

        Raises:
            BadDataError: If the voxel set selects none.
            UnknownNameError: If the subject has no such ROI.
        """
        if subject not in self._tables:
            self._tables[subject] = self._table(subject)
        return self._tables[subject]

    def _table(self, subject: int) -> VoxelTable:
        maps = self.betas.maps(subject)
        voxelset, where = self.options.voxelset, f"voxel set {self.options.voxelset!r} of CSI{subject}"
        for atlas in roi.parse(voxelset).atlases:
            if atlas not in maps:
                raise UnknownNameError("ROI", atlas, maps, where)
        chosen = roi.mask(voxelset, maps, dict.fromkeys(layout.ROIS, LABELS))
        if not chosen.any():
            sizes = {atlas: int((labels > 0).sum()) for atlas, labels in maps.items()}
            raise BadDataError(f"{where} selects no voxel; its ROIs have {sizes}")
        coordinates = np.argwhere(chosen).astype(np.int32)
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
        return SessionTrials(shown.trial, shown.stimulus, shown.repeat, values, bytes_read)

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
        if not 0 <= number < len(self.design.names):
            raise MissingDataError(f"BOLD5000 has pictures 0 to {len(self.design.names) - 1}, not {number}")
        return self.design.names[number]

    def _captions(self, name: str) -> tuple[str, ...]:
        """Return COCO's captions of a picture, none for those that are not COCO's."""
        image = stimuli.coco_id(name)
        if not self.options.annotations or image is None:
            return ()
        if image not in self._coco_captions:
            raise MissingDataError(f"{self.options.annotations} has no caption of COCO image {image} ({name})")
        return self._coco_captions[image]

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """Return what pictures are in their sources, for audits across datasets: `coco:396550`, `imagenet:...`."""
        names = [self._name(number) for number in numbers]
        ids = [stimuli.coco_id(name) for name in names]
        plain = [f"{kind_of(name).lower()}:{name.rpartition('.')[0]}" for name in names]
        return [other if image is None else f"coco:{image}" for image, other in zip(ids, plain, strict=True)]
