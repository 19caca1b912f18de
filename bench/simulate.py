"""Writes a simulated NSD in NSD's own file layout: python bench/simulate.py --preset demo --out nsd-sim.

Subjects and sessions are Ray tasks. Files appear whole, a rerun continues, and `simulated.json` is written last.

The preset `full` has the true dimensions (8 subjects, 284 sessions, 213,000 trials). Its raw files would take more than
400 GB, so it becomes trial shards of nsdgeneral at once, 6.2 GB, by the cheaper model of
`bench.data.simulate.low_rank`; `--raw` writes the files all the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import ray

from bench.core import cluster, tasks
from bench.core.console import Advance, console, guard, parser, progress
from bench.core.errors import OptionError, OtherConfigurationError, UnknownNameError
from bench.core.identity import plain
from bench.core.storage import Folder, home
from bench.data.datasets.nsd import layout
from bench.data.simulate.brain.features import ImageFeatures
from bench.data.simulate.brain.responses import SubjectTruth
from bench.data.simulate.brain.tuning import reference_features
from bench.data.simulate.design import simulate_design
from bench.data.simulate.low_rank import LowRankNsd, LowRankOptions, LowRankSubject, low_rank_subject
from bench.data.simulate.nsd_copy import build
from bench.data.simulate.nsd_copy import tables as nsd_files
from bench.data.simulate.presets import DEMO, FULL, TINY, Preset
from bench.prepare import prepare

VERSION = 2
"""Raised whenever the same preset and seed give other files."""
PRESETS = {"demo": DEMO, "full": FULL, "tiny": TINY}
STARTED = "simulating.json"
SESSION_MEMORY = 1 << 29


def simulate(preset: Preset | str, out: Path, seed: int = 0, advance: Advance | None = None) -> Path:
    """Write a simulated NSD; return its folder.

    Args:
        preset: Its size, or the name of one in `PRESETS`.
        out: The folder; sessions that are already there are kept.
        seed: Seed of everything in it.
        advance: Counts subjects and sessions as done; None shows a display of its own.

    Raises:
        OtherConfigurationError: If the folder holds another simulation, or files that no simulation wrote.
        UnknownNameError: If there is no preset of that name.
        OptionError: If the seed is negative.
    """
    chosen = _with_seed(preset, seed)
    identity = plain({"version": VERSION, **plain(chosen)})
    if _claim(out, identity):
        return out
    cluster.connect()
    with nullcontext(advance) if advance else progress("simulate", units(chosen)) as count:
        tables = _tables.options(**tasks.placement(False, SESSION_MEMORY)).remote(out, chosen)
        truths = _subjects(out, chosen, count)
        _sessions(out, chosen, truths, count)
        ray.get(tables)
    Folder.at(out).write_json(layout.SIMULATED, identity)
    (out / STARTED).unlink(missing_ok=True)
    return out


def simulate_shards(
    preset: Preset | str, data: Folder, seed: int = 0, pictures: bool = False, advance: Advance | None = None
) -> Folder:
    """Lay out trial shards and stimuli of a simulated NSD without raw files; return the shards' folder.

    Sessions are drawn in Ray tasks and kept where they are there already, as `bench.prepare` does with a reader.

    Args:
        preset: Its size, or the name of one in `PRESETS`.
        data: Where shards go, local or S3.
        seed: Seed of everything in it.
        pictures: Draw the stimuli too; without them encoders can be fitted to given targets only.
        advance: Counts sessions and stimuli files as done; None shows a display of its own.

    Raises:
        OtherConfigurationError: If a manifest in the folder is of another simulation.
        UnknownNameError: If there is no preset of that name.
        OptionError: If the seed is negative.
    """
    chosen = _with_seed(preset, seed)
    cluster.connect()
    # A subject's anatomy takes a second at full size; its sessions share what comes of it through the object store.
    subjects = ray.get([_low_rank.remote(chosen, subject) for subject in chosen.subjects])
    dataset = LowRankNsd(LowRankOptions(chosen, pictures), dict(zip(chosen.subjects, subjects, strict=True)))
    return prepare(dataset, data, advance, shared=not data.is_local)


def units(preset: Preset) -> int:
    """Return how many units of work a preset is: its subjects and sessions."""
    return len(preset.subjects) + sum(preset.sessions)


def _with_seed(preset: Preset | str, seed: int) -> Preset:
    """Return the preset with its seed."""
    if seed < 0:
        raise OptionError(f"seed {seed} is negative")
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise UnknownNameError("preset", preset, PRESETS)
        preset = PRESETS[preset]
    return replace(preset, seed=seed)


def _claim(out: Path, identity: dict[str, Any]) -> bool:
    """Mark the folder as belonging to this simulation; say whether it is finished already."""
    folder = Folder.at(out)
    for name in (layout.SIMULATED, STARTED):
        if folder.exists(name):
            found = folder.read_json(name)
            if found != identity:
                raise OtherConfigurationError(f"{out} holds another simulation: {_difference(found, identity)}")
            return name == layout.SIMULATED
    if folder.names():
        raise OtherConfigurationError(f"{out} is not empty and holds no simulation; choose an empty or new folder")
    folder.write_json(STARTED, identity)
    return False


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return the settings in which two simulations differ."""
    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return "; ".join(f"{key} is {found.get(key)!r}, asked for {wanted.get(key)!r}" for key in keys)


