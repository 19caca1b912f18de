"""The console command: `reconbench STAGE ...` reaches the same code as `python bench/STAGE.py ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from bench.core.console import EXIT_USER_ERROR, console
from bench.core.errors import UnknownNameError

STAGES = {
    "sweep": "the main job: every stage below, in order",
    "simulate": "write a simulated NSD in NSD's own file layout",
    "prepare": "dataset files -> trial shards",
    "targets": "stimuli -> target shards",
    "fit": "trial and target shards -> fits, and which of them validation selects",
    "predict": "a fit -> predicted latents of the test set",
    "render": "predictions -> pictures",
    "score": "pictures -> one scored record",
    "leaderboard": "records -> leaderboard.json, .md, .html",
}


def usage() -> str:
    """Return the command's help."""
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:<{width}}  {text}" for name, text in STAGES.items())
    return (
        "usage: reconbench STAGE [options]\n\n"
        "A benchmark harness for fMRI-to-image reconstruction. Start with `reconbench sweep`.\n\n"
        f"stages:\n{stages}\n\n`reconbench STAGE --help` tells a stage's options."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage; return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in {"-h", "--help"}:
        sys.stdout.write(usage() + "\n")
        return 0 if given else EXIT_USER_ERROR
    if given[0] not in STAGES:
        console().print(f"error: {UnknownNameError('stage', given[0], STAGES)}", style="bold red", markup=False)
        return EXIT_USER_ERROR
    stage = importlib.import_module(f"bench.{given[0]}")
    return int(stage.main(given[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
