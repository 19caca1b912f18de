"""Brain-Diffuser's recipe: what it says is the published script's arithmetic, and its two generators fit together."""

import math

import numpy as np
import pytest
import small_checkpoints
import torch
from fake_subjects import linear_subject
from fixed_outputs import pictures
from sklearn.linear_model import Ridge

from bench.core import options, registry
from bench.data.shards.targets import TargetTable
from bench.data.splits import ROLES
from bench.data.stream.rules import moments, rule, scaling
from bench.data.stream.trials import Betas, SubjectTrials
from bench.fitting.subject_stream import SubjectStream
from bench.generators.base import Stimuli
from bench.generators.choice import GeneratorChoice
from bench.recipes import post_steps
from bench.recipes.load import load_recipe
from bench.rendering.inputs import checked_inputs
from bench.scoring.division import open_reasons_of
from encoders.base import Head, Runtime, assemble

N_STIMULI, REPEATS = 60, 3


@pytest.fixture(scope="module")
def loaded():
    return load_recipe("brain-diffuser")


def test_the_targets_are_the_published_ones(loaded):
    heads = loaded.stages[-1].heads
    shapes = {name: registry.load("generator", h.generator).targets[h.target_name].shape for name, h in heads.items()}
    assert shapes == {"latents": (91_168,), "vision": (257, 768), "text": (77, 768)}
    assert loaded.stages[-1].options["alpha"] == {"latents": 50_000, "vision": 60_000, "text": 100_000}
    assert all(head.roi is None and head.take is None for head in heads.values())


def test_the_second_generator_gets_the_pictures_of_the_first(loaded):
    assert [name for name, _ in loaded.render_order()] == ["low", "out"]
    assert loaded.render["out"].inputs == {"image": "low", "vision": "vision", "text": "text"}
    settings = GeneratorChoice("versatile-diffusion", loaded.render["out"].options).options
    assert (settings.steps, settings.strength, settings.guidance, settings.mixing) == (50, 0.75, 7.5, 0.4)
    low = GeneratorChoice("vdvae", loaded.render["low"].options).options
    assert (low.output, low.temperature, low.precision) == ("sample", 1.0, "float32")


def test_the_row_is_open_and_says_why(loaded):
    assert open_reasons_of(loaded) == ["post step 'restandardise' uses statistics of the test predictions"]
    assert (loaded.repeats, loaded.samples, loaded.search.trials) == ("mean-before", 1, 1)


def streamed(subject, stage):
    """Training and test trials of a subject in memory, as the recipe's stage streams them: z-scored and averaged.

    Returns:
        The trials, and the stream of a fit.
    """
    train, test = subject.roles["train"], subject.roles["validation"]
    betas = np.concatenate([train.voxels.numpy(), test.voxels.numpy()]) * 37 + 250
    count, own = len(betas), np.arange(len(train.voxels))
    mean, scale = scaling(rule(stage.normalise), [moments(betas, own)], [1], betas.shape[1])
    stimulus = torch.cat([train.stimuli, test.stimuli]).numpy()
    trials = SubjectTrials(
        subject=subject.subject,
        coordinates=np.zeros((betas.shape[1], 3), np.int32),
        labels={},
        betas=Betas(arrays=(betas,)),
        trial=np.arange(count),
        stimulus=stimulus,
        repeat=np.zeros(count, np.int8),
        session=np.ones(count, np.int32),
        role=np.where(np.arange(count) < len(own), ROLES.index("train"), ROLES.index("test")),
        mean=mean,
        scale=scale,
        sessions=np.array([1]),
    )
    distinct, first = np.unique(stimulus[own], return_index=True)
    tables = {name: TargetTable(distinct, values.numpy()[first]) for name, values in train.targets.items()}
    return trials, SubjectStream(trials, tables, averaging=stage.averaging)


