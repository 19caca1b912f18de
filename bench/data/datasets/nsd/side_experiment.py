"""NSD-synthetic and NSD-imagery share this: one session a subject, betas in NSD's spaces, test pictures only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from bench.data.datasets.base import SessionTrials, VoxelTable
from bench.data.datasets.nsd import layout
from bench.data.datasets.nsd.reader import SpaceOptions, SpaceReader


@dataclass(frozen=True, kw_only=True)
class SideOptions(SpaceOptions):
    """Options of a side experiment; what is not named here is as in `SpaceOptions`.

    Attributes:
        betas: `fithrf` (b2) or `fithrf_GLMdenoise_RR` (b3).
        space: `func1pt8mm` or `func1mm`.
    """

    betas: str = "fithrf_GLMdenoise_RR"


class SideExperiment(SpaceReader):
    """Reads one session a subject; a subclass knows its trials and pictures.

    Every stimulus is marked shared: by the split, all trials are test trials and none can be fitted on.
    """

    experiment: ClassVar[str]
    """How the experiment's files call it, such as `nsdsynthetic`."""

    caption_source = "none"
    terms = (
        "The Natural Scenes Dataset, with its synthetic and imagery sessions, may be used under the NSD Terms and "
        "Conditions only, agreed to by a form on naturalscenesdataset.org."
    )
    # b1 was not published of them, and where their surfaces would lie is not known.
    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "space": layout.SPACES[:2],
        "betas": ("fithrf", "fithrf_GLMdenoise_RR"),
    }

    @property
    def betas_folder(self) -> str:
        """Name of the folders that hold the beta version of this experiment, such as `nsdimagerybetas_fithrf`."""
        return f"{self.experiment}betas_{self.options.betas}"

    def stem(self, session: int) -> str:
        """Return the file name of the betas without what says its kind: the one session has no number."""
        del session
        return f"betas_{self.experiment}"

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials that show a stimulus, with raw int16 betas (percent signal change x 300).

        Raises:
            BadDataError: If the betas do not match the mask's volume or the design's trials.
            CorruptFileError: If the file is truncated.
            MissingDataError: If there is no file.
        """
        shown = self.trials(subject, session)
        values, bytes_read = self.read_betas(subject, session, voxels)
        return shown.with_betas(values[shown.trial], bytes_read)
