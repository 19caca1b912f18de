"""Versatile Diffusion: its conditions and its dual-guided sampling against formulas and diffusers' own pipeline."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoints import versatile_diffusion as small

from bench.core.errors import BadDataError, UnknownNameError
from bench.generators._diffusion.resizing import resized
from bench.generators._diffusion.sampler import Cut, Sampler, guided, scheduler
from bench.generators._networks.clip import token_ids
from bench.generators._weights.tokenizer import clip_tokenizer
from bench.generators.base import Stimuli
from bench.generators.versatile_diffusion import VersatileDiffusion, VersatileDiffusionOptions
from bench.generators.versatile_diffusion.dual import DualAttention, attention_blocks, load_twins
from bench.generators.versatile_diffusion.embeddings import GREY
from bench.generators.versatile_diffusion.parts import CHECKPOINT, PUBLISHED, WEIGHTS
from eval.pictures import CLIP_MEAN, CLIP_STD

CAPTIONS = ["a dog on a beach", "two red cups of tea", "a man rides a wave on top of a surfboard ."]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versatile")
    small.save(folder)
    return folder


@pytest.fixture(scope="module")
def load(weights):
    torch.set_num_threads(1)
    return lambda **given: VersatileDiffusion(
        VersatileDiffusionOptions(**{"weights": str(weights), **small.SETTINGS, **given}), torch.device("cpu")
    )


@pytest.fixture(scope="module")
def generator(load):
    return load()


@pytest.fixture(scope="module")
def images():
    y, x = np.mgrid[0:90, 0:90] / 90
    waves = [[0.5 + 0.45 * np.sin(9 * (x * (n + 1) + c * y) + n) for c in range(3)] for n in range(3)]
    return torch.from_numpy((255 * np.array(waves)).astype(np.uint8))


@pytest.fixture(scope="module")
def tokens(generator, images):
    stimuli = Stimuli(images, [[text] for text in CAPTIONS], [None] * 3)
    return generator.encode(stimuli, ["vision", "text"], [0] * 3)


def state(weights, part):
    """A network's tensors as they lie on disk."""
    path = weights / CHECKPOINT.name / part / WEIGHTS[part][0]
    return torch.load(path, weights_only=True), path


def plain(weights, part):
    """A network of the checkpoint in diffusers' or transformers' own class, loaded by plain PyTorch."""
    network = small.build(part).eval().requires_grad_(False)
    network.load_state_dict(state(weights, part)[0])
    return network


@pytest.fixture(scope="module")
def pipeline(weights, generator):
    """diffusers' own dual-guided pipeline over the same checkpoint, its attention block mended.

    diffusers 0.42's UNet passes `encoder_attention_mask`, which its `DualTransformer2DModel` does not take.
    """
    module = "diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet"
    flat = pytest.importorskip(module).UNetFlatConditionModel
    from diffusers import VersatileDiffusionDualGuidedPipeline
    from diffusers.models import DualTransformer2DModel
    from transformers import CLIPImageProcessor

    config = {
        key: value for key, value in small.config("image_unet").items() if not key.endswith(("types", "channels"))
    }
    text_unet = flat(
        in_channels=(768, 1, 1),
        out_channels=(768, 1, 1),
        down_block_types=("CrossAttnDownBlockFlat",) * 3 + ("DownBlockFlat",),
        up_block_types=("UpBlockFlat",) + ("CrossAttnUpBlockFlat",) * 3,
        block_out_channels=small.config("image_unet")["block_out_channels"],
        **config,
    )
    attention = {key: value for key, value in state(weights, "text_unet")[0].items() if ".attentions." in key}
    missing, unexpected = text_unet.load_state_dict(attention, strict=False)
    assert not unexpected and not [key for key in missing if ".attentions." in key]
    parts = {part: plain(weights, part) for part in PUBLISHED}
    made = VersatileDiffusionDualGuidedPipeline(
        tokenizer=generator.embeddings._tokenizer,
        image_feature_extractor=CLIPImageProcessor(),
        text_unet=text_unet.eval(),
        scheduler=scheduler("ddim"),
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    forward = DualTransformer2DModel.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DualTransformer2DModel,
            "forward",
            lambda self, hidden_states, encoder_hidden_states, encoder_attention_mask=None, **rest: forward(
                self, hidden_states, encoder_hidden_states, **rest
            ),
        )
        yield made


