"""The smallest sweep with all that one has: two recipes, two subjects, a search, the controls."""

from __future__ import annotations

import json
from pathlib import Path

from bench.core.storage import Folder

RECIPES = "tiny-ridge,tiny-knn"


def arguments(shards: Folder, runs: Path, *more: str) -> list[str]:
    """Return the command line of the smallest sweep."""
    base = ["--shards", shards.uri, "--runs", str(runs), "--recipes", RECIPES, "--trials", "2", "--test-images", "16"]
    return [*base, *more]


def values(runs: Path) -> dict[str, dict[str, float]]:
    """Return every row's metric values by name: what a board says, without costs and times."""
    records = [json.loads(p.read_text()) for p in runs.glob("scores/*/record.json")]
    return {r["name"]: {name: metric["value"] for name, metric in r["metrics"].items()} for r in records}
