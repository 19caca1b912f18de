"""From fitted systems and their pictures to the rows of the board: chains, audits, latent scores and costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from bench.core.errors import MissingDataError
from bench.core.storage import Folder
from bench.data.shards.pictures import SEAL, ImageSet
from bench.data.splits import ROLES
from bench.data.stream.trials import SubjectTrials
from bench.data.training_sets import ScoredPictures
from bench.fitting.candidates import RecipeFits
from bench.fitting.plan import FitPlan
from bench.fitting.predictions import IDENTITY, Prediction, planned, read_predictions
from bench.fitting.trial import read_fit
from bench.generators.choice import GeneratorChoice
from bench.recipes import frozen_models
from bench.recipes.base import Recipe
from bench.recipes.parts import Stage
from bench.records.parts import Costs, LatentScore, Link, ModelSize, StagePart
from bench.scoring.division import open_reasons_of, steps_of
from bench.scoring.entries import Entry
from bench.scoring.leakage import audit, audit_training_sets
from encoders._shared.correlation import mean_target_correlation
from eval.statistics.noise_ceiling import prediction_ceiling

CEILING_IMAGES = 100


@dataclass(frozen=True)
class System(RecipeFits):
    """A fitted recipe with what came of it.

    Attributes:
        predictions: What was predicted, by subject.
        images: Its pictures, by subject.
    """

    predictions: Mapping[int, Prediction]
    images: Mapping[int, ImageSet]


def system_entry(
    system: System,
    train: Mapping[int, Any],
    targets: Mapping[str, Any],
    runs: Folder,
    pictures: ScoredPictures,
    shuffled: bool = False,
) -> Entry:
    """Return the row of a system, or of its refit on permuted pairs.

    Args:
        system: The system.
        train: References to each subject's training and validation trials.
        targets: References to target tables.
        runs: The runs folder.
        pictures: The test pictures that are scored.
        shuffled: Whether this is the shuffled control.
    """
    trials = {subject: ray.get(train[subject]) for subject in system.best}
    tested = sorted({stimulus for job in system.predictions.values() for stimulus in job.test})
    return Entry(
        name="shuffled" if shuffled else system.recipe.name,
        kind="control" if shuffled else "system",
        control="shuffled" if shuffled else None,
        images=system.images,
        predictions={s: Link(job.id, job.description()) for s, job in system.predictions.items()},
        fits={s: tuple(map(_fit_link, lineage(c.plan, runs))) for s, c in system.best.items()},
        open_reasons=tuple(open_reasons_of(system.recipe)),
        stages=tuple(_stage(stage, list(trials.values())) for stage in system.recipe.stages),
        declared=steps_of(system.recipe),
        untrained=frozen_models.untrained(system.recipe),
        leakage=(
            *audit(system.recipe, list(trials.values()), tested),
            *audit_training_sets(system.recipe, pictures),
        ),
        tried=system.tried,
        latents=tuple(_latents(system, targets, runs)),
        costs=_costs(system, runs),
    )


def _stage(stage: Stage, trials: Sequence[SubjectTrials]) -> StagePart:
    """Return what a stage saw: the splits among the trials it was handed, not those it promises to use."""
    handed = sorted({int(role) for subject in trials for role in np.unique(subject.role)})
    held_out = tuple(ROLES[role] for role in handed if ROLES[role] != "train")
    return StagePart(
        name=stage.name,
        encoder=stage.encoder,
        subjects=stage.subjects,
        dataset=stage.dataset or "",
        normalise=stage.normalise,
        fitted_on=tuple(ROLES[role] for role in handed if ROLES[role] == "train"),
        chosen_on=held_out,
        pretrained_on=stage.pretrained_on,
    )


def lineage(plan: FitPlan, runs: Folder) -> list[FitPlan]:
    """Return a fit's plan, then those of the fits it started from, nearest first."""
    found = [plan]
    while found[-1].parent is not None:
        found.append(planned(runs, found[-1].parent))
    return found


def _fit_link(plan: FitPlan) -> Link:
    """Return a fit's link of the identity chain."""
    return Link(plan.id, plan.description())


def _latents(system: System, targets: Mapping[str, Any], runs: Folder) -> Iterable[LatentScore]:
    """Yield the correlation of each head's predictions with its targets, on validation trials and on the test set."""
    for subject, candidate in sorted(system.best.items()):
        validation = system.records[candidate.plan.id].validation_correlation
        if validation is not None:
            yield LatentScore(subject, "all heads", "validation correlation", validation)
        folder = runs / "predictions" / system.predictions[subject].id
        for head, spec in candidate.plan.heads.items():
            keys, values = read_predictions(folder, head)
            table = ray.get(targets[spec.target]).sliced(spec.take)
            truth = torch.from_numpy(table.of(keys["stimulus"].to_numpy()))
            value = mean_target_correlation([({head: torch.from_numpy(values.copy())}, {head: truth})])
            if not np.isnan(value):
                yield LatentScore(
                    subject, head, "test correlation", value, *_ceiling(system, subject, head, runs, value)
                )


