"""Banded ridge against scikit-learn on scaled voxels, against himalaya, and against plain ridge."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_subjects import FakeSubject, linear_subject
from himalaya.ridge import GroupRidgeCV
from sklearn.linear_model import Ridge as ReferenceRidge
from sklearn.model_selection import PredefinedSplit

from encoders.base import Head, Runtime, assemble
from encoders.ridge import Ridge, RidgeOptions
from encoders.ridge.bands import ELSEWHERE, Bands, bands_of
from encoders.ridge.penalties import folds_by_stimulus

HEADS = [Head("z", (3, 4)), Head("c", (7,))]
ALPHAS = (1.0, 30.0, 1000.0)
ROIS = {"early": np.arange(0, 12), "ventral": np.array([12, 30, 31, 13]), "nowhere": np.arange(0)}
MEMBER = np.full(40, 2)
MEMBER[ROIS["early"]], MEMBER[ROIS["ventral"]] = 0, 1


def make(n_voxels: int = 40, heads=HEADS, rois=ROIS) -> FakeSubject:
    """Voxels of the early band carry the first targets only through large noise, so that targets prefer other bands."""
    made = linear_subject(2, heads, n_voxels, {"train": 60, "validation": 30}, noise=1.0, seed=5)
    noisy = made
    for role in ("train", "validation"):
        trials = noisy.roles[role]
        voxels = trials.voxels.clone()
        voxels[:, :12] = 3 * torch.from_numpy(np.random.default_rng(len(role)).standard_normal((len(voxels), 12)))
        voxels[:, :3] += trials.targets["c"].flatten(1)[:, :3]
        noisy = noisy.with_role(role, replace(trials, voxels=voxels.float()))
    return replace(noisy, rois=rois)


def fit(subject: FakeSubject, heads=HEADS, **options) -> Ridge:
    chosen = {"bands": ("early", "ventral"), "candidates": 6, "alphas": ALPHAS, "select": "kfold", **options}
    ridge = Ridge(RidgeOptions(**chosen))
    ridge.fit({2: subject}, heads, Runtime(seed=1))
    return ridge


def arrays(subject: FakeSubject, role="train") -> tuple[np.ndarray, np.ndarray]:
    trials = subject.roles[role]
    flat = [trials.targets[head.name].flatten(1) for head in HEADS]
    return trials.voxels.double().numpy(), torch.cat(flat, dim=1).double().numpy()


def drawn(count: int = 6) -> np.ndarray:
    return Bands(("early", "ventral", ELSEWHERE), MEMBER).draw(count, (0.1, 1.0), 0)


def reference_errors(subject: FakeSubject, shares: np.ndarray) -> np.ndarray:
    """`(K, A, D)` errors of five folds, by refitting scikit-learn's Ridge on scaled voxels."""
    voxels, targets = arrays(subject)
    folds = list(folds_by_stimulus(subject.roles["train"].stimuli, 5, seed=1))
    errors = np.zeros((len(shares), len(ALPHAS), targets.shape[1]))
    for place in np.ndindex(errors.shape[:2]):
        scaled = voxels * np.sqrt(shares[place[0]])[MEMBER]
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(voxels)), fold.numpy())
            model = ReferenceRidge(ALPHAS[place[1]], solver="svd").fit(scaled[rest], targets[rest])
            errors[place] += ((model.predict(scaled[fold.numpy()]) - targets[fold.numpy()]) ** 2).sum(0)
    return errors / len(voxels)


