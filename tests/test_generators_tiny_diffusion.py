"""The tiny latent diffusion model: what its weights can do, and its arithmetic against slow references."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from bench.core.errors import UnknownNameError
from bench.data.simulate.scenes.sampling import draw_batch, sample_scene, stimulus_seed
from bench.generators._diffusion.sampler import Cut
from bench.generators._networks import scene_training as training
from bench.generators.base import MissingWeightsError, Stimuli
from bench.generators.choice import GeneratorChoice
from bench.generators.tiny_diffusion import model, train
from bench.generators.tiny_diffusion.architecture import new_vae


@pytest.fixture(scope="module")
def load():
    torch.set_num_threads(1)
    return lambda **settings: GeneratorChoice("tiny-diffusion", settings).load(torch.device("cpu"))


@pytest.fixture(scope="module")
def images():
    scenes = [sample_scene(stimulus_seed(number, 0)) for number in range(32)]
    return torch.from_numpy(draw_batch(scenes, 64).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def generator(load):
    return load()


@pytest.fixture(scope="module")
def latents(generator, images):
    return encode(generator, images)


def encode(generator, images):
    stimuli = Stimuli(images, [[]] * len(images), [None] * len(images))
    return generator.encode(stimuli, ["latent"], [0] * len(images))["latent"]


def correlations(a, b):
    """PixCorr of each pair by NumPy."""
    pairs = zip(a.numpy().reshape(len(a), -1), b.numpy().reshape(len(b), -1), strict=True)
    return np.array([np.corrcoef(x.astype(float), y.astype(float))[0, 1] for x, y in pairs])


def test_weights_are_small():
    total = sum((model.WEIGHTS.folder / name).stat().st_size for name in model.WEIGHTS.names)
    assert total <= 10 * 2**20


def test_round_trip_of_unseen_scenes(load, images, latents):
    decoded = load(strength=0.0).render({"latent": latents}, [0] * len(latents))
    found = correlations(decoded, images)
    assert found.mean() >= 0.97 and found.min() >= 0.9


def test_latents_are_standardised(latents):
    assert abs(float(latents.mean())) < 0.15
    assert latents.std((0, 2, 3)).sub(1).abs().max() < 0.25


def test_diffusion_keeps_the_picture_of_a_true_latent(generator, images, latents):
    found = correlations(generator.render({"latent": latents}, list(range(len(latents)))), images)
    assert found.mean() > 0.85


def test_diffusion_makes_a_noisy_latent_more_scene_like(load, images, latents):
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    rough = 0.6 * latents + 0.5 * noise
    seeds = list(range(len(rough)))
    plain, diffused = (load(strength=s).render({"latent": rough}, seeds) for s in (0.0, 0.5))

    def roughness(pictures):
        return float(pictures.float().diff(dim=3).abs().mean())

    assert abs(roughness(diffused) - roughness(images)) < 0.5 * abs(roughness(plain) - roughness(images))
    assert correlations(diffused, images).mean() > 0.75


def test_the_unet_removes_most_of_the_noise(load, latents):
    """The clean estimate of a noised latent is far nearer to it than the noised latent, rescaled, is."""
    generator = load(steps=1000, strength=0.5)
    cumulative = generator.space.sampler.scheduler.alphas_cumprod[list(generator.space.sampler.cut.taken)]
    before = float(((1 - cumulative) / cumulative).mean())
    with torch.no_grad():
        after = float(generator.loss({"latent": latents}, {"latent": latents}, list(range(len(latents)))))
    assert after < 0.4 * before


def test_seeds_matter(generator, latents):
    same = latents[:1].expand(2, -1, -1, -1)
    a, b = generator.render({"latent": same}, [1, 2])
    assert not torch.equal(a, b)


def test_ddim_against_the_formula(load, latents):
    """Noise and DDIM steps by hand (Song et al. 2021, eq. 12), v-prediction by its definition."""
    generator = load(steps=4, strength=0.5)
    cumulative = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    noise = torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(5))
    assert generator.space.sampler.cut == Cut(251, (251, 1))
    kept = cumulative[251]
    x = math.sqrt(kept) * latents[:1] + math.sqrt(1 - kept) * noise
    for step, before in ((251, cumulative[1]), (1, cumulative[0])):
        kept = cumulative[step]
        v = generator.unet(x, step).sample
        clean = math.sqrt(kept) * x - math.sqrt(1 - kept) * v
        epsilon = math.sqrt(kept) * v + math.sqrt(1 - kept) * x
        x = math.sqrt(before) * clean + math.sqrt(1 - before) * epsilon
    torch.testing.assert_close(generator._redrawn({"latent": latents[:1]}, [5]), x, rtol=1e-3, atol=1e-3)


def test_eta_uses_each_pictures_own_noise(load, latents):
    generator = load(eta=1.0)
    together = generator.render({"latent": latents[:4]}, [1, 2, 3, 4])
    alone = generator.render({"latent": latents[2:3]}, [3])
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together, load().render({"latent": latents[:4]}, [1, 2, 3, 4]))


def test_a_picture_is_a_legal_input_of_any_size(generator, images, latents):
    seeds = list(range(8))
    from_picture = generator.render({"image": images[:8]}, seeds)
    from_latent = generator.render({"latent": latents[:8]}, seeds)
    assert (from_picture.int() - from_latent.int()).abs().max() <= 1
    large = images[:8].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert correlations(generator.render({"image": large}, seeds), from_latent).mean() > 0.95


@pytest.mark.parametrize(
    ("inputs", "seeds", "message"),
    [
        ({}, [0], "tiny-diffusion renders from latent, image; got none"),
        (
            {"latent": torch.zeros(1, 4, 16, 16), "image": torch.zeros(1, 3, 64, 64).byte()},
            [0],
            "starts from one of latent, image, got latent and image",
        ),
        ({"latent": torch.zeros(2, 4, 8, 8)}, [0, 1], r"must be \(B, 4, 16, 16\) of floats, got \(2, 4, 8, 8\)"),
        ({"latent": torch.zeros(2, 4, 16, 16)}, [0], "2 inputs 'latent' but 1 seeds"),
        ({"latent": torch.full((1, 4, 16, 16), float("nan"))}, [0], "NaN"),
        ({"image": torch.zeros(1, 3, 64, 64)}, [0], r"uint8, got \(1, 3, 64, 64\) torch.float32"),
    ],
)
def test_bad_inputs(generator, inputs, seeds, message):
    with pytest.raises(ValueError, match=message):
        generator.render(inputs, seeds)


def test_loss_is_small_at_the_truth_and_has_the_right_gradient(generator, latents):
    truth = {"latent": latents[:2]}
    noise = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(3))
    guess = (latents[:2] + 0.5 * noise).requires_grad_()
    loss = generator.loss({"latent": guess}, truth, [1, 2])
    loss.backward()
    assert loss.ndim == 0 and generator.loss(truth, truth, [1, 2]).item() < loss.item()
    along, step = guess.grad / guess.grad.norm(), 1e-2
    with torch.no_grad():
        up, down = (generator.loss({"latent": guess + s * along}, truth, [1, 2]) for s in (step, -step))
    assert float(up - down) / (2 * step) == pytest.approx(float(guess.grad.norm()), rel=0.02)
    assert all(p.grad is None for p in generator.unet.parameters())


def test_trace_gives_the_states_that_rendering_passes_through(generator, latents):
    layers, steps = ["mid_block", "conv_out", "down_blocks.1"], [0, 2]
    found = generator.trace({"latent": latents[:3]}, layers, steps, [1, 2, 3])
    assert set(found) == {(layer, step) for layer in layers for step in steps}
    assert found["conv_out", 0].shape == (3, 4, 16, 16) and found["mid_block", 2].shape[:2] == (3, 128)
    noise = torch.stack([torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)])
    sampler = generator.space.sampler
    first = sampler.cut.taken[0]
    noisy = sampler.scheduler.add_noise(latents[:3], noise, torch.full((3,), first))
    with torch.no_grad():
        torch.testing.assert_close(found["conv_out", 0], generator.unet(noisy, first).sample)
    assert not generator.unet.mid_block._forward_hooks


def test_trace_refuses_what_is_not_there(generator, latents):
    inputs = {"latent": latents[:1]}
    with pytest.raises(UnknownNameError, match=r"unknown layer 'mid_blok'.*Did you mean 'mid_block'"):
        generator.trace(inputs, ["mid_blok"], [0], [1])
    with pytest.raises(ValueError, match=r"steps \[9\] are not among"):
        generator.trace(inputs, ["mid_block"], [9], [1])


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(model, "WEIGHTS", dataclasses.replace(model.WEIGHTS, folder=tmp_path))
    with pytest.raises(MissingWeightsError, match=r"no scheduler.*train them with: python -m"):
        GeneratorChoice("tiny-diffusion").load(torch.device("cpu"))
    with pytest.raises(MissingWeightsError):
        GeneratorChoice("tiny-diffusion").identity(render=True)


def test_digest_changes_with_the_weights(monkeypatch, tmp_path):
    before = model.TinyDiffusion.weights_digest(model.TinyDiffusionOptions())
    for name in model.WEIGHTS.names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((model.WEIGHTS.folder / name).read_bytes())
    monkeypatch.setattr(model, "WEIGHTS", dataclasses.replace(model.WEIGHTS, folder=tmp_path))
    assert model.TinyDiffusion.weights_digest(model.TinyDiffusionOptions()) == before
    (tmp_path / "vae/config.json").write_text("{}")
    assert model.TinyDiffusion.weights_digest(model.TinyDiffusionOptions()) != before


def test_standardising_changes_no_decoded_picture():
    torch.manual_seed(0)
    vae, batch = new_vae().eval(), training.pictures(0, 16)
    with torch.no_grad():
        before = vae.encode(batch).latent_dist
        decoded = vae.decode(before.mode()).sample
        train.standardise(vae, batch)
        after = vae.encode(batch).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, decoded, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.mode().std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after.mode().mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    ratio = before.mode().std((0, 2, 3)).view(1, 4, 1, 1)
    torch.testing.assert_close(after.std * ratio, before.std, rtol=1e-3, atol=1e-5)


def test_training_scenes_are_never_those_of_a_dataset():
    assert training.TRAINING_DESIGN != training.HELD_OUT_DESIGN
    assert min(training.TRAINING_DESIGN, training.HELD_OUT_DESIGN) > 10**6
    assert not torch.equal(training.pictures(0, 2), training.pictures(0, 2, 0))


@pytest.mark.timeout(120)
def test_a_few_steps_of_training_are_reproducible(tmp_path):
    arguments = ["--vae-steps", "2", "--unet-steps", "2", "--scenes", "64", "--out"]
    for run in ("a", "b"):
        assert train.main([*arguments, str(tmp_path / run)]) == 0
    for name in model.WEIGHTS.names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
