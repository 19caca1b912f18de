"""NSD-synthetic: one 7T session a subject with 284 artificial pictures, to test decoders out of distribution.

744 trials in 8 runs, fixation and one-back tasks in turn. Pictures 1 to 220 are everyone's; 221 to 284 are coloured
ones, made for each subject, and count as other stimuli in each: number 220 + 64 (subject - 1) + k.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.datasets._occurrences import occurrences
from bench.data.datasets.base import Stimulus, Trials
from bench.data.datasets.nsd.design import load_mat
from bench.data.datasets.nsd.side_experiment import SideExperiment, SideOptions
from bench.data.datasets.nsd.stimuli import read_images

COMMON, COLOURED = 220, 64
DESIGN = "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
PICTURES = "nsddata_stimuli/stimuli/nsdsynthetic"


class NsdSynthetic(SideExperiment):
    """Reads the synthetic session."""

    version = 1
    Options = SideOptions
    reader = "nsd-synthetic"
    title = "NSD-synthetic"
    experiment = "nsdsynthetic"

    @functools.cached_property
    def ordering(self) -> np.ndarray:
        """The picture of each trial, `(744,)`, 0-based.

        Raises:
            CorruptFileError: If the design file cannot be read.
            BadDataError: If it does not hold whole numbers from 1 to 284.
        """
        path = self.files.local(DESIGN)
        fields = load_mat(path)
        if "masterordering" not in fields:
            raise CorruptFileError(f"{path} lacks masterordering")
        ordering = fields["masterordering"].ravel()
        if not len(ordering) or ordering.min() < 1 or ordering.max() > COMMON + COLOURED:
            raise BadDataError(f"{path}: masterordering must hold pictures 1 to {COMMON + COLOURED}")
        return ordering.astype(np.int64) - 1

    def trials_stored(self, subject: int, session: int) -> int:
        """Return the trials in a betas file: those of the design, the same for all subjects."""
        del subject, session
        return len(self.ordering)

    def origin(self) -> Mapping[str, Any]:
        """Return the reader's version and the design's digest."""
        # By its numbers: a copy of the file with another date in its header is the same design.
        design = hashlib.sha256(self.ordering.astype("<i8").tobytes()).hexdigest()[:16]
        return {**super().origin(), "design": design}

    def trials(self, subject: int, session: int) -> Trials:
        """Return what the session showed.

        Raises:
            OptionError: If there is no such subject or session.
        """
        self.check(subject, session)
        # Every subject saw coloured pictures of its own under the same numbers 221 to 284.
        own = np.where(self.ordering < COMMON, 0, COLOURED * (subject - 1))
        return Trials(np.arange(len(self.ordering)), self.ordering + own, occurrences(self.ordering))

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield pictures in the order of the numbers.

        Raises:
            MissingDataError: If a picture is missing.
        """
        for number in numbers:
            # The inverse of the numbering above; `subject` counts from 0 here.
            subject, row = divmod(number - COMMON, COLOURED)
            if number < COMMON:
                name, row = "nsdsynthetic_stimuli.hdf5", number
            else:
                name = f"nsdsynthetic_colorstimuli_subj{subject + 1:02d}.hdf5"
            image = next(iter(read_images(self.files.path_or_file(f"{PICTURES}/{name}"), [row])))
            yield Stimulus(number, image, (), None, True)
