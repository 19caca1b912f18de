"""The networks of BRAID and the epoch loop, beyond what every encoder must do; nearest neighbours by hand."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fake_subjects import FakeSubject, Trials, linear_subject
from safetensors import safe_open
from torch import nn

from encoders._descent.target_scaling import scale_targets
from encoders._descent.training import PROGRESS, Trainer, TrainingOptions, seeded
from encoders.base import Head, Runtime, assemble
from encoders.braid_conv1d import BraidConv1d, BraidConv1dOptions
from encoders.braid_mlp import BraidMlp, BraidMlpOptions
from encoders.braid_transformer import BraidTransformer, BraidTransformerOptions, _Patches
from encoders.knn import Knn, KnnOptions

HEADS = [Head("z", (2, 3)), Head("c", (5,))]
SMALL = {"hidden": (16, 8), "epochs": 6, "batch_size": 32, "dropout": 0.2}


@pytest.fixture(scope="module")
def data() -> dict[int, FakeSubject]:
    counts = {"train": 150, "validation": 40}
    return {subject: linear_subject(subject, HEADS, 20 + subject, counts, noise=0.5) for subject in (1, 5)}


def fit(data, options=None, heads=HEADS, **runtime) -> BraidMlp:
    encoder = BraidMlp(BraidMlpOptions(**{**SMALL, **(options or {})}))
    encoder.fit(data, heads, Runtime(**runtime))
    return encoder


def predictions(encoder, data, subject=1, heads=HEADS) -> torch.Tensor:
    voxels = data[subject].roles["validation"].voxels
    return assemble(encoder.predict(voxels, subject, 0), heads, len(voxels))["z"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_mlp_of_the_published_size_has_the_published_parameters():
    options = BraidMlpOptions(learning_rate=1e-4, weight_decay=0, optimiser="adam", batch_size=512, epochs=200)
    with torch.device("meta"):
        network = BraidMlp.network({1: 4657}, [Head("latent", (4, 64, 64))], options)
    layers = [4657 * 2048 + 2048, 2 * 2048, 2048 * 4096 + 4096, 2 * 4096, 4096 * 16384 + 16384]
    assert count(network) == sum(layers)


def test_conv1d_of_the_published_size_has_the_published_parameters():
    options = BraidConv1dOptions(
        channels=(32, 64, 128), kernels=(9, 5, 3), strides=(1, 1, 1), positions=64, hidden=4096, optimiser="adam"
    )
    with torch.device("meta"):
        network = BraidConv1d.network({1: 4984}, [Head("latent", (4, 64, 64))], options)
    convolutions = [32 * 9 + 32, 32 * 64 * 5 + 64, 64 * 128 * 3 + 128]
    assert count(network) == sum(convolutions) + 2 * (32 + 64 + 128) + 8192 * 4096 + 4096 + 4096 * 16384 + 16384


def test_transformer_of_the_published_size_has_the_published_parameters():
    options = BraidTransformerOptions(
        patch=89, pad="zero", positions=False, width=256, depth=4, attention_heads=8, feedforward=2048, hidden=2048
    )
    with torch.device("meta"):
        network = BraidTransformer.network({1: 4657}, [Head("latent", (4, 64, 64))], options)
    layer = 4 * (256 * 256 + 256) + 256 * 2048 + 2048 + 2048 * 256 + 256 + 4 * 256
    ends = 89 * 256 + 256 + 256 + 256 * 2048 + 2048 + 2048 * 16384 + 16384
    assert count(network) == 4 * layer + ends


def test_number_of_parameters_counts_every_subject(data):
    trunk = 2 * 16 + 16 * 8 + 8 + 2 * 8 + (8 * 6 + 6) + (8 * 5 + 5)
    assert fit(data, {"epochs": 1}).n_parameters == (21 * 16 + 16) + (25 * 16 + 16) + trunk


def test_patches_go_round_or_end_in_zeros():
    voxels = torch.arange(1.0, 6.0)[None]
    for pad, expected in (("wrap", [[1, 2, 3], [4, 5, 1]]), ("zero", [[1, 2, 3], [4, 5, 0]])):
        patches = _Patches(5, BraidTransformerOptions(patch=3, pad=pad, positions=False, width=4))
        tokens = patches.embedding(torch.tensor(expected, dtype=torch.float32))
        torch.testing.assert_close(patches(voxels)[0], tokens)
    few = _Patches(2, BraidTransformerOptions(patch=5, positions=False, width=4))
    assert few(torch.tensor([[7.0, 8.0]])).shape == (1, 1, 4)
    torch.testing.assert_close(few(torch.tensor([[7.0, 8.0]]))[0], few.embedding(torch.tensor([[7.0, 8, 7, 8, 7]])))


@torch.no_grad()
def test_positions_tell_patches_apart():
    def spread(positions: bool) -> float:
        options = BraidTransformerOptions(patch=5, positions=positions, width=8, depth=1, attention_heads=2, hidden=8)
        torch.manual_seed(0)
        network = BraidTransformer.network({1: 10}, HEADS, options).eval()
        voxels = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
        swapped = torch.cat([voxels[:, 5:], voxels[:, :5]], dim=1)
        return float((network(voxels, 1)["z"] - network(swapped, 1)["z"]).abs().max())

    assert spread(False) < 1e-6
    assert spread(True) > 1e-5


def history(data, options=None, **runtime) -> list[dict[str, float]]:
    reports: list[dict[str, float]] = []
    fit(data, options, report=lambda step, metrics: reports.append(dict(metrics)), **runtime)
    return reports


def test_loss_falls_and_patience_ends_the_fit(data):
    reports = history(data, {"epochs": 12, "patience": 0, "learning_rate": 3e-3})
    assert len(reports) == 12
    assert reports[-1]["train_loss"] < 0.8 * reports[0]["train_loss"]
    shuffled = {subject: trials.permuted(1) for subject, trials in data.items()}
    values = [r["validation_correlation"] for r in history(shuffled, {"epochs": 60, "patience": 3})]
    assert len(values) < 60
    assert len(values) - 1 - int(np.argmax(values)) == 3


def test_a_head_alone_scores_like_the_mean_of_its_standardised_errors(data):
    """The reported loss of an untrained step equals the formula: mean over heads of the squared error."""
    encoder = BraidMlp(BraidMlpOptions(**{**SMALL, "dropout": 0.0}))
    encoder._heads, encoder._n_voxels = HEADS, {1: 21}
    with seeded(4, torch.device("cpu")):
        network = encoder._assemble()
    one = {1: data[1]}
    options = TrainingOptions(epochs=1, batch_size=1000, weight_decay=0.0, cosine_loss=0.5)
    train = data[1].roles["train"]
    with torch.no_grad():
        outputs = {name: values.double() for name, values in network(train.voxels, 1).items()}
    expected = []
    for head in HEADS:
        true = train.targets[head.name].flatten(1).double()
        true = (true - true.mean(0)) / true.std(0, correction=0)
        cosine = (outputs[head.name] * true).sum(1) / outputs[head.name].norm(dim=1) / true.norm(dim=1)
        expected.append((outputs[head.name] - true).square().mean() + 0.5 * (1 - cosine.mean()))
    losses: list[float] = []
    Trainer(network, one, HEADS, options, Runtime(report=lambda _, m: losses.append(m["train_loss"]))).run()
    assert losses[0] == pytest.approx(float(sum(expected) / 2), rel=1e-5)


def test_cosine_schedule_ends_slower_than_it_began(data):
    torch.manual_seed(0)
    rates = []

    class Watched(Trainer):
        def _step(self, batch):
            rates.append(self._optimiser.param_groups[0]["lr"])
            return super()._step(batch)

    encoder = BraidMlp(BraidMlpOptions(**SMALL))
    encoder._heads, encoder._n_voxels = HEADS, {1: 21}
    options = TrainingOptions(epochs=4, batch_size=1000, schedule="cosine", learning_rate=0.1, patience=0)
    Watched(encoder._assemble(), {1: data[1]}, HEADS, options, Runtime()).run()
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_gradients_and_scores_are_averaged_over_workers(data):
    reduced = []

    def reduce(value):
        reduced.append(tuple(value.shape))
        return value

    one = {1: data[1]}
    fit(one, {"epochs": 1, "batch_size": 200}, reduce=reduce, world_size=2)
    parameters = [(16, 21), (16,), (16,), (16,), (8, 16), (8,), (8,), (8,), (6, 8), (6,), (5, 8), (5,)]
    for shape in parameters:
        assert shape in reduced
    doubled = predictions(fit(one, {"epochs": 2}, reduce=lambda value: value, world_size=2), one)
    torch.testing.assert_close(doubled, predictions(fit(one, {"epochs": 2}), one))
    # Averaged over two workers with opposite gradients, nothing moves but by weight decay.
    still = {"epochs": 2, "weight_decay": 0.0, "patience": 0}
    cancelled = fit(
        {1: data[1].without("validation")},
        still,
        reduce=lambda v: v * 0 if v.requires_grad or v.ndim == 2 else v,
        world_size=2,
    )
    with seeded(0, torch.device("cpu")):
        fresh = cancelled._assemble()
    torch.testing.assert_close(cancelled._network.members[0].first["1"].weight, fresh.members[0].first["1"].weight)


def test_scaling_over_two_workers_is_that_of_all_trials(data):
    train = data[1].roles["train"]
    halves = [data[1].with_role("train", train.take(rows)) for rows in torch.arange(150).split(75)]
    barrier, given = threading.Barrier(2), {}

    def reduce_on(rank):
        def reduce(value):
            given[rank] = value
            barrier.wait()
            mean = (given[0] + given[1]) / 2
            barrier.wait()
            return mean

        return reduce

    def work(rank):
        return scale_targets({1: halves[rank]}, HEADS, Runtime(rank=rank, world_size=2, reduce=reduce_on(rank)))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    for head in HEADS:
        flat = train.targets[head.name].flatten(1)
        torch.testing.assert_close(first.mean[head.name], flat.mean(0))
        torch.testing.assert_close(first.scale[head.name], flat.std(0, correction=0))
        assert torch.equal(first.scale[head.name], second.scale[head.name])


def test_bfloat16_keeps_float32_parameters_and_predictions(data):
    encoder = fit(data, {"epochs": 10}, precision="bf16")
    assert {parameter.dtype for parameter in encoder._network.parameters()} == {torch.float32}
    exact, rough = predictions(fit(data, {"epochs": 10}), data), predictions(encoder, data)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().mean() < 0.2 * exact.std()


def test_seed_changes_the_fit(data):
    assert not torch.allclose(predictions(fit(data, seed=1), data), predictions(fit(data, seed=2), data))


def test_checkpoint_of_another_fit_is_refused(data, tmp_path):
    fit(data, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS]
    with pytest.raises(ValueError, match=r"was left by another fit: options .* there, .*'learning_rate': 0\.5.* here$"):
        fit(data, {"learning_rate": 0.5}, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"was left by another fit: subjects .* there, .* here; parameters"):
        fit({1: data[1]}, checkpoint_dir=tmp_path)


def test_finished_fit_is_not_repeated(data, tmp_path):
    expected = predictions(fit(data, checkpoint_dir=tmp_path), data)
    steps = []
    again = fit(data, checkpoint_dir=tmp_path, report=lambda step, metrics: steps.append(step))
    assert steps == []
    assert torch.equal(predictions(again, data), expected)


def test_checkpoint_holds_the_best_epoch_and_the_optimiser(data, tmp_path):
    fit(data, checkpoint_dir=tmp_path)
    with safe_open(tmp_path / PROGRESS, framework="pt") as file:
        kinds = {name.split("/")[0] for name in file.keys()}  # noqa: SIM118 - not a mapping
        assert '"done": 6' in file.metadata()["progress"]
    assert kinds == {"network", "best", "optimiser"}


def test_a_later_stage_starts_from_an_earlier_one(data, tmp_path):
    fit({1: data[1]}, {"epochs": 20}).save(tmp_path)
    started = BraidMlp(BraidMlpOptions(**{**SMALL, "epochs": 1, "learning_rate": 1e-9}))
    started.fit(data, HEADS, Runtime(initial=tmp_path))
    first = BraidMlp.load(BraidMlpOptions(**SMALL), tmp_path)
    before, after = (encoder._network.members[0].trunk[3].weight for encoder in (first, started))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    other = BraidMlp(BraidMlpOptions(**{**SMALL, "hidden": (7, 9)}))
    with pytest.raises(ValueError, match="no parameter of"):
        other.fit({5: data[5]}, [Head("y", (3,))], Runtime(initial=tmp_path))


def test_diverging_fit_says_so(data):
    with pytest.raises(ValueError, match=r"the loss of epoch \d is (nan|inf); learning_rate 1e\+30 is too large"):
        fit(data, {"learning_rate": 1e30})


def test_targets_and_validation_voxels_must_be_finite(data):
    train, validation = data[1].roles["train"], data[1].roles["validation"]
    targets = {**train.targets, "z": train.targets["z"].clone()}
    targets["z"][3, 1, 1] = math.nan
    with pytest.raises(ValueError, match="targets of head 'z', subject 1: 1 of 6 columns"):
        fit({1: data[1].with_role("train", Trials(train.voxels, targets, train.stimuli))})
    voxels = validation.voxels * math.nan
    with pytest.raises(ValueError, match="validation voxels of subject 1: 21 of 21"):
        fit({1: data[1].with_role("validation", Trials(voxels, validation.targets, validation.stimuli))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: BraidMlpOptions(epochs=0), "epochs is 0"),
        (lambda: BraidMlpOptions(hidden=()), r"hidden is \(\); it must be at least one number"),
        (lambda: BraidMlpOptions(dropout=1.0), "dropout is 1.0"),
        (lambda: BraidMlpOptions(optimiser="sgd"), "optimiser is 'sgd'; allowed: adam, adamw"),
        (lambda: BraidMlpOptions(optimiser="Adamw"), r"is 'Adamw'; did you mean 'adamw'\? allowed: adam, adamw"),
        (lambda: BraidMlpOptions(learning_rate=math.nan), "learning_rate is nan; it must be greater than 0"),
        (lambda: BraidMlpOptions(patience=-1), "patience is -1; it must be at least 0"),
        (lambda: BraidMlpOptions(schedule="step"), "allowed: constant, cosine"),
        (lambda: BraidConv1dOptions(kernels=(8, 5, 3)), r"kernels is \(8, 5, 3\); it must be odd"),
        (lambda: BraidConv1dOptions(strides=(1, 1)), "one entry for each convolution"),
        (lambda: BraidTransformerOptions(width=30), "multiple of 4 heads"),
        (lambda: BraidTransformerOptions(pad="mirror"), "allowed: wrap, zero"),
        (lambda: BraidTransformerOptions(dropout=-0.1), "dropout is -0.1"),
        (lambda: KnnOptions(k=0), "k is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        options()


def nearest_by_hand(data: FakeSubject, k: int, temperature: float) -> np.ndarray:
    """Loops over test trials, with NumPy's correlation."""
    train, test = data.roles["train"], data.roles["validation"]
    mean, scale = train.voxels.numpy().mean(0), train.voxels.numpy().std(0)
    remembered, seen = (train.voxels.numpy() - mean) / scale, (test.voxels.numpy() - mean) / scale
    rows = []
    for one in seen:
        correlation = np.array([np.corrcoef(one, other)[0, 1] for other in remembered])
        best = np.argsort(-correlation)[:k]
        weights = np.exp(correlation[best] / temperature)
        rows.append(weights @ train.targets["z"].flatten(1).numpy()[best] / weights.sum())
    return np.stack(rows)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.05), (1000, 1.0)])
def test_neighbours_equal_the_loop(data, k, temperature):
    knn = Knn(KnnOptions(k=k, temperature=temperature, block=4))
    knn.fit({5: data[5]}, HEADS, Runtime())
    came = predictions(knn, data, 5).flatten(1)
    np.testing.assert_allclose(came.numpy(), nearest_by_hand(data[5], k, temperature), rtol=1e-3, atol=1e-4)
    assert knn.n_parameters == 150 * (25 + 6 + 5) + 2 * 25


def test_the_nearest_neighbour_of_a_training_trial_is_itself(data):
    train = data[1].roles["train"]
    knn = Knn(KnnOptions(k=1, standardise_voxels=False))
    knn.fit({1: data[1]}, HEADS, Runtime())
    came = assemble(knn.predict(train.voxels, 1, 0), HEADS, 150)
    torch.testing.assert_close(came["z"], train.targets["z"])
    with pytest.raises(ValueError, match="not fitted"):
        Knn(KnnOptions()).save(None)
