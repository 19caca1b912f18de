"""Ridge beside its peers, against what is possible at all, and through bench's fits."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fake_subjects import FakeSubject, Trials
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from himalaya.scoring import l2_neg_loss
from sklearn.linear_model import Ridge as ReferenceRidge
from sklearn.model_selection import PredefinedSplit
from stream_shards import LABEL_NAMES, TARGET, digests, target_table, trials_of

from bench.core.storage import Folder
from bench.fitting.inputs import FitInputs
from bench.fitting.plan import plan_stage
from bench.fitting.trial import loaded_encoder, run_fit
from bench.recipes.parts import HeadSpec, Stage
from encoders.base import Head, Runtime, assemble
from encoders.ridge import Ridge, RidgeOptions
from encoders.ridge.penalties import folds_by_stimulus

ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4)
INPUTS = FitInputs({1: trials_of(1)}, {TARGET: target_table()}, LABEL_NAMES)


def ignore(step, metrics) -> None:
    """Drop a report."""


def planted(rows: int, n_voxels: int, targets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`(rows, V)` voxels and `(rows, D)` targets of different noise, so that they prefer different alphas."""
    rng = np.random.default_rng(seed)
    voxels = rng.standard_normal((rows, n_voxels)) * rng.uniform(0.3, 3, n_voxels) + 2
    signal = voxels @ rng.standard_normal((n_voxels, targets))
    noise = np.geomspace(0.05, 20, targets) * signal.std()
    return voxels.astype(np.float32), (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)


def subject_of(voxels: np.ndarray, targets: np.ndarray, stimuli: Sequence[int] | None = None) -> FakeSubject:
    stimuli = range(len(voxels)) if stimuli is None else stimuli
    trials = Trials(torch.from_numpy(voxels), {"z": torch.from_numpy(targets)}, torch.tensor(list(stimuli)))
    return FakeSubject(2, {"train": trials}, natural=64)


def fit(voxels: np.ndarray, targets: np.ndarray, **options) -> Ridge:
    ridge = Ridge(RidgeOptions(**options))
    ridge.fit({2: subject_of(voxels, targets)}, [Head("z", (targets.shape[1],))], Runtime(seed=3))
    return ridge


def same_folds(rows: int, folds: int = 5) -> PredefinedSplit:
    """The folds that ridge draws, for a peer."""
    number = np.zeros(rows, dtype=int)
    for place, fold in enumerate(folds_by_stimulus(torch.arange(rows), folds, seed=3)):
        number[fold.numpy()] = place
    return PredefinedSplit(number)


@pytest.mark.parametrize(("rows", "n_voxels", "targets"), [(120, 30, 25), (60, 90, 25), (60, 90, 300)])
@pytest.mark.parametrize("scope", ["per-target", "global"])
def test_chooses_the_alphas_of_himalayas_ridge_cv(rows, n_voxels, targets, scope):
    voxels, values = planted(rows, n_voxels, targets)
    values /= values.std(0)  # a head's alpha weighs targets by their variance, himalaya's does not
    parameters = {"score_func": l2_neg_loss, "local_alpha": scope == "per-target", "warn": False}
    peer = RidgeCV(alphas=ALPHAS, cv=same_folds(rows), fit_intercept=True, solver_params=parameters)
    peer.fit(voxels.astype(np.float64), values.astype(np.float64))
    ridge = fit(voxels, values, select="kfold", alphas=ALPHAS, scope=scope)
    # It keeps alphas as logarithms, hence the last digit.
    np.testing.assert_allclose(ridge.alphas("z", 2).numpy(), peer.best_alphas_, rtol=1e-12)
    assert len(set(ridge.alphas("z", 2).tolist())) > (scope == "per-target"), (
        "targets must differ for this test to mean something"
    )
    (_, weights, _), *_ = ridge.weights("z", 2)
    np.testing.assert_allclose(weights.numpy(), peer.coef_, rtol=1e-6, atol=1e-8)


def test_float32_chooses_the_alphas_of_himalayas_kernel_ridge_cv():
    voxels, values = planted(80, 120, 400)
    peer = KernelRidgeCV(
        alphas=ALPHAS,
        cv=same_folds(80),
        kernel="linear",
        fit_intercept=True,
        solver_params={"score_func": l2_neg_loss},
        warn=False,
    )
    peer.fit(voxels.astype(np.float64), values.astype(np.float64))
    exact = fit(voxels, values, select="kfold", alphas=ALPHAS, scope="per-target")
    np.testing.assert_allclose(exact.alphas("z", 2).numpy(), peer.best_alphas_, rtol=1e-12)
    peer.fit(voxels, values)
    rough = fit(voxels, values, select="kfold", alphas=ALPHAS, scope="per-target", precision="float32")
    # Both sides round: near ties may fall to a neighbour.
    assert np.isclose(rough.alphas("z", 2).numpy(), peer.best_alphas_, rtol=1e-4).mean() > 0.97


@pytest.mark.parametrize("natural", [1, 13, 1000])
@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize(("rows", "n_voxels"), [(70, 25), (40, 110)])
def test_equals_scikit_learn_at_every_alpha(natural, form, rows, n_voxels):
    voxels, targets = planted(rows, n_voxels, 9)
    made = subject_of(voxels, targets)
    subject = FakeSubject(2, made.roles, natural)
    for alpha in (0.1, 50_000.0):
        ridge = Ridge(RidgeOptions(alpha=alpha, form=form, block=4))
        ridge.fit({2: subject}, [Head("z", (9,))], Runtime())
        reference = ReferenceRidge(alpha, solver="svd").fit(voxels.astype(np.float64), targets.astype(np.float64))
        parts = list(ridge.weights("z", 2))
        weights, intercepts = (torch.cat([part[k] for part in parts], dim=-1).numpy() for k in (1, 2))
        np.testing.assert_allclose(weights, reference.coef_.T, rtol=0, atol=1e-8 * np.abs(reference.coef_).max())
        np.testing.assert_allclose(intercepts, reference.intercept_, rtol=1e-8, atol=1e-8)


