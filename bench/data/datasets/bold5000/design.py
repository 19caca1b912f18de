"""BOLD5000's design: which picture each trial of each subject showed, from lists of image names.

Pictures are numbered by their place in the sorted names of all 4,916, so that a number means the same picture whichever
subjects, sessions and form of the betas are read. That takes the lists of all four subjects, which are small.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError
from bench.data.datasets._occurrences import occurrences
from bench.data.datasets.base import Trials
from bench.data.datasets.bold5000 import layout
from bench.data.sources.files import SourceFiles

PICTURES = {"COCO": 2000, "ImageNet": 1916, "Scene": 1000}
"""Distinct pictures of each source, which is also the name of their folder."""
REPEATED = 113
SHOWINGS: Mapping[int, Mapping[int, int]] = {
    1: {1: 4803, 3: 1, 4: 112},
    2: {1: 4803, 3: 1, 4: 112},
    3: {1: 4803, 2: 1, 3: 2, 4: 107, 5: 3},
}
"""How many pictures a subject saw how often. CSI4 stopped after nine sessions; see `DISTINCT`."""
DISTINCT = {1: 4916, 2: 4916, 3: 4916, 4: 2952}

_IMAGENET = re.compile(r"n\d{8}_")


@dataclass(frozen=True)
class Design:
    """The design, 0-based.

    Attributes:
        names: The image names, sorted; their places are the stimulus numbers.
        shared: `(4916,)` whether a picture is one of the 113 that were shown repeatedly: the test pictures.
        shown: For each subject `(T,)` the stimulus of each trial over all sessions.
    """

    names: tuple[str, ...]
    shared: np.ndarray
    shown: Mapping[int, np.ndarray]

    @property
    def digest(self) -> str:
        """Digest of names, shared flags and trials: equal whichever lists they were read from."""
        total = hashlib.sha256("\n".join(self.names).encode() + self.shared.tobytes())
        for subject, stimuli in sorted(self.shown.items()):
            total.update(f"\0{subject}".encode() + stimuli.astype("<i4").tobytes())
        return total.hexdigest()[:16]

    def rows(self, subject: int, session: int) -> slice:
        """Return a session's trials among all of its subject.

        Raises:
            OptionError: If there is no such subject or session.
        """
        if subject not in layout.SUBJECTS:
            raise OptionError(f"no subject {subject}: BOLD5000 has subjects 1 to 4 (CSI1 to CSI4)")
        if not 1 <= session <= layout.SESSIONS[subject]:
            name = layout.subject_name(subject)
            raise OptionError(f"no session {session}: {name} has sessions 1 to {layout.SESSIONS[subject]}")
        start = sum(layout.runs(subject, before) for before in range(1, session))
        stop = start + layout.runs(subject, session)
        return slice(start * layout.IMAGES_PER_RUN, stop * layout.IMAGES_PER_RUN)

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed a subject.

        Raises:
            OptionError: If there is no such subject or session.
        """
        part = self.rows(subject, session)
        stimuli = self.shown[subject]
        return Trials(np.arange(part.start, part.stop), stimuli[part], occurrences(stimuli)[part])


def kind_of(name: str) -> str:
    """Return a picture's source by its name: `COCO`, `ImageNet` or `Scene`."""
    if name.startswith("COCO_"):
        return "COCO"
    return "ImageNet" if _IMAGENET.match(name) else "Scene"


def read_design(files: SourceFiles) -> Design:
    """Read the lists of all subjects and the list of repeated pictures.

    Raises:
        MissingDataError: If a list is missing.
        CorruptFileError: If a list is not text.
        BadDataError: If trials, pictures or showings are not as many as BOLD5000 has.
    """
    lists = {subject: _read_names(files, subject) for subject in layout.SUBJECTS}
    for subject, (shown, where) in lists.items():
        _check_subject(subject, shown, where)
    names = tuple(sorted({name for shown, _ in lists.values() for name in shown}))
    # Numbers come from the sorted names: one misspelt name would shift all behind it.
    _check_pictures(names, lists)
    repeated = _read_lines(files, layout.REPEATED)
    _check_repeated(repeated, lists, files.where(layout.REPEATED))
    number_of = {name: i for i, name in enumerate(names)}
    stimuli = {s: np.array([number_of[name] for name in shown], np.int64) for s, (shown, _) in lists.items()}
    return Design(names, np.isin(names, repeated), stimuli)


