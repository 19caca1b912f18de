"""The sweep's stages in order. Each returns what the next needs; all results lie in the runs folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import leaderboard
from bench.core import cluster, registry
from bench.core.console import progress
from bench.core.errors import OptionError, OtherConfigurationError
from bench.core.storage import Folder, home
from bench.core.timings import Timings
from bench.data import shard_set
from bench.data.shard_set import ShardSet
from bench.data.shards.pictures import ImageSet
from bench.data.stream.load import FIT, TEST
from bench.fitting.candidates import RecipeFits, candidates, data_key, select
from bench.fitting.plan import DataDigests, FitPlan, plan_recipe
from bench.fitting.predictions import Prediction
from bench.fitting.search import DataRefs, run_candidates
from bench.predict import predict
from bench.prepare import prepare
from bench.recipes import frozen_models
from bench.recipes.base import Recipe, with_options
from bench.recipes.load import load_recipe
from bench.rendering.graph import render_graphs
from bench.rendering.requests import Request, source_of
from bench.score import score_rows
from bench.scoring import controls
from bench.scoring.controls import control_rows
from bench.scoring.entries import Entry, ScoringTask, score_link
from bench.scoring.systems import System, only_subject, showings, system_row
from bench.simulate import simulate
from bench.sweeping.gallery import gallery
from bench.sweeping.settings import Settings, claim, held
from bench.targets import parts, targets
from eval.networks import _weights as weights
from eval.protocols import base as protocols


@dataclass(frozen=True)
class Opened:
    """What fits and tests read: the data, references to trials and targets, digests, and the test pictures."""

    data: ShardSet
    subjects: tuple[int, ...]
    refs: DataRefs
    digests: DataDigests
    test: Mapping[str, Mapping[int, Any]]
    tested: Mapping[int, tuple[int, ...]]


def sweep(settings: Settings, resume: bool = True) -> tuple[dict[str, Any], Timings]:
    """Run every stage; return the leaderboard and what each stage took.

    Raises:
        OtherConfigurationError: If the runs folder belongs to another configuration, or holds results and `resume` is
            off.
    """
    recipes = _recipes(settings)
    for network in protocols.find(settings.protocol).networks:
        weights.digest(network, settings.weights)  # weights that are missing are found now, not after hours of fits
    frozen_models.look_for_weights(recipes)
    if held(settings, recipes) and not resume:
        raise OtherConfigurationError(f"{settings.runs} already holds results; --resume continues them")
    cluster.connect(settings.cpus)
    clock = Timings(settings.runs)
    shards = settings.shards or _simulated(settings, clock)
    opened = _open(settings, recipes, shards, clock)
    claim(settings, recipes)
    fitted = _fit(settings, recipes, opened, clock)
    winner = _winner(fitted)
    fitted = [*fitted, _shuffled(settings, winner, opened, clock)]
    jobs = _predict(settings, fitted, opened, clock)
    images, oracle = _render(settings, fitted, winner, jobs, opened, clock)
    systems = [
        System(f.recipe, f.best, f.records, f.tried, f.score, mine, shown)
        for f, mine, shown in zip(fitted, jobs, images, strict=True)
    ]
    with clock.stage("score"):
        rows = _rows(settings, systems, fitted.index(winner), oracle, opened)
        links = _score(settings, rows, fitted.index(winner), opened)
    with clock.stage("leaderboard"):
        pictures = gallery(links, opened.data, opened.tested)
        board = leaderboard.build_board(settings.runs, settings.runs, pictures)
    return board, clock


def _recipes(settings: Settings) -> list[Recipe]:
    """Return the recipes with the sweep's own number of configurations.

    Raises:
        OptionError: If two recipes have one name: they would be one row.
    """
    loaded = [load_recipe(name) for name in settings.recipes]
    names = [each.name for each in loaded]
    if len(set(names)) < len(names):
        raise OptionError(f"two recipes have one name: {', '.join(names)}")
    if settings.trials is None:
        return loaded
    return [replace(each, search=replace(each.search, trials=settings.trials)) for each in loaded]


def _simulated(settings: Settings, clock: Timings) -> Folder:
    """Return trial shards of the simulated NSD: written in NSD's own layout, then read by NSD's own reader."""
    place = Path(settings.data.path) if settings.data.is_local else home()
    root = place / "raw" / f"nsd-sim-{settings.preset}-{settings.seed}"
    with clock.stage("simulate"):
        simulate(settings.preset, root, settings.seed)
    with clock.stage("prepare"):
        cls = registry.load("dataset", "nsd")
        return prepare(cls(cls.Options(root=str(root), name="nsd-sim")), settings.data)


def _open(settings: Settings, recipes: Sequence[Recipe], shards: Folder, clock: Timings) -> Opened:
    """Compute the targets the recipes name, and read every trial into shared memory once."""
    data = shard_set.open_data(shards)
    subjects = settings.subjects or tuple(data.manifest.subjects)
    with clock.stage("targets"):
        refs, digests = shard_set.target_refs(_targets(data, recipes))
    with clock.stage("load"):
        keys = {data_key(stage): stage.normalise for r in recipes for stage in r.stages}
        loaded = {k: data.load(subjects, (FIT, TEST), settings.sessions, rule) for k, rule in keys.items()}
        train, test = ({k: parts[place] for k, parts in loaded.items()} for place in (0, 1))
        tested = shard_set.tested_stimuli(next(iter(test.values())), settings.test_images)
    return Opened(
        data=data,
        subjects=subjects,
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


def _fit(settings: Settings, recipes: Sequence[Recipe], opened: Opened, clock: Timings) -> list[RecipeFits]:
    """Search every recipe over every subject and select."""
    plans = [
        c for r in recipes for c in candidates(r, opened.subjects, opened.digests, settings.seed, settings.sessions)
    ]
    with clock.stage("fit"), progress("fit", len({c.plan.id for c in plans})) as advance:
        records = run_candidates(plans, opened.refs, settings.runs, advance)
    by_id = {record.id: record for record in records}
    best = select(plans, records)
    tried = {r.name: len({c.config for c in plans if c.recipe == r.name}) for r in recipes}
    fitted = []
    for each in recipes:
        scores = [by_id[c.plan.id].validation_correlation or 0.0 for c in best[each.name].values()]
        fitted.append(RecipeFits(each, best[each.name], by_id, tried[each.name], sum(scores) / len(scores)))
    return fitted


def _winner(fitted: Sequence[RecipeFits]) -> RecipeFits:
    """Return the recipe whose controls stand on the board: the best validation correlation among comparable recipes.

    Correlations with different targets do not compare: a few tokens are easier to predict than a latent, and pictures
    drawn from the true ones are worse. Only the largest group of recipes that predict the same targets is looked at.
    """
    predicted = [frozenset(head.target for head in f.recipe.stages[-1].heads.values()) for f in fitted]
    order = [
        (not f.recipe.selects_by_truth, predicted.count(targets), f.score, f.recipe.name)
        for f, targets in zip(fitted, predicted, strict=True)
    ]
    return fitted[order.index(max(order))]


def _shuffled(settings: Settings, winner: RecipeFits, opened: Opened, clock: Timings) -> RecipeFits:
    """Refit the winner's selected configurations on permuted pairs."""
    chosen = []
    for subject, candidate in winner.best.items():
        changed = with_options(winner.recipe, candidate.values)
        waves = plan_recipe(changed, [subject], opened.digests, settings.seed, settings.sessions, "shuffled")
        for place, plans in enumerate(waves):
            chosen += [replace(candidate, stage=place, plan=plan) for plan in plans]
    with clock.stage("shuffled"), progress("shuffled", len(chosen)) as advance:
        records = run_candidates(chosen, opened.refs, settings.runs, advance)
    best = select(chosen, records)[winner.recipe.name]
    return RecipeFits(winner.recipe, best, {record.id: record for record in records}, winner.tried, 0.0)


