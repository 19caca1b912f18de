"""Predictions against the trials read from the raw shards: rows, averaging, samples, heads, post steps, identity."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tiny_system import KNN, LATENT, Tiny, raw_trials

from bench import predict as stage
from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError
from bench.core.storage import Folder
from bench.data.shards.manifest import MANIFEST
from bench.fitting.plan import FitPlan
from bench.fitting.predictions import IDENTITY, Prediction, planned, read_predictions
from bench.fitting.trial import loaded_encoder
from bench.predict import predict
from bench.recipes.parts import HeadSpec
from bench.recipes.post_steps import PostStep

ROI = "streams:early"
TWO_HEADS = dataclasses.replace(KNN, heads={"latent": HeadSpec(LATENT), "part": HeadSpec(LATENT, roi=ROI, take=(1, 3))})


@pytest.fixture(scope="module")
def plan(tiny: Tiny, runs: Folder) -> FitPlan:
    fitted = tiny.plan(TWO_HEADS)
    tiny.fit(fitted, runs)
    return fitted


@pytest.fixture(scope="module")
def shown(tiny: Tiny) -> tuple[int, ...]:
    """Six test stimuli, among them ones that subject 1 saw several times."""
    data = raw_trials(tiny.data, 1)
    stimuli, counts = np.unique(data["stimulus"][data["role"] == "test"], return_counts=True)
    assert counts.max() > 1
    chosen = np.concatenate([stimuli[counts > 1][:4], stimuli[counts == 1][:2]])
    return tuple(sorted(chosen.tolist()))


def run(tiny: Tiny, runs: Folder, *jobs: Prediction) -> list[Folder]:
    given = (tiny.test, tiny.train, tiny.targets, tiny.data.label_names)
    return predict(jobs, *given, runs, lambda units=1, note="": None)


def encoded(plan: FitPlan, runs: Folder, voxels: np.ndarray) -> dict[str, np.ndarray]:
    """The saved encoder's predictions of voxels, head by head."""
    out: dict[str, dict[int, np.ndarray]] = {}
    with loaded_encoder(plan, runs) as encoder:
        for blocks in encoder.predict(torch.from_numpy(voxels.astype(np.float32)), 1, plan.seed):
            for head, block in blocks.items():
                out.setdefault(head, {})[block.start] = block.values.numpy()
    return {head: np.concatenate([parts[s] for s in sorted(parts)], axis=1) for head, parts in out.items()}


def rows_of(table) -> list[tuple[int, int, int]]:
    return list(zip(*(table[name].to_pylist() for name in ("stimulus", "repeat", "sample")), strict=True))


def test_betas_are_averaged_before(tiny, runs, plan, shown):
    (folder,) = run(tiny, runs, Prediction(plan, 1, shown))
    data = raw_trials(tiny.data, 1)
    voxels = np.stack([data["z"][data["stimulus"] == stimulus].mean(axis=0) for stimulus in shown])
    expected = encoded(plan, runs, voxels)
    for head, shape in (("latent", (4, 16, 16)), ("part", (2, 16, 16))):
        table, values = read_predictions(folder, head)
        assert rows_of(table) == [(stimulus, -1, 0) for stimulus in shown]
        assert set(table["subject"].to_pylist()) == {1}
        assert values.shape == (len(shown), *shape)
        np.testing.assert_allclose(values.reshape(len(shown), -1), expected[head], atol=2e-4)


def test_each_showing_alone_and_the_mean_after(tiny, runs, plan, shown):
    each, after = run(
        tiny, runs, Prediction(plan, 1, shown, repeats="each"), Prediction(plan, 1, shown, repeats="mean-after")
    )
    data = raw_trials(tiny.data, 1)
    mine = [i for s in shown for r in range(3) for i in np.flatnonzero((data["stimulus"] == s) & (data["repeat"] == r))]
    expected = encoded(plan, runs, data["z"][mine])["latent"]
    table, values = read_predictions(each, "latent")
    assert rows_of(table) == [(data["stimulus"][i], data["repeat"][i], 0) for i in mine]
    assert len(mine) > len(shown)
    np.testing.assert_allclose(values.reshape(len(mine), -1), expected, atol=2e-4)
    table, means = read_predictions(after, "latent")
    assert rows_of(table) == [(stimulus, -1, 0) for stimulus in shown]
    by_hand = [expected[data["stimulus"][mine] == stimulus].mean(axis=0) for stimulus in shown]
    np.testing.assert_allclose(means.reshape(len(shown), -1), by_hand, atol=2e-4)
    _, before = read_predictions(run(tiny, runs, Prediction(plan, 1, shown))[0], "latent")
    assert np.abs(before - means).max() > 0.01  # nearest neighbours are not linear: the order of averaging shows


