"""The search: drawn before it runs, run through Tune once, never run again, selected by validation alone."""

from __future__ import annotations

import dataclasses
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from stream_shards import LABEL_NAMES, TARGET, digests, target_table, trials_of

from bench.core import registry
from bench.core.errors import OptionError, ReconbenchError
from bench.core.storage import Folder
from bench.data.stream.trials import Betas
from bench.fitting import search
from bench.fitting.candidates import Candidate, candidates, data_key, select
from bench.fitting.draws import configurations
from bench.fitting.schedule import GroupedScheduler
from bench.fitting.search import METRIC, DataRefs, run_candidates
from bench.fitting.trial import FIT_RECORD, FitRecord, read_fit
from bench.recipes.base import Recipe
from bench.recipes.parts import SEARCHED_KEYS, HeadSpec, Node, Search, Stage

RENDER = {"out": Node("tiny-diffusion", inputs={"latent": "z"})}
HEADS = {"z": HeadSpec(TARGET)}
RIDGE = Recipe(
    "small-ridge",
    (Stage("ridge", options={"alpha": 10.0}, heads=HEADS),),
    RENDER,
    search=Search(space={"fit.alpha": {"loguniform": [1e-2, 1e8]}}, trials=3),
)
MLP_OPTIONS = {"epochs": 6, "hidden": [8, 8], "batch_size": 32, "learning_rate": 3e-3}
MLP = Recipe(
    "small-mlp",
    (Stage("braid-mlp", options=MLP_OPTIONS, heads=HEADS),),
    RENDER,
    search=Search(space={"fit.learning_rate": {"choice": [1e-9]}}, trials=3, grace=1, reduction=2),
)


# Draws


def space(**distributions) -> Search:
    return Search(space={f"fit.{name}": spec for name, spec in distributions.items()}, trials=40)


def test_the_first_configuration_is_the_recipes_own():
    drawn = configurations(space(a={"uniform": [0, 1]}), seed=0)
    assert drawn[0] == {}
    assert len(drawn) == 40
    assert all(list(values) == ["fit.a"] for values in drawn[1:])


def test_draws_follow_the_seed_and_nothing_else():
    both = space(a={"uniform": [0, 1]}, b={"randint": [0, 1000]})
    turned = Search(space=dict(reversed(both.space.items())), trials=40)
    assert configurations(both, 3) == configurations(both, 3) == configurations(turned, 3)
    assert configurations(both, 3) != configurations(both, 4)


def test_more_trials_begin_with_the_fewer():
    few, many = (Search(space=space(a={"uniform": [0, 1]}).space, trials=n) for n in (5, 9))
    assert configurations(many, 0)[:5] == configurations(few, 0)


def test_draws_are_within_their_bounds():
    drawn = configurations(
        space(a={"uniform": [2, 3]}, b={"loguniform": [1e-3, 1e3]}, c={"randint": [1, 4]}, d={"choice": [[1, 2], [3]]}),
        seed=0,
    )[1:]
    assert all(2 <= v["fit.a"] < 3 and 1e-3 <= v["fit.b"] < 1e3 for v in drawn)
    assert {v["fit.c"] for v in drawn} == {1, 2, 3}
    assert all(isinstance(v["fit.c"], int) for v in drawn)
    assert [v["fit.d"] for v in drawn].count([3]) not in {0, 39}
    logs = np.log10([v["fit.b"] for v in drawn])
    assert (logs < 0).sum() > 8
    assert (logs > 0).sum() > 8


def test_without_a_space_there_is_one_configuration():
    assert configurations(Search(trials=5), 0) == [{}]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"normal": [0, 1]}, r"search space of 'fit.a': one of \['choice', .*'uniform'\] is needed, got {'normal'"),
        ({"uniform": [0, 1], "choice": [1]}, "one of .* is needed"),
        ({}, "one of .* is needed, got {}"),
        ({"uniform": [1, 0]}, r"uniform needs \[low, high\] with low < high, got \[1, 0\]"),
        ({"uniform": [1]}, r"uniform needs \[low, high\]"),
        ({"randint": [3, 3]}, r"randint needs \[low, high\] with low < high, got \[3, 3\]"),
        ({"loguniform": [0, 1]}, r"loguniform needs a low bound above 0, got \[0, 1\]"),
        ({"choice": []}, r"choice needs at least one value, got \[\]"),
    ],
)
def test_distributions_that_cannot_be_drawn_from(spec, message):
    with pytest.raises(OptionError, match=message):
        configurations(space(a=spec), 0)