def _predict(
    settings: Settings, systems: Sequence[RecipeFits], opened: Opened, clock: Timings
) -> list[dict[int, Prediction]]:
    """Predict every system's test latents; return what was predicted, a mapping by subject for each system."""
    jobs = [
        {s: _prediction(system.recipe, candidate.plan, s, opened) for s, candidate in system.best.items()}
        for system in systems
    ]
    # Single showings of some pictures besides: what differs between them is the noise behind the ceiling.
    wanted = [{each.id: each for job in mine.values() for each in (job, showings(job))} for mine in jobs]
    with clock.stage("predict"), progress("predict", sum(map(len, wanted))) as advance:
        for system, mine in zip(systems, wanted, strict=True):
            key = data_key(system.recipe.stages[-1])
            train = opened.refs.subjects[key]
            given = (opened.test[key], train, opened.refs.targets, opened.refs.label_names)
            predict(list(mine.values()), *given, settings.runs, advance)
    return jobs


def _prediction(system: Recipe, plan: FitPlan, subject: int, opened: Opened) -> Prediction:
    """Return what is predicted from a fit for a subject."""
    return Prediction(plan, subject, opened.tested[subject], system.repeats, system.samples, system.post)


def _render(
    settings: Settings,
    systems: Sequence[RecipeFits],
    winner: RecipeFits,
    jobs: Sequence[Mapping[int, Prediction]],
    opened: Opened,
    clock: Timings,
) -> tuple[list[dict[int, ImageSet]], ImageSet]:
    """Render every system's predictions, and the winner's graph from true latents (the oracle)."""
    requests, owners = [], []
    for place, (system, mine) in enumerate(zip(systems, jobs, strict=True)):
        for subject, job in mine.items():
            folder = settings.runs / "predictions" / job.id
            source = source_of(folder, list(system.recipe.stages[-1].heads))
            requests.append(Request(system.recipe, source, opened.refs.targets, opened.digests.targets))
            owners.append((place, subject))
    oracle = controls.oracle_source(winner.recipe, opened.refs.targets, opened.digests.targets, opened.tested)
    requests.append(Request(winner.recipe, oracle, opened.refs.targets, opened.digests.targets))
    total = sum(len(r.source.keys) * sum(n.generator is not None for n in r.recipe.render.values()) for r in requests)
    with clock.stage("render"), progress("render", total) as advance:
        done = render_graphs(requests, settings.runs, settings.seed, settings.batch_size, settings.replicas, advance)
    images: list[dict[int, ImageSet]] = [{} for _ in systems]
    for (place, subject), each in zip(owners, done[:-1], strict=True):
        images[place][subject] = each
    return images, done[-1]


