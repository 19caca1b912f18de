"""One fit: its record comes last, nothing is done twice, a killed fit continues where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as ReferenceRidge
from stream_shards import LABEL_NAMES, TARGET, betas_of, digests, role_of, target_table, trials_of

from bench.core import registry
from bench.core.errors import BadDataError, MissingDataError, UnknownNameError
from bench.core.storage import Folder
from bench.data.shards.targets import TargetTable
from bench.fitting.inputs import FitInputs, make_heads
from bench.fitting.plan import FitPlan, plan_stage
from bench.fitting.trial import FIT_RECORD, failed, loaded_encoder, read_fit, run_fit
from bench.recipes.parts import HeadSpec, Stage
from encoders.base import assemble
from encoders.ridge.penalties import folds_by_stimulus

CPU = torch.device("cpu")
SUBJECTS = {subject: trials_of(subject) for subject in (1, 2)}
INPUTS = FitInputs(SUBJECTS, {TARGET: target_table()}, LABEL_NAMES)
RIDGE = Stage("ridge", options={"alpha": 10.0}, heads={"z": HeadSpec(TARGET)})
MLP = Stage(
    "braid-mlp",
    options={"epochs": 5, "hidden": [8, 8], "batch_size": 32, "dropout": 0.2},
    heads={"z": HeadSpec(TARGET)},
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def runs(tmp_path) -> Folder:
    return Folder.at(tmp_path / "runs")


def ignore(step, metrics) -> None:
    """Drop a report."""


def plan_of(stage: Stage = RIDGE, subjects=(1,), seed: int = 0, **changes) -> FitPlan:
    return plan_stage(stage, subjects, digests(), seed, **changes)


def fit(plan: FitPlan, runs: Folder, inputs: FitInputs = INPUTS, report=ignore):
    return run_fit(plan, inputs, runs, CPU, report)


def predictions(plan: FitPlan, runs: Folder, subject: int = 1, role: str = "validation") -> np.ndarray:
    """Predictions of a finished fit from its saved state, for a subject's trials of a role."""
    trials = SUBJECTS[subject]
    rows = trials.rows(role)
    with loaded_encoder(plan, runs) as encoder:
        voxels = torch.from_numpy(trials.z(rows))
        return assemble(encoder.predict(voxels, subject, 0), make_heads(plan, INPUTS), len(rows))["z"].numpy()


def test_a_fit_leaves_plan_state_and_record(runs):
    plan = plan_of()
    record = fit(plan, runs)
    folder = runs / "fits" / plan.id
    assert (record.id, record.status, record.error) == (plan.id, "ok", None)
    assert read_fit(runs, plan.id) == record
    assert folder.read_json("plan.json") == json.loads(json.dumps(dataclasses.asdict(plan)))
    assert not folder.exists("checkpoint")
    assert record.costs["train_trials"] == len(SUBJECTS[1].rows("train"))
    assert record.costs["state_bytes"] == sum((folder / "state").size(name) for name in (folder / "state").files())
    assert record.costs["wall_seconds"] > 0
    assert record.costs["gpu_seconds"] == 0
    assert record.costs["parameters"] > 0
    assert record.steps >= 1


def test_the_score_is_the_mean_correlation_over_targets_of_validation_trials(runs):
    plan = plan_of()
    record = fit(plan, runs)
    trials = SUBJECTS[1]
    true = target_table().of(trials.stimulus[trials.rows("validation")]).reshape(-1, 6)
    made = predictions(plan, runs).reshape(-1, 6)
    expected = np.mean([np.corrcoef(made[:, target], true[:, target])[0, 1] for target in range(6)])
    assert record.validation_correlation == pytest.approx(expected, abs=1e-5)
    assert expected > 0.5


def test_the_record_is_written_last(runs, monkeypatch):
    plan, order = plan_of(), []
    write, upload = Folder.write_bytes, Folder.upload

    def noted(self, name, content):
        order.append(f"{self.uri.rpartition(plan.id)[2]}/{name}")
        write(self, name, content)

    def noted_upload(self, directory):
        upload(self, directory)
        order.extend(f"{self.uri.rpartition(plan.id)[2]}/{name}" for name in self.files())

    monkeypatch.setattr(Folder, "write_bytes", noted)
    monkeypatch.setattr(Folder, "upload", noted_upload)
    fit(plan, runs)
    assert order[-1] == f"/{FIT_RECORD}"
    assert order[0] == "/plan.json"
    assert any(name.startswith("/state/") for name in order)


