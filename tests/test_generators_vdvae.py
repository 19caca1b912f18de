"""The very deep VAE as a generator: its checkpoint's layout, its arithmetic against slow references, its checks."""

import math
import re

import numpy as np
import pytest
import small_checkpoints
import torch
from fixed_outputs import pictures
from PIL import Image
from scipy import stats
from small_checkpoints import vdvae as small
from torch.nn import functional

from bench.core.errors import BadDataError, CorruptFileError
from bench.generators.base import MissingWeightsError, Stimuli
from bench.generators.choice import GeneratorChoice
from bench.generators.vdvae import rate
from bench.generators.vdvae.architecture import PREDICTED_NUMBERS
from bench.generators.vdvae.checkpoint import CHECKPOINT
from bench.generators.vdvae.gaussian import Gaussian, Noise
from bench.generators.vdvae.network import VeryDeepVAE
from bench.generators.vdvae.pixels import PixelMixture, to_levels

CPU = torch.device("cpu")
ENCODER = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
DECODER = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
"""The published tables of blocks: `x` repeats, `d` average-pools after, `m` adds an enlarged coarser state before."""


def parsed(table):
    """Blocks as (resolution, factor or source)."""
    for entry in table.split(","):
        size, kind, number = re.fullmatch(r"(\d+)([xdm])(\d+)", entry).groups()
        repeated = int(number) if kind == "x" else 1
        yield from [(int(size), None if kind == "x" else int(number))] * repeated


def published_shapes(width):
    """Names and shapes of the published state dict, from the tables."""
    shapes, inner = {}, width // 4

    def convolution(name, before, after, kernel):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (after, before, kernel, kernel), (after,)

    def block(name, before, after, size):
        kernel = 3 if size > 2 else 1
        layers = (before, inner, 1), (inner, inner, kernel), (inner, inner, kernel), (inner, after, 1)
        for number, (source, target, width) in enumerate(layers, start=1):
            convolution(f"{name}.c{number}", source, target, width)

    convolution("encoder.in_conv", 3, width, 3)
    for number, (size, _) in enumerate(parsed(ENCODER)):
        block(f"encoder.enc_blocks.{number}", width, width, size)
    for number, (size, _) in enumerate(parsed(DECODER)):
        name = f"decoder.dec_blocks.{number}"
        block(f"{name}.enc", 2 * width, 32, size)
        block(f"{name}.prior", width, 32 + width, size)
        convolution(f"{name}.z_proj", 16, width, 1)
        block(f"{name}.resnet", width, width, size)
    for number, size in enumerate((1, 4, 8, 16, 32, 64)):
        shapes[f"decoder.bias_xs.{number}"] = (1, width, size, size)
    convolution("decoder.out_net.out_conv", width, 100, 1)
    shapes["decoder.gain"] = shapes["decoder.bias"] = (1, width, 1, 1)
    return shapes


