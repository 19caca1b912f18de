"""Stable Diffusion v1: targets and pictures against diffusers' own pipelines, and what a wrong checkpoint says."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoints import stable_diffusion as small
from small_checkpoints import with_options

from bench.core.errors import BadDataError, CorruptFileError, OptionError
from bench.generators._diffusion.sampler import Cut, generators_of, guided, noise_of, scheduler
from bench.generators._diffusion.vae import pictures_of
from bench.generators._networks.stable_diffusion import CHECKPOINTS, build_parts
from bench.generators.base import MissingWeightsError, Stimuli
from bench.generators.choice import GeneratorChoice

CPU = torch.device("cpu")
NAME = "stable-diffusion"
FOLDER = CHECKPOINTS["v1.4"].name


@pytest.fixture(scope="module")
def generator(weights):
    torch.set_num_threads(1)
    return GeneratorChoice(NAME, {"weights": str(weights), "steps": 6, "strength": 0.7}).load(CPU)


@pytest.fixture(scope="module")
def pipeline(generator):
    """diffusers' img2img over the same networks."""
    from diffusers import StableDiffusionImg2ImgPipeline

    return small.pipeline(StableDiffusionImg2ImgPipeline, generator.networks)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 3, 5, 5), dtype=np.uint8)
    return torch.from_numpy(blocks).repeat_interleave(85, 2).repeat_interleave(85, 3)


def stimuli_of(images, captions):
    return Stimuli(images, captions, [None] * len(images))


CAPTIONS = [["a train in the rain"], ["then", "the ant and the hen on a tin"], ["anon"]]


@pytest.mark.parametrize(("target", "size"), [("z", 320), ("z512", 512)])
def test_latents_are_scaled_posterior_modes(generator, weights, images, target, size):
    from diffusers import AutoencoderKL

    made = generator.encode(stimuli_of(images, CAPTIONS), [target], [0, 1, 2])[target]
    vae = AutoencoderKL.from_pretrained(weights / FOLDER / "vae", low_cpu_mem_usage=False)
    for image, latent in zip(images, made, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.LANCZOS)
        pixels = 2 * torch.from_numpy(np.array(picture)).float().permute(2, 0, 1)[None] / 255 - 1
        with torch.no_grad():
            moments = vae.quant_conv(vae.encoder(pixels))  # means of four channels, then log variances
        torch.testing.assert_close(latent, 0.18215 * moments[0, :4], rtol=1e-4, atol=1e-4)
    assert made[0].sub(made[1]).abs().max() > 0.1


def test_text_is_the_mean_over_captions_of_the_last_hidden_states(generator, weights, images):
    from transformers import CLIPTextModel, CLIPTokenizer

    made = generator.encode(stimuli_of(images, CAPTIONS), ["text"], [0, 1, 2])["text"]
    tokenizer = CLIPTokenizer.from_pretrained(weights / FOLDER / "tokenizer")
    tower = CLIPTextModel.from_pretrained(weights / FOLDER / "text_encoder").eval()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for texts, states in zip(CAPTIONS, made, strict=True):
        total = torch.zeros(77, 768)
        for text in texts:
            ids = tokenizer(text).input_ids
            ids = ids + [end] * (77 - len(ids))
            with torch.no_grad():
                total += tower(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(states, total / len(texts), rtol=1e-4, atol=1e-4)


def test_long_captions_are_cut_to_77_tokens(generator):
    tokens = generator.networks.text_states(["the ant " * 80])
    assert tokens.shape == (1, 77, 768)


def test_a_stimulus_without_captions_has_no_text(generator, images):
    with pytest.raises(BadDataError, match="1 of 3 stimuli of a batch have none, the first at place 1"):
        generator.encode(stimuli_of(images, [["a"], [], ["b"]]), ["text"], [0, 1, 2])


@pytest.mark.parametrize(("strength", "guidance"), [(0.7, 5.0), (1.0, 2.5)])
def test_img2img_equals_diffusers_own(generator, pipeline, strength, guidance):
    """Same latents, states, generators and steps; the pipeline's start is noised a step more, as published."""
    from diffusers import DDIMScheduler

    class Published(DDIMScheduler):
        def add_noise(self, latents, noise, timesteps):
            return super().add_noise(latents, noise, (timesteps + 1000 // 6).clamp(max=int(self.timesteps[0])))

    draws = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 4, 64, 64, generator=draws), torch.randn(2, 77, 768, generator=draws)
    pipeline.scheduler = Published.from_config(scheduler("ddim", generator.networks.noise).config)
    expected = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=generator.null.expand(2, -1, -1),
        image=latents,
        strength=strength,
        num_inference_steps=6,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in (11, 12)],
        output_type="pt",
    ).images
    chosen = with_options(generator, strength=strength, guidance=guidance)
    made = chosen.render({"z512": latents, "text": text}, [11, 12])
    assert (made.float() - expected * 255).abs().max() <= 1
    assert made.float().std() > 5