def test_a_finished_fit_is_never_made_again(runs, monkeypatch):
    plan = plan_of()
    record = fit(plan, runs)

    def refuse(*arguments):
        raise AssertionError("fitted twice")

    monkeypatch.setattr(registry.load("encoder", "ridge"), "fit", refuse)
    assert fit(plan, runs) == record


def test_a_fit_that_raises_leaves_no_record_and_is_made_again(runs, monkeypatch):
    plan, ridge = plan_of(), registry.load("encoder", "ridge")

    def raises(self, data, heads, runtime):
        raise ValueError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(ridge, "fit", raises)
        with pytest.raises(ValueError, match="no such luck"):
            fit(plan, runs)
    assert read_fit(runs, plan.id) is None
    assert fit(plan, runs).status == "ok"


def test_the_record_of_a_failure_says_what_came():
    record = failed(plan_of(), BadDataError("mask has no voxels"))
    assert record.status == "failed"
    assert record.error == {"type": "BadDataError", "message": "mask has no voxels"}
    assert record.validation_correlation is None


def test_test_trials_are_refused(runs):
    role = SUBJECTS[1].role.copy()
    role[:3] = 2
    leaky = dataclasses.replace(INPUTS, subjects={1: dataclasses.replace(SUBJECTS[1], role=role)})
    with pytest.raises(BadDataError, match="subject 1: 3 test trials were handed to a fit"):
        fit(plan_of(), runs, leaky)
    assert read_fit(runs, plan_of().id) is None


def test_nan_betas_are_refused(runs):
    rows = np.concatenate(SUBJECTS[1].betas.blocks)
    rows[SUBJECTS[1].rows("train")[4], 2] = np.nan
    betas = betas_of(rows, SUBJECTS[1].session)
    spoilt = dataclasses.replace(INPUTS, subjects={1: dataclasses.replace(SUBJECTS[1], betas=betas)})
    with pytest.raises(ValueError, match="voxels of subject 1"):
        fit(plan_of(), runs, spoilt)


def test_a_head_sees_its_roi_only(runs):
    stage = dataclasses.replace(RIDGE, heads={"z": HeadSpec(TARGET, roi="streams:early")})
    plan = plan_of(stage)
    (head,) = make_heads(plan, INPUTS)
    assert head.columns[1].tolist() == [0, 1, 2, 3]
    fit(plan, runs)
    before = predictions(plan, runs)
    rows = np.concatenate(SUBJECTS[1].betas.blocks)
    rows[:, 4:] = 0
    betas = betas_of(rows, SUBJECTS[1].session)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUBJECTS, 1, dataclasses.replace(SUBJECTS[1], betas=betas))
        np.testing.assert_allclose(predictions(plan, runs), before, atol=1e-6)


def test_a_roi_without_voxels_is_refused(runs):
    stage = dataclasses.replace(RIDGE, heads={"z": HeadSpec(TARGET, roi="streams:midlateral")})
    inputs = dataclasses.replace(INPUTS, label_names={"streams": {"early": 1, "midlateral": 3}})
    with pytest.raises(BadDataError, match="head 'z': ROI 'streams:midlateral' holds no voxel of subject 1"):
        fit(plan_of(stage), runs, inputs)


def test_an_unknown_roi_offers_the_nearest(runs):
    stage = dataclasses.replace(RIDGE, heads={"z": HeadSpec(TARGET, roi="streams:ventrel")})
    with pytest.raises(UnknownNameError, match="'ventral'"):
        fit(plan_of(stage), runs)


def test_a_head_may_be_a_slice(runs):
    stage = dataclasses.replace(RIDGE, heads={"z": HeadSpec(TARGET, take=(1, 2))})
    plan = plan_of(stage)
    assert make_heads(plan, INPUTS)[0].shape == (1, 3)
    fit(plan, runs)
    whole = plan_of()
    fit(whole, runs)
    np.testing.assert_allclose(predictions(plan, runs), predictions(whole, runs)[:, 1:2], atol=1e-5)


def test_a_joint_fit_covers_all_its_subjects(runs):
    plan = plan_of(dataclasses.replace(MLP, subjects="joint"), subjects=(1, 2))
    record = fit(plan, runs)
    assert record.costs["train_trials"] == sum(len(trials.rows("train")) for trials in SUBJECTS.values())
    assert predictions(plan, runs, 1).shape[1:] == predictions(plan, runs, 2).shape[1:] == (2, 3)


def test_the_shuffled_control_learns_nothing(runs):
    true, shuffled = fit(plan_of(), runs), fit(plan_of(control="shuffled"), runs)
    assert shuffled.id != true.id
    assert shuffled.validation_correlation < 0.35 < true.validation_correlation


