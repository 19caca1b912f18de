"""How betas are z-scored and averaged: the rules found in the field, by name, and the statistics they need.

Statistics are kept as moments of each session (count, mean, sum of squared deviations), so that every rule comes from
one pass over the betas and sessions can be read in any order and process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from bench.core.errors import BadDataError, UnknownNameError

Normalise = Literal["session", "subject", "subject-ddof1", "session-all", "global", "global-own", "none"]
Averaging = Literal["single", "mean", "random-repeat"]
"""What a training sample is: each trial (MindEye2); the mean of a stimulus' trials (Brain-Diffuser); or one of them,
drawn anew for every epoch (MindEye1), whose validation samples are means."""
BLOCK_ROWS = 32
"""Trials whose betas are held as float64 at once."""
EXACT_BYTES = 2
"""Integers of this size have sums of squares below 2**53 over any number of trials: exact in float64, in any order."""


@dataclass(frozen=True)
class Rule:
    """A z-scoring rule.

    Attributes:
        over: What shares a mean and deviation: a session's or a subject's trials of a voxel, or all its voxels too.
        trials: Whose statistics: training trials; all trials, test trials among them; or, for test trials, their own.
        ddof: Subtracted from the count in the deviation.
        source: Who does so.
    """

    over: Literal["session", "subject", "global"]
    trials: Literal["train", "all", "own"] = "train"
    ddof: int = 0
    source: str = ""

    @property
    def leaks(self) -> bool:
        """Whether statistics of test trials are used."""
        return self.trials != "train"


RULES: Mapping[str, Rule | None] = {
    "session": Rule("session", source="MindEye2 (Scotti et al. 2024, appendix A.2)"),
    "subject": Rule("subject", source="Takagi & Nishimoto 2023: StandardScaler fitted on training trials"),
    "subject-ddof1": Rule("subject", ddof=1, source="Brain-Diffuser (Ozcelik & VanRullen 2023)"),
    "session-all": Rule("session", "all", source="MindEye2's published notebook: shared images not left out"),
    "global": Rule("global", source="CS292F: one mean and deviation of all voxels and training trials"),
    "global-own": Rule("global", "own", source="CS292F's notebooks: test trials by their own mean and deviation"),
    "none": None,
}
"""Each rule by its name in recipes; `none` leaves the dataset's own unit."""


def rule(name: str) -> Rule | None:
    """Return a rule by name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in get_args(Normalise):
        raise UnknownNameError("z-scoring rule", name, RULES)
    return RULES[name]


def leaks(name: str) -> bool:
    """Say whether a rule uses statistics of test trials.

    Raises:
        UnknownNameError: If there is no such rule.
    """
    chosen = rule(name)
    return chosen is not None and chosen.leaks


@dataclass(frozen=True)
class Moments:
    """Statistics of some trials.

    Attributes:
        count: Trials.
        mean: `(V,)` float64.
        squares: `(V,)` float64, sums of squared deviations from the mean.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray


def moments(betas: np.ndarray, rows: np.ndarray) -> Moments:
    """Return the moments of some trials; exact for the int16 betas of NSD.

    Args:
        betas: `(T, V)`.
        rows: Indices of the trials.
    """
    count = max(len(rows), 1)
    exact = betas.dtype.kind in "iu" and betas.dtype.itemsize <= EXACT_BYTES
    total, squares = _power_sums(betas, rows)
    if exact:
        # In whole numbers nothing cancels, however large the mean is beside the deviation.
        whole, twice = total.astype(np.int64), squares.astype(np.int64)
        return Moments(len(rows), total / count, (count * twice - whole * whole) / count)
    mean = total / count
    # Floats need the mean first: a small deviation beside a large mean would be lost in the difference of squares.
    rest, squares = _power_sums(betas, rows, mean)
    return Moments(len(rows), mean, np.maximum(squares - rest * rest / count, 0))