# Candidates


def test_candidates_are_every_configuration_of_every_subject():
    found = candidates(RIDGE, (1, 2), digests(), seed=0)
    assert [(c.config, c.plan.subjects) for c in found] == [(n, (s,)) for n in range(3) for s in (1, 2)]
    assert len({c.plan.id for c in found}) == 6
    assert found[0].plan.options["alpha"] == 10.0
    assert {c.group for c in found} == {"small-ridge/0/(1,)/none", "small-ridge/0/(2,)/none"}
    assert {c.data for c in found} == {":session"}
    assert [c.plan.id for c in candidates(RIDGE, (1, 2), digests(), seed=0)] == [c.plan.id for c in found]


def test_equal_configurations_are_one_fit():
    recipe = dataclasses.replace(RIDGE, search=Search(space={"fit.alpha": {"choice": [10.0]}}, trials=4))
    found = candidates(recipe, (1,), digests(), seed=0)
    assert len(found) == 4
    assert len({c.plan.id for c in found}) == 1


def averagings() -> Recipe:
    """The small MLP, searched over what its training samples are."""
    return dataclasses.replace(MLP, search=Search(space={"fit.averaging": {"choice": ["mean"]}}, trials=2))


def test_a_search_may_vary_what_a_training_sample_is():
    own, drawn = candidates(averagings(), (1,), digests(), seed=0)
    assert (own.plan.averaging, drawn.plan.averaging) == ("single", "mean")
    assert own.plan.options == drawn.plan.options
    assert own.plan.id != drawn.plan.id
    assert own.data == drawn.data, "both read the same trials"


def test_fits_that_average_are_never_stopped_for_those_that_do_not():
    """What they report on differs in noise; which of them is selected is seen on the same trials."""
    own, drawn = candidates(averagings(), (1,), digests(), seed=0)
    assert own.group == drawn.group
    found = candidates(averagings(), (1,), digests(), seed=0) + candidates(MLP, (1,), digests(), seed=0)
    scheduler = search._scheduler({c.plan.id: c for c in found})
    scheduler.set_search_properties(METRIC, "max")
    of = {c.plan.id: scheduler._of(SimpleNamespace(config={"fit": c.plan.id})) for c in found}
    assert of[own.plan.id] is not of[drawn.plan.id]
    assert of[own.plan.id] is of[found[-1].plan.id]


@pytest.mark.parametrize("name", sorted(registry.found("encoder")))
def test_no_encoder_has_an_option_that_a_search_would_take_for_the_stages(name):
    assert not set(SEARCHED_KEYS) & set(registry.load("encoder", name).Options.__dataclass_fields__)


def chain() -> Recipe:
    first = Stage("ridge", "first", {"alpha": 1.0}, HEADS)
    second = Stage("ridge", "second", {"alpha": 1.0}, HEADS, init_from="first")
    return Recipe(
        "chain", (first, second), RENDER, search=Search(space={"second.alpha": {"uniform": [1, 9]}}, trials=3)
    )


def test_an_earlier_stage_that_is_not_searched_is_fitted_once():
    found = candidates(chain(), (1,), digests(), seed=0)
    assert len({c.plan.id for c in found if c.stage == 0}) == 1
    assert len({c.plan.id for c in found if c.stage == 1}) == 3


def test_data_keys_name_data_set_and_rule():
    assert data_key(Stage("ridge", dataset="hcp", normalise="subject")) == "hcp:subject"


# Scheduling


def result(step: int, value: float) -> dict:
    return {"training_iteration": step, METRIC: value}


def fake_trial(name: str, group: str) -> SimpleNamespace:
    return SimpleNamespace(trial_id=name, config={"group": group}, last_result=None)


def grouped() -> GroupedScheduler:
    def make(group: str) -> TrialScheduler:
        if group == "plain":
            return FIFOScheduler()
        return AsyncHyperBandScheduler(time_attr="training_iteration", max_t=100, grace_period=1, reduction_factor=2)

    made = GroupedScheduler(lambda config: config["group"], make)
    made.set_search_properties(METRIC, "max")
    return made


