"""The tiny guided model: what its conditions achieve, and its arithmetic against slow references."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.core.errors import BadDataError, CorruptFileError, UnknownNameError
from bench.data.simulate.scenes.sampling import captions, draw_batch, sample_scene, stimulus_seed
from bench.generators._networks import scene_latents
from bench.generators._networks.scene_training import HELD_OUT_DESIGN
from bench.generators.base import MissingWeightsError, Stimuli
from bench.generators.choice import GeneratorChoice
from bench.generators.tiny_guided import architecture, model, train
from eval.suite import score

COUNT = 24
SEEDS = list(range(COUNT))


@pytest.fixture(scope="module")
def load():
    torch.set_num_threads(1)
    return lambda **settings: GeneratorChoice("tiny-guided", settings).load(torch.device("cpu"))


@pytest.fixture(scope="module")
def generator(load):
    return load(steps=5)


@pytest.fixture(scope="module")
def stimuli():
    scenes = [sample_scene(stimulus_seed(number, HELD_OUT_DESIGN)) for number in range(COUNT)]
    images = torch.from_numpy(draw_batch(scenes, 64).transpose(0, 3, 1, 2).copy())
    return Stimuli(images, [captions(scene) for scene in scenes], [None] * COUNT)


@pytest.fixture(scope="module")
def true(generator, stimuli):
    return generator.encode(stimuli, ["latent", "text", "tokens"], SEEDS)


def rows(inputs, count):
    return {name: values[:count] for name, values in inputs.items()}


def close(a, b):
    """Whether pictures differ by one grey level of rounding at most."""
    return int((a.int() - b.int()).abs().max()) <= 1


@pytest.mark.parametrize(("name", "least"), [("text", 0.65), ("tokens", 0.8)])
def test_pictures_drawn_from_noise_show_what_their_condition_says(generator, stimuli, true, name, least):
    """Two-way identification with the scene network: true conditions well above those of other scenes."""
    shuffled = true[name].roll(1, 0)
    drawn, others = (generator.render({name: values}, SEEDS) for values in (true[name], shuffled))
    found, chance = (score(pictures, stimuli.images, "scenes-1") for pictures in (drawn, others))
    for metric in ("scene-mid", "scene-high", "scene-embedding"):
        assert found[metric].value > least
        assert found[metric].value > chance[metric].value + 0.15
    assert found["pixcorr"].value > chance["pixcorr"].value + 0.2


def test_conditions_mend_a_poor_start(load, stimuli, true):
    """From a latent that is mostly noise, true tokens lead back to the scene and those of another scene away."""
    noise = torch.randn(true["latent"].shape, generator=torch.Generator().manual_seed(1))
    rough, img2img = 0.5 * true["latent"] + 0.7 * noise, load(steps=5, strength=0.75)
    values = {"none": {}, "true": {"tokens": true["tokens"]}, "other": {"tokens": true["tokens"].roll(1, 0)}}
    found = {
        kind: score(img2img.render({"latent": rough, **given}, SEEDS), stimuli.images, "scenes-1")["scene-high"].value
        for kind, given in values.items()
    }
    assert found["true"] > found["none"] > found["other"]


def test_the_text_is_the_mean_of_each_captions_states(generator, stimuli, true):
    texts = stimuli.captions[0]
    each = []
    for text in texts:
        ids = torch.tensor([generator.words.encode(text).ids])
        each.append(generator.text_encoder(input_ids=ids).last_hidden_state[0])
    torch.testing.assert_close(true["text"][0], sum(each) / len(each), rtol=1e-4, atol=1e-5)
    turned = Stimuli(stimuli.images[:1], [texts[::-1]], [None])
    torch.testing.assert_close(generator.encode(turned, ["text"], [0])["text"][0], true["text"][0])


def test_words_are_read_whatever_their_case_and_stops(generator):
    ids = [
        generator.words.encode(text).ids for text in ("A red ball, at night.", "a red ball at night", "a red balloon")
    ]
    assert ids[0] == ids[1]
    assert len({len(each) for each in ids}) == 1 and len(ids[0]) == architecture.TEXT_SHAPE[0]
    assert generator.words.token_to_id(architecture.UNKNOWN) in ids[2]
    assert generator.words.token_to_id(architecture.UNKNOWN) not in ids[0]


def test_every_caption_is_known_and_fits(generator):
    unknown, end = (generator.words.token_to_id(word) for word in (architecture.UNKNOWN, architecture.END))
    for number in range(1000):
        for text in captions(sample_scene(stimulus_seed(number, 5))):
            ids = generator.words.encode(text).ids
            assert unknown not in ids and ids[-1] == end and len(text.split()) <= len(ids) - 2


def test_latents_are_those_of_tiny_diffusion(stimuli, true):
    plain = GeneratorChoice("tiny-diffusion").load(torch.device("cpu"))
    torch.testing.assert_close(plain.encode(stimuli, ["latent"], SEEDS)["latent"], true["latent"])


def by_hand(generator, start, timesteps, states, share, scale):
    """DDIM (Song et al. 2021, eq. 12) with guidance in two passes (Ho & Salimans 2022, eq. 6)."""
    cumulative = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    null = torch.cat([generator._text([[""]]), torch.zeros(1, *architecture.TOKENS_SHAPE)], dim=1)
    shares, x = {"image_share": torch.full((1, 1, 1), share)}, start
    for step, before in zip(timesteps, [*timesteps[1:], 0], strict=True):
        without, with_it = (
            generator.unet(x, step, each, cross_attention_kwargs=shares).sample for each in (null, states)
        )
        v, kept, left = (1 - scale) * without + scale * with_it, cumulative[step], cumulative[before]
        clean = math.sqrt(kept) * x - math.sqrt(1 - kept) * v
        epsilon = math.sqrt(kept) * v + math.sqrt(1 - kept) * x
        x = math.sqrt(left) * clean + math.sqrt(1 - left) * epsilon
    return x


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_denoising_against_the_formulas(load, true, scale):
    generator, given = load(steps=3, guidance=scale, mixing=0.25), rows(true, 1)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(9))
    states = torch.cat([given["text"], given["tokens"]], dim=1)
    expected = generator.space.decode(by_hand(generator, noise, [667, 334, 1], states, 0.75, scale))
    drawn = generator.render({"text": given["text"], "tokens": given["tokens"]}, [9])
    assert close(drawn, expected)


def test_img2img_noises_the_start_to_the_strengths_level(load, true):
    generator, given = load(steps=4, strength=0.5), rows(true, 1)
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[251]
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(5))
    start = math.sqrt(kept) * given["latent"] + math.sqrt(1 - kept) * noise
    states = torch.cat([given["text"], torch.zeros(1, *architecture.TOKENS_SHAPE)], dim=1)
    expected = generator.space.decode(by_hand(generator, start, [251, 1], states, 0.0, 2.0))
    assert close(generator.render({"latent": given["latent"], "text": given["text"]}, [5]), expected)


def test_mixing_at_its_limits_is_one_condition_alone(load, true):
    given, seeds = {name: true[name][:3] for name in ("text", "tokens")}, [1, 2, 3]
    text, tokens = (load(steps=3).render({name: given[name]}, seeds) for name in ("text", "tokens"))
    assert not close(text, tokens)
    assert close(load(steps=3, mixing=1.0).render(given, seeds), text)
    assert close(load(steps=3, mixing=0.0).render(given, seeds), tokens)
    half = load(steps=3, mixing=0.5).render(given, seeds)
    assert not close(half, text) and not close(half, tokens)


def test_mixed_attention_against_loops():
    """Softmax attention of every head, position and token by itself, then the mixture."""
    torch.manual_seed(0)
    unet = architecture.new_unet()
    layer = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    positions, states, share = torch.randn(2, 5, 64), torch.randn(2, 40, 64), torch.tensor([0.3, 1.0]).view(2, 1, 1)
    with torch.no_grad():
        found = layer(positions, encoder_hidden_states=states, image_share=share)
        maps = [layer.to_q, layer.to_k, layer.to_v, layer.processor.to_k_tokens, layer.processor.to_v_tokens]
        q, *texts = (m(x).double().numpy() for m, x in zip(maps[:3], (positions, states, states), strict=True))
        tokens = [m(states).double().numpy() for m in maps[3:]]
        mixed = np.zeros((2, 5, 64))
        for row, position, head in np.ndindex(2, 5, layer.heads):
            part = slice(16 * head, 16 * head + 16)
            for (key, value), span, weight in ((texts, slice(0, 32), 1 - share), (tokens, slice(32, 40), share)):
                logits = key[row, span, part] @ q[row, position, part] / 4
                weights = np.exp(logits - logits.max())
                read = weights / weights.sum() @ value[row, span, part]
                mixed[row, position, part] += float(weight[row, 0, 0]) * read
        expected = layer.to_out[0](torch.from_numpy(mixed).float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_given_is_null(load, generator, true):
    start, seeds = {"latent": true["latent"][:2]}, [1, 2]
    nulls = {"text": generator._text([[""], [""]]), "tokens": torch.zeros(2, *architecture.TOKENS_SHAPE)}
    plain = generator.render(start, seeds)
    assert close(generator.render({**start, **nulls}, seeds), plain)
    # Nothing guides: no scale can change it.
    assert close(load(steps=5, guidance=9.0).render(start, seeds), plain)
    told = {**start, "text": true["text"][:2]}
    assert close(
        load(steps=5, guidance=0.0, mixing=1.0).render(told, seeds), load(steps=5, mixing=1.0).render(start, seeds)
    )


def test_strength_counts_only_where_there_is_a_start(load, true):
    given, seeds = rows(true, 2), [1, 2]
    drawn = [load(steps=3, strength=s).render({"tokens": given["tokens"]}, seeds) for s in (0.0, 1.0)]
    assert torch.equal(*drawn)
    decoded = load(strength=0.0)
    assert torch.equal(decoded.render(given, seeds), decoded.space.decode(given["latent"]))


def test_a_picture_starts_like_its_latent(generator, stimuli, true):
    seeds, text = [1, 2, 3, 4], {"text": true["text"][:4]}
    from_picture = generator.render({"image": stimuli.images[:4], **text}, seeds)
    assert close(from_picture, generator.render({"latent": true["latent"][:4], **text}, seeds))


def test_a_picture_is_its_own_whatever_else_is_in_the_batch(generator, stimuli, true):
    inputs = {"image": stimuli.images, "text": true["text"], "tokens": true["tokens"]}
    together = generator.render(rows(inputs, 5), SEEDS[:5])
    alone = generator.render({name: values[3:4] for name, values in inputs.items()}, SEEDS[3:4])
    assert close(together[3:4], alone)


TEXT, TOKENS = torch.zeros(1, 32, 64), torch.zeros(1, 8, 64)
LATENT, IMAGE = torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("inputs", "seeds", "message"),
    [
        ({}, [0], "tiny-guided renders from latent, image, text, tokens; got none"),
        ({"latent": LATENT, "image": IMAGE, "text": TEXT}, [0], "one of latent, image, got latent and image"),
        ({"text": TEXT[:, :8]}, [0], r"text must be \(B, 32, 64\) of floats, got \(1, 8, 64\)"),
        ({"tokens": TEXT}, [0], r"tokens must be \(B, 8, 64\) of floats, got \(1, 32, 64\)"),
        ({"tokens": TOKENS / 0}, [0], "tokens holds NaN"),
        ({"latent": LATENT, "tokens": TOKENS}, [0, 1], "1 inputs 'latent' but 2 seeds"),
        ({"image": IMAGE.float(), "tokens": TOKENS}, [0], r"uint8, got \(1, 3, 64, 64\) torch.float32"),
    ],
)
def test_bad_inputs(generator, inputs, seeds, message):
    with pytest.raises(ValueError, match=message):
        generator.render(inputs, seeds)


def test_unknown_input(generator):
    with pytest.raises(UnknownNameError, match=r"unknown input 'token' in generator 'tiny-guided'.*mean 'tokens'"):
        generator.render({"token": TOKENS}, [0])


def test_text_needs_captions(generator, stimuli):
    bare = Stimuli(stimuli.images[:3], [["a ball"], [], []], [None] * 3)
    with pytest.raises(BadDataError, match="needs captions: 2 of 3 stimuli of a batch have none, the first at place 1"):
        generator.encode(bare, ["text"], [0, 1, 2])
    assert set(generator.encode(bare, ["tokens"], [0, 1, 2])) == {"tokens"}
    with pytest.raises(UnknownNameError, match="Did you mean 'tokens'"):
        generator.encode(bare, ["token"], [0, 1, 2])


def copied(monkeypatch, tmp_path, module):
    """A folder with copies of a module's weight files, in their place."""
    for name in module.WEIGHTS.names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((module.WEIGHTS.folder / name).read_bytes())
    monkeypatch.setattr(module, "WEIGHTS", dataclasses.replace(module.WEIGHTS, folder=tmp_path))
    return tmp_path