def _rows(settings: Settings, systems: Sequence[System], winner: int, oracle: ImageSet, opened: Opened) -> list[Entry]:
    """Return the rows of the board: the systems, then shuffled, mean image, chance and oracle."""
    rows = []
    pictures = shard_set.scored_pictures(opened.data, set().union(*opened.tested.values()))
    for place, system in enumerate(systems):
        train = opened.refs.subjects[data_key(system.recipe.stages[-1])]
        shuffled = place == len(systems) - 1
        rows.append(system_row(system, train, opened.refs.targets, settings.runs, pictures, shuffled))
    train = next(iter(opened.refs.subjects.values()))
    mean = controls.mean_images(opened.data, train, opened.tested, settings.runs)
    return [*rows, *control_rows(rows[winner], mean, oracle)]


def _score(settings: Settings, rows: Sequence[Entry], winner: int, opened: Opened) -> dict[str, Entry]:
    """Score all rows under the ranking protocol, and a few pictures under `mindeye2` with untrained networks.

    Returns:
        The rows by record id.
    """
    ranked = ScoringTask(opened.data, opened.tested, settings.protocol, settings.weights, settings.runs, settings.seed)
    with progress("score", sum(len(row.images) for row in rows)) as advance:
        score_rows(rows, ranked, advance)
    if settings.exact_images:
        subject = min(opened.tested)
        few = {subject: opened.tested[subject][: settings.exact_images]}
        # One task with all of a node's CPUs: its networks need 2.5 GB, and one picture 2.5 CPU seconds.
        cpus = cluster.largest_node_cpus()
        exact = ScoringTask(opened.data, few, "mindeye2", weights.UNTRAINED, settings.runs, settings.seed, cpus)
        chosen = [rows[winner], *(row for row in rows if row.control in ("shuffled", "mean-image", "oracle"))]
        with progress("mindeye2", len(chosen)) as advance:
            score_rows([only_subject(row, subject) for row in chosen], exact, advance)
    return {score_link(row, ranked).id: row for row in rows}
