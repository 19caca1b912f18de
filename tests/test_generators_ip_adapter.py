"""IP-Adapter-Plus: tokens and pictures against diffusers' own pipeline, and what a wrong checkpoint says."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import small_checkpoints
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoints import ip_adapter as small
from small_checkpoints import stable_diffusion

from bench.core.errors import CorruptFileError
from bench.generators._diffusion.sampler import scheduler
from bench.generators._networks.stable_diffusion import build_parts
from bench.generators.base import MissingWeightsError, Stimuli
from bench.generators.choice import GeneratorChoice
from bench.generators.ip_adapter.adapter import CHECKPOINT, build_encoder, shapes
from bench.generators.ip_adapter.model import clip_pixels

CPU = torch.device("cpu")
NAME = "ip-adapter"
ADAPTER = "models/ip-adapter-plus_sd15"


@pytest.fixture(scope="module")
def generator(weights):
    torch.set_num_threads(1)
    return GeneratorChoice(
        NAME, {"weights": str(weights), "steps": 3, "scale": 0.6, "negative_prompt": "the hen"}
    ).load(CPU)


@pytest.fixture(scope="module")
def pipeline(weights):
    """diffusers' pipeline over networks of its own from the same files, the adapter loaded by it from its folder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

    base = weights / "stable-diffusion-v1-5"
    networks = SimpleNamespace(
        vae=AutoencoderKL.from_pretrained(base / "vae", low_cpu_mem_usage=False, use_safetensors=False),
        text=CLIPTextModel.from_pretrained(base / "text_encoder", use_safetensors=False),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer", model_max_length=77),
        unet=UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False, use_safetensors=False),
    )
    extractor = CLIPImageProcessor(size=224, crop_size=224)
    found = stable_diffusion.pipeline(
        StableDiffusionPipeline, networks, feature_extractor=extractor, image_encoder=None
    )
    found.load_ip_adapter(
        str(weights / CHECKPOINT.name),
        subfolder="models",
        weight_name="ip-adapter-plus_sd15.safetensors",
        low_cpu_mem_usage=False,
    )
    found.set_ip_adapter_scale(0.6)
    return found


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 3, 7, 7), dtype=np.uint8)
    return torch.from_numpy(blocks).repeat_interleave(32, 2).repeat_interleave(32, 3)


@pytest.fixture(scope="module")
def tokens(generator, images):
    return generator.encode(Stimuli(images, [[], []], [None, None]), ["tokens"], [0, 1])["tokens"]


def test_tokens_are_those_of_diffusers_own_pipeline(generator, pipeline, images, tokens):
    """The pipeline resamples image states within the UNet; its resampler is applied here to what it prepares."""
    resampler = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    for image, made in zip(images, tokens, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        states = pipeline.prepare_ip_adapter_image_embeds(picture, None, CPU, 1, True)[0]
        with torch.no_grad():
            null, own = resampler(states[:, 0])
        torch.testing.assert_close(made, own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generator.null["tokens"][0, 0], null, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (2, 16, 768) and (tokens[0] - tokens[1]).abs().max() > 0.05


def test_pictures_from_tokens_are_those_the_pipeline_makes_from_the_picture(generator, pipeline, images, tokens):
    pipeline.scheduler = scheduler("ddim", generator.networks.noise)
    expected = pipeline(
        "",
        negative_prompt="the hen",
        ip_adapter_image=Image.fromarray(images[1].permute(1, 2, 0).numpy()),
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(4)],
        output_type="pt",
    ).images
    made = generator.render({"tokens": tokens}, [3, 4])
    assert (made[1:].float() - expected * 255).abs().max() <= 1
    assert made.float().std() > 5 and not torch.equal(made[0], made[1])


def test_tokens_scale_and_text_change_the_picture(generator, weights, tokens):
    one = {"tokens": tokens[:1]}
    made = generator.render(one, [3])
    assert not torch.equal(made, generator.render({"tokens": tokens[1:]}, [3]))
    text = generator.networks.text_states(["the ant on a train"])
    assert not torch.equal(made, generator.render({**one, "text": text}, [3]))
    assert torch.equal(made, generator.render({**one, "text": generator.networks.text_states([""])}, [3]))
    settings = {**dataclasses.asdict(generator.options), "prompt": "the ant on a train"}
    named = GeneratorChoice(NAME, settings).load(CPU)
    assert torch.equal(named.render(one, [3]), generator.render({**one, "text": text}, [3]))
    weaker = GeneratorChoice(NAME, {**dataclasses.asdict(generator.options), "scale": 0.1}).load(CPU)
    assert not torch.equal(made, weaker.render(one, [3]))


def test_without_guidance_nothing_is_steered_away_from(generator, tokens):
    plain = small_checkpoints.with_options(generator, guidance=1.0)
    made = plain.render({"tokens": tokens}, [3, 4])
    plain.null = {**generator.null, "tokens": generator.null["tokens"] + 1}
    assert torch.equal(made, plain.render({"tokens": tokens}, [3, 4]))


def test_pixels_are_clips_own_preprocessing():
    """A wide picture: shorter side to 224 px, middle square, CLIP's channel statistics (torchvision's arithmetic)."""
    from torchvision.transforms import v2

    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.integers(0, 256, (3, 30, 45), dtype=np.uint8)).repeat_interleave(10, 1)
    image = image.repeat_interleave(10, 2)
    steps = v2.Compose(
        [
            v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        ]
    )
    expected = steps(Image.fromarray(image.permute(1, 2, 0).numpy()))
    torch.testing.assert_close(clip_pixels(image[None])[0], expected, rtol=1e-5, atol=1e-5)
    assert clip_pixels(torch.zeros(0, 3, 30, 30, dtype=torch.uint8)).shape == (0, 3, 224, 224)