@pytest.mark.parametrize(("module", "name"), [(model, "tokenizer/tokenizer.json"), (scene_latents, "vae/config.json")])
def test_digest_covers_the_own_files_and_the_shared_vae(monkeypatch, tmp_path, module, name):
    before = model.TinyGuided.weights_digest(model.TinyGuidedOptions())
    folder = copied(monkeypatch, tmp_path, module)
    assert model.TinyGuided.weights_digest(model.TinyGuidedOptions()) == before
    (folder / name).write_text("{}")
    assert model.TinyGuided.weights_digest(model.TinyGuidedOptions()) != before


def test_weights_are_small_and_the_vae_is_not_shipped_twice(generator):
    size = model.TinyGuided.weights_size(model.TinyGuidedOptions())
    networks = [generator.unet, generator.text_encoder, generator.tokeniser, generator.space.vae]
    assert size.parameters == sum(p.numel() for network in networks for p in network.parameters())
    assert size.bytes < 7 * 2**20
    files = [path for path in model.WEIGHTS.folder.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(model.WEIGHTS.folder)) for path in files) == list(model.WEIGHTS.names)
    parent = {hashlib.sha256(path.read_bytes()).hexdigest() for path in train.PARENT.rglob("*.safetensors")}
    assert not parent & {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_missing_and_damaged_weights_say_what_to_do(monkeypatch, tmp_path):
    folder = copied(monkeypatch, tmp_path, model)
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(CorruptFileError, match="not a safetensors file"):
        GeneratorChoice("tiny-guided").load(torch.device("cpu"))
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(
        MissingWeightsError, match=r"no tokenizer/tokenizer.json.*python -m bench.generators.tiny_guided"
    ):
        GeneratorChoice("tiny-guided").identity(render=True)


def test_training_starts_from_tiny_diffusions_unet():
    torch.manual_seed(0)
    started = train.Networks(40).unet.state_dict()
    parent = load_file(train.PARENT / "unet/diffusion_pytorch_model.safetensors")
    same = [name for name in parent if name in started and started[name].shape == parent[name].shape]
    assert sum(parent[name].numel() for name in same) > 0.8 * sum(values.numel() for values in started.values())
    assert all(torch.equal(started[name], parent[name].float()) for name in same)


def test_conditions_are_dropped_separately():
    torch.manual_seed(0)
    drawn = train.draw_batch(torch.zeros(20_000, 1), torch.zeros(20_000, 5, 32), torch.zeros(1, 32))
    text, seen, share = (x.flatten() for x in (drawn.texts, drawn.seen, drawn.image_share))
    shares = [float((~kept).float().mean()) for kept in (text, seen, text | seen)]
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.01], atol=0.01)
    np.testing.assert_allclose([float((share == end).float().mean()) for end in (0, 1)], [0.3, 0.3], atol=0.015)


@pytest.mark.timeout(120)
def test_a_few_steps_of_training_are_reproducible(tmp_path):
    for run in ("a", "b"):
        assert train.main(["--steps", "2", "--scenes", "32", "--out", str(tmp_path / run)]) == 0
    for name in model.WEIGHTS.names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
