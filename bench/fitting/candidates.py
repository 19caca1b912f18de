"""The fits of a search: every configuration of a recipe for every subject, which are selected, what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.fitting.draws import configurations
from bench.fitting.plan import DataDigests, FitPlan, plan_recipe
from bench.fitting.trial import FitRecord
from bench.recipes.base import Recipe, with_options
from bench.recipes.parts import Search, Stage


@dataclass(frozen=True)
class Candidate:
    """One fit to be made, with what it belongs to.

    Attributes:
        recipe: Its recipe's name.
        config: Number of its configuration, 0 for the recipe's own values.
        values: The configuration, by `stage.option`.
        stage: Place of its stage.
        data: Key of the trials it reads, see `data_key`.
        plan: The fit.
        gpus: Share of a GPU it takes where there are GPUs.
        search: The recipe's search.
    """

    recipe: str
    config: int
    values: dict[str, Any]
    stage: int
    data: str
    plan: FitPlan
    gpus: float
    search: Search

    @property
    def group(self) -> str:
        """Fits of which one is selected."""
        return f"{self.recipe}/{self.stage}/{self.plan.subjects}/{self.plan.control}"

    @property
    def rivals(self) -> str:
        """Fits that compete with each other under a scheduler."""
        # A fit reports on validation samples averaged as its own training samples are, and means correlate better than
        # single trials: next to fits on means every fit on single trials would look poor.
        return f"{self.group}/{self.plan.averaging}"


@dataclass(frozen=True)
class RecipeFits:
    """One recipe after its search.

    Attributes:
        recipe: The recipe.
        best: The selected fit of each subject.
        records: Records of all its fits, by address.
        tried: Configurations that were tried.
        score: Mean over subjects of the selected fits' validation correlation.
    """

    recipe: Recipe
    best: Mapping[int, Candidate]
    records: Mapping[str, FitRecord]
    tried: int
    score: float

    def selection(self) -> dict[str, Any]:
        """Return what was selected, for people and for the stages that run alone: plain data."""
        chosen = {
            str(subject): {
                "fit": candidate.plan.id,
                "score": self.records[candidate.plan.id].validation_correlation,
                "values": candidate.values,
            }
            for subject, candidate in sorted(self.best.items())
        }
        return {"recipe": self.recipe.name, "configurations_tried": self.tried, "subjects": chosen}


def data_key(stage: Stage) -> str:
    """Return the key of the trials a stage reads: its dataset (empty for the sweep's own) and its z-scoring rule."""
    return f"{stage.dataset or ''}:{stage.normalise}"


def candidates(
    recipe: Recipe, subjects: Sequence[int], data: DataDigests, seed: int, sessions: tuple[int, ...] | None = None
) -> list[Candidate]:
    """Return every fit of a recipe's search, earlier stages first."""
    found = []
    for number, values in enumerate(configurations(recipe.search, seed)):
        chosen = with_options(recipe, values)
        for place, plans in enumerate(plan_recipe(chosen, subjects, data, seed, sessions)):
            for plan in plans:
                stage = chosen.stages[place]
                key = data_key(stage)
                found.append(Candidate(recipe.name, number, values, place, key, plan, stage.gpus, recipe.search))
    return found


def select(chosen: Sequence[Candidate], records: Sequence[FitRecord]) -> dict[str, dict[int, Candidate]]:
    """Return, for each recipe and subject, the last stage's fit with the best validation correlation.

    Ties go to the lower configuration number. Stopped and failed fits are never selected.
    """
    by_id = {record.id: record for record in records}
    # Earlier stages prepare; what predicts is the last.
    last = {c.recipe: max(d.stage for d in chosen if d.recipe == c.recipe) for c in chosen}
    best: dict[str, dict[int, Candidate]] = {}
    # Backwards, so that of equal scores the lowest configuration is looked at last and stays.
    for candidate in sorted(chosen, key=lambda c: -c.config):
        record = by_id.get(candidate.plan.id)
        if candidate.stage != last[candidate.recipe] or record is None or record.status != "ok":
            continue
        for subject in candidate.plan.subjects:
            held = best.setdefault(candidate.recipe, {}).get(subject)
            if held is None or _score(record) >= _score(by_id[held.plan.id]):
                best[candidate.recipe][subject] = candidate
    return best


def _score(record: FitRecord) -> float:
    """Return the score a fit is selected by; a fit without one loses to any that has one."""
    return float("-inf") if record.validation_correlation is None else record.validation_correlation