def showings(job: Prediction) -> Prediction:
    """Return the predictions of single showings behind a prediction's noise ceiling, of a part of its test pictures."""
    # A hundred pictures are enough, as the ceiling is a mean over thousands of targets; all would triple the disk.
    chosen = sorted({round(place) for place in np.linspace(0, len(job.test) - 1, min(CEILING_IMAGES, len(job.test)))})
    return replace(job, test=tuple(job.test[i] for i in chosen), repeats="each", samples=1, post=())


def _ceiling(system: System, subject: int, head: str, runs: Folder, value: float) -> tuple[float | None, float | None]:
    """Return the noise ceiling of a head's test correlation and the share of it that was reached."""
    keys, values = read_predictions(runs / "predictions" / showings(system.predictions[subject]).id, head)
    stimuli = keys["stimulus"].to_numpy()
    if len(np.unique(stimuli)) < 2 or np.unique(stimuli, return_counts=True)[1].max() < 2:
        return None, None
    ceiling = float(prediction_ceiling(values.reshape(len(values), -1), stimuli).mean())
    return ceiling, value / ceiling if ceiling > 0 else None


def _costs(system: System, runs: Folder) -> Costs:
    """Return what the selected fits, those they started from, their predictions and their pictures cost."""
    # By address: a joint fit is every subject's, and was paid for once.
    made = {plan.id: plan for c in system.best.values() for plan in lineage(c.plan, runs)}
    fits = [_spent(fit, runs) for fit in made]
    predictions = [
        (runs / "predictions" / job.id).read_json(IDENTITY)["seconds"] for job in system.predictions.values()
    ]
    rendered = _rendering(system.images.values())
    return Costs(
        gpu_seconds={"fit": sum(cost["gpu_seconds"] for cost in fits)},
        cpu_seconds={"fit": sum(cost["cpu_seconds"] for cost in fits)},
        wall_seconds={
            "fit": sum(cost["wall_seconds"] for cost in fits),
            "predict": float(sum(predictions)),
            "render": rendered,
        },
        peak_memory_bytes=round(max(cost["peak_memory_bytes"] for cost in fits)),
        models=(_encoder(system), *generators(system.recipe)),
    )


def _rendering(images: Iterable[ImageSet]) -> float:
    """Return the seconds that rendering took, with all nodes that feed a graph's last one, each once."""
    waiting, seals = list(images), {}
    while waiting:
        each = waiting.pop()
        if each.id not in seals:
            seals[each.id] = each.folder.read_json(SEAL)
            folder = Folder(each.folder.uri.rpartition("/")[0])
            fed = (*each.description.get("inputs", {}).values(), *each.description.get("blend", {}))
            names = [name for name in fed if not name.startswith("head:")]
            waiting += [ImageSet(name, (folder / name).read_json(SEAL)["identity"], folder / name) for name in names]
    return sum(float(seal.get("seconds", 0.0)) for seal in seals.values())


def _spent(fit: str, runs: Folder) -> Mapping[str, float]:
    """Return the costs on a fit's own record.

    Raises:
        MissingDataError: If it has none.
    """
    record = read_fit(runs, fit)
    if record is None:
        raise MissingDataError(f"no record of fit {fit} in {runs}; run the sweep first")
    return record.costs


def _encoder(system: System) -> ModelSize:
    """Return the size of the encoder that predicts: the mean over the selected fits."""
    costs = {c.plan.id: system.records[c.plan.id].costs for c in system.best.values()}
    parameters, size = (
        round(sum(cost[name] for cost in costs.values()) / len(costs)) for name in ("parameters", "state_bytes")
    )
    name = next(iter(system.best.values())).plan.encoder[0]
    return ModelSize(name, "encoder", parameters, size)


def generators(recipe: Recipe) -> tuple[ModelSize, ...]:
    """Return the sizes of the generators of a recipe's render graph, by name; each counts once.

    The board measures a row by the oracle that has the same ones.
    """
    chosen = {
        node.generator: GeneratorChoice(node.generator, node.options)
        for node in recipe.render.values()
        if node.generator
    }
    sizes = {name: each.kind.weights_size(each.options) for name, each in chosen.items()}
    return tuple(ModelSize(name, "generator", size.parameters, size.bytes) for name, size in sorted(sizes.items()))


def only_subject(entry: Entry, subject: int) -> Entry:
    """Return a row cut down to one subject, for the small table of exact networks."""
    return replace(
        entry,
        images={subject: entry.images[subject]},
        predictions={s: link for s, link in entry.predictions.items() if s == subject},
        fits={s: link for s, link in entry.fits.items() if s == subject},
        latents=tuple(score for score in entry.latents if score.subject == subject),
    )
