"""NSD's experiment design: which picture each trial of each subject showed.

`nsd_expdesign.mat` counts from 1 everywhere; everything returned here counts from 0. `masterordering` numbers a
subject's own 10,000 pictures, not the 73,000: it leads to a picture only through `subjectim`.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from bench.core.errors import BadDataError, CorruptFileError, OptionError
from bench.data.datasets._occurrences import occurrences
from bench.data.datasets.base import Trials

FIELDS = ("masterordering", "subjectim", "sharedix", "basiccnt", "stimpattern")


@dataclass(frozen=True)
class Design:
    """The design, 0-based.

    Attributes:
        order: `(30000,)` which of the subject's own pictures a trial shows; the same for every subject.
        pictures: `(8, 10000)` nsdId of each subject's own pictures.
        shared: `(1000,)` nsdIds of the pictures all subjects were to see.
        starts: `(sessions + 1,)` first trial of each session; the last entry is the number of trials.
    """

    order: np.ndarray
    pictures: np.ndarray
    shared: np.ndarray
    starts: np.ndarray

    @property
    def subjects(self) -> int:
        """Number of subjects."""
        return int(self.pictures.shape[0])

    @property
    def sessions(self) -> int:
        """Number of planned sessions a subject; some subjects had fewer."""
        return len(self.starts) - 1

    @property
    def digest(self) -> str:
        """Digest of the design's numbers: two files with equal numbers (another date in the header) are the same."""
        total = hashlib.sha256()
        for field in (self.order, self.pictures, self.shared, self.starts):
            total.update(f"{field.shape}".encode() + field.astype("<i8").tobytes())
        return total.hexdigest()[:16]

    def rows(self, subject: int, session: int) -> slice:
        """Return a session's trials among all of its subject.

        Args:
            subject: From 1.
            session: From 1.

        Raises:
            OptionError: If the design has no such subject or session.
        """
        if not 1 <= subject <= self.subjects:
            raise OptionError(f"no subject {subject}: the design has subjects 1 to {self.subjects}")
        if not 1 <= session <= self.sessions:
            raise OptionError(f"no session {session}: the design has sessions 1 to {self.sessions}")
        return slice(int(self.starts[session - 1]), int(self.starts[session]))

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed a subject.

        Raises:
            OptionError: If the design has no such subject or session.
        """
        part = self.rows(subject, session)
        stimulus = self.pictures[subject - 1][self.order]
        return Trials(np.arange(part.start, part.stop), stimulus[part], occurrences(stimulus)[part])


def read_design(path: Path) -> Design:
    """Read `nsd_expdesign.mat`.

    Raises:
        CorruptFileError: If it is not a MATLAB 5 file or lacks a field.
        BadDataError: If its fields do not fit together.
    """
    fields = load_mat(path)
    missing = [name for name in FIELDS if name not in fields]
    if missing:
        raise CorruptFileError(f"{path} lacks {', '.join(missing)}; nsd_expdesign.mat has {', '.join(FIELDS)}")
    order, pictures, shared = (_zero_based(fields[name], name, path) for name in FIELDS[:3])
    # stimpattern is sessions x runs x slots, 1 where a picture was shown: its sums are the trials of a session.
    starts = np.r_[0, np.cumsum(fields["stimpattern"].sum(axis=(1, 2), dtype=np.int64))]
    design = Design(order.ravel(), pictures, shared.ravel(), starts)
    _check(design, path)
    return design


def load_mat(path: Path) -> dict[str, np.ndarray]:
    """Return the fields of a MATLAB 5 file.

    Raises:
        CorruptFileError: If it is not one, or damaged.
    """
    try:
        fields: dict[str, np.ndarray] = scipy.io.loadmat(path)
    # A damaged file ends in whichever of these SciPy's parser runs into.
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError) as error:
        raise CorruptFileError(f"{path} cannot be read as a MATLAB 5 file: {error}") from None
    except (LookupError, OverflowError, MemoryError, zlib.error) as error:
        raise CorruptFileError(f"{path} cannot be read as a MATLAB 5 file: {error}") from None
    return fields


def _zero_based(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return 1-based whole numbers as 0-based int64."""
    if not np.all(np.isfinite(values)) or np.any(values < 1) or np.any(values != np.round(values)):
        raise BadDataError(f"{path}: {name} must hold whole numbers from 1; it holds NaN, fractions or smaller ones")
    return values.astype(np.int64) - 1


def _check(design: Design, path: Path) -> None:
    """Compare the fields with each other."""
    if design.starts[-1] != design.order.size:
        raise BadDataError(f"{path}: stimpattern has {design.starts[-1]} images, masterordering {design.order.size}")
    if design.order.max() >= design.pictures.shape[1]:
        raise BadDataError(
            f"{path}: masterordering goes to {design.order.max() + 1}, subjectim has {design.pictures.shape[1]} columns"
        )
    # The shared pictures are everyone's first ones: a subjectim in another order, or transposed, fails here.
    if not np.array_equal(np.unique(design.shared), np.unique(design.pictures[:, : design.shared.size])):
        raise BadDataError(
            f"{path}: the first {design.shared.size} columns of subjectim are not the images of sharedix"
        )
