"""What a subject answered, trial by trial: `responses.tsv`, which also says again what was shown.

One row a trial in the order of the betas, everything counting from 1, `NaN` where there was no answer. The file and
the design file come from different programs of NSD's authors, so that a reader that is off by one, or takes another
subject's pictures, disagrees with one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.datasets.nsd.design import Design

COLUMNS = (
    *("SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID", "TIME", "ISOLD", "ISCORRECT", "RT", "CHANGEMIND"),
    *("MEMORYRECENT", "MEMORYFIRST", "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2", "BUTTON", "MISSINGDATA"),
)


@dataclass(frozen=True)
class Responses:
    """A subject's responses, `(T,)` each, 0-based where they number something.

    Attributes:
        session: Session from 1.
        stimulus: nsdId, 0-based.
        own: Which of the subject's own 10,000 pictures, 0-based.
        is_old: Whether the picture was shown before, in any session.
        is_correct: 1, 0, or NaN where the subject did not answer.
        reaction_time: Milliseconds, NaN without an answer.
    """

    session: np.ndarray
    stimulus: np.ndarray
    own: np.ndarray
    is_old: np.ndarray
    is_correct: np.ndarray
    reaction_time: np.ndarray


def read_responses(path: Path) -> Responses:
    """Read `responses.tsv`.

    Raises:
        CorruptFileError: If it is not the table.
        BadDataError: If numbers that count from 1 hold anything else.
    """
    try:
        table = pd.read_csv(path, sep="\t", na_values=["NaN"])
        # All columns, also unused ones: a table that lacks any is another file than NSD's.
        missing = sorted(set(COLUMNS) - set(table.columns))
        if missing:
            raise CorruptFileError(f"{path} lacks the columns {', '.join(missing)}")
        numbers = table[list(COLUMNS)].astype(np.float64)
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} cannot be read as a table of responses: {error}") from None
    counted = numbers[["SESSION", "73KID", "10KID"]].to_numpy()
    if not np.all(np.isfinite(counted)) or np.any(counted < 1) or np.any(counted != np.round(counted)):
        raise BadDataError(f"{path}: SESSION, 73KID and 10KID must hold whole numbers from 1")
    session, stimulus, own = counted.astype(np.int64).T
    return Responses(
        session,
        stimulus - 1,
        own - 1,
        numbers["ISOLD"].to_numpy() == 1,
        numbers["ISCORRECT"].to_numpy(),
        numbers["RT"].to_numpy(),
    )


def check(path: Path, design: Design, subject: int) -> int:
    """Compare what a subject's responses say was shown with the design; return the number of trials compared.

    Raises:
        CorruptFileError: If the file is not the table.
        BadDataError: If a trial differs, or trials are missing.
    """
    found = read_responses(path)
    # The sessions that the file has: subjects differ in how many they came to.
    for session in np.unique(found.session):
        rows = found.session == session
        expected = design.trials(subject, int(session)).stimulus
        if rows.sum() != len(expected):
            raise BadDataError(f"{path}: session {session} has {rows.sum()} trials, the design {len(expected)}")
        differing = np.flatnonzero(found.stimulus[rows] != expected)
        if len(differing):
            trial = int(differing[0])
            came, wanted = int(found.stimulus[rows][trial]), int(expected[trial])
            raise BadDataError(
                f"{path}: session {session}, trial {trial + 1} shows picture {came} (73KID {came + 1}), the design "
                f"says {wanted}; {len(differing)} trials differ"
            )
    return len(found.session)