def decisions(scheduler: GroupedScheduler, *trials: tuple[str, str, float]) -> list[str]:
    """Decisions about the first report of some trials: (name, group, score)."""
    out = []
    for name, group, score in trials:
        trial = fake_trial(name, group)
        scheduler.on_trial_add(None, trial)
        out.append(scheduler.on_trial_result(None, trial, result(1, score)))
    return out


def test_a_fit_is_stopped_by_its_own_group_only():
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    made = decisions(
        grouped(),
        ("a1", "clean", 0.9),
        ("a2", "clean", 0.8),
        ("b1", "noisy", 0.11),
        ("b2", "noisy", 0.10),
        ("b3", "noisy", 0.12),
        ("p1", "plain", -1.0),
    )
    assert made == [go, stop, go, stop, go, go]


def test_one_scheduler_over_all_would_stop_the_noisy_group():
    """What the groups are for."""
    made = decisions(grouped(), ("a1", "clean", 0.9), ("a2", "clean", 0.95), ("b1", "clean", 0.11))
    assert made[-1] == TrialScheduler.STOP


def test_every_event_reaches_the_trials_group():
    calls = []

    class Noted(FIFOScheduler):
        def __init__(self, group):
            super().__init__()
            self.group = group

        def on_trial_add(self, controller, trial):
            calls.append((self.group, "add"))

        def on_trial_error(self, controller, trial):
            calls.append((self.group, "error"))

        def on_trial_complete(self, controller, trial, result):
            calls.append((self.group, "complete"))

        def on_trial_remove(self, controller, trial):
            calls.append((self.group, "remove"))

    made = GroupedScheduler(lambda config: config["group"], Noted)
    one, other = fake_trial("a", "x"), fake_trial("b", "y")
    made.on_trial_add(None, one)
    made.on_trial_error(None, other)
    made.on_trial_complete(None, one, {})
    made.on_trial_remove(None, other)
    assert calls == [("x", "add"), ("y", "error"), ("x", "complete"), ("y", "remove")]
    assert made.debug_string() == "GroupedScheduler over 2 groups"


def test_the_recipe_says_how_poor_fits_are_stopped():
    found = candidates(MLP, (1,), digests(), 0) + candidates(RIDGE, (1,), digests(), 0)
    plain = [dataclasses.replace(c, search=dataclasses.replace(c.search, scheduler="none")) for c in found[3:]]
    by_id = {c.plan.id: c for c in [*found[:3], *plain]}
    scheduler = search._scheduler(by_id)
    scheduler.set_search_properties(METRIC, "max")
    kinds = {c.recipe: type(scheduler._of(SimpleNamespace(config={"fit": i}))) for i, c in by_id.items()}
    assert kinds == {"small-mlp": AsyncHyperBandScheduler, "small-ridge": FIFOScheduler}


# Selection


def scored(recipe: Recipe = RIDGE, subjects=(1, 2)):
    """Candidates and a function that gives them records by (configuration, subject, stage): score, or a status."""
    chosen = candidates(recipe, subjects, digests(), 0)

    def records(scores):
        out = []
        for c in chosen:
            value = scores(c.config, c.plan.subjects[0], c.stage)
            status = value if isinstance(value, str) else "ok"
            out.append(FitRecord(c.plan.id, status, None if isinstance(value, str) else value, 1))
        return out

    return chosen, records


def test_the_best_validation_correlation_of_each_subject_is_selected():
    chosen, records = scored()
    table = {(0, 1): 0.1, (1, 1): 0.3, (2, 1): 0.2, (0, 2): 0.5, (1, 2): 0.4, (2, 2): 0.1}
    best = select(chosen, records(lambda config, subject, stage: table[config, subject]))
    assert {s: c.config for s, c in best["small-ridge"].items()} == {1: 1, 2: 0}


def test_ties_go_to_the_lower_configuration():
    chosen, records = scored()
    best = select(chosen, records(lambda config, subject, stage: 0.0 if config == 0 else 0.5))
    assert {c.config for c in best["small-ridge"].values()} == {1}


def test_stopped_and_failed_fits_are_never_selected():
    chosen, records = scored()
    best = select(chosen, records(lambda config, subject, stage: [0.1, "stopped", "failed"][config]))
    assert {c.config for c in best["small-ridge"].values()} == {0}


