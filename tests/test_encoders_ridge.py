"""Ridge against scikit-learn, explicit hat matrices and brute force."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile

import numpy as np
import pytest
import torch
from fake_subjects import FakeSubject, linear_subject
from sklearn.linear_model import Ridge as ReferenceRidge
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from encoders.base import Head, Runtime, assemble
from encoders.ridge import Ridge, RidgeOptions
from encoders.ridge.penalties import best_rows, folds_by_stimulus, gcv_errors, kfold_errors, loo_errors
from encoders.ridge.rows import pieces_of

HEADS = [Head("z", (3, 4)), Head("c", (7,))]
ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)


def make(n_voxels: int, n_train: int = 90, repeats: int = 1, heads=HEADS, natural: int = 100, **changes) -> FakeSubject:
    arguments = {"noise": 1.0, "seed": 5, **changes}
    made = linear_subject(2, heads, n_voxels, {"train": n_train, "validation": 30}, repeats, **arguments)
    return FakeSubject(2, made.roles, natural)


def arrays(subject: FakeSubject, role="train", heads=HEADS) -> tuple[np.ndarray, np.ndarray]:
    trials = subject.roles[role]
    flat = [trials.targets[head.name].flatten(1) for head in heads]
    return trials.voxels.double().numpy(), torch.cat(flat, dim=1).double().numpy()


def fit(subject: FakeSubject, heads=HEADS, runtime: Runtime | None = None, **options) -> Ridge:
    ridge = Ridge(RidgeOptions(**options))
    ridge.fit({2: subject}, heads, runtime or Runtime())
    return ridge


def linear_map(ridge: Ridge, heads=HEADS) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(V, D)` and intercepts `(D,)` of all heads side by side, in the fit's own arithmetic."""
    parts = [part for head in heads for part in ridge.weights(head.name, 2)]
    return torch.cat([part[1] for part in parts], dim=1).numpy(), torch.cat([part[2] for part in parts]).numpy()


FORMS_AND_SHAPES = [("primal", 40), ("dual", 40), ("primal", 150), ("dual", 150)]


@pytest.mark.parametrize("natural", [7, 64, 1000])
@pytest.mark.parametrize(("form", "n_voxels"), FORMS_AND_SHAPES)
def test_equals_scikit_learn_for_any_batch_size_and_form(form, n_voxels, natural):
    subject = make(n_voxels, natural=natural)
    voxels, targets = arrays(subject)
    reference = ReferenceRidge(alpha=30.0, solver="svd").fit(voxels, targets)
    weights, intercepts = linear_map(fit(subject, alpha=30.0, form=form))
    np.testing.assert_allclose(weights, reference.coef_.T, rtol=0, atol=1e-8 * np.abs(reference.coef_).max())
    np.testing.assert_allclose(intercepts, reference.intercept_, rtol=1e-8, atol=1e-8)