@pytest.mark.parametrize("mixing", [0.4, 1.0])
def test_pictures_equal_those_of_diffusers_own_pipeline(load, pipeline, tokens, monkeypatch, mixing):
    """Same noise, same embeddings, all steps, both guidances: the whole dual-guided loop."""
    generator, seeds = load(mixing=mixing, steps=3), [5, 6, 7]
    ours = generator.render(tokens, seeds)
    null = generator._null
    for name, kind in (("_encode_text_prompt", "text"), ("_encode_image_prompt", "vision")):
        both = torch.cat([null[kind].expand(3, -1, -1), tokens[kind]])
        monkeypatch.setattr(pipeline, name, lambda *_, both=both: both)
    noise = torch.stack([torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(s)) for s in seeds])
    theirs = pipeline(
        prompt=[""] * 3,
        image=[""] * 3,
        text_to_image_strength=mixing,
        num_inference_steps=3,
        guidance_scale=7.5,
        latents=noise,
        height=64,
        width=64,
        output_type="np",
    ).images
    theirs = torch.from_numpy(theirs.transpose(0, 3, 1, 2) * 255).round()
    assert (ours.float() - theirs).abs().max() <= 1 and theirs.std() > 20


def test_the_pipeline_of_diffusers_embeds_as_we_do(generator, pipeline, images):
    text = pipeline._encode_text_prompt(CAPTIONS, "cpu", 1, True)
    torch.testing.assert_close(generator.embeddings.text(CAPTIONS), text[3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generator.embeddings.null_text(), text[:1], rtol=1e-4, atol=1e-5)
    large = resized(images, 512, Image.Resampling.BILINEAR)
    pictures = [Image.fromarray(image) for image in large.permute(0, 2, 3, 1).numpy()]
    vision = pipeline._encode_image_prompt(pictures, "cpu", 1, False)
    # Their preprocessing interpolates by torchvision, which may differ from Pillow's by a level of 255.
    torch.testing.assert_close(generator.embeddings.vision(images), vision, rtol=0, atol=2e-3)
    assert (vision[0] - vision[1]).std() > 0.01
    grey = pipeline._encode_image_prompt([Image.new("RGB", (512, 512), (GREY,) * 3)], "cpu", 1, False)
    torch.testing.assert_close(generator.embeddings.null_vision(), grey, rtol=1e-4, atol=1e-5)


def test_vision_tokens_by_the_formula(generator, weights, images):
    """Resize, normalise, last states through the last norm and the projection, over the class token's length."""
    encoder = plain(weights, "image_encoder")
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    picture = picture.resize((512, 512), Image.Resampling.BILINEAR).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = (np.asarray(picture) / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    states = encoder(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()).last_hidden_state[0].double()
    norm, projection = encoder.vision_model.post_layernorm, encoder.visual_projection.weight.double()
    centred = states - states.mean(1, keepdim=True)
    normed = centred / (states.var(1, correction=0, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    found = normed @ projection.T
    expected = found / found[0].norm()
    torch.testing.assert_close(generator.embeddings.vision(images[:1])[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert float(generator.embeddings.vision(images)[2, 0].norm()) == pytest.approx(1, abs=1e-5)


def test_text_tokens_by_the_formula(generator, weights):
    """The length is that of the end mark's projected state, at its first place: padding repeats it."""
    encoder, caption = plain(weights, "text_encoder"), CAPTIONS[0]
    ids = generator.embeddings._tokenizer([caption], padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = encoder.text_model(input_ids=ids).last_hidden_state[0]
    found = states @ encoder.text_projection.weight.T
    end = 1 + len(caption.split())
    assert ids[0, [0, end - 1, end, 76]].tolist()[0::2] == [49406, 49407] and ids[0, 76] == 49407
    torch.testing.assert_close(generator.embeddings.text([caption])[0], found / found[end].norm(), rtol=1e-4, atol=1e-5)


def ids_of_clip(texts):
    """Padded with the end mark: clip pads with zeros; after the first end mark nothing is attended to."""
    import clip

    ids = clip.tokenize(texts, truncate=True)
    return ids.masked_fill((ids == 49407).cumsum(1) > 0, 49407)


def test_captions_become_the_ids_that_clip_was_trained_with(generator, monkeypatch):
    """Those of checkpoint files, and those of the vocabulary that ships with a package."""
    texts = [
        *CAPTIONS,
        "It's 1990, naïve café — 100% #1!",
        "",
        "  \t",
        "word " * 100,
        "日本語 🎉",
        "e\u0301té",
        "a--b_c",
    ]
    mended = ["it&amp;s", "don\u2019t \u201cquote\u201d", "\ufb01ne ½ ²", "cafÃ©"]
    for tokenizer in (generator.embeddings._tokenizer, clip_tokenizer()):
        assert torch.equal(token_ids(tokenizer, texts), ids_of_clip(texts))
        assert not (token_ids(tokenizer, mended) == ids_of_clip(mended)).all(1).any()
    # Without clip's own mending of texts, which the published scripts' tokenizer lacks, these are equal too.
    monkeypatch.setattr("clip.simple_tokenizer.basic_clean", str.strip)
    assert torch.equal(token_ids(clip_tokenizer(), mended), ids_of_clip(mended))


def test_text_target_is_the_mean_over_at_most_five_captions(generator, images):
    texts = [f"caption number {number}" for number in range(7)]
    captions = [texts, [CAPTIONS[0]], ["", " ", *texts[:2]]]
    found = generator.encode(Stimuli(images, captions, [None] * 3), ["text"], [0] * 3)["text"]
    each = generator.embeddings.text(texts)
    expected = [each[:5].mean(0), generator.embeddings.text(CAPTIONS[:1])[0], each[:2].mean(0)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_picture_without_captions_has_no_text_target(generator, images):
    stimuli = Stimuli(images, [["one"], [], [" "]], [None] * 3)
    with pytest.raises(BadDataError, match=r"needs captions: 2 of 3 stimuli .* the first at place 1"):
        generator.encode(stimuli, ["text"], [0] * 3)
    assert list(generator.encode(stimuli, ["vision"], [0] * 3)) == ["vision"]
    with pytest.raises(UnknownNameError, match=r"unknown target 'visoin'.*Did you mean 'vision'"):
        generator.encode(stimuli, ["visoin"], [0] * 3)


@pytest.mark.parametrize("mixing", [0.0, 0.4, 1.0])
def test_dual_attention_adds_the_residuals_in_the_ratio(generator, mixing):
    both = generator.unet.mid_block.attentions[0]
    assert isinstance(both, DualAttention) and both.mixing == 0.4
    draw = torch.Generator().manual_seed(0)
    states, conditions = torch.randn((2, 16, 2, 2), generator=draw), torch.randn((2, 334, 768), generator=draw)
    with torch.no_grad():
        vision = both.vision(states, encoder_hidden_states=conditions[:, :257], return_dict=False)[0]
        text = both.text(states, encoder_hidden_states=conditions[:, 257:], return_dict=False)[0]
        found = DualAttention(both.vision, both.text, mixing)(states, conditions)[0]
    expected = states + (1 - mixing) * (vision - states) + mixing * (text - states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (vision - text).abs().max() > 0.05


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_at_the_ends_of_mixing_guidance_is_single(load, weights, tokens, mixing):
    """No caption: the plain image UNet. Only captions: the image UNet with the text UNet's attention blocks."""
    unet = plain(weights, "image_unet")
    if mixing:
        load_twins(attention_blocks(unet), *state(weights, "text_unet"))
    condition = tokens["text" if mixing else "vision"]
    noise = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    both = torch.cat([tokens["vision"], tokens["text"]], dim=1)
    with torch.no_grad():
        found = load(mixing=mixing).unet(noise, 441, encoder_hidden_states=both).sample
        expected = unet(noise, 441, encoder_hidden_states=condition).sample
        other = load(mixing=0.5).unet(noise, 441, encoder_hidden_states=both).sample
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (found - other).abs().max() > 0.01


def test_guided_ddim_by_the_formula(load, tokens):
    """Guidance and DDIM steps written out (Ho & Salimans 2022; Song et al. 2021, eq. 12 with sigma 0)."""
    generator = load(steps=5, strength=0.6, guidance=3.0)
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    assert generator.sampler.cut == Cut(noised=601, taken=(401, 201, 1))
    given = {name: values[:1] for name, values in tokens.items()}
    draw = torch.Generator().manual_seed(2)
    start, noise = (torch.randn((1, 4, 8, 8), generator=draw) for _ in range(2))
    x = math.sqrt(kept[601]) * start + math.sqrt(1 - kept[601]) * noise
    with torch.no_grad():
        states = [torch.cat([each["vision"], each["text"]], dim=1) for each in (generator._null, given)]
        for step, before in ((401, kept[201]), (201, kept[1]), (1, kept[0])):
            null, towards = (generator.unet(x, step, encoder_hidden_states=each).sample for each in states)
            predicted = null + 3.0 * (towards - null)
            clean = (x - math.sqrt(1 - kept[step]) * predicted) / math.sqrt(kept[step])
            x = math.sqrt(before) * clean + math.sqrt(1 - before) * predicted
        draw = torch.Generator().manual_seed(2)
        start = torch.randn((1, 4, 8, 8), generator=draw)
        found = generator.sampler.redraw(start, [draw], guided(generator._guess, generator._null, given, 3.0))
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("steps", "strength", "noised", "taken"),
    [
        (50, 0.75, 741, range(721, 0, -20)),
        (50, 1.0, 981, range(981, 0, -20)),
        (50, 0.0, 1, []),
        (10, 0.3, 301, [201, 101, 1]),
    ],
)
def test_timesteps_of_img2img(steps, strength, noised, taken):
    """The published 37 of 50: noised to the 38th level, denoised from the 37th."""
    found = Sampler(scheduler("ddim"), steps, int(strength * steps)).cut
    assert found == Cut(noised, tuple(taken))
    assert len(found.taken) == int(strength * steps)


def noised(generator, images, seeds):
    """The latents from which denoising pictures starts."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = Sampler(scheduler("ddim"), generator.options.steps, 0)
    steps.cut = Cut(generator.sampler.cut.noised, ())
    with torch.no_grad():
        return steps.redraw(generator._sampled(images, generators), generators, None)


def test_a_first_guess_is_noised_by_the_formula(generator, weights, images):
    vae = plain(weights, "vae")
    seeds = [11, 12, 13]
    found = noised(generator, images, seeds)
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[generator.sampler.cut.noised]
    for row, seed in enumerate(seeds):
        picture = Image.fromarray(images[row].permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
        moments = vae.quant_conv(vae.encoder(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1))[0]
        draw = torch.Generator().manual_seed(seed)
        sample = moments[:4] + (moments[4:] / 2).exp() * torch.randn((4, 8, 8), generator=draw)
        noise = torch.randn((4, 8, 8), generator=draw)
        expected = math.sqrt(kept) * 0.18215 * sample + math.sqrt(1 - kept) * noise
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-4)


def test_without_a_step_the_noised_first_guess_is_decoded(load, images, tokens):
    generator = load(strength=0.0)
    latents = noised(generator, images, (1, 2, 3))
    with torch.no_grad():
        decoded = generator.vae.decode(latents / 0.18215).sample
    expected = ((decoded.clamp(-1, 1) / 2 + 0.5) * 255).round().to(torch.uint8)
    found = generator.render({**tokens, "image": images}, [1, 2, 3])
    assert (found.int() - expected.int()).abs().max() <= 1 and expected.float().std() > 20


def test_a_missing_condition_is_the_null_condition(generator, tokens, images):
    null = {name: value.expand(3, -1, -1) for name, value in generator._null.items()}
    seeds = [1, 2, 3]
    for given, absent in (("vision", "text"), ("text", "vision")):
        alone = generator.render({given: tokens[given]}, seeds)
        assert torch.equal(alone, generator.render({given: tokens[given], absent: null[absent]}, seeds))
        assert not torch.equal(alone, generator.render(tokens, seeds))
    unguided = generator.render({"image": images}, seeds)
    assert torch.equal(unguided, generator.render({**null, "image": images}, seeds))


def test_a_picture_from_a_first_guess_depends_on_its_own_seed_only(generator, tokens, images):
    inputs, seeds = {**tokens, "image": images}, [21, 22, 23]
    together = generator.render(inputs, seeds)
    rows = [2, 0]
    part = generator.render({k: v[rows] for k, v in inputs.items()}, [seeds[r] for r in rows])
    assert (part.int() - together[rows].int()).abs().max() <= 1
    other = generator.render(inputs, [21, 99, 23])
    assert (other[[0, 2]].int() - together[[0, 2]].int()).abs().max() <= 1 and not torch.equal(other[1], together[1])


def test_half_precision_stays_near_single(load, generator, tokens, images):
    half = load(precision="bfloat16")
    assert {p.dtype for p in half.unet.parameters()} | {p.dtype for p in half.vae.parameters()} == {torch.bfloat16}
    stimuli = Stimuli(images, [[text] for text in CAPTIONS], [None] * 3)
    for name, values in half.encode(stimuli, ["vision", "text"], [0] * 3).items():
        torch.testing.assert_close(values, tokens[name])
    inputs = {**tokens, "image": images}
    found, expected = half.render(inputs, [1, 2, 3]).float(), generator.render(inputs, [1, 2, 3]).float()
    assert (found - expected).abs().mean() < 8 and expected.std() > 20


def test_networks_are_frozen(generator):
    networks = [generator.unet, generator.vae, generator.embeddings._image_encoder, generator.embeddings._text_encoder]
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


V, T = torch.zeros(2, 257, 768), torch.zeros(2, 77, 768)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "versatile-diffusion renders from vision, text, image; got none"),
        ({"vision": V[:, 1:]}, r"vision must be \(B, 257, 768\) of floats, got \(2, 256, 768\) torch.float32"),
        ({"text": T.int()}, r"text must be \(B, 77, 768\) of floats, got .* torch.int32"),
        ({"text": T, "image": torch.zeros(2, 3, 64, 64)}, r"image must be \(B, 3, H, W\) uint8, got .* torch.float32"),
        ({"vision": V[:1]}, "1 inputs 'vision' but 2 seeds"),
        ({"vision": V, "text": torch.full_like(T, torch.nan)}, "text holds NaN or infinite"),
    ],
)
def test_bad_inputs(generator, inputs, message):
    with pytest.raises(ValueError, match=message):
        generator.render(inputs, [0, 1])


def test_unknown_input_and_no_pictures(generator, tokens):
    with pytest.raises(UnknownNameError, match=r"unknown input 'txt'.*Did you mean 'text'"):
        generator.render({"txt": tokens["text"]}, [0, 1, 2])
    nothing = generator.render({name: values[:0] for name, values in tokens.items()}, [])
    assert nothing.shape == (0, 3, 64, 64) and nothing.dtype == torch.uint8