def test_a_fit_without_a_score_loses_to_any_other():
    chosen, records = scored()
    best = select(chosen, records(lambda config, subject, stage: [None, -0.9, None][config]))
    assert {c.config for c in best["small-ridge"].values()} == {1}


def test_the_last_stage_is_selected():
    chosen, records = scored(chain(), (1,))
    best = select(chosen, records(lambda config, subject, stage: 0.9 if stage == 0 else config / 10))
    assert (best["chain"][1].stage, best["chain"][1].config) == (1, 2)


# Through Tune


@pytest.fixture(scope="module")
def refs(ray_session) -> DataRefs:
    subjects = {subject: ray.put(trials_of(subject)) for subject in (1, 2)}
    whole = trials_of(1)
    blocks = [block.copy() for block in whole.betas.blocks]
    (block,), (row,) = whole.locate(whole.rows("train")[:1])
    blocks[block][row, 0] = np.nan
    spoilt = ray.put(dataclasses.replace(whole, betas=Betas(arrays=tuple(blocks))))
    return DataRefs(
        {":session": subjects, "spoilt:session": {1: spoilt, 2: subjects[2]}},
        {TARGET: ray.put(target_table())},
        LABEL_NAMES,
    )


def collect(notes: list):
    def advance(units: int = 1, note: str = "") -> None:
        notes.append((units, note))

    return advance


@dataclasses.dataclass
class Swept:
    """One small sweep: its candidates, records, notes and folder."""

    chosen: list[Candidate]
    records: list[FitRecord]
    notes: list[tuple[int, str]]
    runs: Folder
    handlers: list[object]


@pytest.fixture(scope="module")
def swept(refs, tmp_path_factory) -> Swept:
    runs, notes = Folder.at(tmp_path_factory.mktemp("sweep")), []
    chosen = candidates(RIDGE, (1, 2), digests(), 0) + candidates(MLP, (1,), digests(), 0)
    handlers = [signal.getsignal(signal.SIGINT)]

    def advance(units: int = 1, note: str = "") -> None:
        handlers.append(signal.getsignal(signal.SIGINT))
        notes.append((units, note))

    return Swept(chosen, run_candidates(chosen, refs, runs, advance), notes, runs, handlers)


def test_an_interrupt_is_never_tunes_own_affair(swept):
    """Its handler would end the search as if it were finished, and stay for the stages after it."""
    assert len(swept.handlers) > 3, "some were seen while Tune ran"
    assert {*swept.handlers, signal.getsignal(signal.SIGINT)} == {swept.handlers[0]}


def test_every_fit_has_a_record(swept):
    assert [record.id for record in swept.records] == [c.plan.id for c in swept.chosen]
    for candidate, record in zip(swept.chosen, swept.records, strict=True):
        assert read_fit(swept.runs, candidate.plan.id) == record
        assert record.status in {"ok", "stopped"}
        if record.status == "ok":
            assert (swept.runs / "fits" / record.id / "state").exists()
    assert all(r.status == "ok" for c, r in zip(swept.chosen, swept.records, strict=True) if c.recipe == "small-ridge")


def test_the_display_counts_every_fit_once(swept):
    assert sum(units for units, _ in swept.notes) == len({c.plan.id for c in swept.chosen})
    assert any(note == "small-ridge subject (2,) configuration 0" for _, note in swept.notes)


def test_equal_configurations_ran_once(swept):
    mlp = [c for c in swept.chosen if c.recipe == "small-mlp"]
    assert len(mlp) == 3
    assert len({c.plan.id for c in mlp}) == 2


def test_the_better_configuration_is_selected(swept):
    best = select(swept.chosen, swept.records)
    scores = {c.plan.id: r.validation_correlation for c, r in zip(swept.chosen, swept.records, strict=True)}
    for subject in (1, 2):
        group = [c for c in swept.chosen if c.recipe == "small-ridge" and c.plan.subjects == (subject,)]
        ranked = sorted(group, key=lambda c: scores[c.plan.id])
        assert best["small-ridge"][subject].plan.id == ranked[-1].plan.id
        assert scores[ranked[-1].plan.id] > scores[ranked[0].plan.id]
    assert best["small-mlp"][1].config == 0, "a learning rate of 1e-9 learns nothing"


