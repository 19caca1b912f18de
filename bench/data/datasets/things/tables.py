"""THINGS-fMRI's csv files: opening them, and the trials of `sub-01_StimulusMetadata.csv`.

Three people saw 720 training concepts x 12 images once, and 100 test images once in each of 12 sessions. Every test
concept is a training concept too, with other images: a decoder that has learnt the label has seen the test's labels.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv as pacsv

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.datasets._occurrences import occurrences

SESSIONS, TRIALS_PER_SESSION = 12, 820
TRAIN_CONCEPTS, IMAGES_PER_CONCEPT, TEST_IMAGES = 720, 12, 100
TRIAL_COLUMNS = ("trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept")
_BATCH_BYTES = 4 << 20


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Turn what reading a damaged table raises into an error that names the file."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{path} cannot be read as a table: {error}") from None


def header_of(path: Path) -> list[str]:
    """Return the names of a table's columns as they are written, line breaks and all.

    Raises:
        CorruptFileError: If the file is empty, no text, or ends in the middle of a row.
        BadDataError: If two columns have the same name.
    """
    with path.open("rb") as file:
        # A row that was cut in its last number still looks whole; only the missing line break tells.
        whole = file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) == b"\n"
    if not whole:
        raise CorruptFileError(f"{path} is truncated: a table ends with a line break")
    with faults_named(path), path.open(newline="", encoding="utf-8") as text:
        names = next(csv.reader(text, strict=True), [])
    if len(set(names)) != len(names):
        raise BadDataError(f"{path}: two of its {len(names)} columns have the same name")
    return names


def batches(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Yield a table's rows, some at a time: the columns named in `types`, in that order.

    Raises:
        CorruptFileError: If a row has too many or too few fields, or one that is not of its type.
    """
    with faults_named(path):
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=_BATCH_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
        yield from reader


def check_columns(path: Path, needed: Sequence[str], present: Sequence[str]) -> None:
    """Raise `BadDataError` if a table lacks columns."""
    if missing := sorted(set(needed) - set(present)):
        raise BadDataError(f"{path} lacks column {missing[0]!r}; it has {len(present)}: {', '.join(present[:12])}...")


@dataclass(frozen=True)
class Experiment:
    """What one subject was shown, trial by trial.

    Attributes:
        trial: `(9840,)` trial ids, ascending.
        session: `(9840,)` session from 1.
        names: `(9840,)` the image of each trial, `dog_12s.jpg`.
        concepts: For each image its concept, `dog`.
        test: The test images.
    """

    trial: np.ndarray
    session: np.ndarray
    names: np.ndarray
    concepts: Mapping[str, str]
    test: frozenset[str]

    @property
    def images(self) -> Images:
        """The numbering of the images shown."""
        names = tuple(sorted(self.concepts))
        return Images(names, tuple(self.concepts[name] for name in names), tuple(name in self.test for name in names))

    @property
    def repeat(self) -> np.ndarray:
        """`(9840,)` how often the image of each trial was shown before."""
        return occurrences(np.unique(self.names, return_inverse=True)[1])


