"""The sweep's stages in order. Each returns what the next needs; all results lie in the runs folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import leaderboard
from bench.core import cluster, registry
from bench.core.console import progress
from bench.core.errors import OtherConfigurationError
from bench.core.storage import Folder, home
from bench.core.timings import Timings
from bench.data import shard_set
from bench.data.shards.pictures import ImageSet
from bench.fit import FitData, fit, load_recipes, open_data
from bench.fitting.candidates import RecipeFits, data_key, select
from bench.fitting.plan import FitPlan, plan_recipe
from bench.fitting.predictions import Prediction
from bench.fitting.search import run_candidates
from bench.predict import predict
from bench.prepare import prepare
from bench.recipes.base import Recipe, with_options
from bench.rendering.graph import render_graphs
from bench.rendering.requests import Request, source_of
from bench.score import score_entries
from bench.scoring import controls
from bench.scoring.controls import control_entries
from bench.scoring.entries import Entry, ScoringTask, score_link
from bench.scoring.systems import System, only_subject, showings, system_entry
from bench.simulate import simulate
from bench.sweeping.gallery import gallery
from bench.sweeping.settings import Settings, claim, held
from eval.networks import _weights as weights
from eval.protocols import base as protocols


def sweep(settings: Settings, resume: bool = True) -> tuple[dict[str, Any], Timings]:
    """Run every stage; return the leaderboard and what each stage took.

    Raises:
        OtherConfigurationError: If the runs folder belongs to another configuration, or holds results and `resume` is
            off.
    """
    recipes = load_recipes(settings.recipes, settings.trials)
    for network in protocols.find(settings.protocol).networks:
        weights.digest(network, settings.weights)  # weights that are missing are found now, not after hours of fits
    if held(settings, recipes) and not resume:
        raise OtherConfigurationError(f"{settings.runs} already holds results; --resume continues them")
    cluster.connect(settings.cpus)
    clock = Timings(settings.runs)
    shards = settings.shards or _simulated(settings, clock)
    data = open_data(shards, recipes, clock, settings.subjects, settings.sessions, settings.test_images)
    claim(settings, recipes)
    fits = fit(recipes, data, settings.runs, settings.seed, clock)
    winner = _winner(fits)
    fits = [*fits, _shuffled(settings, winner, data, clock)]
    jobs = _predict(settings, fits, data, clock)
    images, oracle = _render(settings, fits, winner, jobs, data, clock)
    systems = [
        System(f.recipe, f.best, f.records, f.tried, f.score, mine, shown)
        for f, mine, shown in zip(fits, jobs, images, strict=True)
    ]
    with clock.stage("score"):
        entries = _entries(settings, systems, fits.index(winner), oracle, data)
        links = _score(settings, entries, fits.index(winner), data)
    with clock.stage("leaderboard"):
        pictures = gallery(links, data.shards, data.tested)
        board = leaderboard.build_board(settings.runs, settings.runs, pictures)
    return board, clock


def _simulated(settings: Settings, clock: Timings) -> Folder:
    """Return trial shards of the simulated NSD: written in NSD's own layout, then read by NSD's own reader."""
    place = Path(settings.data.path) if settings.data.is_local else home()
    root = place / "raw" / f"nsd-sim-{settings.preset}-{settings.seed}"
    with clock.stage("simulate"):
        simulate(settings.preset, root, settings.seed)
    with clock.stage("prepare"):
        cls = registry.load("dataset", "nsd")
        return prepare(cls(cls.Options(root=str(root), name="nsd-sim")), settings.data)


def _winner(fits: Sequence[RecipeFits]) -> RecipeFits:
    """Return the recipe whose controls stand on the board: the best validation correlation among comparable recipes.

    Correlations with different targets do not compare: a few tokens are easier to predict than a latent, and pictures
    drawn from the true ones are worse. Only the largest group of recipes that predict the same targets is looked at.
    """
    predicted = [frozenset(head.target for head in f.recipe.stages[-1].heads.values()) for f in fits]
    order = [
        (not f.recipe.selects_by_truth, predicted.count(targets), f.score, f.recipe.name)
        for f, targets in zip(fits, predicted, strict=True)
    ]
    return fits[order.index(max(order))]


def _shuffled(settings: Settings, winner: RecipeFits, data: FitData, clock: Timings) -> RecipeFits:
    """Refit the winner's selected configurations on permuted pairs."""
    chosen = []
    for subject, candidate in winner.best.items():
        changed = with_options(winner.recipe, candidate.values)
        waves = plan_recipe(changed, [subject], data.digests, settings.seed, settings.sessions, "shuffled")
        for place, plans in enumerate(waves):
            chosen += [replace(candidate, stage=place, plan=plan) for plan in plans]
    with clock.stage("shuffled"), progress("shuffled", len(chosen)) as advance:
        records = run_candidates(chosen, data.refs, settings.runs, advance)
    best = select(chosen, records)[winner.recipe.name]
    return RecipeFits(winner.recipe, best, {record.id: record for record in records}, winner.tried, 0.0)