def published_cut(steps, strength):
    """`make_ddim_timesteps`, `stochastic_encode`, `decode` of the published sampler, as Takagi's script calls them."""
    ddim_timesteps = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    t_enc = int(strength * steps)
    return Cut(ddim_timesteps[t_enc], tuple(np.flip(ddim_timesteps[:t_enc])))


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
@pytest.mark.parametrize(("steps", "strength"), [(50, 0.8), (50, 0.75), (50, 0.58), (20, 0.99), (10, 0.3), (50, 0.0)])
def test_img2img_takes_the_timesteps_of_the_published_script(generator, sampler, steps, strength):
    made = generator.networks.sampler(with_options(generator, sampler=sampler, steps=steps).options, strength)
    assert made.timesteps == tuple(range(1000 - 1000 // steps + 1, 0, -1000 // steps))
    assert made.cut == published_cut(steps, strength)
    if (steps, strength) == (50, 0.8):
        assert made.cut == Cut(801, tuple(range(781, 0, -20)))


def test_all_of_the_schedule_starts_from_its_noisiest_level(generator):
    """There is no level above; the published sampler would read beyond its table."""
    assert generator.networks.sampler(with_options(generator, steps=50).options, 1.0).cut.noised == 981


def reference(predict, x, taken, sampler):
    """DDIM (Song et al. 2021, eq. 12), or PLMS as `p_sample_plms` of the published code, written out."""
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    old = []

    def moved(noise, step, before):
        clean = (x - math.sqrt(1 - kept[step]) * noise) / math.sqrt(kept[step])
        return math.sqrt(kept[before]) * clean + math.sqrt(1 - kept[before]) * noise

    for step, before in zip(taken, [*taken[1:], 0], strict=True):
        noise = predict(x, step)
        if sampler == "plms" and not old:
            mixed = (noise + predict(moved(noise, step, before), before)) / 2
        else:
            weights = [(1,), (3, -1), (23, -16, 5), (55, -59, 37, -9)][len(old) if sampler == "plms" else 0]
            mixed = sum(w * n for w, n in zip(weights, [noise, *old], strict=False)) / sum(weights)
        x, old = moved(mixed, step, before), [noise, *old][:3]
    return x


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
@torch.no_grad()
def test_img2img_by_the_formulas(generator, sampler):
    """From the level of the fifth of eight timesteps through the fourth to the first."""
    draws = torch.Generator().manual_seed(3)
    start, text = torch.randn(1, 4, 64, 64, generator=draws), torch.randn(1, 77, 768, generator=draws)
    noise = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(7))
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[501]

    def predict(x, step):
        null, given = (generator.networks.guess(x, step, {"text": t}) for t in (generator.null, text))
        return null + 3.0 * (given - null)

    noised = math.sqrt(kept) * start + math.sqrt(1 - kept) * noise
    expected = reference(predict, noised, [376, 251, 126, 1], sampler)
    made = generator.networks.sampler(with_options(generator, sampler=sampler, steps=8).options, 0.5)
    guess = guided(generator.networks.guess, {"text": generator.null}, {"text": text}, 3.0)
    for _ in range(2):  # a sampler remembers nothing of an earlier picture
        found = made.redraw(start, generators_of([7]), guess)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_without_a_start_the_whole_schedule_is_drawn_from_noise(generator):
    from diffusers import StableDiffusionPipeline

    parts, steps = generator.networks, scheduler("ddim", generator.networks.noise)
    own = small.pipeline(StableDiffusionPipeline, parts, scheduler=steps)
    expected = own(
        "the ant",
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="pt",
    ).images
    made = with_options(generator, steps=3).render({"text": parts.text_states(["the ant"])}, [5])
    assert (made.float() - expected * 255).abs().max() <= 1


def test_timesteps_are_those_of_the_published_code(generator):
    for sampler in ("ddim", "plms"):
        steps = scheduler(sampler, generator.networks.noise)
        steps.set_timesteps(50)
        assert sorted(set(steps.timesteps.tolist())) == list(range(1, 1000, 20))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    torch.testing.assert_close(steps.alphas_cumprod.double(), kept, rtol=1e-4, atol=1e-6)


def test_a_small_latent_passes_through_a_picture_of_512_px(generator, images):
    """As published: decoded at 320 px, resized to 512 px, encoded, and only then noised."""
    z = generator.encode(stimuli_of(images[:1], CAPTIONS[:1]), ["z"], [0])["z"]
    decoded = pictures_of(generator.networks.vae, z, 1)
    assert decoded.shape == (1, 3, 320, 320)
    larger = [Image.fromarray(each.permute(1, 2, 0).numpy()).resize((512, 512)) for each in decoded]
    pixels = torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in larger]).float() / 127.5 - 1
    with torch.no_grad():
        start = 0.18215 * generator.networks.vae.encode(pixels).latent_dist.mode()
    chosen = with_options(generator, steps=3)
    expected = chosen.render({"z512": start}, [1])
    assert (chosen.render({"z": z}, [1]).int() - expected.int()).abs().max() <= 1
    assert (chosen.render({"image": decoded}, [1]).int() - expected.int()).abs().max() <= 1


