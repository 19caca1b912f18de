"""A simulated NSD experiment: which subject sees which image at which trial, in the form of ``nsd_expdesign.mat``.

The experiment has NSD's fixed size (Allen et al. 2022): 73,000 images; 10,000 a subject, each shown three times in 40
sessions of 750 trials; 1,000 of them shared by all eight subjects, 9,000 private. All subjects follow one common
sequence (``masterordering``), so how many images have been seen once, twice or three times after n sessions does not
depend on the subject. :data:`SHOWN` lists these numbers for the n at which studies have stopped; the simulated sequence
meets them exactly and is linear between them. Within a session the share of images shown twice and three times is close
to NSD's (about 105 and 34 images).
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
"""NSD core sessions of subjects 1 to 8."""
SUBJECTS = 8
TRIALS = 750
RUNS = 12
SLOTS = 75
IMAGES = 73_000
IMAGES_PER_SUBJECT = 10_000
SHARED = 1_000
PLANNED_SESSIONS = 40
SHOWINGS = 3

SHOWN: dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    0: ((0, 0, 0), (0, 0, 0)),
    1: ((47, 13, 2), (536, 123, 29)),
    2: ((103, 30, 9), (981, 293, 84)),
    5: ((225, 88, 27), (2267, 861, 282)),
    10: ((416, 205, 76), (4073, 1971, 759)),
    20: ((748, 494, 249), (6708, 4514, 2287)),
    27: ((872, 700, 413), (7907, 6347, 4011)),
    29: ((894, 738, 481), (8188, 6849, 4600)),
    30: ((907, 766, 515), (8302, 7080, 4930)),
    32: ((930, 827, 614), (8481, 7528, 5620)),
    37: ((982, 949, 839), (8859, 8540, 7581)),
    40: ((1000, 1000, 1000), (9000, 9000, 9000)),
}
"""After n sessions: shared and private images shown at least once, twice and three times."""
TRIPLES, PAIRS = 34, 105
"""Images shown three times and twice within one session of NSD, on average (``basiccnt``)."""


@dataclass(frozen=True, eq=False)
class Design:
    """The fields of ``nsd_expdesign.mat``; ids in the arrays are 1-based as in the file, in the methods 0-based.

    Attributes:
        masterordering: ``(1, 30000)`` uint16, which of a subject's 10,000 images a trial shows; 1 to 1000 are shared.
        subjectim: ``(8, 10000)`` int32, the image list of each subject.
        sharedix: ``(1, 1000)`` int32, the shared images, sorted.
        basiccnt: ``(3, 40)`` uint16, how many images are shown exactly once, twice, three times within each session.
        stimpattern: ``(40, 12, 75)`` uint8, 1 where a run's 4-second slot shows an image.
    """

    masterordering: NDArray[np.uint16]
    subjectim: NDArray[np.int32]
    sharedix: NDArray[np.int32]
    basiccnt: NDArray[np.uint16]
    stimpattern: NDArray[np.uint8]

    def stimuli_of(self, subject: int, session: int) -> NDArray[np.int64]:
        """Returns the 0-based image ids (``nsdId``) of a session's trials, ``(750,)``.

        Args:
            subject: 1 to 8.
            session: 1 to 40.

        Raises:
            ValueError: When subject or session is out of range.
        """
        _check_range("subject", subject, SUBJECTS)
        return self.subjectim[subject - 1, self._order(session)].astype(np.int64) - 1

    def repeats(self, session: int) -> NDArray[np.int64]:
        """Returns for each trial of a session which showing of its image it is (0, 1 or 2), ``(750,)``.

        It is the same for all subjects, as the sequence is.

        Args:
            session: 1 to 40.

        Raises:
            ValueError: When the session is out of range.
        """
        order = self._order(session)
        trials = np.arange((session - 1) * TRIALS, session * TRIALS) + 1
        return np.argmax(self.showings[order] == trials[:, None], axis=1)

    @cached_property
    def showings(self) -> NDArray[np.int64]:
        """1-based trial numbers of the three showings of each of a subject's 10,000 images, ``(10000, 3)``."""
        return np.argsort(self.masterordering[0], kind="stable").reshape(IMAGES_PER_SUBJECT, SHOWINGS) + 1

    def _order(self, session: int) -> NDArray[np.int64]:
        _check_range("session", session, PLANNED_SESSIONS)
        return self.masterordering[0, (session - 1) * TRIALS : session * TRIALS].astype(np.int64) - 1


def simulate_design(seed: int) -> Design:
    """Draws an experiment at random.

    Args:
        seed: Non-negative; the same seed gives the same experiment.

    Returns:
        The design, always of full size.
    """
    rng = np.random.default_rng([seed, 0xDE51])
    ordering = _master_ordering(rng)
    subjectim, sharedix = _image_lists(rng)
    counts = np.zeros((SHOWINGS, PLANNED_SESSIONS), np.uint16)
    for session, trials in enumerate(ordering.reshape(PLANNED_SESSIONS, TRIALS)):
        shown = np.bincount(trials)
        counts[:, session] = [(shown == times).sum() for times in (1, 2, 3)]
    return Design(
        masterordering=(ordering + 1)[None].astype(np.uint16),
        subjectim=subjectim,
        sharedix=sharedix[None],
        basiccnt=counts,
        stimpattern=_stimulus_pattern(rng),
    )