def chosen(ridge: Ridge) -> tuple[np.ndarray, np.ndarray]:
    """`(D,)` alphas and `(D, m)` shares of all heads side by side."""
    alphas = torch.cat([ridge.alphas(head.name, 2) for head in HEADS]).numpy()
    shares = [torch.stack(list(ridge.band_shares(head.name, 2).values()), dim=1) for head in HEADS]
    return alphas, torch.cat(shares).numpy()


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_every_target_gets_the_scales_and_alpha_of_an_explicit_search(form):
    subject, shares = make(), drawn()
    errors = reference_errors(subject, shares)
    best = errors.reshape(-1, errors.shape[2]).argmin(0)
    alphas, came = chosen(fit(subject, scope="per-target", form=form))
    np.testing.assert_array_equal(alphas, np.array(ALPHAS)[best % len(ALPHAS)])
    np.testing.assert_allclose(came, shares[best // len(ALPHAS)], rtol=1e-12)
    assert len(set(best // len(ALPHAS))) > 1, "targets must differ for this test to mean something"


def test_a_head_gets_the_scales_of_the_best_mean_r2():
    subject, shares = make(), drawn()
    errors = reference_errors(subject, shares) / arrays(subject)[1].var(0)
    ridge = fit(subject, scope="global")
    for head, run in zip(HEADS, (slice(0, 12), slice(12, 19)), strict=True):
        candidate, alpha = np.unravel_index(errors[:, :, run].mean(2).argmin(), errors.shape[:2])
        assert set(ridge.alphas(head.name, 2).tolist()) == {ALPHAS[alpha]}
        for band, values in enumerate(ridge.band_shares(head.name, 2).values()):
            np.testing.assert_allclose(values, shares[candidate, band], rtol=1e-12)


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_weights_and_predictions_equal_scikit_learn_on_scaled_voxels(form, block):
    subject = make()
    ridge = fit(subject, scope="per-target", form=form, block=block)
    alphas, shares = chosen(ridge)
    voxels, targets = arrays(subject)
    unseen, _ = arrays(subject, "validation")
    parts = [part for head in HEADS for part in ridge.weights(head.name, 2)]
    weights = torch.cat([part[1] for part in parts], dim=1).numpy()
    made = assemble(ridge.predict(subject.roles["validation"].voxels, 2, 0), HEADS, 30)
    flat = torch.cat([made[head.name].flatten(1) for head in HEADS], dim=1).numpy()
    for target, (alpha, share) in enumerate(zip(alphas, shares, strict=True)):
        gains = np.sqrt(share)[MEMBER]
        model = ReferenceRidge(alpha, solver="svd").fit(voxels * gains, targets[:, target])
        np.testing.assert_allclose(weights[:, target], model.coef_ * gains, atol=1e-8)
        np.testing.assert_allclose(flat[:, target], model.predict(unseen * gains), rtol=1e-5, atol=1e-5)


def test_agrees_with_himalaya_on_every_scale_and_alpha():
    subject, shares = make(), drawn()
    voxels, targets = arrays(subject)
    folds = np.zeros(len(voxels), dtype=int)
    for number, fold in enumerate(folds_by_stimulus(subject.roles["train"].stimuli, 5, seed=1)):
        folds[fold.numpy()] = number
    # himalaya's shares sum to 1, ours to the number of bands: its alphas are a third of ours.
    peer = GroupRidgeCV(
        groups=MEMBER,
        fit_intercept=True,
        cv=PredefinedSplit(folds),
        solver_params={
            "n_iter": shares / 3,
            "alphas": np.array(ALPHAS) / 3,
            "progress_bar": False,
            "warn": False,
        },
    ).fit(voxels, targets)
    ridge = fit(subject, scope="per-target")
    alphas, came = chosen(ridge)
    np.testing.assert_allclose(np.exp(peer.deltas_).T, came / alphas[:, None], rtol=1e-6)
    made = assemble(ridge.predict(subject.roles["validation"].voxels, 2, 0), HEADS, 30)
    flat = torch.cat([made[head.name].flatten(1) for head in HEADS], dim=1).numpy()
    np.testing.assert_allclose(flat, peer.predict(arrays(subject, "validation")[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("select", ["gcv", "loo", "kfold", "validation"])
@pytest.mark.parametrize("scope", ["global", "per-target"])
def test_one_band_is_plain_ridge(select, scope):
    subject = make(rois={"all": np.arange(40)})
    plain = fit(subject, bands=(), select=select, scope=scope)
    banded = fit(subject, bands=("all",), select=select, scope=scope)
    for head in HEADS:
        torch.testing.assert_close(banded.alphas(head.name, 2), plain.alphas(head.name, 2))
        for one, other in zip(banded.weights(head.name, 2), plain.weights(head.name, 2), strict=True):
            torch.testing.assert_close(one[1], other[1], rtol=1e-9, atol=1e-12)
    assert banded.band_shares("z", 2) == {"all": pytest.approx(np.ones(12))}
    assert plain.band_shares("z", 2) == {}


def test_a_band_of_noise_is_shrunk_and_the_held_out_error_falls():
    subject = make()
    unseen, true = arrays(subject, "validation")
    errors = []
    for candidates in (1, 20):
        ridge = fit(subject, candidates=candidates, scope="global")
        made = assemble(ridge.predict(torch.from_numpy(unseen).float(), 2, 0), HEADS, 30)
        errors.append(float((made["z"].flatten(1).numpy() - true[:, :12]).__pow__(2).mean()))
    assert errors[1] < 0.9 * errors[0]
    shares = ridge.band_shares("z", 2)
    assert float(shares["early"][0]) < 0.5 < float(shares[ELSEWHERE][0])


def test_each_candidate_is_factorised_once_for_all_heads_blocks_and_targets(monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: calls.append(gram.shape) or eigh(gram))
    fit(make(), scope="per-target", block=4, candidates=7)
    assert [tuple(shape) for shape in calls] == [(40, 40)] * 7


def test_a_fixed_alpha_leaves_only_the_scales_to_be_chosen():
    subject, shares = make(), drawn()
    errors = reference_errors(subject, shares)
    alphas, came = chosen(fit(subject, scope="per-target", alpha={"z": 1000.0, "c": 1.0}))
    np.testing.assert_array_equal(alphas, [1000.0] * 12 + [1.0] * 7)
    rows = [errors[:, 2, target].argmin() if target < 12 else errors[:, 0, target].argmin() for target in range(19)]
    np.testing.assert_allclose(came, shares[rows], rtol=1e-12)


def test_a_head_without_voxels_of_a_band_does_without_it():
    heads = [Head("z", (3, 4), columns={2: np.arange(12)}), Head("c", (7,), columns={2: np.arange(10, 40)})]
    subject = make(heads=heads)
    ridge = fit(subject, heads, scope="per-target")
    plain = Ridge(RidgeOptions(alphas=ALPHAS, select="kfold", scope="per-target"))
    plain.fit({2: subject}, heads, Runtime(seed=1))
    # z sees the early band alone: banded ridge of one band.
    assert ridge.band_shares("z", 2)["ventral"].tolist() == [0.0] * 12
    torch.testing.assert_close(ridge.alphas("z", 2), plain.alphas("z", 2))
    one, other = (next(iter(each.weights("z", 2)))[1] for each in (ridge, plain))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    total = sum(ridge.band_shares("c", 2).values())
    np.testing.assert_allclose(total, 3.0, rtol=1e-12)


def test_a_saved_banded_fit_predicts_the_same_and_keeps_only_used_factorisations(tmp_path):
    subject = make()
    ridge = fit(subject, scope="per-target")
    ridge.save(tmp_path)
    loaded = Ridge.load(ridge.options, tmp_path)
    voxels = subject.roles["validation"].voxels
    before, after = (assemble(each.predict(voxels, 2, 0), HEADS, 30) for each in (ridge, loaded))
    for head in HEADS:
        assert torch.equal(before[head.name], after[head.name])
        for name, values in ridge.band_shares(head.name, 2).items():
            assert torch.equal(loaded.band_shares(head.name, 2)[name], values)
    used = {tuple(row) for row in chosen(ridge)[1]}
    assert len(loaded._factors[2, "all"]) == len(used)
    assert loaded.n_parameters == ridge.n_parameters == 41 * 19


def test_candidates_leave_no_files_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ridge = fit(make())
    assert not list(tmp_path.glob("ridge-candidates-*"))
    del ridge
    assert list(tmp_path.iterdir()) == []


def test_shares_are_those_of_the_dirichlet_distribution_and_the_first_are_equal():
    bands = Bands(("a", "b", "c"), np.array([0, 0, 2, 2]))
    shares = bands.draw(400, (0.1, 10.0), 3)
    np.testing.assert_array_equal(shares[0], [1, 0, 1])
    np.testing.assert_allclose(shares.sum(1), 2, rtol=1e-12)
    assert (shares >= 0).all()
    # The variance of a Beta(c, c) variable is 1 / (4 (2c + 1)); shares are twice such variables.
    for concentration, rows in ((10.0, shares[1::2]), (0.1, shares[2::2])):
        assert rows[:, 0].var() == pytest.approx(1 / (2 * concentration + 1), rel=0.25)
    np.testing.assert_array_equal(shares, bands.draw(400, (0.1, 10.0), 3))
    assert not np.array_equal(shares, bands.draw(400, (0.1, 10.0), 4))
    assert Bands(("a", "b"), np.zeros(5, dtype=int)).draw(9, (1.0,), 0).tolist() == [[1.0, 0.0]]


def test_bands_that_cannot_be_are_refused():
    subject = make(rois={**ROIS, "both": np.arange(10, 14)})
    with pytest.raises(ValueError, match="band 'nowhere' holds no voxel of subject 2"):
        bands_of(subject, ("early", "nowhere"), None)
    with pytest.raises(ValueError, match="bands 'early' and 'both' share 2 voxels of subject 2"):
        bands_of(subject, ("early", "both"), None)
    with pytest.raises(ValueError, match="every expression must be given once"):
        RidgeOptions(bands=("early", "early"))
    with pytest.raises(ValueError, match="option candidates is 0"):
        RidgeOptions(bands=("early",), candidates=0)
    with pytest.raises(ValueError, match=r"option concentration is \(0.1, -1.0\)"):
        RidgeOptions(bands=("early",), concentration=(0.1, -1.0))
    with pytest.raises(ValueError, match=r"subjects \[2\] have none"):
        fit(subject.without("validation"), select="validation", alpha=3.0)


def test_voxels_of_no_band_are_a_band_of_their_own():
    bands = bands_of(make(), ("early", "ventral"), None)
    assert bands.names == ("early", "ventral", ELSEWHERE)
    np.testing.assert_array_equal(bands.member, MEMBER)
    whole = bands_of(make(rois={"a": np.arange(20), "b": np.arange(20, 40)}), ("a", "b"), np.arange(18, 22))
    assert whole.names == ("a", "b")
    assert whole.member.tolist() == [0, 0, 1, 1]