def test_a_rerun_starts_nothing(swept, refs, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("Tune was started again")

    monkeypatch.setattr(search, "_tune", refuse)
    notes = []
    assert run_candidates(swept.chosen, refs, swept.runs, collect(notes)) == swept.records
    assert notes == [(len({c.plan.id for c in swept.chosen}), "already recorded")]


def test_a_rerun_makes_only_what_is_missing(swept, refs, monkeypatch):
    gone = swept.chosen[0]
    record = read_fit(swept.runs, gone.plan.id)
    (swept.runs / "fits" / gone.plan.id).delete()
    started = []
    original = search._tune
    monkeypatch.setattr(search, "_tune", lambda todo, *rest: started.extend(todo) or original(todo, *rest))
    again = run_candidates(swept.chosen, refs, swept.runs, collect([]))
    assert [c.plan.id for c in started] == [gone.plan.id]
    assert again[0].validation_correlation == pytest.approx(record.validation_correlation, abs=1e-9)
    assert again[1:] == swept.records[1:]


@dataclasses.dataclass
class Spoilt:
    """A search over data with NaN in subject 1: two fits of a recipe, and a chain; what it noted and said."""

    ridge: list[Candidate]
    chain: list[Candidate]
    notes: list[tuple[int, str]]
    runs: Folder
    said: str


@pytest.fixture(scope="module")
def spoilt(refs, tmp_path_factory) -> Spoilt:
    runs, notes = Folder.at(tmp_path_factory.mktemp("spoilt")), []
    ridge, chained = (
        [dataclasses.replace(c, data="spoilt:session") for c in chosen]
        for chosen in (candidates(RIDGE, (1, 2), digests(), 0)[:2], candidates(chain(), (1,), digests(), 0))
    )
    with pytest.raises(ReconbenchError) as raised:
        run_candidates([*ridge, *chained], refs, runs, collect(notes))
    return Spoilt(ridge, chained, notes, runs, str(raised.value))


def said_again(chosen: list[Candidate], refs: DataRefs, runs: Folder, monkeypatch) -> str:
    """What a search over fits that have failed says, without trying them again."""
    monkeypatch.setattr(search, "_tune", lambda *_: None)
    with pytest.raises(ReconbenchError) as raised:
        run_candidates(chosen, refs, runs, collect([]))
    return str(raised.value)


def test_a_fit_whose_data_hold_nan_leaves_a_failed_record_and_one_message(spoilt, refs, monkeypatch):
    message = r"every fit of small-ridge/0/\(1,\)/none failed; the first: ValueError: .*1"
    assert re.search(message, said_again(spoilt.ridge, refs, spoilt.runs, monkeypatch))
    assert spoilt.said.count("every fit of") == 1
    failed, fine = (read_fit(spoilt.runs, c.plan.id) for c in spoilt.ridge)
    assert (failed.status, failed.error["type"]) == ("failed", "ValueError")
    assert "voxels of subject 1" in failed.error["message"]
    assert fine.status == "ok", "the other subject's fit is finished and kept"
    assert (1, "small-ridge subject (1,) FAILED") in spoilt.notes
    assert not (spoilt.runs / "fits" / spoilt.ridge[0].plan.id).exists("state")


def test_a_fit_whose_parent_failed_is_left_out(spoilt, refs, monkeypatch):
    message = r"every fit of chain/0/\(1,\)/none failed; the first: ValueError: .*1"
    assert re.search(message, said_again(spoilt.chain, refs, spoilt.runs, monkeypatch))
    made = {c.plan.id for c in (*spoilt.ridge, spoilt.chain[0])}
    assert set((spoilt.runs / "fits").names()) == made


def test_a_failed_fit_is_tried_again_and_a_stopped_one_is_not(tmp_path, monkeypatch):
    runs, started = Folder.at(tmp_path), []
    chosen = candidates(RIDGE, (1, 2), digests(), 0)[:2]
    for candidate, status in zip(chosen, ("failed", "stopped"), strict=True):
        error = {"type": "MemoryError", "message": "too large"} if status == "failed" else None
        record = FitRecord(candidate.plan.id, status, None, 0, error=error)
        (runs / "fits" / candidate.plan.id).write_json(FIT_RECORD, record)
    monkeypatch.setattr(search, "_tune", lambda todo, *_: started.extend(todo))
    with pytest.raises(ReconbenchError, match="MemoryError: too large"):
        run_candidates(chosen, None, runs, collect([]))
    assert [c.plan.id for c in started] == [chosen[0].plan.id]
