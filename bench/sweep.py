"""The main job: from raw files to a ranked leaderboard, every stage in order, each resumable.

    python bench/sweep.py                                        the embedded default, nothing to download
    python bench/sweep.py --shards s3://lab/data/nsd/...@... --recipes takagi,braid-mlp --runs s3://lab/runs/one
    ray job submit -- python bench/sweep.py ...                  the same on a cluster

Rerunning the same command continues where it stopped and repeats nothing that is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.core.console import console, guard, numbers, parser
from bench.core.storage import Folder, home
from bench.sweeping.settings import DEFAULT_RECIPES, Settings

SUMMARY = """Go from raw files to a ranked leaderboard.

Without --shards the simulated NSD is written and prepared first, so the plain command needs nothing but this package.
Stages: simulate, prepare, targets, fit (Ray Tune), predict, render (Ray Serve), score, leaderboard. Each also runs
alone (`reconbench STAGE --help`). Results are addressed by what made them: a rerun repeats nothing that is finished."""


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    cli = parser("sweep", SUMMARY, "python bench/sweep.py --recipes tiny-ridge,tiny-knn --subjects 1,2 --trials 2")
    work = cli.add_argument_group("what to run")
    work.add_argument("--recipes", default=",".join(DEFAULT_RECIPES), help="shipped recipes or YAML files, by comma")
    work.add_argument("--trials", type=int, help="configurations a recipe, instead of the recipes' own numbers")
    work.add_argument("--subjects", type=numbers, help="subjects such as 1,2,5-8 (all)")
    work.add_argument("--sessions", type=numbers, help="sessions such as 1-10 (all)")
    work.add_argument("--seed", type=int, default=0, help="base seed of everything random")
    data = cli.add_argument_group("data")
    data.add_argument("--shards", help="a set of trial shards made by `prepare`: folder or s3://")
    data.add_argument("--data", help="where simulated data and shards go ($RECONBENCH_HOME/data)")
    data.add_argument("--preset", choices=("demo", "tiny"), default="demo", help="simulated NSD, without --shards")
    data.add_argument("--runs", help="where results go: folder or s3:// ($RECONBENCH_HOME/runs/<preset or shards>)")
    score = cli.add_argument_group("scoring")
    score.add_argument("--protocol", default="scenes-1", help="protocol that ranks")
    score.add_argument("--weights", help="folder of the protocol's network weights, where they are not shipped")
    score.add_argument("--test-images", type=int, help="test pictures a subject (all shared ones that were shown)")
    score.add_argument("--exact-images", type=int, help="pictures for the unranked mindeye2 table (6 in the demo)")
    how = cli.add_argument_group("how to run (changes no result)")
    how.add_argument("--batch-size", type=int, default=32, help="pictures a render request")
    how.add_argument("--replicas", type=int, help="render replicas (one a GPU, else one)")
    how.add_argument("--cpus", type=int, help="CPUs of a local cluster (all)")
    how.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue what is in --runs; --no-resume refuses a folder that already holds results",
    )
    return cli


def settings_of(given: argparse.Namespace) -> Settings:
    """Return the settings that arguments describe."""
    shards = Folder.at(given.shards) if given.shards else None
    named = {
        "recipes": tuple(name.strip() for name in given.recipes.split(",")),
        "runs": Folder.at(given.runs or home() / "runs" / (shards.name if shards else given.preset)),
        "data": Folder.at(given.data or home() / "data"),
        "shards": shards,
        "exact_images": given.exact_images,
    }
    if given.exact_images is None:
        named["exact_images"] = 6 if given.preset == "demo" and shards is None else 0
    # All other settings are what the option of their name says.
    return Settings(**{f.name: named.get(f.name, getattr(given, f.name)) for f in fields(Settings)})


def run(argv: Sequence[str]) -> int:
    """Parse, sweep, print the ranked table, what each stage took, and where the page lies."""
    given = arguments().parse_args(argv)
    settings = settings_of(given)
    from bench.board.terminal import print_table  # after parsing: `--help` need not wait for torch and ray
    from bench.sweeping.flow import sweep

    board, clock = sweep(settings, resume=given.resume)
    print_table(board)
    spent = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in clock.here.items())
    console().print(f"{spent}  in all {sum(clock.here.values()):.1f} s", markup=False, soft_wrap=True)
    console().print(f"page  {settings.runs}/leaderboard.html", markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; return its exit status."""
    return guard(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