def test_predictions_equal_scikit_learn_in_the_units_of_the_targets():
    subject = make(40)
    voxels, targets = arrays(subject)
    unseen, _ = arrays(subject, "validation")
    expected = ReferenceRidge(alpha=30.0).fit(voxels, targets).predict(unseen)
    ridge = fit(subject, alpha=30.0)
    came = assemble(ridge.predict(subject.roles["validation"].voxels, 2, 0), HEADS, 30)
    flat = torch.cat([came[head.name].flatten(1) for head in HEADS], dim=1).numpy()
    np.testing.assert_allclose(flat, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_offset_voxels_cost_no_digits(form):
    subject = make(40)
    train = subject.roles["train"]
    moved = subject.with_role("train", type(train)(train.voxels + 1000, train.targets, train.stimuli))
    voxels, targets = arrays(moved)
    reference = ReferenceRidge(alpha=30.0, solver="svd").fit(voxels, targets)
    weights, _ = linear_map(fit(moved, alpha=30.0, form=form))
    np.testing.assert_allclose(weights, reference.coef_.T, rtol=0, atol=1e-8 * np.abs(reference.coef_).max())


def test_standardised_voxels_equal_scikit_learn_with_a_scaler():
    subject = make(40)
    voxels, targets = arrays(subject)
    scaler = StandardScaler().fit(voxels)
    reference = ReferenceRidge(alpha=30.0).fit(scaler.transform(voxels), targets)
    weights, intercepts = linear_map(fit(subject, alpha=30.0, standardise_voxels=True))
    np.testing.assert_allclose(weights, (reference.coef_ / scaler.scale_).T, atol=1e-8)
    expected = reference.intercept_ - (scaler.mean_ / scaler.scale_) @ reference.coef_.T
    np.testing.assert_allclose(intercepts, expected, atol=1e-7)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_float32_is_as_accurate_as_stated(form):
    subject = make(200, n_train=300)
    unseen = subject.roles["validation"].voxels
    largest = np.linalg.norm(arrays(subject)[0] - arrays(subject)[0].mean(0), 2) ** 2
    options = {"alpha": float(1e-4 * largest), "form": form}
    exact = assemble(fit(subject, **options).predict(unseen, 2, 0), HEADS, 30)
    rough = assemble(fit(subject, precision="float32", **options).predict(unseen, 2, 0), HEADS, 30)
    for head in HEADS:
        deviation = subject.roles["train"].targets[head.name].std(dim=0)
        assert ((rough[head.name] - exact[head.name]).abs() / deviation).max() < 1e-3


@pytest.mark.parametrize("block", [1, 3, 12, 13, 1000])
@pytest.mark.parametrize("select", ["gcv", "kfold"])
def test_width_of_blocks_changes_nothing(block, select):
    subject = make(40)
    options = {"select": select, "alphas": ALPHAS, "scope": "per-target"}
    whole, parts = fit(subject, **options), fit(subject, block=block, **options)
    np.testing.assert_allclose(linear_map(parts)[0], linear_map(whole)[0], atol=1e-12)
    widths = [part["z"].values.shape[1] for part in parts.predict(torch.zeros(2, 40), 2, 0) if "z" in part]
    assert sum(widths) == 12
    assert max(widths) <= block


def test_pieces_cover_every_head_once():
    for width in range(1, 25):
        groups = list(pieces_of(HEADS, width))
        assert all(sum(piece.stop - piece.start for piece in group) <= width for group in groups)
        covered = [(p.head.name, target) for group in groups for p in group for target in range(p.start, p.stop)]
        assert covered == [(head.name, target) for head in HEADS for target in range(head.size)]


def centred_design(n_voxels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Voxels, centred targets, eigenvalues and orthonormal row coordinates of a small problem."""
    voxels, targets = arrays(make(n_voxels, n_train=40))
    left, roots, _ = np.linalg.svd(voxels - voxels.mean(0), full_matrices=False)
    return voxels, targets - targets.mean(0), roots**2, left


def hat_matrix(voxels: np.ndarray, alpha: float) -> np.ndarray:
    """H of ridge with an unpenalised intercept, straight from the normal equations."""
    count, size = voxels.shape
    design = np.hstack([np.ones((count, 1)), voxels])
    penalty = alpha * np.eye(size + 1)
    penalty[0, 0] = 0
    return design @ np.linalg.solve(design.T @ design + penalty, design.T)


@pytest.mark.parametrize("n_voxels", [15, 80])
def test_gcv_equals_its_published_formula(n_voxels):
    voxels, targets, eigenvalues, left = centred_design(n_voxels)
    expected = []
    for alpha in ALPHAS:
        hat = hat_matrix(voxels, alpha)
        residual = targets - hat @ targets
        expected.append((residual**2).mean(0) / (1 - np.trace(hat) / 40) ** 2)
    came = gcv_errors(*map(torch.from_numpy, (eigenvalues, left.T @ targets, targets.var(0))), 40, ALPHAS)
    np.testing.assert_allclose(came.numpy(), expected, rtol=1e-8)


def test_gcv_equals_leave_one_out_where_every_trial_has_the_same_leverage():
    # All rotations of one pattern: a circulant design, in which no trial is special.
    pattern = np.random.default_rng(1).standard_normal(16)
    voxels = np.stack([np.roll(pattern, shift) for shift in range(16)])
    targets = np.random.default_rng(2).standard_normal((16, 3))
    centred = targets - targets.mean(0)
    left, roots, _ = np.linalg.svd(voxels - voxels.mean(0))
    eigenvalues = torch.from_numpy(roots**2)
    gcv = gcv_errors(eigenvalues, *map(torch.from_numpy, (left.T @ centred, centred.var(0))), 16, ALPHAS)
    held_out = np.zeros((len(ALPHAS), 3))
    for row, (index, alpha) in itertools.product(range(16), enumerate(ALPHAS)):
        rest = np.arange(16) != row
        model = ReferenceRidge(alpha=alpha).fit(voxels[rest], targets[rest])
        held_out[index] += (model.predict(voxels[[row]])[0] - targets[row]) ** 2 / 16
    np.testing.assert_allclose(gcv.numpy(), held_out, rtol=1e-8)


@pytest.mark.parametrize("n_voxels", [15, 80])
def test_leave_one_out_equals_refitting_without_each_trial(n_voxels):
    voxels, targets, eigenvalues, left = centred_design(n_voxels)
    came = loo_errors(*map(torch.from_numpy, (eigenvalues, left, targets)), ALPHAS)
    for index, alpha in enumerate(ALPHAS):
        errors = []
        for row in range(40):
            rest = np.arange(40) != row
            model = ReferenceRidge(alpha=alpha).fit(voxels[rest], targets[rest])
            errors.append((model.predict(voxels[[row]])[0] - targets[row]) ** 2)
        np.testing.assert_allclose(came[index].numpy(), np.mean(errors, 0), rtol=1e-7)


@pytest.mark.parametrize("n_voxels", [15, 80])
def test_kfold_equals_refitting_without_each_fold(n_voxels):
    voxels, targets, eigenvalues, left = centred_design(n_voxels)
    folds = list(folds_by_stimulus(torch.arange(40), 4, seed=9))
    came = kfold_errors(*map(torch.from_numpy, (eigenvalues, left, targets)), folds, ALPHAS)
    for index, alpha in enumerate(ALPHAS):
        total = np.zeros(targets.shape[1])
        for fold in folds:
            rest = np.setdiff1d(np.arange(40), fold.numpy())
            model = ReferenceRidge(alpha=alpha).fit(voxels[rest], targets[rest])
            total += ((model.predict(voxels[fold.numpy()]) - targets[fold.numpy()]) ** 2).sum(0)
        np.testing.assert_allclose(came[index].numpy(), total / 40, rtol=1e-7)


@pytest.mark.parametrize(("form", "n_voxels"), FORMS_AND_SHAPES)
def test_leave_one_out_chooses_the_alphas_of_scikit_learn(form, n_voxels):
    subject = make(n_voxels, noise=3.0)
    reference = RidgeCV(ALPHAS, alpha_per_target=True).fit(*arrays(subject))
    ridge = fit(subject, select="loo", alphas=ALPHAS, scope="per-target", form=form)
    chosen = torch.cat([ridge.alphas(head.name, 2) for head in HEADS]).numpy()
    np.testing.assert_array_equal(chosen, reference.alpha_)
    np.testing.assert_allclose(linear_map(ridge)[0], reference.coef_.T, atol=1e-8)


def brute_force(subject: FakeSubject, select: str) -> np.ndarray:
    """`(A, D)` held-out errors by refitting."""
    voxels, targets = arrays(subject)
    table = []
    for alpha in ALPHAS:
        if select == "validation":
            unseen, true = arrays(subject, "validation")
            table.append(((ReferenceRidge(alpha).fit(voxels, targets).predict(unseen) - true) ** 2).mean(0))
            continue
        total = np.zeros(targets.shape[1])
        for fold in folds_by_stimulus(subject.roles["train"].stimuli, 5, seed=0):
            rest = np.setdiff1d(np.arange(len(voxels)), fold.numpy())
            model = ReferenceRidge(alpha).fit(voxels[rest], targets[rest])
            total += ((model.predict(voxels[fold.numpy()]) - targets[fold.numpy()]) ** 2).sum(0)
        table.append(total / len(voxels))
    return np.stack(table)


@pytest.mark.parametrize("select", ["kfold", "validation"])
@pytest.mark.parametrize(("form", "n_voxels"), FORMS_AND_SHAPES)
def test_chosen_alphas_equal_brute_force(select, form, n_voxels):
    subject = make(n_voxels, n_train=30, repeats=3, noise=3.0)
    errors, variance = brute_force(subject, select), arrays(subject)[1].var(0)
    options = {"select": select, "alphas": ALPHAS, "form": form}
    ridge = fit(subject, scope="per-target", **options)
    chosen = torch.cat([ridge.alphas(head.name, 2) for head in HEADS]).numpy()
    np.testing.assert_array_equal(chosen, np.array(ALPHAS)[errors.argmin(0)])
    assert len(set(chosen)) > 1, "targets must differ for this test to mean something"
    whole = fit(subject, scope="global", **options)
    for head, run in zip(HEADS, (slice(0, 12), slice(12, 19)), strict=True):
        best = ALPHAS[(errors / variance)[:, run].mean(1).argmin()]
        assert (whole.alphas(head.name, 2).numpy() == best).all()


def test_per_target_alphas_give_the_weights_of_single_fits():
    subject = make(40, noise=3.0)
    ridge = fit(subject, select="loo", alphas=ALPHAS, scope="per-target")
    voxels, targets = arrays(subject)
    weights, _ = linear_map(ridge)
    chosen = torch.cat([ridge.alphas(head.name, 2) for head in HEADS]).numpy()
    for target, alpha in enumerate(chosen):
        single = ReferenceRidge(alpha=alpha).fit(voxels, targets[:, target])
        np.testing.assert_allclose(weights[:, target], single.coef_, atol=1e-8)


def test_published_alphas_are_given_by_head():
    subject = make(40)
    ridge = fit(subject, alpha={"z": 50000.0, "c": 100000.0})
    assert set(ridge.alphas("z", 2).tolist()) == {50000.0}
    voxels, targets = arrays(subject)
    expected = ReferenceRidge(alpha=100000.0).fit(voxels, targets[:, 12:]).coef_.T
    np.testing.assert_allclose(linear_map(ridge)[0][:, 12:], expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"missing: \['c'\]"):
        fit(subject, alpha={"z": 1.0})


def test_constant_targets_get_the_largest_alpha():
    heads = [Head("half", (2,)), Head("none", (2,))]
    subject = make(40, heads=heads, noise=0.0)
    for head, varying in zip(heads, (1, 0), strict=True):
        subject.roles["train"].targets[head.name][:, varying:] = 4.7
    for scope, half in (("per-target", [3.0, 9.0]), ("global", [3.0, 3.0])):
        ridge = fit(subject, heads, alphas=(3.0, 9.0), scope=scope)
        assert ridge.alphas("half", 2).tolist() == half
        assert ridge.alphas("none", 2).tolist() == [9.0, 9.0]


def test_folds_keep_the_repeats_of_a_stimulus_together():
    stimuli = torch.tensor([4, 4, 9, 9, 9, 2, -1, -1, 7, 0])
    folds = list(folds_by_stimulus(stimuli, 3, seed=1))
    assert sorted(torch.cat(folds).tolist()) == list(range(10))
    for fold in folds:
        for stimulus in {4, 9}:
            assert len({bool(row in fold) for row in (stimuli == stimulus).nonzero()[:, 0]}) == 1
    with pytest.raises(ValueError, match="8 folds of 7 training stimuli"):
        list(folds_by_stimulus(stimuli, 8, seed=1))


def test_form_is_chosen_by_the_smaller_gram_matrix_and_recorded(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="encoders.ridge.fit")
    for n_voxels, form in ((40, "primal"), (90, "primal"), (91, "dual")):
        folder = tmp_path / str(n_voxels)
        folder.mkdir()
        fit(make(n_voxels), alpha=1.0).save(folder)
        assert f'"2/all": "{form}"' in (folder / "state.json").read_text()
        assert f"{form} ridge of 90 rows and {n_voxels} voxels" in caplog.text


class Counting(FakeSubject):
    """Counts the passes over the training trials."""

    passes = 0
    widest = 0

    def batches(self, role, seed, size=None, runs=None):
        Counting.passes += role == "train"
        if role == "train":  # it asks for the targets it needs, never for all
            Counting.widest = max(Counting.widest, sum(stop - start for start, stop in runs.values()))
        return super().batches(role, seed, size, runs)


def test_every_alpha_and_head_shares_one_factorisation(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="encoders.ridge.encoder")
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: calls.append(gram.shape) or eigh(gram))
    columns = {2: np.arange(10)}
    heads = [*HEADS, Head("early", (2,), columns=columns), Head("also", (3,), columns={2: np.arange(10)})]
    subject = make(40, heads=heads)
    arrays_of = Ridge(RidgeOptions()).precompute({2: subject}, heads)
    assert [tuple(shape) for shape in calls] == [(40, 40), (10, 10)]
    Counting.passes = 0
    counted = Counting(2, subject.roles)
    fit(counted, heads, Runtime(precomputed=arrays_of), select="kfold", scope="per-target")
    assert len(calls) == 2, "a cached factorisation is not computed again"
    assert "subject 2: primal ridge of 90 rows, computed before" in caplog.text
    # For each of the two sets of columns: coordinates of the rows, stimuli (once), targets.
    assert Counting.passes == 5


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("select", ["gcv", "loo", "kfold"])
def test_no_more_targets_than_a_block_are_asked_for(form, select):
    Counting.widest = 0
    counted = Counting(2, {"train": make(40).roles["train"]})
    fit(counted, select=select, form=form, block=5)
    assert Counting.widest == 5


def test_constant_targets_and_useless_alphas_are_never_the_reason_of_a_choice():
    errors = torch.tensor([[torch.nan, torch.inf], [2.0, 5.0]], dtype=torch.float64)
    rows, values = best_rows(errors, torch.ones(2, dtype=torch.float64), "per-target")
    assert (rows.tolist(), values.tolist()) == ([1, 1], [2.0, 5.0])
    rows, values = best_rows(errors, torch.zeros(2, dtype=torch.float64), "per-target")
    assert rows.tolist() == [-1, -1]
    assert torch.isinf(values).all()


def test_number_of_parameters_is_that_of_the_linear_maps():
    heads = [Head("z", (3, 4)), Head("c", (7,), columns={2: np.arange(10)})]
    assert fit(make(40, heads=heads), heads, alpha=1.0).n_parameters == 41 * 12 + 11 * 7


def test_target_blocks_leave_no_files_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ridge = fit(make(40), alpha=1.0)
    assert len(list(tmp_path.rglob("block-*.safetensors"))) == 2
    del ridge
    assert list(tmp_path.iterdir()) == []


def test_saving_to_another_file_system_copies(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    ridge = fit(make(40), alpha=1.0)
    ridge.save(tmp_path)
    loaded = Ridge.load(RidgeOptions(alpha=1.0), tmp_path)
    np.testing.assert_array_equal(linear_map(loaded)[0], linear_map(ridge)[0])
    for path in tmp_path.glob("block-2-1-*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no target blocks of subject 2, head 1"):
        list(loaded.predict(torch.zeros(1, 40), 2, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": {"z": -1.0}}, "alpha is {'z': -1.0}"),
        ({"alphas": ()}, r"alphas is \(\)"),
        ({"alphas": (1.0, 0.0)}, "must be greater than 0"),
        ({"block": 0}, "block is 0"),
        ({"select": "cv"}, "select is 'cv'; did you mean 'gcv'\\? allowed: gcv, loo, kfold, validation"),
        ({"scope": "head"}, "allowed: global, per-target"),
        ({"form": "both"}, "allowed: auto, primal, dual"),
        ({"precision": "half"}, "allowed: float64, float32"),
        ({"folds": 1}, "folds is 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RidgeOptions(**options)


def test_what_ridge_cannot_do_is_refused(tmp_path):
    subject = make(40)
    with pytest.raises(ValueError, match="fitted by one worker, not by 2"):
        fit(subject, runtime=Runtime(world_size=2))
    with pytest.raises(ValueError, match="remove init_from"):
        fit(subject, runtime=Runtime(initial=tmp_path))
    with pytest.raises(ValueError, match=r"subjects \[2\] have none; allowed without them: gcv"):
        fit(subject.without("validation"), select="validation")
    with pytest.raises(ValueError, match="not fitted"):
        Ridge(RidgeOptions()).save(tmp_path)
    with pytest.raises(ValueError, match="no fit of head 'y'"):
        list(fit(subject, alpha=1.0).weights("y", 2))