def _power_sums(betas: np.ndarray, rows: np.ndarray, centre: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums `(V,)` of deviations from a centre (0) and of their squares, in float64."""
    total, squares = np.zeros(betas.shape[1]), np.zeros(betas.shape[1])
    block, ones = np.empty((BLOCK_ROWS, betas.shape[1])), np.ones(BLOCK_ROWS)
    for start in range(0, len(rows), BLOCK_ROWS):
        some = betas[rows[start : start + BLOCK_ROWS]]
        values = block[: len(some)]
        np.copyto(values, some)
        if centre is not None:
            values -= centre
        total += ones[: len(some)] @ values  # BLAS adds rows faster than a reduction over the first axis does
        np.multiply(values, values, out=values)
        squares += ones[: len(some)] @ values
    return total, squares


def merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all trials together (Chan et al. 1979), always added up in the same order."""
    # Not the encoders' `RunningMoments`, which take in batches of floats: a part is a session, exact for int16,
    # and may come from any process. `count * share` rounds otherwise than there; the last bit of z-scores rests on it.
    whole = parts[0]
    for part in parts[1:]:
        count = whole.count + part.count
        step = part.mean - whole.mean
        share = part.count / max(count, 1)
        squares = whole.squares + part.squares + step * step * (whole.count * share)
        whole = Moments(count, whole.mean + step * share, squares)
    return whole


def _over_voxels(parts: Moments) -> Moments:
    """Return the moments of all voxels' betas together, one number repeated for each voxel."""
    voxels, mean = len(parts.mean), parts.mean.mean()
    # Each voxel's own deviations, and those of the voxels' means from the common one.
    squares = parts.squares.sum() + parts.count * np.square(parts.mean - mean).sum()
    same = np.ones(voxels)
    return Moments(parts.count * voxels, mean * same, squares * same)


def scaling(
    chosen: Rule | None, parts: Sequence[Moments], sessions: Sequence[int], voxels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the inverse standard deviation that z-score each session.

    Args:
        chosen: The rule.
        parts: Moments of each session's trials that the rule looks at.
        sessions: The sessions' numbers.
        voxels: V.

    Returns:
        Two `(S, V)` float32 arrays: z = (beta - mean) * scale. The scale of a constant voxel is 0, so its z-score is 0;
        constant up to rounding counts as constant. Without a rule mean 0 and scale 1.

    Raises:
        BadDataError: If there is no trial to normalise by, or betas hold NaN.
    """
    shape = (len(sessions), voxels)
    if chosen is None:
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)
    for part, number in zip(parts, sessions, strict=True):
        _check(part, number, chosen)
    if chosen.over == "session":
        rows = [_inverse(part, chosen.ddof) for part in parts]
    else:
        whole = merged(parts)
        if not whole.count:
            raise BadDataError(f"sessions {list(sessions)} have no {_whose(chosen)} to normalise by")
        rows = [_inverse(_over_voxels(whole) if chosen.over == "global" else whole, chosen.ddof)] * len(sessions)
    return np.stack([mean for mean, _ in rows]), np.stack([scale for _, scale in rows])


def _whose(chosen: Rule) -> str:
    """Return what a rule's trials are called in messages."""
    return "training trial" if chosen.trials == "train" else "trial"


def _check(part: Moments, session: int, chosen: Rule) -> None:
    """Refuse a session that cannot be normalised."""
    if chosen.over == "session" and not part.count:
        raise BadDataError(f"session {session} has no {_whose(chosen)} to normalise by")
    bad = ~np.isfinite(part.squares)
    if bad.any():
        raise BadDataError(f"session {session}: {int(bad.sum())} voxels hold NaN in {_whose(chosen)}s")


def _inverse(part: Moments, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse standard deviation `(V,)` as float32."""
    deviation = np.sqrt(part.squares / max(part.count - ddof, 1))
    # A smaller deviation is the rounding of float32; scaled to 1 it would pass for a signal.
    varies = deviation > np.finfo(np.float32).eps * np.abs(part.mean)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    return part.mean.astype(np.float32), scale.astype(np.float32)