class Reference:
    """The published arithmetic, written out over a state dict, with the same noise as the generator's."""

    def __init__(self, state, seed, posterior):
        self.state = {name: values.double() for name, values in state.items()}
        self.stream = torch.Generator().manual_seed(2 * seed + posterior)

    def normal(self, shape):
        return torch.randn(shape, generator=self.stream).double()[None]

    def convolution(self, name, x):
        weight = self.state[f"{name}.weight"]
        return functional.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def block(self, name, x):
        for number in range(1, 5):
            gelu = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
            x = self.convolution(f"{name}.c{number}", gelu)
        return x

    def activations(self, x):
        x = self.convolution("encoder.in_conv", x)
        kept = {64: x}
        for number, (_, down) in enumerate(parsed(ENCODER)):
            x = x + self.block(f"encoder.enc_blocks.{number}", x)
            if down:
                n, c, h, w = x.shape
                x = x.reshape(n, c, h // down, down, w // down, down).mean((3, 5))
            kept[x.shape[-1]] = x
        return kept

    def walk(self, latents_of):
        """The last state and the 75 groups of latents; `latents_of(number, prior mean, prior log scale, state)`."""
        biases = [self.state[f"decoder.bias_xs.{number}"] for number in range(6)]
        states, groups = {bias.shape[-1]: bias for bias in biases}, []
        for number, (size, source) in enumerate(parsed(DECODER)):
            name, x = f"decoder.dec_blocks.{number}", states[size]
            if source:
                factor = size // source
                x = x + states[source].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
            prior = self.block(f"{name}.prior", x)
            z = latents_of(number, prior[:, :16], prior[:, 16:32], x)
            x = x + prior[:, 32:] + self.convolution(f"{name}.z_proj", z)
            states[size] = x + self.block(f"{name}.resnet", x)
            groups.append(z)
        return states[64], groups

    def posterior(self, activations):
        """`latents_of` that samples posteriors; also sums their divergence from the priors."""
        self.divergence = 0.0

        def latents_of(number, mean, log_scale, x):
            both = torch.cat([x, activations[x.shape[-1]]], dim=1)
            q = self.block(f"decoder.dec_blocks.{number}.enc", both)
            ours = torch.distributions.Normal(q[:, :16], q[:, 16:].exp())
            theirs = torch.distributions.Normal(mean, log_scale.exp())
            self.divergence += float(torch.distributions.kl_divergence(ours, theirs).sum())
            return ours.mean + ours.stddev * self.normal(mean.shape[1:])

        return latents_of

    def pixels(self, state):
        return self.convolution(
            "decoder.out_net.out_conv", state * self.state["decoder.gain"] + self.state["decoder.bias"]
        )


def pixel_by_hand(parameters, row, column):
    """One pixel's (weights, means, scales, coefficients), each but the first `[colour][component]`."""
    numbers = parameters[:, row, column].double().numpy()
    weights = np.exp(numbers[:10]) / np.exp(numbers[:10]).sum()
    per_colour = [numbers[10 + 30 * colour : 40 + 30 * colour] for colour in range(3)]
    means = [part[:10] for part in per_colour]
    scales = [np.exp(np.maximum(part[10:20], -7)) for part in per_colour]
    return weights, means, scales, [np.tanh(part[20:]) for part in per_colour]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vdvae")


@pytest.fixture(scope="module")
def settings(folder):
    torch.set_num_threads(1)
    return small_checkpoints.settings("vdvae", folder)


@pytest.fixture(scope="module")
def load(settings):
    return lambda **changed: GeneratorChoice("vdvae", {**settings, **changed}).load(CPU)


@pytest.fixture(scope="module")
def generator(load):
    return load()


@pytest.fixture(scope="module")
def stimuli():
    return Stimuli(pictures(2, 64), [[], []], [None, None])


@pytest.fixture(scope="module")
def latents(generator, stimuli):
    return generator.encode(stimuli, ["latents"], [5, 6])["latents"]


@pytest.fixture(scope="module")
def mixture_parameters():
    """`(2, 100, 3, 4)`: narrow and wide components, means beyond the edges."""
    values = torch.randn(2, 100, 3, 4, generator=torch.Generator().manual_seed(9))
    values[:, 10:].view(2, 3, 3, 10, 3, 4)[:, :, 1].mul_(3).sub_(3)
    return values


def test_the_state_dict_has_the_published_names_and_shapes():
    for width in (small.WIDTH, 20):
        found = {name: tuple(values.shape) for name, values in VeryDeepVAE(width).state_dict().items()}
        assert found == published_shapes(width)


def test_the_published_width_has_the_published_number_of_parameters():
    shapes = published_shapes(512)
    assert sum(math.prod(shape) for shape in shapes.values()) == 125_005_860  # "125M" in the paper and the code
    assert (
        GeneratorChoice("vdvae", {"untrained": True})
        .kind.weights_size(GeneratorChoice("vdvae", {"untrained": True}).options)
        .parameters
        == 125_005_860
    )


def test_the_target_is_the_first_31_groups():
    sizes = [16 * size**2 for size, _ in parsed(DECODER)]
    assert sizes[:31] == [16] * 2 + [256] * 4 + [1024] * 8 + [4096] * 16 + [16384]
    assert sum(sizes[:31]) == PREDICTED_NUMBERS == 91_168
    assert len(sizes) == 75


def test_latents_are_the_posterior_samples_of_the_written_out_arithmetic(stimuli, latents):
    for row, seed in enumerate((5, 6)):
        reference = Reference(small.state(), seed, posterior=True)
        x = (stimuli.images[row : row + 1].double() - 115.92961967) / 69.37404
        _, groups = reference.walk(reference.posterior(reference.activations(x)))
        expected = torch.cat([z.flatten() for z in groups[:31]])
        np.testing.assert_allclose(latents[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_pictures_are_those_of_the_written_out_arithmetic(load, latents, temperature):
    """Given latents, priors at a temperature, then the mixture drawn pixel by pixel from the same noise."""
    rendered = load(temperature=temperature).render({"latents": latents[:1]}, [8])[0]
    reference = Reference(small.state(), 8, posterior=False)
    sizes = [(16, size, size) for size, _ in parsed(DECODER)]
    given = [
        part.reshape(shape)[None].double()
        for part, shape in zip(latents[0].split([math.prod(shape) for shape in sizes[:31]]), sizes, strict=False)
    ]

    def latents_of(number, mean, log_scale, x):
        if number < 31:
            return given[number]
        return mean + temperature * log_scale.exp() * reference.normal(mean.shape[1:])

    parameters = reference.pixels(reference.walk(latents_of)[0])[0]
    eps, u = (1e-5 + (1 - 2e-5) * torch.rand((n, 64, 64), generator=reference.stream).double().numpy() for n in (10, 3))
    for row, column in [(0, 0), (63, 63), (20, 41), (33, 7)]:
        weights, means, scales, coefficients = pixel_by_hand(parameters, row, column)
        k = int(np.argmax(np.log(weights) - np.log(-np.log(eps[:, row, column]))))
        drawn = [means[c][k] + scales[c][k] * np.log(u[c, row, column] / (1 - u[c, row, column])) for c in range(3)]
        red = np.clip(drawn[0], -1, 1)
        green = np.clip(drawn[1] + coefficients[0][k] * red, -1, 1)
        blue = np.clip(drawn[2] + coefficients[1][k] * red + coefficients[2][k] * green, -1, 1)
        expected = (np.array([red, green, blue]) + 1) * 127.5
        assert np.all(np.abs(rendered[:, row, column].numpy() - np.floor(expected)) <= 1)


def test_the_first_latents_and_the_seed_both_matter(generator, latents):
    first, other = (generator.render({"latents": latents[:1]}, [seed])[0].float() for seed in (1, 2))
    moved = generator.render({"latents": latents[1:]}, [1])[0].float()
    assert not torch.equal(first, other)
    assert (first - moved).abs().mean() > 1


def test_latents_are_samples_and_a_stimulus_seed_fixes_them(generator, stimuli, latents):
    again = generator.encode(stimuli, ["latents"], [5, 7])["latents"]
    assert torch.equal(again[0], latents[0])
    assert not torch.allclose(again[1], latents[1], atol=0.1)


def test_reparameterisation_and_divergence_against_scipy():
    rng = np.random.RandomState(0)
    a, b, noise = (rng.standard_normal((2, 3, 4)) for _ in range(3))
    p, q = (Gaussian(torch.tensor(x[0]), torch.tensor(x[1])) for x in (a, b))
    expected = stats.norm(a[0], np.exp(a[1])).ppf(stats.norm.cdf(noise[0]))
    np.testing.assert_allclose(p.sample(torch.tensor(noise[0])), expected, rtol=1e-9)
    np.testing.assert_allclose(p.sample(torch.tensor(noise[0]), 0.5), a[0] + (expected - a[0]) / 2, rtol=1e-9)
    grid = np.linspace(-60, 60, 200_001)
    for at in np.ndindex(3, 4):
        ours, theirs = stats.norm(a[0][at], np.exp(a[1][at])), stats.norm(b[0][at], np.exp(b[1][at]))
        integral = np.trapezoid(ours.pdf(grid) * (ours.logpdf(grid) - theirs.logpdf(grid)), grid)
        np.testing.assert_allclose(p.divergence(q)[at], integral, rtol=1e-5)
    assert float(p.divergence(p).abs().max()) < 1e-12


def test_noise_has_the_right_distribution_and_its_own_stream():
    noise = Noise([3, 4], CPU, posterior=False)
    normal, uniform = noise.normal((20_000,)), noise.uniform((20_000,))
    assert stats.kstest(normal[0].numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(uniform[1].numpy(), "uniform").pvalue > 1e-3
    assert float(uniform.min()) >= 1e-5 and float(uniform.max()) <= 1 - 1e-5
    alone = Noise([4], CPU, posterior=False)
    assert torch.equal(alone.normal((20_000,))[0], normal[1]) and torch.equal(alone.uniform((20_000,))[0], uniform[1])
    other = Noise([3, 4], CPU, posterior=True).normal((20_000,))
    drawn = torch.cat([normal, other])
    assert float((torch.corrcoef(drawn) - torch.eye(4)).abs().max()) < 0.04  # no stream is another


def test_the_mean_of_a_mixture_is_the_expectation(mixture_parameters):
    """Of the unclipped mixture: by the law of total expectation, pixel by pixel."""
    found = PixelMixture.of(mixture_parameters).mean()
    for picture, row, column in np.ndindex(2, 3, 4):
        weights, means, _, coefficients = pixel_by_hand(mixture_parameters[picture], row, column)
        expected = np.zeros(3)
        for k in range(10):
            red = means[0][k]
            green = means[1][k] + coefficients[0][k] * red
            blue = means[2][k] + coefficients[1][k] * red + coefficients[2][k] * green
            expected += weights[k] * np.array([red, green, blue])
        np.testing.assert_allclose(found[picture, :, row, column], expected.clip(-1, 1), rtol=1e-4, atol=1e-5)


def test_samples_of_a_mixture_have_its_distribution():
    """4,096 pixels of one distribution: colours hold the grey levels' probabilities that `nats` gives."""
    one = torch.randn(100, generator=torch.Generator().manual_seed(2))
    one[10:].view(3, 3, 10)[:, 1] -= 2
    parameters = one[None, :, None, None].expand(1, 100, 64, 64)
    drawn = PixelMixture.of(parameters).sample(Noise([1], CPU, posterior=False))[0].flatten(1).numpy()
    weights, means, scales, _ = pixel_by_hand(parameters[0], 0, 0)

    def red(value):
        return sum(w * stats.logistic(m, s).cdf(value) for w, m, s in zip(weights, means[0], scales[0], strict=True))

    inside = np.sort(drawn[0])[(np.sort(drawn[0]) > -1) & (np.sort(drawn[0]) < 1)]
    ranks = np.searchsorted(np.sort(drawn[0]), inside, side="right") / drawn.shape[1]
    assert np.abs(ranks - red(inside)).max() < 1.95 / math.sqrt(drawn.shape[1])  # Kolmogorov-Smirnov at p = .001
    narrow = parameters.clone()
    narrow[:, 10:].view(1, 3, 3, 10, 64, 64)[:, :, 0] *= 0.2  # keeps clipping away, so that the mean is exact
    narrow[:, 10:].view(1, 3, 3, 10, 64, 64)[:, :, 1] = -3
    sampled = PixelMixture.of(narrow).sample(Noise([1], CPU, posterior=False))[0].flatten(1)
    error = sampled.std(dim=1) / math.sqrt(sampled.shape[1])
    assert bool(((sampled.mean(dim=1) - PixelMixture.of(narrow).mean()[0, :, 0, 0]).abs() < 4 * error).all())


def test_surprise_against_cumulative_distributions(mixture_parameters):
    rng = np.random.RandomState(1)
    levels = torch.from_numpy(rng.randint(0, 256, (2, 3, 3, 4)).astype(np.uint8))
    levels[0, :, 0, 0], levels[1, :, 2, 3] = 0, 255
    found = PixelMixture.of(mixture_parameters).nats(levels)
    for picture, row, column in np.ndindex(2, 3, 4):
        weights, means, scales, c = pixel_by_hand(mixture_parameters[picture], row, column)
        level = levels[picture, :, row, column].numpy().astype(float)
        value, total = level / 127.5 - 1, 0.0
        for k in range(10):
            centres = (
                means[0][k],
                means[1][k] + c[0][k] * value[0],
                means[2][k] + c[1][k] * value[0] + c[2][k] * value[1],
            )
            probability = weights[k]
            for colour, centre in enumerate(centres):
                d = stats.logistic(centre, scales[colour][k])
                low = 0.0 if level[colour] == 0 else d.cdf(value[colour] - 1 / 255)
                high = 1.0 if level[colour] == 255 else d.cdf(value[colour] + 1 / 255)
                # Thin intervals: width times density in the middle, as published.
                probability *= (
                    high - low if high - low > 1e-5 or level[colour] in (0, 255) else d.pdf(value[colour]) / 127.5
                )
            total += probability
        np.testing.assert_allclose(found[picture, row, column], -np.log(total), rtol=2e-3)


def test_levels_are_cut_not_rounded():
    colours = torch.tensor([-1.0, -1 + 1.9 / 127.5, 0.0, 0.999, 1.0])
    assert to_levels(colours).tolist() == [0, 1, 127, 254, 255]


def test_bits_per_dimension_against_the_written_out_bound(generator, stimuli):
    found = rate.bits_per_dimension(generator.network, stimuli.images, [5, 6])
    reference = Reference(small.state(), 5, posterior=True)
    x = (stimuli.images[:1].double() - 115.92961967) / 69.37404
    state, _ = reference.walk(reference.posterior(reference.activations(x)))
    surprise = float(PixelMixture.of(reference.pixels(state)).nats(stimuli.images[:1]).sum())
    np.testing.assert_allclose(found[0], (reference.divergence + surprise) / (3 * 64 * 64 * math.log(2)), rtol=1e-4)


def test_the_rate_of_a_folder_of_pictures(settings, tmp_path, caplog):
    first, second = pictures(2, 80)
    for number, picture in enumerate((first, second[:, :70])):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    caplog.set_level("INFO")
    assert rate.main([str(tmp_path), "--weights", settings["weights"]]) == 0
    assert re.search(r"\d+\.\d{3} bits per dimension \(mean of 2 pictures", caplog.text)
    assert rate.main([str(tmp_path / "none"), "--weights", settings["weights"]]) == 2
    assert f"there is no PNG or JPEG picture in {tmp_path / 'none'}" in caplog.text


def test_the_mean_output_is_the_sample_without_its_grain(load, latents):
    """Same latents and seed, so the same mixtures: samples scatter about the mean, and vary more between pixels."""
    sampled, mean = (load(output=output).render({"latents": latents}, [1, 2]).double() for output in ("sample", "mean"))
    assert abs(float((sampled - mean).mean())) < 1
    assert 10 < float((sampled - mean).abs().mean()) < 40
    assert sampled.diff(dim=3).abs().mean() > mean.diff(dim=3).abs().mean() + 2


def test_many_pictures_are_taken_in_parts(generator, latents):
    many = generator.render({"latents": latents[:1].expand(34, -1)}, list(range(34)))
    assert (many[33].int() - generator.render({"latents": latents[:1]}, [33])[0].int()).abs().max() <= 1
    assert generator.render({"latents": latents[:0]}, []).shape == (0, 3, 64, 64)
    nothing = Stimuli(torch.zeros(0, 3, 64, 64, dtype=torch.uint8), [], [])
    assert generator.encode(nothing, ["latents"], [])["latents"].shape == (0, PREDICTED_NUMBERS)


def test_half_precision_gives_nearly_the_same_latents(load, stimuli, latents):
    half = load(precision="bfloat16").encode(stimuli, ["latents"], [5, 6])["latents"]
    assert half.dtype == torch.float32
    assert np.corrcoef(half.flatten(), latents.flatten())[0, 1] > 0.999


def test_overflow_is_an_error(load, stimuli):
    generator = load(precision="float16")
    generator.network.encoder.in_conv.weight.mul_(6e4)
    with pytest.raises(BadDataError, match="latents are NaN or infinite in precision 'float16'; try bfloat16"):
        generator.encode(stimuli, ["latents"], [5, 6])


@pytest.mark.parametrize(
    ("inputs", "seeds", "message"),
    [
        ({}, [0], "vdvae renders from latents; got none"),
        ({"latents": torch.zeros(1, 5)}, [0], r"latents must be \(B, 91168\) of floats, got \(1, 5\)"),
        ({"latents": torch.zeros(1, PREDICTED_NUMBERS)}, [0, 1], "1 inputs 'latents' but 2 seeds"),
        ({"latents": torch.full((1, PREDICTED_NUMBERS), math.nan)}, [0], "holds NaN"),
    ],
)
def test_wrong_inputs(generator, inputs, seeds, message):
    with pytest.raises(ValueError, match=message):
        generator.render(inputs, seeds)


def test_wrong_number_of_seeds_to_encode(generator, stimuli):
    with pytest.raises(ValueError, match="2 pictures but 1 seeds"):
        generator.encode(stimuli, ["latents"], [0])


@pytest.fixture
def saved(tmp_path):
    """Save a state dict as a checkpoint; returns the loader of a generator from it."""

    def save(content):
        path = tmp_path / CHECKPOINT.name / CHECKPOINT.files[0]
        path.parent.mkdir()
        torch.save(content, path)
        return lambda: GeneratorChoice("vdvae", {"weights": str(tmp_path)}).load(CPU)

    return save


def test_names_saved_from_several_gpus_are_read(saved, stimuli, latents):
    load = saved({f"module.{name}": values for name, values in small.state().items()})
    assert torch.equal(load().encode(stimuli, ["latents"], [5, 6])["latents"], latents)


def test_another_width_than_published_is_said(load, caplog):
    load()
    assert "is 8 channels wide; OpenAI's published checkpoint is 512" in caplog.text


def shortened(state):
    return {name: values for name, values in state.items() if "dec_blocks.74" not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shortened, r"holds the weights of another network: 26 missing \(decoder.dec_blocks.74.enc.c1.weight"),
        (lambda s: {**s, "extra": torch.zeros(1)}, r"1 unknown \(extra"),
        (lambda s: {**s, "decoder.gain": torch.ones(1, 9, 1, 1)}, r"1 of another shape \(decoder.gain \(1, 9, 1, 1\)"),
        (lambda s: {"weight": torch.zeros(3)}, "there is no encoder.in_conv.weight"),
        (
            lambda s: {**s, "encoder.in_conv.weight": torch.zeros(9, 3, 3, 3)},
            "has 9 channels, a multiple of 4 is needed",
        ),
        (lambda s: {"model": s}, "must be a plain state dict, names to tensors; 'model' is no tensor"),
    ],
)
def test_other_checkpoints_are_refused(saved, change, message):
    with pytest.raises(CorruptFileError, match=message):
        saved(change(small.state()))()


def test_a_missing_checkpoint_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path))
    with pytest.raises(
        MissingWeightsError, match=r"imagenet64-iter-1600000-model-ema\.th of https://openaipublic.*MIT"
    ):
        GeneratorChoice("vdvae").load(CPU)


def test_a_width_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match="positive multiple of 4, got 6"):
        VeryDeepVAE(6)


@pytest.mark.fullsize
def test_the_published_size_encodes_and_renders():
    """Untrained, float32, one picture: about 1.6 GB and ten seconds of one core."""
    generator = GeneratorChoice("vdvae", {"untrained": True}).load(CPU)
    found = {name: tuple(values.shape) for name, values in generator.network.state_dict().items()}
    assert found == published_shapes(512)
    assert sum(values.numel() for values in generator.network.parameters()) == 125_005_860
    one = Stimuli(pictures(1, 425), [[]], [None])
    latents = generator.encode(one, ["latents"], [3])["latents"]
    assert latents.shape == (1, 91_168) and 0.5 < float(latents.std()) < 2
    rendered = generator.render({"latents": latents}, [4])
    assert rendered.shape == (1, 3, 64, 64) and int(rendered.max()) - int(rendered.min()) > 50