def test_strength_zero_decodes_the_start_at_the_lowest_level(generator):
    """As published: noised to the level of timestep 1, and no step is taken."""
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(9))
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[1]
    noised = math.sqrt(kept) * latents + math.sqrt(1 - kept) * noise
    made = with_options(generator, strength=0.0).render({"z512": latents}, [9])
    with torch.no_grad():
        expected = generator.networks.vae.decode(noised / 0.18215).sample
    assert (made.float() - (expected.clamp(-1, 1) + 1) * 127.5).abs().max() <= 1


def test_missing_text_is_the_empty_prompt(generator):
    z = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generator.null, generator.networks.text_states([""]))
    chosen = with_options(generator, steps=2)
    without = chosen.render({"z512": z}, [4])
    assert torch.equal(without, chosen.render({"z512": z, "text": generator.null}, [4]))
    assert not torch.equal(
        without, chosen.render({"z512": z, "text": generator.networks.text_states(["the hen"])}, [4])
    )


def test_each_picture_has_noise_of_its_own_seed():
    drawn = noise_of(generators_of([3, 8, 3]), (4, 64, 64), CPU)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], noise_of(generators_of([8]), (4, 64, 64), CPU)[0])
    assert drawn.mean().abs() < 0.02 and (drawn.std() - 1).abs() < 0.02
    assert noise_of([], (4, 64, 64), CPU).shape == (0, 4, 64, 64)


def test_no_pictures_are_drawn_for_no_seeds(generator):
    assert generator.render({"text": torch.zeros(0, 77, 768)}, []).shape == (0, 3, 512, 512)


def test_two_starts_or_another_number_of_seeds_are_refused(generator):
    z, z512 = torch.zeros(1, 4, 40, 40), torch.zeros(1, 4, 64, 64)
    with pytest.raises(ValueError, match="starts from one of z, z512, image, got z and z512"):
        generator.render({"z": z, "z512": z512}, [0])
    with pytest.raises(ValueError, match="1 inputs 'z' but 2 seeds"):
        generator.render({"z": z}, [0, 1])


def test_both_models_load_from_either_kind_of_file(weights, generator):
    other = GeneratorChoice(NAME, {"weights": str(weights), "model": "v1.5"})
    assert not list((weights / CHECKPOINTS["v1.5"].name).rglob("*.safetensors"))
    loaded = other.load(CPU)
    assert loaded.networks.unet.config.cross_attention_dim == 768
    first = GeneratorChoice(NAME, {"weights": str(weights)})
    assert other.kind.weights_digest(other.options) != first.kind.weights_digest(first.options)
    sizes = [each.kind.weights_size(each.options).parameters for each in (first, other)]
    parts = generator.networks
    own = sum(p.numel() for part in (parts.vae, parts.unet, parts.text) for p in part.parameters())
    assert sizes == [own + 77, own + 77]  # published text towers also hold the positions 0 ... 76


def test_precision_is_asked_for_or_that_of_the_device(weights):
    loaded = GeneratorChoice(NAME, {"weights": str(weights), "precision": "bfloat16", "steps": 2}).load(CPU)
    assert {each.dtype for each in loaded.networks.unet.parameters()} == {torch.bfloat16}
    pictures = loaded.render({"z512": torch.zeros(1, 4, 64, 64)}, [0])
    assert pictures.dtype == torch.uint8 and loaded.null.dtype == torch.float32


@pytest.fixture
def broken(weights, tmp_path):
    """A copy of the small v1.4 to be damaged, and how to load it."""
    shutil.copytree(weights / FOLDER, tmp_path / FOLDER)

    def load():
        return GeneratorChoice(NAME, {"weights": str(tmp_path)}).load(CPU)

    return tmp_path / FOLDER, load


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingWeightsError) as raised:
        GeneratorChoice(NAME).load(CPU)
    put = tmp_path / "home" / "weights" / FOLDER
    for part in (f"there is no {put}", "unet/diffusion_pytorch_model.safetensors", "CompVis/stable-diffusion-v1-4"):
        assert part in str(raised.value)
    assert f"into {put}" in str(raised.value) and "CreativeML OpenRAIL-M" in str(raised.value)


