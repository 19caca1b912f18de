"""What a sweep is asked to do, and the guard that keeps one runs folder to one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.core.errors import OtherConfigurationError
from bench.core.identity import plain
from bench.core.storage import Folder
from bench.recipes.base import Recipe

SWEEP_FILE = "sweep.json"
DEFAULT_RECIPES = (
    "tiny-ridge",
    "tiny-braid-mlp",
    "tiny-knn",
    "tiny-takagi",
    "tiny-brain-diffuser",
    "tiny-ip-adapter",
)


@dataclass(frozen=True)
class Settings:
    """A sweep.

    Attributes:
        recipes: Names of shipped recipes or paths of YAML files.
        runs: Where fits, predictions, images, scores and the leaderboard go.
        data: Where shards lie or are written.
        shards: A set of trial shards; None simulates and prepares the preset first.
        preset: Preset of the simulated NSD.
        subjects: Subjects, None for all in the shards.
        sessions: Sessions that fits may see and tests are taken from, None for all.
        trials: Configurations a recipe, None for the recipes' own numbers.
        protocol: Protocol that ranks.
        weights: Folder of the protocol's network weights; None for protocols whose networks ship with the package.
        test_images: Test pictures a subject, None for all shared ones shown.
        exact_images: Pictures of one subject scored under `mindeye2` with untrained networks, 0 for none.
        seed: Base seed of everything random.
        batch_size: Pictures a render request; changes no result.
        replicas: Render replicas, None for one a GPU (or one); changes no result.
        cpus: CPUs of a local cluster, None for all; changes no result.
    """

    recipes: tuple[str, ...]
    runs: Folder
    data: Folder
    shards: Folder | None = None
    preset: str = "demo"
    subjects: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | None = None
    trials: int | None = None
    protocol: str = "scenes-1"
    weights: str | None = None
    test_images: int | None = None
    exact_images: int = 0
    seed: int = 0
    batch_size: int = 32
    replicas: int | None = None
    cpus: int | None = None

    def identity(self, recipes: Sequence[Recipe]) -> dict[str, Any]:
        """Return what decides the sweep's results: no paths, no worker counts."""
        without = {"recipes", "runs", "data", "shards", "weights", "batch_size", "replicas", "cpus"}
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in without}
        source = self.shards.name if self.shards else f"simulated {self.preset}"
        return dict(plain({**kept, "shards": source, "recipes": {r.name: asdict(r) for r in recipes}}))


def held(settings: Settings, recipes: Sequence[Recipe]) -> bool:
    """Say whether the runs folder holds an earlier run of this very sweep; nothing is written.

    Raises:
        OtherConfigurationError: If the folder belongs to a sweep of another configuration.
    """
    if not settings.runs.exists(SWEEP_FILE):
        return False
    mine, there = settings.identity(recipes), settings.runs.read_json(SWEEP_FILE)
    changed = sorted(key for key in mine.keys() | there.keys() if mine.get(key) != there.get(key))
    if changed:
        shown = "; ".join(f"{key}: there {_short(there.get(key))}, now {_short(mine.get(key))}" for key in changed)
        raise OtherConfigurationError(
            f"{settings.runs} belongs to a sweep of another configuration ({shown}). Choose another --runs folder."
        )
    return True


def claim(settings: Settings, recipes: Sequence[Recipe]) -> None:
    """Make the runs folder this sweep's. Called once everything that was asked for has been found."""
    settings.runs.write_json(SWEEP_FILE, settings.identity(recipes))


def _short(value: Any) -> str:  # noqa: ANN401 - JSON data
    """Return a value in few characters; of mappings the keys."""
    text = ", ".join(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