@pytest.fixture
def precomputations(monkeypatch) -> list:
    """Counts calls of ridge's `precompute`."""
    ridge, calls = registry.load("encoder", "ridge"), []
    original = ridge.precompute

    def counted(self, data, heads):
        calls.append(sorted(data))
        return original(self, data, heads)

    monkeypatch.setattr(ridge, "precompute", counted)
    return calls


def test_penalties_share_one_factorisation(runs, precomputations):
    other = dataclasses.replace(RIDGE, options={"alpha": 1000.0})
    fit(plan_of(), runs)
    fit(plan_of(other), runs)
    assert precomputations == [[1]]
    alone = Folder.at(runs.path + "-alone")
    fit(plan_of(other), alone)
    np.testing.assert_array_equal(predictions(plan_of(other), runs), predictions(plan_of(other), alone))


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": (2,)},
        {"sessions": (1,)},
        {"control": "shuffled"},
        {"stage": dataclasses.replace(RIDGE, normalise="subject")},
        {"stage": dataclasses.replace(RIDGE, averaging="mean")},
        {"stage": dataclasses.replace(RIDGE, heads={"z": HeadSpec(TARGET, roi="streams:early")})},
    ],
)
def test_other_data_are_factorised_again(runs, precomputations, change):
    fit(plan_of(), runs)
    fit(plan_of(**change), runs)
    assert len(precomputations) == 2


def stimulus_means() -> tuple[np.ndarray, np.ndarray]:
    """Each training stimulus' mean z-scored betas `(n, V)` and its target `(n, D)`, by sums in float64."""
    trials = SUBJECTS[1]
    rows = trials.rows("train")
    shown, betas = trials.stimulus[rows], trials.z(rows).astype(np.float64)
    distinct = np.unique(shown)
    sums = np.stack([betas[shown == one].sum(axis=0) for one in distinct])
    counts = np.array([[(shown == one).sum()] for one in distinct])
    return sums / counts, target_table().of(distinct).reshape(len(distinct), -1)


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("scaled", [False, True])
def test_ridge_of_a_stage_that_averages_is_ridge_on_the_means_of_stimuli(runs, form, scaled):
    """Brain-Diffuser's regression: the centred (and scaled) means of stimuli, each counting once."""
    options = {"alpha": 10.0, "form": form, "standardise_voxels": scaled}
    record = fit(plan_of(dataclasses.replace(RIDGE, averaging="mean", options=options)), runs)
    means, targets = stimulus_means()
    assert len(means) < len(SUBJECTS[1].rows("train"))
    assert record.costs["train_trials"] == len(means)
    deviation = means.std(axis=0) if scaled else np.ones(means.shape[1])
    centred = (means - means.mean(axis=0)) / deviation
    gram = centred.T @ centred + 10.0 * np.eye(centred.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (targets - targets.mean(axis=0)))
    unseen = SUBJECTS[1].z(SUBJECTS[1].rows("validation"))
    expected = (unseen - means.mean(axis=0)) / deviation @ weights + targets.mean(axis=0)
    made = predictions(plan_of(dataclasses.replace(RIDGE, averaging="mean", options=options)), runs)
    np.testing.assert_allclose(made.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_a_stage_that_averages_has_its_penalty_chosen_over_folds_of_stimulus_means(runs):
    alphas = (0.1, 10.0, 1000.0, 1e5)
    options = {"select": "kfold", "alphas": alphas, "scope": "per-target", "folds": 4}
    plan = plan_of(dataclasses.replace(RIDGE, averaging="mean", options=options))
    fit(plan, runs)
    means, targets = stimulus_means()
    errors = np.zeros((len(alphas), targets.shape[1]))
    for fold in folds_by_stimulus(torch.arange(len(means)), 4, seed=0):
        rest = np.setdiff1d(np.arange(len(means)), fold.numpy())
        for place, alpha in enumerate(alphas):
            model = ReferenceRidge(alpha).fit(means[rest], targets[rest])
            errors[place] += ((model.predict(means[fold.numpy()]) - targets[fold.numpy()]) ** 2).sum(axis=0)
    with loaded_encoder(plan, runs) as encoder:
        np.testing.assert_array_equal(encoder.alphas("z", 1).numpy(), np.array(alphas)[errors.argmin(axis=0)])


@pytest.mark.parametrize("averaging", ["single", "mean", "random-repeat"])
def test_fits_are_scored_on_single_trials_whatever_they_were_trained_on(runs, averaging):
    """On means the fit that averages would win a search for the lower noise of what it is measured on."""
    plan = plan_of(dataclasses.replace(RIDGE, averaging=averaging))
    record, rows = fit(plan, runs), SUBJECTS[1].rows("validation")
    assert len(np.unique(SUBJECTS[1].stimulus[rows])) < len(rows)
    true = target_table().of(SUBJECTS[1].stimulus[rows]).reshape(len(rows), -1)
    made = predictions(plan, runs).reshape(true.shape)
    expected = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(made.T, true.T, strict=True)])
    assert record.validation_correlation == pytest.approx(expected, abs=1e-5)


