"""Sizes of a simulated NSD: the true one, the embedded default, and one small enough for tests.

All three have NSD's experiment (:mod:`bench.data.simulate.design`) and differ in how many of its sessions are made, in
how many voxels the boxes hold, and in the size of the pictures.
"""

from dataclasses import dataclass
from math import prod

from bench.data.simulate.design import PLANNED_SESSIONS, SESSIONS, SUBJECTS, TRIALS
from bench.data.simulate.scenes.sampling import FIRST_TRAINING_DESIGN

BOXES = (
    (81, 104, 83),
    (82, 106, 84),
    (81, 106, 82),
    (85, 99, 80),
    (79, 97, 78),
    (85, 113, 83),
    (78, 95, 81),
    (80, 103, 78),
)
"""Shapes (X, Y, Z) of the func1pt8mm volumes of subjects 1 to 8."""
NSDGENERAL = (15_724, 14_278, 15_226, 13_153, 13_039, 17_907, 12_682, 14_386)
"""Voxels of nsdgeneral in func1pt8mm, subjects 1 to 8."""


@dataclass(frozen=True)
class Preset:
    """How large a simulated dataset is, and how its responses behave.

    Attributes:
        name: Shown to users.
        sessions: Sessions made, one number a subject; its length is the number of subjects (1, 2, ...).
        boxes: Volume shape (X, Y, Z) of each subject.
        nsdgeneral: Voxels of nsdgeneral in each subject; the other ROIs scale with it.
        seed: Seed of everything, below the seeds kept for training scenes; different seeds share nothing.
        image_size: Side of the pictures in pixels.
        trials_per_session: The first trials of each session that are made (750 in NSD).
        nonlinear_share: Share of the signal variance that is no linear function of pixels and attributes, 0 to 1.
        ncsnr_spread: Standard deviation of log ncsnr over the voxels of an area.
        drift_share: Share of the noise variance that drifts slowly within a session.
        common_share: Share of the noise variance that neighbouring voxels have in common.
    """

    name: str
    sessions: tuple[int, ...]
    boxes: tuple[tuple[int, int, int], ...]
    nsdgeneral: tuple[int, ...]
    seed: int = 0
    image_size: int = 64
    trials_per_session: int = TRIALS
    nonlinear_share: float = 0.3
    ncsnr_spread: float = 0.45
    drift_share: float = 0.05
    common_share: float = 0.1

    def __post_init__(self) -> None:
        count = len(self.sessions)
        if not 1 <= count <= SUBJECTS or len(self.boxes) != count or len(self.nsdgeneral) != count:
            raise ValueError(
                f"preset {self.name}: {count} session numbers, {len(self.boxes)} boxes and {len(self.nsdgeneral)} "
                f"voxel counts; give one of each for 1 to {SUBJECTS} subjects"
            )
        if not all(1 <= sessions <= PLANNED_SESSIONS for sessions in self.sessions):
            raise ValueError(f"preset {self.name}: sessions {self.sessions}; allowed are 1 to {PLANNED_SESSIONS}")
        if not 0 <= self.seed < FIRST_TRAINING_DESIGN:
            raise ValueError(f"preset {self.name}: seed is {self.seed}; allowed are 0 to {FIRST_TRAINING_DESIGN - 1}")
        if not 1 <= self.trials_per_session <= TRIALS:
            raise ValueError(
                f"preset {self.name}: {self.trials_per_session} trials a session; allowed are 1 to {TRIALS}"
            )
        if not 0.0 <= self.nonlinear_share <= 1.0:
            raise ValueError(f"preset {self.name}: nonlinear_share is {self.nonlinear_share}; allowed are 0 to 1")
        if min(self.drift_share, self.common_share) < 0 or self.drift_share + self.common_share >= 1:
            raise ValueError(f"preset {self.name}: drift_share and common_share must be >= 0 and sum to less than 1")

    @property
    def subjects(self) -> tuple[int, ...]:
        """Subject numbers, from 1."""
        return tuple(range(1, len(self.sessions) + 1))

    @property
    def bytes_of_betas(self) -> int:
        """Bytes of all int16 betas, without file overhead."""
        volumes = sum(prod(box) * count for box, count in zip(self.boxes, self.sessions, strict=True))
        return 2 * self.trials_per_session * volumes


def _shrunk(divisor: float) -> tuple[tuple[int, int, int], ...]:
    """The real boxes with every side divided."""
    return tuple((round(x / divisor), round(y / divisor), round(z / divisor)) for x, y, z in BOXES)


FULL = Preset("full", sessions=SESSIONS, boxes=BOXES, nsdgeneral=NSDGENERAL, image_size=425)
DEMO = Preset(
    "demo", sessions=(2,) * SUBJECTS, boxes=_shrunk(4.6), nsdgeneral=tuple(round(count / 16) for count in NSDGENERAL)
)
TINY = Preset(
    "tiny", sessions=(2, 1), boxes=((11, 13, 11), (10, 13, 12)), nsdgeneral=(124, 112), trials_per_session=200
)
