"""NSD-imagery: 18 targets seen and imagined, a test set for decoding what is not there (Kneeland et al. 2025).

Twelve runs a subject, in the order of `RUNS`: three sets of six targets (A: bars and crosses, B: pictures, C: words),
each seen in a vision run, attended to, and imagined in two runs. The files hold 720 betas, two a trial in attention
runs. Vision or imagery runs are read, as an option says; attention runs never: they show other things than a target.

Five targets of set B are shared pictures of NSD itself (`nsd_targets`): NSD's split keeps them out of training.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.datasets._occurrences import occurrences
from bench.data.datasets.base import Stimulus, Trials
from bench.data.datasets.nsd import layout
from bench.data.datasets.nsd.side_experiment import SideExperiment, SideOptions
from bench.data.sources.pictures import decode

RUNS = (
    *("visA", "attA", "imgA_1", "visB", "attB", "imgB_1"),
    *("visC", "attC", "imgC_1", "imgA_2", "imgB_2", "imgC_2"),
)
ROWS, PER_SET = 48, 6
RAW = "nsddata/experiments/nsdimagery/rawtargetimages"


def blocks() -> dict[str, slice]:
    """Return for each run its rows among the 720 betas; an attention run has two a trial."""
    counts = [2 * ROWS if run.startswith("att") else ROWS for run in RUNS]
    # The betas file has no marks between runs: their order and lengths are all there is to cut it by.
    ends = np.cumsum(counts)
    return {run: slice(int(end - n), int(end)) for run, end, n in zip(RUNS, ends, counts, strict=True)}


@dataclass(frozen=True, kw_only=True)
class ImageryOptions(SideOptions):
    """Options of NSD-imagery.

    Attributes:
        trials: `vision` (the targets were on the screen) or `imagery` (a cue was, the targets were imagined).
    """

    trials: Literal["vision", "imagery"] = "vision"


@dataclass(frozen=True)
class Target:
    """A target: its name, and its picture's key, or None for a word."""

    name: str
    key: str | None

    @property
    def nsd_id(self) -> int | None:
        """The 0-based nsdId of a target that is a picture of NSD, else None."""
        found = re.search(r"_nsd0*([1-9]\d*)", self.name)
        return int(found.group(1)) - 1 if found else None


