"""Stage `fit`: every configuration of every recipe over every subject, through Ray Tune; validation selects.

    <runs>/fits/<id>/                  plan, state and record of each fit
    <runs>/selections/<recipe>.json    the selected fit of each subject, with what it was selected by

Only training and validation trials are read by fits. What is recorded is not fitted again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.core import cluster
from bench.core.console import console, guard, numbers, parser, progress
from bench.core.errors import OptionError
from bench.core.storage import Folder
from bench.core.timings import Timings
from bench.data import shard_set
from bench.data.shard_set import ShardSet
from bench.data.stream.load import FIT, TEST
from bench.fitting.candidates import RecipeFits, candidates, data_key, select
from bench.fitting.plan import DataDigests
from bench.fitting.search import DataRefs, run_candidates
from bench.recipes import frozen_models
from bench.recipes.base import Recipe
from bench.recipes.load import load_recipe
from bench.targets import parts, targets


@dataclass(frozen=True)
class FitData:
    """What fits read, and the test split that the stages after them read.

    Attributes:
        shards: The trial shards and their stimuli.
        subjects: Subjects that are fitted.
        sessions: Sessions that fits may see and tests are taken from, None for all.
        refs: References to training and validation trials, and to target tables.
        digests: Content addresses of what fits read.
        test: References to test trials, by data key and subject; no fit is handed them.
        tested: Test stimuli by subject.
    """

    shards: ShardSet
    subjects: tuple[int, ...]
    sessions: tuple[int, ...] | None
    refs: DataRefs
    digests: DataDigests
    test: Mapping[str, Mapping[int, Any]]
    tested: Mapping[int, tuple[int, ...]]


def load_recipes(names: Sequence[str], trials: int | None) -> list[Recipe]:
    """Return recipes by name or path.

    Args:
        names: Shipped recipes, or YAML files.
        trials: Configurations of each, None for the recipes' own numbers.

    Raises:
        OptionError: If two recipes have one name: they would be one row.
        MissingWeightsError: If weights of a generator they use are not on this machine.
    """
    loaded = [load_recipe(name) for name in names]
    found = [each.name for each in loaded]
    if len(set(found)) < len(found):
        raise OptionError(f"two recipes have one name: {', '.join(found)}")
    frozen_models.look_for_weights(loaded)
    if trials is None:
        return loaded
    return [replace(each, search=replace(each.search, trials=trials)) for each in loaded]


def open_data(
    shards: Folder,
    recipes: Sequence[Recipe],
    clock: Timings,
    subjects: tuple[int, ...] | None = None,
    sessions: tuple[int, ...] | None = None,
    test_images: int | None = None,
) -> FitData:
    """Make the targets that the recipes name where they are missing, and read every trial into shared memory once.

    Args:
        shards: A set of trial shards.
        recipes: Whose targets and z-scoring rules.
        clock: Counts the time of `targets` and `load`.
        subjects: Subjects, None for all in the shards.
        sessions: Sessions, None for all.
        test_images: Test pictures a subject, None for all shared ones shown.
    """
    data = shard_set.open_data(shards)
    chosen = subjects or tuple(data.manifest.subjects)
    with clock.stage("targets"):
        refs, digests = shard_set.target_refs(_targets(data, recipes))
    with clock.stage("load"):
        keys = {data_key(stage): stage.normalise for r in recipes for stage in r.stages}
        loaded = {key: data.load(chosen, (FIT, TEST), sessions, rule) for key, rule in keys.items()}
        train, test = ({key: split[place] for key, split in loaded.items()} for place in (0, 1))
        tested = shard_set.tested_stimuli(next(iter(test.values())), test_images)
    return FitData(
        shards=data,
        subjects=chosen,
        sessions=sessions,
        refs=DataRefs(train, refs, data.label_names),
        digests=DataDigests({"": data.manifest.content_digest}, digests),
        test=test,
        tested=tested,
    )


def _targets(data: ShardSet, recipes: Sequence[Recipe]) -> dict[str, Folder]:
    """Return the shards of every target, made where they are missing; all targets of a generator in one pass."""
    made: dict[str, Folder] = {}
    names = sorted({target for each in recipes for target in each.targets})
    for generator, chosen in sorted(frozen_models.of_targets(recipes).items()):
        mine = [name.split(".")[1] for name in names if name.split(".")[0] == generator]
        with progress("targets", parts(data.stimuli)) as advance:
            folders = targets(data.stimuli, data.folder, generator, chosen.settings, mine, advance)
        made.update({f"{generator}.{name}": folder for name, folder in folders.items()})
    return made


def fit(recipes: Sequence[Recipe], data: FitData, runs: Folder, seed: int, clock: Timings) -> list[RecipeFits]:
    """Search every recipe over every subject, select by validation, and write down what was selected.

    Args:
        recipes: What is fitted.
        data: What fits read.
        runs: The runs folder.
        seed: Base seed of draws and fits.
        clock: Counts the time of `fit`.
    """
    plans = [c for r in recipes for c in candidates(r, data.subjects, data.digests, seed, data.sessions)]
    with clock.stage("fit"), progress("fit", len({c.plan.id for c in plans})) as advance:
        records = run_candidates(plans, data.refs, runs, advance)
    by_id = {record.id: record for record in records}
    best = select(plans, records)
    tried = {r.name: len({c.config for c in plans if c.recipe == r.name}) for r in recipes}
    fits = []
    for each in recipes:
        scores = [by_id[c.plan.id].validation_correlation or 0.0 for c in best[each.name].values()]
        fits.append(RecipeFits(each, best[each.name], by_id, tried[each.name], sum(scores) / len(scores)))
        (runs / "selections").write_json(f"{each.name}.json", fits[-1].selection())
    return fits


def _arguments() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    cli = parser(
        "fit",
        "Fit recipes: draw configurations, fit each over every subject, select by validation. Targets that are missing "
        "are made first. What is recorded is kept.",
        "reconbench fit --recipes tiny-ridge --runs .reconbench/runs/mine \\\n"
        "      --shards .reconbench/data/nsd-sim/...@0123456789abcdef",
    )
    cli.add_argument("--shards", required=True, help="a set of trial shards made by `prepare`: folder or s3://")
    cli.add_argument("--recipes", required=True, help="shipped recipes or YAML files, by comma")
    cli.add_argument("--runs", required=True, help="runs folder, a path or s3://")
    cli.add_argument("--trials", type=int, help="configurations a recipe, instead of the recipes' own numbers")
    cli.add_argument("--subjects", type=numbers, help="subjects such as 1,2,5-8 (all)")
    cli.add_argument("--sessions", type=numbers, help="sessions such as 1-10 (all)")
    cli.add_argument("--seed", type=int, default=0, help="base seed of everything random")
    cli.add_argument("--cpus", type=int, help="CPUs of a local cluster (all)")
    return cli


def run(argv: Sequence[str]) -> int:
    """Parse, fit, print the selected fits."""
    given = _arguments().parse_args(argv)
    runs = Folder.at(given.runs)
    recipes = load_recipes([name.strip() for name in given.recipes.split(",")], given.trials)
    cluster.connect(given.cpus)
    clock = Timings(runs)
    data = open_data(Folder.at(given.shards), recipes, clock, given.subjects, given.sessions)
    for fits in fit(recipes, data, runs, given.seed, clock):
        for subject, chosen in fits.selection()["subjects"].items():
            score = "no score" if chosen["score"] is None else f"validation correlation {chosen['score']:.4f}"
            said = f"{fits.recipe.name}  subject {subject}  fit {chosen['fit']}  {score}"
            console().print(said, markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; return its exit status."""
    return guard(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