def _read_names(files: SourceFiles, subject: int) -> tuple[list[str], str]:
    """Return the names of a subject's images, one a trial, and where they were read."""
    for key in layout.names_lists(subject):
        if files.exists(key):
            return _read_lines(files, key), files.where(key)
    first = layout.run_list(subject, 1, 1)
    if not files.exists(first):
        tried = " nor ".join((*layout.names_lists(subject), first))
        raise MissingDataError(
            f"{files.root} has neither {tried}: the lists of all four subjects are needed, they number the pictures"
        )
    shown: list[str] = []
    for session in range(1, layout.SESSIONS[subject] + 1):
        for run in range(1, layout.runs(subject, session) + 1):
            key = layout.run_list(subject, session, run)
            names = _read_lines(files, key)
            if len(names) != layout.IMAGES_PER_RUN:
                raise BadDataError(f"{files.where(key)} names {len(names)} images, a run has {layout.IMAGES_PER_RUN}")
            shown += names
    return shown, files.where(f"{layout.LISTS}/{layout.subject_name(subject)}")


def _read_lines(files: SourceFiles, key: str) -> list[str]:
    """Return the image names of a list; blank lines and `rep_` are left out."""
    path = files.local(key)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{files.where(key)} is not a list of names: {error}") from None
    return [line.strip().removeprefix("rep_") for line in lines if line.strip()]


def _check_subject(subject: int, shown: list[str], where: str) -> None:
    """Compare the number of a subject's trials and showings with the published ones."""
    expected = layout.IMAGES_PER_RUN * sum(layout.runs(subject, n + 1) for n in range(layout.SESSIONS[subject]))
    if len(shown) != expected:
        raise BadDataError(f"{where} names the images of {len(shown)} trials; CSI{subject} has {expected}")
    showings = Counter(Counter(shown).values())
    if sum(showings.values()) != DISTINCT[subject]:
        raise BadDataError(f"{where} names {sum(showings.values())} images; CSI{subject} saw {DISTINCT[subject]}")
    # CSI4 stopped after nine sessions: of its showings only the number of distinct pictures is compared.
    if subject in SHOWINGS and dict(showings) != SHOWINGS[subject]:
        raise BadDataError(
            f"{where}: numbers of images by how often they were shown are {dict(sorted(showings.items()))}; "
            f"CSI{subject} has {dict(SHOWINGS[subject])}"
        )


def _check_pictures(names: tuple[str, ...], lists: Mapping[int, tuple[list[str], str]]) -> None:
    """Compare the number of pictures of each source with the published ones."""
    counts = dict(Counter(kind_of(name) for name in names))
    if counts == PICTURES:
        return
    # A misspelt name stands in one list only: CSI1 to CSI3 saw all pictures, CSI4 some of them.
    often = Counter(name for shown, _ in lists.values() for name in set(shown))
    rare = [name for name in names if often[name] < len(layout.SUBJECTS) - 1][:3]
    lists_with_it = [where for shown, where in lists.values() if rare and rare[0] in shown]
    hint = f"; {', '.join(map(repr, rare))} are in {', '.join(lists_with_it)} only" if rare else ""
    raise BadDataError(f"the subjects' lists name {counts} pictures, BOLD5000 has {PICTURES}{hint}")


def _check_repeated(repeated: list[str], lists: Mapping[int, tuple[list[str], str]], where: str) -> None:
    """Compare the list of repeated pictures with what the three whole subjects saw more than once."""
    if len(repeated) != REPEATED or len(set(repeated)) != REPEATED:
        raise BadDataError(f"{where} names {len(set(repeated))} pictures in {len(repeated)} lines, not {REPEATED}")
    for subject in SHOWINGS:
        shown, source = lists[subject]
        twice = {name for name, count in Counter(shown).items() if count > 1}
        if differing := sorted(twice.symmetric_difference(repeated)):
            raise BadDataError(
                f"{where} is not what {source} shows more than once: {len(differing)} pictures differ, "
                f"such as {differing[0]!r}"
            )