@dataclass(frozen=True)
class Images:
    """The images by stimulus number: all images, of training and test, sorted by name.

    Attributes:
        names: `(8740,)` file names, `dog_12s.jpg`.
        concepts: `(8740,)` their concepts, which are their labels.
        test: `(8740,)` whether they are test images.
    """

    names: tuple[str, ...]
    concepts: tuple[str, ...]
    test: tuple[bool, ...]

    @functools.cached_property
    def digest(self) -> str:
        """Digest of names, concepts and which are test images."""
        lines = (f"{n}\0{c}\0{t}" for n, c, t in zip(self.names, self.concepts, self.test, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def numbers(self, names: np.ndarray) -> np.ndarray:
        """Return the stimulus numbers of images, `(N,)` int64."""
        return np.searchsorted(np.array(self.names), names).astype(np.int64)


def read_experiment(path: Path, subject: int) -> Experiment:
    """Read `sub-0k_StimulusMetadata.csv`.

    Raises:
        CorruptFileError: If it is no such table.
        BadDataError: If trials, sessions, images or showings are not THINGS-fMRI's.
    """
    check_columns(path, TRIAL_COLUMNS, header_of(path))
    numbers = ("session", "subject_id", "trial_id")
    types = {name: pa.int64() if name in numbers else pa.string() for name in TRIAL_COLUMNS}
    table = pa.Table.from_batches(batches(path, types), pa.schema(list(types.items())))
    if any(column.null_count for column in table.columns):
        raise BadDataError(f"{path} has empty fields")
    columns = {name: np.array(table[name].to_pylist()) for name in types}
    if len(table) != SESSIONS * TRIALS_PER_SESSION:
        raise BadDataError(f"{path} has {len(table)} trials; THINGS-fMRI has {SESSIONS * TRIALS_PER_SESSION}")
    if np.any(columns["subject_id"] != subject):
        raise BadDataError(f"{path} has trials of subject {columns['subject_id'][columns['subject_id'] != subject][0]}")
    # Columns of the responses are named by trial_id; the order of the table's rows says nothing.
    order = np.argsort(columns["trial_id"], kind="stable")
    trial, session, kind, names, concepts = (
        columns[name][order] for name in ("trial_id", "session", "trial_type", "stimulus", "concept")
    )
    _check_trials(path, trial, session)
    _check_names(path, names, concepts)
    _check_images(path, kind, session, names)
    _check_concepts(path, kind, names, concepts)
    shown = dict(zip(names.tolist(), concepts.tolist(), strict=True))
    return Experiment(trial, session, names, shown, frozenset(names[kind == "test"].tolist()))


def _check_trials(path: Path, trial: np.ndarray, session: np.ndarray) -> None:
    """Raise unless trials 0 to 9839 run through sessions 1 to 12, 820 each."""
    if np.any(trial != np.arange(len(trial))):
        raise BadDataError(f"{path}: trial_id is not 0 to {len(trial) - 1}, each once")
    expected = 1 + np.arange(len(trial)) // TRIALS_PER_SESSION
    if np.any(session != expected):
        first = int(np.flatnonzero(session != expected)[0])
        raise BadDataError(
            f"{path}: trial {first} is of session {session[first]}, not {expected[first]}; THINGS-fMRI has sessions "
            f"1 to {SESSIONS} of {TRIALS_PER_SESSION} trials"
        )


def _check_names(path: Path, names: np.ndarray, concepts: np.ndarray) -> None:
    """Raise if names could lead out of the pictures' folder, or an image is of two concepts."""
    for name in (*np.unique(names).tolist(), *np.unique(concepts).tolist()):
        if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
            raise BadDataError(f"{path}: {name!r} is not the name of an image or concept")
    # The name alone is the stimulus: it must not mean two pictures.
    pairs = set(zip(names.tolist(), concepts.tolist(), strict=True))
    if len(pairs) != len(np.unique(names)):
        raise BadDataError(f"{path}: an image is given two concepts")


def _check_images(path: Path, kind: np.ndarray, session: np.ndarray, names: np.ndarray) -> None:
    """Raise unless training images are shown once, and 100 test images once in each session."""
    if unknown := sorted(set(kind.tolist()) - {"train", "test"}):
        raise BadDataError(f"{path}: trial_type {unknown[0]!r} is neither 'train' nor 'test'")
    training, test = names[kind == "train"], names[kind == "test"]
    expected = TRAIN_CONCEPTS * IMAGES_PER_CONCEPT
    if len(training) != expected or len(np.unique(training)) != expected:
        raise BadDataError(
            f"{path} shows {len(np.unique(training))} training images in {len(training)} trials; "
            f"THINGS-fMRI has {expected}, each once"
        )
    # Noise ceilings and z-scoring count on every session showing all test images.
    showings = set(zip(test.tolist(), session[kind == "test"].tolist(), strict=True))
    if len(np.unique(test)) != TEST_IMAGES or len(showings) != TEST_IMAGES * SESSIONS:
        raise BadDataError(
            f"{path} shows {len(np.unique(test))} test images in {len(test)} trials; "
            f"THINGS-fMRI has {TEST_IMAGES}, each once in every session"
        )
    if common := np.intersect1d(training, test).tolist():
        raise BadDataError(f"{path}: {common[0]} is a training and a test image")


def _check_concepts(path: Path, kind: np.ndarray, names: np.ndarray, concepts: np.ndarray) -> None:
    """Raise unless there are 720 training concepts of 12 images each, and every test concept is among them."""
    training, counts = np.unique(concepts[kind == "train"], return_counts=True)
    if len(training) != TRAIN_CONCEPTS or set(counts.tolist()) != {IMAGES_PER_CONCEPT}:
        raise BadDataError(
            f"{path} has {len(training)} training concepts of {sorted(set(counts.tolist()))} images; "
            f"THINGS-fMRI has {TRAIN_CONCEPTS} of {IMAGES_PER_CONCEPT}"
        )
    if other := np.setdiff1d(concepts[kind == "test"], training).tolist():
        raise BadDataError(f"{path}: test concept {other[0]} is no training concept; in THINGS-fMRI all are")