class LinearGaussianBrain:
    """Targets drive voxels linearly under Gaussian noise, so that the best possible decoder is known.

    `x = A y + e` with `y ~ N(0, I)` and `e ~ N(0, s^2 I)`: the best decoder is `E[y | x] = A' (A A' + s^2)^-1 x`, and
    the share of a target's variance that it explains is a diagonal entry of `A' (A A' + s^2)^-1 A`.
    """

    def __init__(self, n_voxels: int = 60, targets: int = 12, noise: float = 4.0) -> None:
        self.mixing = np.random.default_rng(7).standard_normal((n_voxels, targets))
        self.noise = noise

    def trials(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        targets = rng.standard_normal((count, self.mixing.shape[1]))
        voxels = targets @ self.mixing.T + self.noise * rng.standard_normal((count, len(self.mixing)))
        return voxels.astype(np.float32), targets.astype(np.float32)

    @property
    def best_r2(self) -> float:
        covariance = self.mixing @ self.mixing.T + self.noise**2 * np.eye(len(self.mixing))
        return float(np.diag(self.mixing.T @ np.linalg.solve(covariance, self.mixing)).mean())


@pytest.mark.parametrize("select", ["gcv", "loo", "kfold"])
def test_reaches_the_best_possible_linear_decoder_as_trials_grow(select):
    brain = LinearGaussianBrain()
    unseen, true = brain.trials(4000, seed=99)
    reached = []
    for count in (50, 200, 800, 3200):
        ridge = fit(*brain.trials(count, seed=1), select=select, alphas=(10.0, 100.0, 1e3, 1e4, 1e5))
        made = assemble(ridge.predict(torch.from_numpy(unseen), 2, 0), [Head("z", (12,))], 4000)["z"].numpy()
        reached.append(float((1 - ((made - true) ** 2).mean(0) / true.var(0)).mean()))
    assert reached == sorted(reached), "more trials never made it worse"
    assert 0.95 * brain.best_r2 <= reached[-1] <= 1.01 * brain.best_r2
    assert 0.3 < brain.best_r2 < 0.9
    assert reached[0] < 0.8 * brain.best_r2, "few trials must leave something to gain"


def test_a_sweep_over_alphas_costs_one_factorisation(tmp_path, monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: calls.append(gram.shape) or eigh(gram))
    runs, made = Folder.at(tmp_path / "runs"), []
    sweep = [
        {"alpha": 10.0},
        {"alpha": 1000.0},
        {"select": "loo", "scope": "per-target"},
        {"select": "kfold", "block": 2},
        {"select": "gcv", "alphas": [1.0, 10.0, 1e6]},
    ]
    for options in sweep:
        plan = plan_stage(Stage("ridge", options=options, heads={"z": HeadSpec(TARGET)}), (1,), digests(), 0)
        record = run_fit(plan, INPUTS, runs, torch.device("cpu"), ignore)
        made.append(record.id)
    assert len(set(made)) == len(sweep)
    assert len(calls) == 1
    other = Stage("ridge", options={"standardise_voxels": True}, heads={"z": HeadSpec(TARGET)})
    run_fit(plan_stage(other, (1,), digests(), 0), INPUTS, runs, torch.device("cpu"), ignore)
    assert len(calls) == 2, "other voxels are other numbers"


def test_trials_that_start_at_once_wait_for_one_factorisation(tmp_path, monkeypatch):
    calls, slow = [], threading.Event()
    eigh = torch.linalg.eigh

    def counted(gram):
        calls.append(gram.shape)
        slow.wait(0.3)  # long enough for every other trial to miss the cache
        return eigh(gram)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runs = Folder.at(tmp_path / "runs")
    stages = [Stage("ridge", options={"alpha": alpha}, heads={"z": HeadSpec(TARGET)}) for alpha in (1.0, 2.0, 3.0)]
    plans = [plan_stage(stage, (1,), digests(), 0) for stage in stages]
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(run_fit, plan, INPUTS, runs, torch.device("cpu"), ignore) for plan in plans]
        assert [each.result().status for each in made] == ["ok"] * 3
    assert len(calls) == 1
    assert not list(tmp_path.glob("*.lock"))


def test_a_recipe_names_its_bands_by_roi_expressions(tmp_path):
    atlas, names = next(iter(LABEL_NAMES.items()))
    present = [name for name, number in names.items() if (INPUTS.subjects[1].labels[atlas] == number).any()]
    bands = [f"{atlas}:{name}" for name in present[:2]]
    options = {"bands": bands, "candidates": 4, "scope": "per-target"}
    plan = plan_stage(Stage("ridge", options=options, heads={"z": HeadSpec(TARGET)}), (1,), digests(), 0)
    runs = Folder.at(tmp_path / "runs")
    record = run_fit(plan, INPUTS, runs, torch.device("cpu"), ignore)
    assert record.status == "ok"
    with loaded_encoder(plan, runs) as encoder:
        shares = encoder.band_shares("z", 1)
        rows = INPUTS.subjects[1].rows("validation")
        voxels = torch.from_numpy(INPUTS.subjects[1].z(rows))
        made = assemble(encoder.predict(voxels, 1, 0), [Head("z", encoder._heads[0].shape)], len(rows))["z"]
    assert list(shares)[: len(bands)] == bands
    assert torch.isfinite(made).all()