def test_the_fit_is_the_published_script(loaded):
    """Averages over repeats, z-scores with divisor n - 1, scikit-learn's ridge, the test set's own statistics."""
    heads = [Head("latents", (7,)), Head("vision", (3, 4)), Head("text", (2, 4))]
    counts = {"train": N_STIMULI, "validation": 15}
    subject = linear_subject(1, heads, 40, counts, repeats=REPEATS, noise=2.0, seed=11)
    stage = loaded.stages[-1]
    trials, stream = streamed(subject, stage)
    kind = registry.load("encoder", stage.encoder)
    # The published penalties belong to 8,859 rows; divisor n means n / (n - 1) times the alpha.
    alphas = {name: alpha * N_STIMULI / 8_859 for name, alpha in stage.options["alpha"].items()}
    ours = {name: alpha * N_STIMULI / (N_STIMULI - 1) for name, alpha in alphas.items()}
    encoder = kind(options.build(kind.Options, {**stage.options, "alpha": ours}, "test"))
    encoder.fit({1: stream}, heads, Runtime(seed=0))

    def means(values, role):
        values, shown = values.reshape(len(values), -1).astype(np.float64), trials.stimulus[trials.rows(role)]
        return np.stack([values[shown == s].mean(axis=0) for s in np.unique(shown)])

    # The script sees raw betas; what is predicted from is the mean of a test picture's z-scores, as of any recipe.
    raw = trials.betas.blocks[0]
    x, x_test = means(raw[trials.rows("train")], "train"), means(raw[trials.rows("test")], "test")
    z_test = torch.from_numpy(means(trials.z(trials.rows("test")), "test")).float()
    predicted = assemble(encoder.predict(z_test, 1, 0), heads, len(x_test))
    mean, deviation = x.mean(axis=0), x.std(axis=0, ddof=1)
    (step,) = (post_steps.step(name) for name in loaded.post)
    for head in heads:
        y = means(subject.roles["train"].targets[head.name].numpy(), "train")
        fitted = Ridge(alpha=alphas[head.name], fit_intercept=True).fit((x - mean) / deviation, y)
        raw_predictions = fitted.predict((x_test - mean) / deviation)
        own = (raw_predictions - raw_predictions.mean(axis=0)) / raw_predictions.std(axis=0)
        published = own * y.std(axis=0) + y.mean(axis=0)
        found = step.apply(predicted[head.name].flatten(1).numpy(), y.astype(np.float32))
        np.testing.assert_allclose(predicted[head.name].flatten(1), raw_predictions, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found, published, rtol=1e-3, atol=1e-3)


def test_true_latents_pass_through_both_generators(loaded, tmp_path):
    """Small checkpoints of the true classes: the first one's pictures are a legal input of the second and matter."""
    torch.set_num_threads(1)
    made = {
        name: GeneratorChoice(name, small_checkpoints.settings(name, tmp_path)).load(torch.device("cpu"))
        for name in ("vdvae", "versatile-diffusion")
    }
    stimuli = Stimuli(pictures(2, 425), [["a wave", "coloured waves"], ["another wave"]], [None, None])
    heads = {
        name: made[h.generator].encode(stimuli, [h.target_name], [1, 2])[h.target_name]
        for name, h in loaded.stages[-1].heads.items()
    }
    assert {name: math.prod(values.shape[1:]) for name, values in heads.items()} == {
        "latents": 91_168,
        "vision": 257 * 768,
        "text": 77 * 768,
    }
    values = {name: tensor.float() for name, tensor in heads.items()}
    for name, node in loaded.render_order():
        generator = made[node.generator]
        given = {key: values[feeder] for key, feeder in node.inputs.items()}
        arrays = {key: tensor.numpy() for key, tensor in given.items()}
        assert set(checked_inputs(arrays, 2, generator.inputs, name)) == set(given)
        values[name] = generator.render(given, [1, 2])
    assert values["low"].shape == (2, 3, 64, 64) and values["out"].dtype == torch.uint8
    swapped = made["versatile-diffusion"].render({**given, "image": values["low"].flip(0)}, [1, 2])
    assert not torch.equal(swapped, values["out"])
