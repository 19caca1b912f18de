"""Quadratic forms of held-out errors against the same errors computed row by row, and what they cost."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from fake_subjects import FakeSubject, Trials, linear_subject
from sklearn.linear_model import Ridge as ReferenceRidge

from encoders.base import Head, Runtime
from encoders.ridge import Ridge, RidgeOptions, quadratic_forms
from encoders.ridge.penalties import folds_by_stimulus
from encoders.ridge.quadratic_forms import HeadForms, TargetForms, compare
from encoders.ridge.rows import TrainingRows, pieces_of
from encoders.ridge.selection import DirectComparison, Question
from encoders.ridge.targets import sum_targets

ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
HEADS = [Head("z", (10, 11)), Head("c", (60,))]
ROWS = 50


def make(noise: float = 2.0) -> FakeSubject:
    """More targets than three a row, more voxels than rows; one target does not vary."""
    made = linear_subject(2, HEADS, 80, {"train": 25}, repeats=2, noise=noise, seed=4)
    train = made.roles["train"]
    z = train.targets["z"].clone()
    z[:, 2, 3] = 5.5
    return FakeSubject(2, {"train": Trials(train.voxels, {**train.targets, "z": z}, train.stimuli)}, natural=16)


def factorised(subject: FakeSubject, dtype=torch.float64):
    rows = TrainingRows(subject, dtype, torch.device("cpu"))
    encoder = Ridge(RidgeOptions(precision="float64" if dtype == torch.float64 else "float32"))
    arrays = encoder.precompute({2: subject}, HEADS)
    return rows, encoder._cached(rows, "all", Runtime(precomputed=arrays))


def shown(comparison, factor, rows, width=37):
    for pieces in pieces_of(HEADS, width):
        comparison.update(pieces, sum_targets(factor, rows, pieces, keep=comparison.keeps_targets))
    return comparison


@pytest.mark.parametrize("method", ["loo", "kfold"])
@pytest.mark.parametrize("width", [1, 37, 1000])
def test_forms_of_targets_equal_errors_row_by_row(method, width):
    rows, factor = factorised(make())
    question = Question(method, ALPHAS, 4, 9)
    direct = shown(DirectComparison(question, factor, rows), factor, rows)
    forms = shown(TargetForms(question, factor, rows), factor, rows, width)
    for head in HEADS:
        expected, variance = direct.table(head.name)
        came, same = forms.table(head.name)
        torch.testing.assert_close(came, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(same, variance, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["loo", "kfold"])
def test_forms_of_heads_equal_mean_relative_errors_of_varying_targets(method):
    rows, factor = factorised(make())
    question = Question(method, ALPHAS, 4, 9)
    direct = shown(DirectComparison(question, factor, rows), factor, rows)
    forms = shown(HeadForms(question, factor, rows), factor, rows)
    for head in HEADS:
        errors, variance = direct.table(head.name)
        varies = variance > 0
        assert int((~varies).sum()) == (head.name == "z")
        came, one = forms.table(head.name)
        torch.testing.assert_close(came[:, 0], (errors[:, varies] / variance[varies]).mean(1), rtol=1e-9, atol=0)
        assert one.tolist() == [1.0]


@pytest.mark.parametrize("method", ["loo", "kfold"])
def test_forms_equal_refitting(method):
    subject = make()
    voxels = subject.roles["train"].voxels.double().numpy()
    targets = subject.roles["train"].targets["c"].double().numpy()
    held = [np.array([row]) for row in range(ROWS)]
    if method == "kfold":
        held = [fold.numpy() for fold in folds_by_stimulus(subject.roles["train"].stimuli, 4, seed=9)]
    rows, factor = factorised(subject)
    came, _ = shown(TargetForms(Question(method, ALPHAS, 4, 9), factor, rows), factor, rows).table("c")
    for index, alpha in enumerate(ALPHAS):
        total = np.zeros(60)
        for fold in held:
            rest = np.setdiff1d(np.arange(ROWS), fold)
            model = ReferenceRidge(alpha=alpha).fit(voxels[rest], targets[rest])
            total += ((model.predict(voxels[fold]) - targets[fold]) ** 2).sum(0)
        np.testing.assert_allclose(came[index].numpy(), total / ROWS, rtol=1e-7)


@pytest.mark.parametrize("method", ["loo", "kfold"])
@pytest.mark.parametrize("scope", ["global", "per-target"])
def test_a_fit_chooses_the_same_alphas_with_and_without_forms(method, scope, monkeypatch):
    subject, chosen = make(), []
    for pays_from in (3, 10**9):
        monkeypatch.setattr(quadratic_forms, "_PAYS_FROM", pays_from)
        ridge = Ridge(RidgeOptions(select=method, scope=scope, alphas=ALPHAS, block=50))
        ridge.fit({2: subject}, HEADS, Runtime())
        chosen.append(torch.cat([ridge.alphas(head.name, 2) for head in HEADS]))
    assert torch.equal(*chosen)
    assert len(set(chosen[0].tolist())) > (scope == "per-target")
    assert chosen[0].reshape(-1)[25] == (max(ALPHAS) if scope == "per-target" else chosen[0][0])


def test_forms_serve_dual_factorisations_of_many_targets_only():
    rows, factor = factorised(make())
    question = Question("loo", ALPHAS, 4, 9)
    assert isinstance(compare(question, factor, rows, HEADS, "global"), HeadForms)
    assert isinstance(compare(question, factor, rows, HEADS, "per-target"), TargetForms)
    assert isinstance(compare(question, factor, rows, HEADS[1:], "per-target"), DirectComparison)
    gcv = Question("gcv", ALPHAS, 4, 9)
    assert isinstance(compare(gcv, factor, rows, HEADS, "per-target"), DirectComparison)


def test_float32_forms_choose_nearly_the_best_alpha():
    subject = make()
    rows, factor = factorised(subject)
    question = Question("kfold", ALPHAS, 4, 9)
    exact, _ = shown(DirectComparison(question, factor, rows), factor, rows).table("c")
    rows, factor = factorised(subject, torch.float32)
    rough, _ = shown(TargetForms(question, factor, rows), factor, rows).table("c")
    assert rough.dtype == torch.float32
    lost = exact.gather(0, rough.argmin(0, keepdim=True))[0] / exact.min(0).values - 1
    assert float(lost.max()) < 1e-3


@pytest.mark.parametrize("method", ["loo", "kfold"])
@pytest.mark.parametrize("scope", ["global", "per-target"])
@pytest.mark.parametrize("pays_from", [3, 10**9])
def test_an_alpha_too_small_for_the_arithmetic_is_said_and_never_chosen(method, scope, pays_from, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, logger="encoders.ridge.fit")
    monkeypatch.setattr(quadratic_forms, "_PAYS_FROM", pays_from)
    ridge = Ridge(RidgeOptions(select=method, scope=scope, alphas=(1e-12, 100.0), precision="float32"))
    ridge.fit({2: make()}, HEADS, Runtime())
    assert "head c: alphas [1e-12] are too small for float32 arithmetic" in caplog.text
    assert set(ridge.alphas("c", 2).tolist()) == {100.0}