def change_entry(folder, part, edit):
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    edit(state)
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "entry", "value", "message"),
    [
        ("unet", "conv_in.bias", None, r"unet holds the weights of another network: 1 missing \(conv_in.bias"),
        ("unet", "more.weight", torch.zeros(2), r"unet holds .*1 unknown \(more.weight"),
        ("vae", "decoder.conv_in.bias", torch.zeros(3), r"vae holds .*bias \(3,\) instead of \(8,\)"),
        ("text_encoder", "text_model.final_layer_norm.bias", None, r"text_encoder holds .*1 missing"),
    ],
)
def test_weights_of_another_network_are_refused(broken, part, entry, value, message):
    folder, load = broken

    def edit(state):
        state.pop(entry, None)
        state |= {} if value is None else {entry: value}

    change_entry(folder, part, edit)
    with pytest.raises(CorruptFileError, match=message):
        load()


def test_another_model_of_the_same_classes_is_refused(broken):
    from diffusers import UNet2DConditionModel

    folder, load = broken
    config = {**small.unet().config, "cross_attention_dim": 1024}
    other = UNet2DConditionModel.from_config(config)
    shutil.rmtree(folder / "unet")
    other.save_pretrained(folder / "unet")
    schedule = folder / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps({**json.loads(schedule.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(CorruptFileError, match=r"not a Stable Diffusion v1 model: cross-attention width 1024 .*; pred"):
        load()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/diffusion_pytorch_model.safetensors", b"no tensors", "unet cannot be read as a UNet2DConditionModel"),
        ("unet/config.json", b"{", "unet cannot be read as a UNet2DConditionModel"),
        ("text_encoder/model.safetensors", b"", "text_encoder cannot be read as a CLIPTextModel"),
        ("scheduler/scheduler_config.json", b"[1]", "scheduler_config.json must hold a mapping, got list"),
        ("scheduler/scheduler_config.json", b"{", "scheduler_config.json is not JSON"),
        ("tokenizer/vocab.json", b"{", "vocab.json is not JSON"),
        ("tokenizer/vocab.json", b'{"t": 1}', r"vocab.json is no vocabulary of CLIP: it lacks <\|startoftext\|>"),
        ("tokenizer/merges.txt", b"#version: 0.2\nx yz\n", "merges.txt: 'x yz' is no pair of pieces of vocab.json"),
    ],
)
def test_damaged_files_are_named(broken, file, content, message):
    folder, load = broken
    (folder / file).write_bytes(content)
    with pytest.raises(CorruptFileError, match=message):
        load()


def test_code_in_a_plain_file_is_not_run(broken, tmp_path):
    folder, load = broken

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.bias": Payload()}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CorruptFileError, match="unet cannot be read"):
        load()
    assert not (tmp_path / "run").exists()


def test_untrained_is_said_in_the_digest_and_has_the_published_size():
    chosen = GeneratorChoice(NAME, {"untrained": True})
    assert chosen.kind.weights_digest(chosen.options) == "untrained:0"
    assert chosen.identity(render=False)["options"]["untrained"] is True
    size = chosen.kind.weights_size(chosen.options)
    assert size.parameters == 859_520_964 + 83_653_863 + 123_060_480
    assert size.bytes == 4 * size.parameters
    with pytest.raises(OptionError, match="untrained asks for random weights"):
        _ = GeneratorChoice(NAME, {"untrained": True, "weights": "somewhere"}).options


def test_parameters_at_full_size():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in module.parameters()) for module in build_parts()]
    assert counts == [83_653_863, 859_520_964, 123_060_480]


@pytest.mark.fullsize
@pytest.mark.timeout(1800)
def test_one_step_at_full_size():
    """Every random weight of the published size, one denoising step at 512 px, float32."""
    generator = GeneratorChoice(NAME, {"untrained": True, "steps": 1, "strength": 1.0}).load(CPU)
    images = torch.randint(0, 256, (1, 3, 425, 425), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    encoded = generator.encode(stimuli_of(images, [["a plane", "an aeroplane in the sky"]]), ["z", "text"], [0])
    assert encoded["z"].shape == (1, 4, 40, 40) and encoded["text"].shape == (1, 77, 768)
    pictures = generator.render(encoded, [0])
    assert pictures.shape == (1, 3, 512, 512) and pictures.float().std() > 0
    tokens = generator.networks.tokenizer("a photo of a cat").input_ids
    assert tokens == [49406, 320, 1125, 539, 320, 2368, 49407]  # as OpenAI's own tokenizer gives them