def _subjects(out: Path, preset: Preset, advance: Advance) -> dict[int, Any]:
    """Write every subject's anatomy; return references to their truths."""
    options = tasks.placement(False, SESSION_MEMORY)
    reference = _reference.options(**options).remote(preset)
    truths = {s: _subject.options(**options).remote(out, preset, s, reference) for s in preset.subjects}
    for subject, truth in truths.items():
        ray.wait([truth], fetch_local=False)
        advance(1, layout.subject_name(subject))
    return truths


def _sessions(out: Path, preset: Preset, truths: dict[int, Any], advance: Advance) -> None:
    """Write every session's betas, and stimuli and captions from the pictures that the sessions' tasks have drawn."""
    design = simulate_design(preset.seed)
    owned = build.first_shown(preset, design)
    finished = (out / layout.STIMULI).exists() and (out / layout.captions("val2017")).exists()
    nothing = np.empty(0, dtype=np.int64)
    options = tasks.placement(False, SESSION_MEMORY)

    def submit(pair: tuple[int, int]) -> Any:  # noqa: ANN401 - a Ray reference
        return _session.options(**options).remote(out, truths[pair[0]], pair[1], nothing if finished else owned[pair])

    texts: dict[int, list[str]] = {}

    def pictures() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for pair, made in zip(owned, tasks.ordered(submit, owned), strict=True):
            texts.update(zip(made.numbers.tolist(), made.captions, strict=True))
            advance(1, f"{layout.subject_name(pair[0])} session {pair[1]}")
            yield made.numbers, made.images

    if finished:
        for _ in pictures():
            continue
        return
    nsd_files.write_stimuli(out, pictures(), preset.image_size)
    nsd_files.write_captions(out, texts, design.sharedix[0] - 1)


@ray.remote
def _low_rank(preset: Preset, subject: int) -> LowRankSubject:
    """Draw what a subject's shards are made from."""
    return low_rank_subject(preset, subject)


@ray.remote
def _tables(out: Path, preset: Preset) -> None:
    """Write the tables."""
    build.write_tables(out, preset)


@ray.remote
def _reference(preset: Preset) -> ImageFeatures:
    """Return the features that all subjects' signals are standardised over."""
    return reference_features(preset)


@ray.remote
def _subject(out: Path, preset: Preset, subject: int, reference: ImageFeatures) -> SubjectTruth:
    """Write a subject's anatomy and return its truth."""
    return build.write_subject(out, preset, subject, reference)


@ray.remote
def _session(out: Path, truth: SubjectTruth, session: int, owned: np.ndarray) -> build.Pictures:
    """Write a session's betas and return the pictures it was asked for."""
    return build.write_session(out, truth, session, owned)


def _parser() -> argparse.ArgumentParser:
    """Return the stage's argument parser."""
    options = parser(
        "simulate",
        "Write a simulated NSD: NSD's own files, with betas computed from procedural scenes by a known rule. "
        "The preset full becomes trial shards at once, of betas drawn by a cheaper rule.",
        "reconbench simulate --preset tiny --out nsd-sim",
    )
    options.add_argument("--preset", choices=sorted(PRESETS), default="demo", help="how large it is")
    options.add_argument(
        "--out",
        help="folder to write to ($RECONBENCH_HOME/data/raw/nsd-sim-PRESET-SEED; for shards $RECONBENCH_HOME/data)",
    )
    options.add_argument("--seed", type=int, default=0, help="seed of everything in it")
    options.add_argument(
        "--raw", action="store_true", help="full: NSD's own files (580 GB) rather than shards (6.2 GB)"
    )
    options.add_argument("--pictures", action="store_true", help="full: draw the stimuli into the shards")
    return options


def _run(argv: Sequence[str]) -> int:
    """Parse the command line and simulate."""
    given = _parser().parse_args(argv)
    if given.preset == FULL.name and not given.raw:
        data = Folder.at(given.out or home() / "data")
        made = f"trial shards in {simulate_shards(given.preset, data, given.seed, given.pictures)}"
    else:
        out = Path(given.out) if given.out else home() / "data" / "raw" / f"nsd-sim-{given.preset}-{given.seed}"
        made = f"simulated NSD ({given.preset}) in {simulate(given.preset, out, given.seed)}"
    console().print(made, markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage from a command line; return its exit status."""
    return guard(_run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