class NsdImagery(SideExperiment):
    """Reads the imagery session. Stimulus 6 set + k is the k-th condition of set A, B or C (0, 1, 2)."""

    version = 1
    Options = ImageryOptions
    reader = "nsd-imagery"
    title = "NSD-imagery"
    experiment = "nsdimagery"

    def trials_stored(self, subject: int, session: int) -> int:
        """Return the betas in a file."""
        del subject, session
        return list(blocks().values())[-1].stop

    @property
    def form(self) -> str:
        """What was read; seen and imagined trials lie in folders of their own."""
        return f"{self.options.trials}-{super().form}"

    def _table(self, subject: int, run: str) -> pd.DataFrame:
        """Return a run's trials as the behavioural file lists them.

        Raises:
            MissingDataError: If there is no such file.
            CorruptFileError: If it is not a table with the columns needed.
            BadDataError: If it does not have 48 rows.
        """
        name = layout.subject_name(subject)
        path = self.files.local(f"nsddata/bdata/nsdimagery/nsdimagery_{name}_{run}.tsv")
        try:
            table = pd.read_csv(path, sep="\t", usecols=["CONDITION", "IMAGEFILE"], dtype={"IMAGEFILE": str})
        except (ValueError, UnicodeDecodeError) as error:
            raise CorruptFileError(f"{path} cannot be read as a table of trials: {error}") from None
        # A row less would shift the later trials of the run to wrong targets, without any other sign.
        if len(table) != ROWS:
            raise BadDataError(f"{path} has {len(table)} trials, a run of NSD-imagery has {ROWS}")
        return table

    def _conditions(self, subject: int, letter: str) -> dict[int, str]:
        """Return the picture file of each condition of a set, from its vision run.

        Raises:
            BadDataError: If there are not six conditions, or one shows two pictures.
        """
        table = self._table(subject, f"vis{letter}")
        # In a vision run the picture is named; imagery runs of the set use the same conditions.
        pairs = table.drop_duplicates()
        if len(pairs) != PER_SET or pairs["CONDITION"].nunique() != PER_SET:
            raise BadDataError(
                f"subject {subject}, run vis{letter}: {PER_SET} conditions with one picture each are needed, "
                f"came {sorted(map(tuple, pairs.to_numpy().tolist()))}"
            )
        return {int(c): str(f) for c, f in sorted(map(tuple, pairs.to_numpy().tolist()))}

    def trials(self, subject: int, session: int) -> Trials:
        """Return the trials of the runs asked for; `trial` is the row among all 720 betas.

        Raises:
            OptionError: If there is no such subject or session.
            BadDataError: If a run shows a condition that its set's vision run does not.
        """
        self.check(subject, session)
        kind = {"vision": "vis", "imagery": "img"}[self.options.trials]
        rows, stimuli = [], []
        for run, rows_of_run in blocks().items():
            if not run.startswith(kind):
                continue
            # `visA`, `imgB_2`: the letter of the set stands fourth.
            known = list(self._conditions(subject, run[3]))
            shown = self._table(subject, run)["CONDITION"].astype(int).tolist()
            unknown = sorted(set(shown) - set(known))
            if unknown:
                raise BadDataError(f"subject {subject}, run {run}: conditions {unknown} are not those of vis{run[3]}")
            rows.append(np.arange(rows_of_run.start, rows_of_run.stop))
            stimuli.append(PER_SET * "ABC".index(run[3]) + np.array([known.index(c) for c in shown]))
        stimulus = np.concatenate(stimuli)
        return Trials(np.concatenate(rows), stimulus, occurrences(stimulus))

    @functools.cached_property
    def targets(self) -> tuple[Target, ...]:
        """The 18 targets by stimulus number, as the first prepared subject saw them.

        Raises:
            BadDataError: If subjects saw different targets.
        """
        found = {s: tuple(self._targets(s)) for s, _ in self.sessions()}
        first, targets = next(iter(found.items()))
        for subject, own in found.items():
            if own != targets:
                raise BadDataError(f"subjects {first} and {subject} saw different targets: {targets} and {own}")
        return targets

    def _targets(self, subject: int) -> Iterator[Target]:
        """Yield a subject's targets; set C is words and has no pictures."""
        for letter in "ABC":
            folder = f"{RAW}/set{letter}"
            # By stem: the table and the folder may differ in the ending.
            there = {name.rpartition(".")[0]: name for name in self.files.names(folder)} if letter != "C" else {}
            for file in self._conditions(subject, letter).values():
                # The table may hold paths, with either slash; a word of set C has no ending and stands for itself.
                stem = re.split(r"[/\\]", file)[-1].rpartition(".")[0] or file
                if letter != "C" and stem not in there:
                    where = self.files.where(folder)
                    raise BadDataError(f"run vis{letter} shows {file!r}, {where} has only {sorted(there)}")
                yield Target(stem, f"{folder}/{there[stem]}" if letter != "C" else None)

    @property
    def nsd_targets(self) -> frozenset[int]:
        """The 0-based nsdIds of targets that are pictures of NSD: no decoder that is tested here may train on them."""
        return frozenset(target.nsd_id for target in self.targets if target.nsd_id is not None)

    def origin(self) -> Mapping[str, Any]:
        """Return the reader's version, the trials' kind and the targets."""
        shown = {
            str(s): hashlib.sha256(self.trials(s, 1).stimulus.astype("<i8").tobytes()).hexdigest()[:16]
            for s, _ in self.sessions()
        }
        return {
            **super().origin(),
            "trials": self.options.trials,
            "targets": [target.name for target in self.targets],
            "shown": shown,
        }

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides the pictures: the same for seen and imagined trials."""
        # Not `origin`: which trials are read decides no picture, and both kinds share one set of stimuli.
        return {**super().origin(), "targets": [target.name for target in self.targets]}

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield targets in the order of the numbers, their names as labels; words have no picture.

        Raises:
            CorruptFileError: If a picture cannot be read.
        """
        for number in numbers:
            target = self.targets[number]
            path = self.files.local(target.key) if target.key else None
            image = decode(path.read_bytes(), str(path)) if path else None
            yield Stimulus(number, image, (), target.name, True)