def test_an_encoder_that_precomputes_nothing_leaves_nothing(runs):
    fit(plan_of(MLP), runs)
    assert not (runs / "precompute").exists()


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_after(epochs: int):
    def report(step, metrics):
        if step + 1 == epochs:
            raise Killed

    return report


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_killed_fit_continues_and_ends_as_if_nothing_had_happened(place, request, tmp_path, monkeypatch):
    undisturbed = Folder.at(tmp_path / "undisturbed")
    runs = Folder.at(tmp_path / "runs")
    if place == "s3":
        runs = Folder.at(f"s3://{request.getfixturevalue('s3_bucket')}/runs")
    plan = plan_of(MLP)
    expected = fit(plan, undisturbed)
    with pytest.raises(Killed):
        fit(plan, runs, report=killed_after(3))
    assert read_fit(runs, plan.id) is None
    assert list((runs / "fits" / plan.id / "checkpoint").files())
    epochs = []
    record = fit(plan, runs, report=lambda step, metrics: epochs.append(step))
    assert epochs == [3, 4]
    assert record.validation_correlation == pytest.approx(expected.validation_correlation, abs=1e-7)
    np.testing.assert_allclose(predictions(plan, runs), predictions(plan, undisturbed), atol=1e-6)
    assert not list((runs / "fits" / plan.id / "checkpoint").files())


def test_a_closed_form_fit_in_s3(s3_bucket, runs):
    remote = Folder.at(f"s3://{s3_bucket}/runs")
    plan = plan_of()
    record = fit(plan, remote)
    assert read_fit(remote, plan.id) == record
    assert record.validation_correlation == pytest.approx(fit(plan, runs).validation_correlation, abs=1e-9)
    np.testing.assert_array_equal(predictions(plan, remote), predictions(plan, runs))


def test_a_stage_starts_from_its_parents_state(runs, monkeypatch):
    parent = plan_of()
    child = plan_of(dataclasses.replace(MLP, init_from="fit"), parent=parent)
    with pytest.raises(MissingDataError, match=f"fit {child.id} starts from fit {parent.id}, which has no state"):
        fit(child, runs)
    fit(parent, runs)

    def look(self, data, heads, runtime):
        raise Killed(sorted(path.name for path in Path(runtime.initial).iterdir()))

    monkeypatch.setattr(registry.load("encoder", "braid-mlp"), "fit", look)
    with pytest.raises(Killed) as seen:
        fit(child, runs)
    assert seen.value.args[0] == (runs / "fits" / parent.id / "state").names() != []


def test_a_fit_that_was_not_made_has_no_state(runs):
    plan = plan_of()
    assert read_fit(runs, plan.id) is None
    with (
        pytest.raises(MissingDataError, match=f"fit {plan.id} has no state in .*; run the sweep first"),
        loaded_encoder(plan, runs),
    ):
        pass


def test_a_stage_without_validation_trials_has_no_score(runs):
    keep = SUBJECTS[1].rows("train")
    columns = {n: getattr(SUBJECTS[1], n)[keep] for n in ("trial", "stimulus", "repeat", "session", "role")}
    betas = betas_of(np.concatenate(SUBJECTS[1].betas.blocks)[keep], columns["session"])
    only = dataclasses.replace(SUBJECTS[1], betas=betas, **columns)
    record = fit(plan_of(), runs, dataclasses.replace(INPUTS, subjects={1: only}))
    assert (record.status, record.validation_correlation) == ("ok", None)
    assert read_fit(runs, plan_of().id) == record


def test_missing_targets_are_named(runs):
    first = int(SUBJECTS[1].stimulus[SUBJECTS[1].rows("train")].min())
    keep = target_table().stimulus > first
    table = TargetTable(target_table().stimulus[keep], target_table().values[keep])
    with pytest.raises(MissingDataError, match=rf"no target for stimuli \[{first}"):
        fit(plan_of(), runs, dataclasses.replace(INPUTS, targets={TARGET: table}))


def test_the_data_of_these_tests_hold_both_roles():
    assert set(np.unique(role_of(SUBJECTS[1].stimulus))) == {0, 1}
