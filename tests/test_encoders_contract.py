"""What every encoder must do, run over every encoder found in the folder."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from fake_subjects import FakeSubject, Trials, linear_subject

from bench.core import registry
from encoders._shared.correlation import mean_target_correlation
from encoders.base import Encoder, Head, Runtime, assemble

ENCODERS = registry.found("encoder")
COUNTS = {"train": 240, "validation": 60, "unlabelled": 100}
HEADS = [Head("z", (2, 3, 3)), Head("c", (5,))]


def small_options(kind: type[Encoder], epochs: int = 24):
    """The default options with what makes laptops slow made small."""
    smaller = {"epochs": epochs, "batch_size": 40, "dropout": 0.1, "learning_rate": 2e-3}
    chosen = {}
    for field in dataclasses.fields(kind.Options):
        if field.name in smaller:
            chosen[field.name] = smaller[field.name]
        if field.name == "hidden":
            chosen[field.name] = (64, 64) if isinstance(field.default, tuple) else 64
    return kind.Options(**chosen)


def make_data(heads=HEADS, **changes) -> dict[int, FakeSubject]:
    """Two subjects with different numbers of voxels. The trials called unlabelled serve as the test set."""
    arguments = {"noise": 0.5, "n_stimuli": COUNTS, "seed": 3, **changes}
    return {subject: linear_subject(subject, heads, n_voxels, **arguments) for subject, n_voxels in ((1, 40), (5, 55))}


def fit(kind: type[Encoder], data, heads=HEADS, epochs=24, **runtime) -> Encoder:
    encoder = kind(small_options(kind, epochs))
    encoder.fit(data, heads, Runtime(**{"seed": 7, **runtime}))
    return encoder


def predict(encoder: Encoder, data, subject, heads=HEADS, role="unlabelled") -> dict[str, torch.Tensor]:
    voxels = data[subject].roles[role].voxels
    return assemble(encoder.predict(voxels, subject, 0), heads, len(voxels))


def scores(encoder: Encoder, data, heads=HEADS, role="unlabelled") -> list[float]:
    return [
        mean_target_correlation([(predict(encoder, data, subject, heads, role), data[subject].roles[role].targets)])
        for subject in data
    ]


@pytest.fixture(scope="module")
def data() -> dict[int, FakeSubject]:
    return make_data()


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def kind(request) -> type[Encoder]:
    return ENCODERS[request.param]


@pytest.fixture(scope="module")
def reports() -> list:
    return []


@pytest.fixture(scope="module")
def fitted(kind, data, reports) -> Encoder:
    reports.clear()
    return fit(kind, data, report=lambda step, metrics: reports.append((step, dict(metrics))))


@dataclasses.dataclass
class Again:
    """A second fit of one seed, and random numbers drawn after it and after the same seed without it."""

    encoder: Encoder
    drawn: torch.Tensor
    expected: torch.Tensor


@pytest.fixture(scope="module")
def again(kind, data) -> Again:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    encoder = fit(kind, data)
    return Again(encoder, torch.rand(3), expected)


def test_folder_holds_the_encoders_files_and_packages():
    assert {"ridge", "braid-mlp", "braid-conv1d", "braid-transformer", "knn"} <= set(ENCODERS)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_an_encoder_knows_the_name_it_is_found_by(name):
    assert ENCODERS[name].name() == name


def test_options_are_a_frozen_dataclass_with_defaults(kind):
    assert dataclasses.is_dataclass(kind.Options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind.Options(), dataclasses.fields(kind.Options)[0].name, None)
    assert isinstance(kind.version, int)
    assert kind.version >= 1
    names = {field.name for field in dataclasses.fields(kind.Options)}
    assert set(kind.precompute_options) <= names


def test_blocks_cover_every_head_with_finite_float32(fitted, data):
    for subject in data:
        outputs = predict(fitted, data, subject)
        for head in HEADS:
            assert outputs[head.name].shape == (COUNTS["unlabelled"], *head.shape)
            assert outputs[head.name].dtype == torch.float32
            assert torch.isfinite(outputs[head.name]).all()


def test_saved_encoder_predicts_the_same(fitted, kind, data, tmp_path):
    fitted.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json"}
    loaded = kind.load(small_options(kind), tmp_path)
    assert loaded.n_parameters == fitted.n_parameters > 0
    for subject in data:
        before, after = predict(fitted, data, subject), predict(loaded, data, subject)
        for head in HEADS:
            torch.testing.assert_close(after[head.name], before[head.name], rtol=0, atol=1e-6)


def test_saved_twice_is_still_whole(fitted, kind, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    fitted.save(first)
    kind.load(small_options(kind), first).save(second)
    for path in first.iterdir():
        path.unlink()
    again = predict(kind.load(small_options(kind), second), data, 5)
    torch.testing.assert_close(again["z"], predict(fitted, data, 5)["z"], rtol=0, atol=1e-6)


def test_prediction_of_a_trial_does_not_depend_on_the_others(fitted, data):
    voxels = data[5].roles["unlabelled"].voxels
    together = predict(fitted, data, 5)
    alone = assemble(fitted.predict(voxels[7:8], 5, 0), HEADS, 1)
    for head in HEADS:
        torch.testing.assert_close(alone[head.name][0], together[head.name][7], rtol=1e-4, atol=1e-4)


def test_no_rows_give_no_predictions(fitted, data):
    empty = assemble(fitted.predict(torch.zeros(0, 40), 1, 0), HEADS, 0)
    assert empty["z"].shape == (0, 2, 3, 3)


def test_better_than_the_mean_on_both_subjects(fitted, data):
    for subject in data:
        test, train = data[subject].roles["unlabelled"].targets, data[subject].roles["train"].targets
        for name, values in predict(fitted, data, subject).items():
            error = (values - test[name]).square().mean()
            floor = (train[name].mean(0) - test[name]).square().mean()
            assert error < 0.75 * floor
    assert min(scores(fitted, data)) > 0.6


def test_permuted_pairs_teach_nothing(kind, data):
    # Eight causes and 100 test trials leave a scatter of 0.1 around chance; the true pairs score above 0.6.
    values = []
    for seed in (11, 12):
        values += scores(fit(kind, {subject: trials.permuted(seed) for subject, trials in data.items()}), data)
    assert abs(np.mean(values)) < 0.2


def test_report_tells_the_validation_correlation_of_the_kept_state(fitted, data, reports):
    values = [metrics["validation_correlation"] for _, metrics in reports]
    assert [step for step, _ in reports] == list(range(len(reports)))
    expected = float(np.mean(scores(fitted, data, role="validation")))
    assert max(values) == pytest.approx(expected, abs=1e-4)


def test_same_seed_same_fit(fitted, again, data):
    for subject in data:
        expected = predict(fitted, data, subject)
        for name, values in predict(again.encoder, data, subject).items():
            torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6)


def test_fit_leaves_the_random_state_of_the_process_alone(again):
    assert torch.equal(again.drawn, again.expected)


def test_precomputed_fit_equals_plain_fit(fitted, kind, data):
    arrays = dict(kind(small_options(kind)).precompute(data, HEADS))
    for array in arrays.values():
        array.flags.writeable = False  # as it comes out of an object store
    encoder = fit(kind, data, precomputed=arrays)
    torch.testing.assert_close(predict(encoder, data, 1)["z"], predict(fitted, data, 1)["z"], rtol=0, atol=1e-5)


def test_heads_see_their_own_columns_only(kind):
    columns = {1: np.arange(0, 25), 5: np.arange(10, 50)}
    heads = [Head("z", (3, 3), columns=columns), Head("c", (5,))]
    data = make_data(heads)
    encoder = fit(kind, data, heads)
    assert min(scores(encoder, data, heads)) > 0.5
    voxels = data[1].roles["unlabelled"].voxels
    changed = voxels.clone()
    changed[:, 25:] += torch.from_numpy(np.random.default_rng(0).normal(0, 3, (len(voxels), 15))).float()
    before = assemble(encoder.predict(voxels, 1, 0), heads, len(voxels))
    after = assemble(encoder.predict(changed, 1, 0), heads, len(voxels))
    torch.testing.assert_close(after["z"], before["z"], rtol=0, atol=1e-6)
    assert (after["c"] - before["c"]).abs().max() > 1e-2


def test_columns_survive_the_round_trip(kind, tmp_path):
    heads = [Head("z", (3, 3), columns={1: np.array([4, 2, 30]), 5: np.array([54, 0, 7])}), Head("c", (5,))]
    data = make_data(heads)
    encoder = fit(kind, data, heads, epochs=3)  # what it has learnt does not matter, that it comes back does
    encoder.save(tmp_path)
    loaded = kind.load(small_options(kind, epochs=3), tmp_path)
    expected, came = predict(encoder, data, 5, heads), predict(loaded, data, 5, heads)
    torch.testing.assert_close(came["z"], expected["z"], rtol=0, atol=1e-6)


def test_without_validation_trials_the_report_is_nan_and_the_fit_good(kind, data):
    reports = []
    bare = {subject: trials.without("validation") for subject, trials in data.items()}
    encoder = fit(kind, bare, report=lambda step, metrics: reports.append(metrics["validation_correlation"]))
    assert reports
    assert all(math.isnan(value) for value in reports)
    assert min(scores(encoder, data)) > 0.5


class Stopped(RuntimeError):
    """What a scheduler does to a fit."""


def test_interrupted_fit_continues_to_the_same_state(fitted, kind, data, reports, tmp_path):
    counted, seen = [step for step, _ in reports], []
    last = max(counted)

    def stop_at_two(step, metrics):
        seen.append(step)
        if step == min(2, last):
            raise Stopped

    with pytest.raises(Stopped):
        fit(kind, data, checkpoint_dir=tmp_path, report=stop_at_two)
    encoder = fit(kind, data, checkpoint_dir=tmp_path, report=lambda step, metrics: seen.append(step))
    if last > 2:
        assert seen == counted, "every epoch is computed once"
    for subject in data:
        expected = predict(fitted, data, subject)
        for name, values in predict(encoder, data, subject).items():
            torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6)


def test_constant_target_and_constant_voxel_are_harmless(kind, data):
    changed = {}
    for subject, trials in data.items():
        for role in ("train", "validation"):
            old = trials.roles[role]
            voxels, z = old.voxels.clone(), old.targets["z"].clone()
            voxels[:, 3], z[:, 0, 0, 0] = 0.1, 4.7
            trials = trials.with_role(role, Trials(voxels, {**old.targets, "z": z}, old.stimuli))
        changed[subject] = trials
    outputs = predict(fit(kind, changed), changed, 1, role="validation")
    torch.testing.assert_close(outputs["z"][:, 0, 0, 0], torch.full((60,), 4.7), rtol=0, atol=0.5)
    assert torch.isfinite(outputs["c"]).all()


def broken_voxels(trials: FakeSubject, value: float) -> FakeSubject:
    old = trials.roles["train"]
    voxels = old.voxels.clone()
    voxels[10, 17] = value
    return trials.with_role("train", Trials(voxels, old.targets, old.stimuli))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_voxels_that_are_not_finite_are_refused(kind, data, value):
    broken = {**data, 5: broken_voxels(data[5], value)}
    with pytest.raises(ValueError, match=r"voxels of subject 5: 1 of 55 columns .* first is column 17"):
        fit(kind, broken)


def test_fit_without_training_trials_is_refused(kind, data):
    with pytest.raises(ValueError, match="subject 5 has no training trials"):
        fit(kind, {**data, 5: data[5].without("train").with_role("train", empty_trials(data[5]))})
    with pytest.raises(ValueError, match="no subjects"):
        fit(kind, {})


def empty_trials(trials: FakeSubject) -> Trials:
    return trials.roles["train"].take(torch.zeros(0, dtype=torch.long))


def test_heads_that_cannot_be_fitted_are_refused(kind, data):
    def head(**columns):
        return [Head("z", (2, 3, 3), columns={1: np.arange(3), **{int(k[1:]): v for k, v in columns.items()}})]

    with pytest.raises(ValueError, match="head 'z' has no voxels in subject 5: its ROI is empty"):
        fit(kind, data, head(s5=np.zeros(0, dtype=np.int64)))
    with pytest.raises(ValueError, match=r"columns 50 to 55 of subject 5, which has columns 0 to 54"):
        fit(kind, data, head(s5=np.arange(50, 56)))
    with pytest.raises(ValueError, match=r"columns of subjects \[1\], not of 5"):
        fit(kind, data, head())
    with pytest.raises(ValueError, match="given once"):
        fit(kind, data, [HEADS[0], HEADS[0]])


def test_voxels_of_another_fit_are_refused(fitted):
    with pytest.raises(ValueError, match=r"subject 2 was not fitted; fitted subjects: \[1, 5\]"):
        list(fitted.predict(torch.zeros(3, 40), 2, 0))
    with pytest.raises(ValueError, match=r"voxels of shape \(3, 41\); subject 1 was fitted with \(trials, 40\)"):
        list(fitted.predict(torch.zeros(3, 41), 1, 0))
    with pytest.raises(ValueError, match="voxels of subject 1: 40 of 40 columns hold NaN"):
        list(fitted.predict(torch.full((3, 40), math.nan), 1, 0))


def test_empty_directory_holds_no_state(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no fitted encoder: state\.json is missing"):
        kind.load(small_options(kind), tmp_path)


def test_state_of_another_encoder_is_refused(kind, data, tmp_path):
    other = ENCODERS["ridge"] if kind is not ENCODERS["ridge"] else ENCODERS["knn"]
    fit(other, data).save(tmp_path)
    with pytest.raises(ValueError, match="is the state of"):
        kind.load(small_options(kind), tmp_path)