def _predict(
    settings: Settings, systems: Sequence[RecipeFits], data: FitData, clock: Timings
) -> list[dict[int, Prediction]]:
    """Predict every system's test latents; return what was predicted, a mapping by subject for each system."""
    jobs = [
        {s: _prediction(system.recipe, candidate.plan, s, data) for s, candidate in system.best.items()}
        for system in systems
    ]
    # Single showings of some pictures besides: what differs between them is the noise behind the ceiling.
    wanted = [{each.id: each for job in mine.values() for each in (job, showings(job))} for mine in jobs]
    with clock.stage("predict"), progress("predict", sum(map(len, wanted))) as advance:
        for system, mine in zip(systems, wanted, strict=True):
            key = data_key(system.recipe.stages[-1])
            train = data.refs.subjects[key]
            given = (data.test[key], train, data.refs.targets, data.refs.label_names)
            predict(list(mine.values()), *given, settings.runs, advance)
    return jobs


def _prediction(system: Recipe, plan: FitPlan, subject: int, data: FitData) -> Prediction:
    """Return what is predicted from a fit for a subject."""
    return Prediction(plan, subject, data.tested[subject], system.repeats, system.samples, system.post)


def _render(
    settings: Settings,
    systems: Sequence[RecipeFits],
    winner: RecipeFits,
    jobs: Sequence[Mapping[int, Prediction]],
    data: FitData,
    clock: Timings,
) -> tuple[list[dict[int, ImageSet]], ImageSet]:
    """Render every system's predictions, and the winner's graph from true latents (the oracle)."""
    requests, owners = [], []
    for place, (system, mine) in enumerate(zip(systems, jobs, strict=True)):
        for subject, job in mine.items():
            folder = settings.runs / "predictions" / job.id
            source = source_of(folder, list(system.recipe.stages[-1].heads))
            requests.append(Request(system.recipe, source, data.refs.targets, data.digests.targets))
            owners.append((place, subject))
    oracle = controls.oracle_source(winner.recipe, data.refs.targets, data.digests.targets, data.tested)
    requests.append(Request(winner.recipe, oracle, data.refs.targets, data.digests.targets))
    total = sum(len(r.source.keys) * sum(n.generator is not None for n in r.recipe.render.values()) for r in requests)
    with clock.stage("render"), progress("render", total) as advance:
        done = render_graphs(requests, settings.runs, settings.seed, settings.batch_size, settings.replicas, advance)
    images: list[dict[int, ImageSet]] = [{} for _ in systems]
    for (place, subject), each in zip(owners, done[:-1], strict=True):
        images[place][subject] = each
    return images, done[-1]


def _entries(
    settings: Settings, systems: Sequence[System], winner: int, oracle: ImageSet, data: FitData
) -> list[Entry]:
    """Return what becomes the rows of the board: the systems, then shuffled, mean image, chance and oracle."""
    entries = []
    pictures = shard_set.scored_pictures(data.shards, set().union(*data.tested.values()))
    for place, system in enumerate(systems):
        train = data.refs.subjects[data_key(system.recipe.stages[-1])]
        shuffled = place == len(systems) - 1
        entries.append(system_entry(system, train, data.refs.targets, settings.runs, pictures, shuffled))
    train = next(iter(data.refs.subjects.values()))
    mean = controls.mean_images(data.shards, train, data.tested, settings.runs)
    return [*entries, *control_entries(entries[winner], mean, oracle)]


def _score(settings: Settings, entries: Sequence[Entry], winner: int, data: FitData) -> dict[str, Entry]:
    """Score all entries under the ranking protocol, and a few pictures under `mindeye2` with untrained networks.

    Returns:
        The entries by record id.
    """
    ranked = ScoringTask(data.shards, data.tested, settings.protocol, settings.weights, settings.runs, settings.seed)
    with progress("score", sum(len(entry.images) for entry in entries)) as advance:
        score_entries(entries, ranked, advance)
    if settings.exact_images:
        subject = min(data.tested)
        few = {subject: data.tested[subject][: settings.exact_images]}
        # One task with all of a node's CPUs: its networks need 2.5 GB, and one picture 2.5 CPU seconds.
        cpus = cluster.largest_node_cpus()
        exact = ScoringTask(data.shards, few, "mindeye2", weights.UNTRAINED, settings.runs, settings.seed, cpus)
        controlled = ("shuffled", "mean-image", "oracle")
        chosen = [entries[winner], *(entry for entry in entries if entry.control in controlled)]
        with progress("mindeye2", len(chosen)) as advance:
            score_entries([only_subject(entry, subject) for entry in chosen], exact, advance)
    return {score_link(entry, ranked).id: entry for entry in entries}
