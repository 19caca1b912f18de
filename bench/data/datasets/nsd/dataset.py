"""The Natural Scenes Dataset, real or simulated: volumes of single-trial betas (Allen et al. 2022)."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.core.errors import MissingDataError, OptionError
from bench.core.identity import digest
from bench.data.datasets._coco import read_captions
from bench.data.datasets.base import SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.datasets.nsd import behaviour, layout
from bench.data.datasets.nsd.design import Design, read_design
from bench.data.datasets.nsd.reader import SpaceOptions, SpaceReader
from bench.data.datasets.nsd.stimuli import StimulusInfo, captions_file, read_images, read_info

logger = logging.getLogger(__name__)

TERMS = (
    "The Natural Scenes Dataset may be used under the NSD Terms and Conditions only, agreed to by a form on "
    "naturalscenesdataset.org; its pictures are COCO's, each under its photographer's licence."
)


@dataclass(frozen=True, kw_only=True)
class NsdOptions(SpaceOptions):
    """Which of NSD's files to read; what is not named here is as in `SpaceOptions`.

    Attributes:
        betas: Beta version: `betas_assumehrf` (b1), `betas_fithrf` (b2) or `betas_fithrf_GLMdenoise_RR` (b3).
        captions: Read COCO's captions, or leave pictures without.
        annotations: Local folder with COCO's `captions_train2017.json` and `captions_val2017.json`, which NSD's bucket
            does not hold; "" for the root's own folder of them.
        name: Name on shards and boards; "" for `nsd`, or `nsd-sim` where the root is a simulated NSD.
    """

    betas: str = "betas_fithrf_GLMdenoise_RR"
    captions: bool = True
    annotations: str = ""


class Nsd(SpaceReader):
    """Reads NSD's own files; see `bench.data.datasets.nsd` for the parts."""

    version = 1
    Options = NsdOptions
    reader = "nsd"
    title = "NSD"
    SESSIONS = 40
    choices: ClassVar[Mapping[str, Collection[str]]] = {"space": layout.SPACES, "betas": layout.BETAS}

    @functools.cached_property
    def _simulation(self) -> dict[str, Any] | None:
        """What a simulated NSD says of itself; None for the real one."""
        # Otherwise a misspelt root would look like an NSD that lacks its design.
        if not self.remote and not Path(self.options.root).is_dir():
            raise MissingDataError(f"no file or folder {self.options.root}")
        if not self.files.exists(layout.SIMULATED):
            return None
        # Scores on simulated responses must never stand beside real ones under one name.
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

    def origin(self) -> Mapping[str, Any]:
        """Return the reader's version, the design and what a simulated NSD says of itself."""
        simulation = "" if self._simulation is None else digest(self._simulation)
        return {**super().origin(), "design": self.design.digest, "simulation": simulation}

    def content(self) -> Mapping[str, Any]:
        """Return beta version, space, voxels and sessions."""
        return {**super().content(), "sessions": self.sessions_by_subject()}

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures and captions."""
        captions = self.caption_source if self.options.captions else ""
        return {**self.origin(), "captions": captions, "info": self.info.digest}

    def stem(self, session: int) -> str:
        """Return the file name of a session's betas without what says its kind."""
        return layout.session_stem(session)

    def check(self, subject: int, session: int) -> None:
        """Raise `OptionError` unless the design has a session."""
        self.design.rows(subject, session)

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed, from the design alone; a simulated NSD may stop each session early.

        Raises:
            OptionError: If the design has no such subject or session.
        """
        shown = self.design.trials(subject, session)
        made = None if self._simulation is None else int(self._simulation["trials_per_session"])
        return Trials(shown.trial[:made], shown.stimulus[:made], shown.repeat[:made])

    def trials_stored(self, subject: int, session: int) -> int:
        """Return the number of a session's trials: all of them show a picture."""
        return len(self.trials(subject, session).trial)

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a session with betas as stored: int16 (psc x 300), or fsaverage's float32 (psc).

        Raises:
            BadDataError: If the betas do not match the mask's volume or the design's trials.
            CorruptFileError: If the file is truncated.
            MissingDataError: If the session has no file.
        """
        return self.trials(subject, session).with_betas(*self.read_betas(subject, session, voxels))

    def crosscheck(self) -> int:
        """Compare the design with the responses of every prepared subject that has them; return the trials compared.

        Raises:
            BadDataError: If a subject's responses name another picture for a trial.
            CorruptFileError: If they cannot be read.
        """
        keys = {subject: layout.responses(subject) for subject, _ in self.sessions()}
        # Behaviour is not needed to read betas, and not every mirror has it.
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

    def origins(self, numbers: Sequence[int]) -> list[str | None]:
        """Return the COCO images that pictures are cut from; a simulated NSD's are drawn and stand in no other set."""
        if self._simulation is not None:
            return [f"simulated:{number}" for number in numbers]
        return [f"coco-{self.info.coco_split[number]}:{self.info.coco_id[number]}" for number in numbers]

    def _captions(self, number: int) -> tuple[str, ...]:
        """Return the captions of a picture by its COCO id."""
        if not self.options.captions:
            return ()
        file = captions_file(self.files, self.options.annotations, str(self.info.coco_split[number]))
        image = int(self.info.coco_id[number])
        found = read_captions(file)
        # Never an empty tuple: a text encoder would make a target of it as of any other.
        if image not in found:
            raise MissingDataError(f"{file} has no caption of COCO image {image} (picture {number})")
        return found[image]
