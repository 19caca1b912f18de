"""The Natural Scenes Dataset, real or simulated: volumes of single-trial betas (Allen et al. 2022)."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.data import roi
from bench.data.datasets.base import Dataset, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.nsd import atlases, behaviour, layout
from bench.data.nsd.design import Design, read_design
from bench.data.nsd.spaces import BetasFiles, space_of
from bench.data.nsd.stimuli import StimulusInfo, captions_file, read_captions, read_images, read_info
from bench.data.source_files import SourceFiles
from bench.errors import MissingDataError, OptionError, UnknownNameError
from bench.identity import digest

logger = logging.getLogger(__name__)

TERMS = (
    "The Natural Scenes Dataset may be used under the NSD Terms and Conditions only, agreed to by a form on "
    "naturalscenesdataset.org; its pictures are COCO's, each under its photographer's licence."
)


@dataclass(frozen=True)
class NsdOptions:
    """Where the files are and which of them to read.

    Attributes:
        root: Folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`: a local copy, `s3://natural-scenes-dataset`
            or a mirror.
        betas: Beta version: `betas_assumehrf` (b1), `betas_fithrf` (b2) or `betas_fithrf_GLMdenoise_RR` (b3).
        space: `func1pt8mm` or `func1mm` (volumes), `fsaverage` or `nativesurface` (both hemispheres, left first).
        voxelset: ROI expression: the voxels that go into the shards.
        subjects: Subjects from 1, or None for all that have betas.
        sessions: Sessions from 1, or their number counted from the first, or None for all that have a file.
        files: Read HDF5 or NIfTI volumes; `auto` takes HDF5 where there is one. Both hold the same numbers.
        captions: Read COCO's captions, or leave pictures without.
        annotations: Local folder with COCO's `captions_train2017.json` and `captions_val2017.json`, which NSD's bucket
            does not hold; "" for the root's own folder of them.
        signed: Sign requests to a bucket with the environment's credentials, as a private mirror asks.
        name: Name on shards and boards; "" for `nsd`, or `nsd-sim` where the root is a simulated NSD.
    """

    root: str
    betas: str = "betas_fithrf_GLMdenoise_RR"
    space: str = "func1pt8mm"
    voxelset: str = "nsdgeneral"
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | int | None = None
    files: Literal["auto", "hdf5", "nifti"] = "auto"
    captions: bool = True
    annotations: str = ""
    signed: bool = False
    name: str = ""


class Nsd(Dataset):
    """Reads NSD's own files; see `bench.data.nsd` for the parts."""

    version = 1
    Options = NsdOptions

    def __init__(self, options: NsdOptions) -> None:
        super().__init__(options)
        for kind, value, allowed in (("space", options.space, layout.SPACES), ("betas", options.betas, layout.BETAS)):
            if value not in allowed:
                raise UnknownNameError(kind, value, allowed, "options of dataset 'nsd'")
        roi.parse(options.voxelset)
        self.files = SourceFiles(options.root, options.signed)
        kinds = ("hdf5", "nifti") if options.files == "auto" else (options.files,)
        self.space = space_of(self.files, options.space, options.betas, kinds)
        self.dtype, self.scale = self.space.dtype, self.space.scale
        self._tables: dict[int, VoxelTable] = {}

    @functools.cached_property
    def _simulation(self) -> dict[str, Any] | None:
        """What a simulated NSD says of itself; None for the real one."""
        if not self.remote and not Path(self.options.root).is_dir():
            raise MissingDataError(f"no file or folder {self.options.root}")
        if not self.files.exists(layout.SIMULATED):
            return None
        if self.options.name == "nsd":
            raise OptionError(f"{self.options.root} is a simulated NSD: its name cannot be 'nsd', the real one's")
        made: dict[str, Any] = json.loads(self.files.local(layout.SIMULATED).read_bytes())
        return made

    @functools.cached_property
    def name(self) -> str:  # type: ignore[override]
        """The dataset's name on shards and boards."""
        own = "nsd" if self._simulation is None else "nsd-sim"
        return self.options.name or own

    @functools.cached_property
    def terms(self) -> str:  # type: ignore[override]
        """The terms of use; a simulated NSD has none."""
        return TERMS if self._simulation is None else ""

    @functools.cached_property
    def caption_source(self) -> str:  # type: ignore[override]
        """Where the captions come from."""
        return "COCO 2017 annotations" if self._simulation is None else "simulator"

    @functools.cached_property
    def design(self) -> Design:
        """The experiment design, 0-based."""
        return read_design(self.files.local(layout.DESIGN))

    @functools.cached_property
    def info(self) -> StimulusInfo:
        """What is known of every picture."""
        return read_info(self.files.local(layout.STIMULUS_INFO), self.design.shared)

    @functools.cached_property
    def label_names(self) -> dict[str, dict[str, int]]:
        """For each atlas of any prepared subject its label names."""
        subjects = sorted({subject for subject, _ in self.sessions()})
        names = {atlas for s in subjects for atlas in self.space.atlases(s)}
        return {atlas: atlases.read_names(self.files, subjects, atlas) for atlas in sorted(names)}

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
            "label_names": self.label_names,
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures and captions."""
        captions = self.caption_source if self.options.captions else ""
        return {**self._origin(), "captions": captions, "info": self.info.digest}

    def _origin(self) -> dict[str, Any]:
        simulation = "" if self._simulation is None else digest(self._simulation)
        return {"reader": "nsd", "version": self.version, "design": self.design.digest, "simulation": simulation}

    def _betas(self, subject: int, session: int) -> BetasFiles:
        """Return the files of a session's betas.

        Raises:
            MissingDataError: If the session has none.
        """
        stem = layout.session_stem(session)
        found = self.space.find(subject, stem)
        if found is None:
            names = " or ".join(self.space.candidates(subject, stem))
            place = f"subject {subject}, session {session}"
            raise MissingDataError(f"no betas of {place}: {self.options.root} has no {names}")
        return found

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, session) pairs to prepare, sorted.

        Raises:
            MissingDataError: If a session that was asked for, or one between two that are there, has no file.
            OptionError: If the design has no such subject or session.
        """
        pairs = [(s, n) for s in sorted(set(self._subjects())) for n in self._sessions_of(s)]
        for subject, session in pairs:
            self.design.trials(subject, session)
            self._betas(subject, session)
        if not pairs:
            raise MissingDataError(f"{self.options.root} has no betas {self.options.betas} in {self.options.space}")
        return pairs

    def _subjects(self) -> Sequence[int]:
        """Return the subjects asked for, or all that have a betas folder."""
        if self.options.subjects is not None:
            return self.options.subjects
        return [s for s in range(1, self.design.subjects + 1) if self._present(s)]

    def _sessions_of(self, subject: int) -> Sequence[int]:
        """Return the sessions asked for, or all up to the last that has a file."""
        wanted = self.options.sessions
        if isinstance(wanted, int):
            return range(1, wanted + 1)
        if wanted is not None:
            return sorted(set(wanted))
        if not self._present(subject):
            raise MissingDataError(
                f"{self.options.root} has no betas of subject {subject} in "
                f"{layout.betas_folder(subject, self.options.space, self.options.betas)}"
            )
        return range(1, max(self._present(subject)) + 1)

    def _present(self, subject: int) -> set[int]:
        """Return the sessions of a subject that have a file of an allowed kind."""
        numbers = range(1, self.design.sessions + 1)
        return {n for n in numbers if self.space.find(subject, layout.session_stem(n)) is not None}

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed, from the design alone; a simulated NSD may stop each session early.

        Raises:
            OptionError: If the design has no such subject or session.
        """
        shown = self.design.trials(subject, session)
        made = None if self._simulation is None else int(self._simulation["trials_per_session"])
        return Trials(shown.trial[:made], shown.stimulus[:made], shown.repeat[:made])

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return the betas file of a session and how many of its bytes are read.

        Raises:
            MissingDataError: If the session has none.
        """
        betas = self._betas(subject, session)
        trials = len(self.trials(subject, session).trial)
        return self.space.where(betas), self.space.needed(betas, voxels, trials)

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of the voxel set in canonical order, with ncsnr and the labels of all atlases.

        Raises:
            BadDataError: If the voxel set selects none.
            UnknownNameError: If the subject has no such atlas, or the atlas no such label.
        """
        if subject not in self._tables:
            names = self.label_names
            self._tables[subject] = atlases.read_table(self.space, subject, self.options.voxelset, names)
        return self._tables[subject]

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a session with betas as stored: int16 (psc x 300), or fsaverage's float32 (psc).

        Raises:
            BadDataError: If the betas do not match the mask's volume or the design's trials.
            CorruptFileError: If the file is truncated.
            MissingDataError: If the session has no file.
        """
        shown = self.trials(subject, session)
        betas, atlas = self._betas(subject, session), roi.parse(self.options.voxelset).atlases[0]
        values, bytes_read = self.space.read(subject, betas, voxels.coordinates, atlas, len(shown.trial))
        return SessionTrials(shown.trial, shown.stimulus, shown.repeat, values, bytes_read)

    def crosscheck(self) -> int:
        """Compare the design with the responses of every prepared subject that has them; return the trials compared.

        Raises:
            BadDataError: If a subject's responses name another picture for a trial.
            CorruptFileError: If they cannot be read.
        """
        keys = {subject: layout.responses(subject) for subject, _ in self.sessions()}
        there = {subject: self.files.local(key) for subject, key in keys.items() if self.files.exists(key)}
        return sum(behaviour.check(path, self.design, subject) for subject, path in there.items())

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield pictures with their captions, in the order of the numbers.

        Raises:
            MissingDataError: If a picture or its captions are missing.
        """
        pictures = self.files.path_or_file(layout.STIMULI)
        for number, image in zip(numbers, read_images(pictures, numbers), strict=True):
            yield Stimulus(number, image, self._captions(number), None, bool(self.info.shared[number]))

    def _captions(self, number: int) -> tuple[str, ...]:
        """Return the captions of a picture by its COCO id."""
        if not self.options.captions:
            return ()
        file = captions_file(self.files, self.options.annotations, str(self.info.coco_split[number]))
        image = int(self.info.coco_id[number])
        found = read_captions(file)
        if image not in found:
            raise MissingDataError(f"{file} has no caption of COCO image {image} (picture {number})")
        return found[image]