def test_samples_stand_side_by_side(tiny, runs, plan, shown):
    (folder,) = run(tiny, runs, Prediction(plan, 1, shown, samples=2))
    table, values = read_predictions(folder, "latent")
    assert rows_of(table) == [(stimulus, -1, sample) for stimulus in shown for sample in (0, 1)]
    np.testing.assert_array_equal(values[::2], values[1::2])  # this encoder does not sample


def test_a_head_with_a_roi_reads_its_voxels_only(tiny, runs, plan):
    labels = tiny.data.label_names["streams"]
    inside = ray.get(tiny.train[1]).labels["streams"] == labels["early"]
    assert 0 < inside.sum() < len(inside)
    data = raw_trials(tiny.data, 1)
    voxels = data["z"][:5]
    other = np.where(inside, voxels, np.random.default_rng(0).standard_normal(voxels.shape))
    before, after = encoded(plan, runs, voxels), encoded(plan, runs, other)
    np.testing.assert_array_equal(before["part"], after["part"])
    assert np.abs(before["latent"] - after["latent"]).max() > 0.01


def test_restandardised_with_training_targets(tiny, runs, plan, shown):
    (plain,) = run(tiny, runs, Prediction(plan, 1, shown))
    (posted,) = run(tiny, runs, Prediction(plan, 1, shown, post=("restandardise",)))
    data, table = raw_trials(tiny.data, 1), ray.get(tiny.targets[LATENT])
    train = np.isin(table.stimulus, data["stimulus"][data["role"] == "train"])
    for head, axis in (("latent", slice(None)), ("part", slice(1, 3))):
        truth = table.values[train][:, axis].reshape(train.sum(), -1).astype(np.float64)
        flat = read_predictions(plain, head)[1].reshape(len(shown), -1).astype(np.float64)
        z = (flat - flat.mean(axis=0)) / flat.std(axis=0)
        expected = z * truth.std(axis=0) + truth.mean(axis=0)
        got = read_predictions(posted, head)[1].reshape(len(shown), -1)
        np.testing.assert_allclose(got, expected, atol=2e-3)


def test_a_stimulus_that_was_not_shown_is_named(tiny, runs, plan, shown):
    job = Prediction(plan, 1, (*shown, 999_999))
    with pytest.raises(BadDataError, match=r"subject 1 was not shown test stimuli \[999999\] \(1 in all\)"):
        run(tiny, runs, job)
    assert not (runs / "predictions" / job.id).exists(IDENTITY)


def test_a_training_stimulus_is_not_a_test_stimulus(tiny, runs, plan, shown):
    data = raw_trials(tiny.data, 1)
    seen = int(data["stimulus"][data["role"] == "train"][0])
    with pytest.raises(BadDataError, match=f"was not shown test stimuli \\[{seen}\\]"):
        run(tiny, runs, Prediction(plan, 1, (*shown, seen)))


def test_a_rerun_predicts_nothing(tiny, runs, plan, shown, monkeypatch):
    job = Prediction(plan, 1, shown)
    (folder,) = run(tiny, runs, job)
    before = Path(folder.path, IDENTITY).stat().st_mtime_ns
    monkeypatch.setattr(stage, "_predict", None)
    assert run(tiny, runs, job) == [folder]
    assert Path(folder.path, IDENTITY).stat().st_mtime_ns == before


def test_the_identity_changes_with_what_matters(tiny, plan, shown, monkeypatch):
    job = Prediction(plan, 1, shown, post=("restandardise", "other"))
    other_fit = dataclasses.replace(plan, seed=1)
    monkeypatch.setattr(
        stage.post_steps, "STEPS", {**stage.post_steps.STEPS, "other": PostStep(1, False, lambda p, t: p)}
    )
    changes = [
        {"plan": other_fit},
        {"subject": 2},
        {"test": shown[:-1]},
        {"repeats": "each"},
        {"samples": 2},
        {"post": ("restandardise",)},
        {"post": ("other", "restandardise")},
    ]
    ids = [job.id, *(dataclasses.replace(job, **change).id for change in changes)]
    monkeypatch.setattr(
        stage.post_steps, "STEPS", {**stage.post_steps.STEPS, "other": PostStep(2, False, lambda p, t: p)}
    )
    assert len({*ids, job.id}) == len(changes) + 2
    assert Prediction(dataclasses.replace(plan), 1, list(shown)).id == Prediction(plan, 1, shown).id