def test_what_cannot_be_rendered_is_said(generator, tokens):
    with pytest.raises(ValueError, match="ip-adapter renders from tokens; got text"):
        generator.render({"text": torch.zeros(1, 77, 768)}, [0])
    with pytest.raises(ValueError, match="2 inputs 'tokens' but 1 seeds"):
        generator.render({"tokens": tokens}, [0])


def test_missing_adapter_is_found_before_anything_is_read(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "stable-diffusion-v1-5").symlink_to(weights / "stable-diffusion-v1-5")
    with pytest.raises(MissingWeightsError, match=r"ip-adapter are not .*h94/IP-Adapter .*Licence: Apache-2.0"):
        GeneratorChoice(NAME, {"weights": str(tmp_path / "w")}).load(CPU)


@pytest.fixture
def broken(weights, tmp_path):
    """A copy of the small adapter to be damaged, and how to load it."""
    (tmp_path / "stable-diffusion-v1-5").symlink_to(weights / "stable-diffusion-v1-5")
    shutil.copytree(weights / CHECKPOINT.name, tmp_path / CHECKPOINT.name)
    return tmp_path / CHECKPOINT.name, lambda: GeneratorChoice(NAME, {"weights": str(tmp_path), "steps": 1}).load(CPU)


def test_the_plain_file_of_mappings_loads_too(broken, generator, images, tokens):
    folder, load = broken
    shutil.rmtree(folder)
    small.save_adapter(folder, safetensors=False)
    assert not list(folder.rglob("*.safetensors"))
    made = load().encode(Stimuli(images, [[], []], [None, None]), ["tokens"], [0, 1])["tokens"]
    torch.testing.assert_close(made, tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("image_proj.latents", None, "is not an IP-Adapter-Plus: image_proj has no 'latents'"),
        ("ip_adapter.3.to_k_ip.weight", None, r"holds .*1 missing \(ip_adapter.3.to_k_ip.weight"),
        ("ip_adapter.99.to_k_ip.weight", torch.zeros(8, 768), r"holds .*1 unknown \(ip_adapter.99.to_k_ip.weight"),
        ("image_proj.proj_out.bias", torch.zeros(1280), r"proj_out.bias \(1280,\) instead of \(768,\)"),
    ],
)
def test_another_adapter_is_refused(broken, entry, value, message):
    folder, load = broken
    file = (folder / ADAPTER).with_suffix(".safetensors")
    state = load_file(file)
    state.pop(entry, None)
    save_file(state | ({} if value is None else {entry: value}), file)
    with pytest.raises(CorruptFileError, match=message):
        load()


def test_a_damaged_image_encoder_is_named(broken):
    folder, load = broken
    (folder / "models" / "image_encoder" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CorruptFileError, match="image_encoder cannot be read as a CLIPVisionModelWithProjection"):
        load()


def test_the_published_file_has_these_entries():
    """Counted from the published file's description: 16 cross-attentions, a resampler of 4 layers, 98 MB in float16."""
    with torch.device("meta"):
        unet = build_parts()[1]
        encoder = sum(p.numel() for p in build_encoder().parameters())
    assert encoder == 632_076_800
    names = shapes(unet, 1280, 768)
    assert list(names["ip_adapter"])[::2] == [f"{number}.to_k_ip.weight" for number in range(1, 33, 2)]
    widths = [shape[0] for shape in names["ip_adapter"].values()][::2]
    assert widths == [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]
    assert names["image_proj"]["layers.3.0.to_kv.weight"] == (1536, 768)
    chosen = GeneratorChoice(NAME, {"untrained": True})
    assert chosen.kind.weights_digest(chosen.options) == "untrained:0"
    size = chosen.kind.weights_size(chosen.options).parameters
    adapter = sum(int(np.prod(shape)) for part in names.values() for shape in part.values())
    assert size == 859_520_964 + 83_653_863 + 123_060_480 + 632_076_800 + adapter


@pytest.mark.fullsize
@pytest.mark.timeout(1800)
def test_one_step_at_full_size():
    """Every random weight of the published size, tokens of a picture, one denoising step at 512 px, bfloat16."""
    generator = GeneratorChoice(NAME, {"untrained": True, "steps": 1, "precision": "bfloat16"}).load(CPU)
    image = torch.randint(0, 256, (1, 3, 425, 425), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tokens = generator.encode(Stimuli(image, [[]], [None]), ["tokens"], [0])["tokens"]
    assert tokens.shape == (1, 16, 768) and tokens.std() > 0
    resampler = sum(p.numel() for p in generator.adapter.resampler.parameters())
    assert resampler == sum(int(np.prod(s)) for s in shapes(build_parts()[1], 1280, 768)["image_proj"].values())
    pictures = generator.render({"tokens": tokens}, [0])
    assert pictures.shape == (1, 3, 512, 512) and pictures.float().std() > 0