def cumulative_shown() -> NDArray[np.int64]:
    """Interpolates :data:`SHOWN` to every session.

    Returns:
        ``(41, 6)``: after 0 to 40 sessions, shared images shown at least 1, 2, 3 times, then private ones. A row sums
        to 750 trials a session; what rounding leaves over goes to the columns with the largest remainders.
    """
    knots = sorted(SHOWN)
    table = np.array([np.concatenate(SHOWN[n]) for n in knots])
    rows = []
    for session in range(PLANNED_SESSIONS + 1):
        # In whole numbers, so that no rounding decides between equal remainders.
        after = min(bisect_right(knots, session), len(knots) - 1)
        low, high = knots[after - 1], knots[after]
        scaled = table[after - 1] * (high - session) + table[after] * (session - low)
        row, remainder = np.divmod(scaled, high - low)
        largest = np.argsort(-remainder, kind="stable")
        row[largest[: session * TRIALS - row.sum()]] += 1
        rows.append(row)
    return np.array(rows)


def _master_ordering(rng: np.random.Generator) -> NDArray[np.int64]:
    """The common sequence of 30,000 trials as 0-based indices into a subject's images."""
    steps = np.diff(cumulative_shown(), axis=0)
    shared = _assign_sessions(rng, np.arange(SHARED), steps[:, :SHOWINGS], SHARED / IMAGES_PER_SUBJECT)
    private = _assign_sessions(
        rng, np.arange(SHARED, IMAGES_PER_SUBJECT), steps[:, SHOWINGS:], 1 - SHARED / IMAGES_PER_SUBJECT
    )
    sessions = [rng.permutation(np.concatenate(pair)) for pair in zip(shared, private, strict=True)]
    return np.concatenate(sessions)


def _assign_sessions(
    rng: np.random.Generator, images: NDArray[np.int64], steps: NDArray[np.int64], share: float
) -> list[NDArray[np.int64]]:
    """Chooses the images of each session from those due, given how many 1st, 2nd and 3rd showings it has.

    Args:
        rng: Source of chance.
        images: The images of one group, shared or private.
        steps: ``(40, 3)`` numbers of first, second and third showings in each session.
        share: The group's share of the repetitions within a session.

    Returns:
        For each session the images shown, in no particular order.
    """
    fresh = rng.permutation(images)
    once, twice = images[:0], images[:0]
    sessions = []
    for first, second, third in steps.tolist():
        new, fresh = fresh[:first], fresh[first:]
        thrice_now, pairs_new, pairs_old = _within_session(first, second, third, once.size, twice.size, share)
        again_new = new[: thrice_now + pairs_new]  # ``fresh`` is in random order already
        old, waiting = _split(rng, once, second - again_new.size)
        done_old, still_twice = _split(rng, twice, third - thrice_now - pairs_old)
        done = np.concatenate([again_new[:thrice_now], old[:pairs_old], done_old])
        sessions.append(np.concatenate([new, again_new, old, done]))
        once = np.concatenate([waiting, new[again_new.size :]])
        twice = np.concatenate([still_twice, again_new[thrice_now:], old[pairs_old:]])
    return sessions


def _within_session(first: int, second: int, third: int, once: int, twice: int, share: float) -> tuple[int, int, int]:
    """How many images are repeated within the session: new ones three times, new ones twice, old ones twice.

    As near to NSD's averages as the numbers of showings and of images waiting (``once``, ``twice``) allow.
    """
    triples, pairs = TRIPLES * share, PAIRS * share
    new_twice = pairs * first / max(first + second, 1)
    again_new = min(max(round(triples + new_twice), second - once, 0), first, second)
    finished = min(max(round(triples + pairs - new_twice), third - twice, 0), second, third)
    thrice = min(max(round(triples), finished - (second - again_new), 0), again_new, finished)
    return thrice, again_new - thrice, finished - thrice


def _split(
    rng: np.random.Generator, pool: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Takes ``count`` random members out of a pool; returns them and the rest."""
    mixed = rng.permutation(pool)
    return mixed[:count], mixed[count:]


def _image_lists(rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Image lists ``(8, 10000)`` and the sorted shared images ``(1000,)``, 1-based."""
    mixed = (rng.permutation(IMAGES) + 1).astype(np.int32)
    shared = np.sort(mixed[:SHARED])
    private = mixed[SHARED:].reshape(SUBJECTS, IMAGES_PER_SUBJECT - SHARED)
    return np.concatenate([np.tile(shared, (SUBJECTS, 1)), private], axis=1), shared


def _stimulus_pattern(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Slots with an image: three blanks first, five spread between, 63 images in odd and 62 in even runs."""
    pattern = np.zeros((PLANNED_SESSIONS, RUNS, SLOTS), np.uint8)
    for run in range(RUNS):
        span = 68 - run % 2
        pattern[:, run, 3 : 3 + span] = 1
        for session in range(PLANNED_SESSIONS):
            # Five blanks cut the span into six stretches of at least eight images.
            extra = np.sort(rng.integers(0, span - 5 - 6 * 8 + 1, 5))
            pattern[session, run, 3 + extra + 9 * np.arange(1, 6) - 1] = 0
    return pattern


def _check_range(name: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise ValueError(f"{name} is {value}; allowed are 1 to {highest}")