def test_no_samples_are_refused(plan, shown):
    with pytest.raises(OptionError, match="0 samples a picture were asked for; at least 1"):
        Prediction(plan, 1, shown, samples=0)


def test_predictions_that_are_not_there(tiny, runs, plan, shown):
    with pytest.raises(MissingDataError, match="not finished predictions"):
        read_predictions(runs / "predictions" / "none", "latent")
    (folder,) = run(tiny, runs, Prediction(plan, 1, shown))
    with pytest.raises(MissingDataError, match=r"have heads \['latent', 'part'\], not 'z'"):
        read_predictions(folder, "z")


def test_a_plan_in_another_fit_s_folder_is_refused(tiny, plan, tmp_path):
    runs = Folder.at(tmp_path)
    (runs / "fits" / "0123").write_json("plan.json", plan)
    with pytest.raises(CorruptFileError, match=f"plan.json describes fit {plan.id}"):
        planned(runs, "0123")


def cli(tiny: Tiny, runs: Folder, fit: str, *more: str, shards: str = "") -> int:
    return stage.main(["--runs", runs.uri, "--fit", fit, "--shards", shards or tiny.data.shards.uri, *more])


def test_the_stage_alone_gives_what_the_sweep_s_gives(tiny, runs, plan, tmp_path, capsys):
    stimuli = tiny.stimuli(4)
    copy = Folder.at(tmp_path / "runs")
    (copy / "fits" / plan.id).upload(Path((runs / "fits" / plan.id).path))
    assert cli(tiny, copy, plan.id, "--test-images", "4", "--repeats", "mean-after", "--samples", "2") == 0
    mine = workspace_stimuli(tiny, 4)
    job = Prediction(plan, 1, mine, "mean-after", 2)
    assert f"predictions/{job.id}" in capsys.readouterr().err.replace("\n", "")
    (folder,) = run(tiny, runs, job)
    for head in ("latent", "part"):
        table, values = read_predictions(copy / "predictions" / job.id, head)
        expected_table, expected = read_predictions(folder, head)
        assert table.equals(expected_table)
        np.testing.assert_array_equal(values, expected)
    assert set(mine) >= set(stimuli[:1])


def workspace_stimuli(tiny: Tiny, count: int) -> tuple[int, ...]:
    """The first test stimuli that subject 1 saw."""
    data = raw_trials(tiny.data, 1)
    return tuple(np.unique(data["stimulus"][data["role"] == "test"])[:count].tolist())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--post", "restandardize"], "Did you mean 'restandardise'?"),
        (["--samples", "0"], "0 samples a picture were asked for"),
        (["--test-images", "0"], "0 test pictures were asked for; at least 1"),
    ],
)
def test_bad_options_are_one_line(tiny, runs, plan, more, message, capsys):
    assert cli(tiny, runs, plan.id, *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_fit_is_one_line(tiny, runs, capsys):
    assert cli(tiny, runs, "0123456789abcdef") == 2
    said = capsys.readouterr().err
    assert "fits/0123456789abcdef" in said.replace("\n", "")
    assert "Traceback" not in said


def test_shards_of_another_content_are_refused(tiny, runs, plan, tmp_path, capsys):
    dataset = Path(tiny.data.folder.path)
    for folder in (Path(tiny.data.shards.path), Path(tiny.data.stimuli.path)):
        target = tmp_path / dataset.name / folder.name
        target.mkdir(parents=True)
        for path in folder.rglob("*"):
            if path.is_file():
                (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                (target / path.relative_to(folder)).write_bytes(path.read_bytes())
    manifest = tmp_path / dataset.name / Path(tiny.data.shards.path).name / MANIFEST
    content = json.loads(manifest.read_text())
    content["files"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert cli(tiny, runs, plan.id, shards=str(manifest.parent)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"fit {plan.id} read shards {plan.shards}, these are" in said
