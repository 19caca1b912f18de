"""Versatile Diffusion's files: what is read, what is refused, and the network at its published size."""

import json
import resource
import shutil
import time

import pytest
import torch
from safetensors.torch import save_file
from small_checkpoints import versatile_diffusion as small

from bench.core.errors import CorruptFileError
from bench.generators.base import MissingWeightsError, Stimuli
from bench.generators.versatile_diffusion import VersatileDiffusion, VersatileDiffusionOptions, parts
from bench.generators.versatile_diffusion.parts import CHECKPOINT, WEIGHTS

PUBLISHED_PARAMETERS = {
    "image_unet": 859_520_964,
    "attention blocks of the text UNet": 267_239_360,
    "vae": 83_653_863,
    "image_encoder": 303_966_208,
    "text_encoder": 123_650_304,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("versatile")
    small.save(folder)
    return folder


@pytest.fixture
def weights(saved, tmp_path, monkeypatch):
    """A copy that a test may spoil, on a machine that has no other."""
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(saved, tmp_path / "weights")
    return tmp_path / "weights"


def options(weights, **given):
    return VersatileDiffusionOptions(**{"weights": str(weights), **small.SETTINGS, **given})


def load(weights, **given):
    return VersatileDiffusion(options(weights, **given), torch.device("cpu"))


def file_of(weights, part):
    return weights / CHECKPOINT.name / part / WEIGHTS[part][0]


def picture(generator):
    """Targets of one picture and what is rendered from them and the picture."""
    image = (torch.arange(3 * 70 * 70).view(1, 3, 70, 70) % 251).to(torch.uint8)
    targets = generator.encode(Stimuli(image, [["a wave"]], [None]), ["vision", "text"], [0])
    return {**targets, "picture": generator.render({**targets, "image": image}, [3]).float()}


def test_size_and_digest_come_from_the_files_alone(weights, monkeypatch):
    monkeypatch.setattr(parts, "load", lambda *_: pytest.fail("networks were loaded"))
    chosen = options(weights)
    size = VersatileDiffusion.weights_size(chosen)
    states = [torch.load(file_of(weights, part), weights_only=True) for part in WEIGHTS]
    assert size.parameters == sum(tensor.numel() for state in states for tensor in state.values())
    assert size.bytes == sum(file_of(weights, part).stat().st_size for part in WEIGHTS)
    before = VersatileDiffusion.weights_digest(chosen)
    assert before == VersatileDiffusion.weights_digest(options(weights, steps=9)) and len(bytes.fromhex(before)) == 32
    torch.save({**states[0], "extra": torch.zeros(1)}, file_of(weights, "image_unet"))
    assert VersatileDiffusion.weights_digest(chosen) != before


def test_the_size_of_untrained_networks_is_the_published_one():
    chosen = VersatileDiffusionOptions(untrained=True)
    size = VersatileDiffusion.weights_size(chosen)
    assert size.parameters == sum(PUBLISHED_PARAMETERS.values()) and size.bytes == 4 * size.parameters
    assert VersatileDiffusion.weights_digest(chosen).startswith("untrained:")


def test_safetensors_and_former_names_give_the_same_pictures(weights):
    """Converted files, the VAE's attention as diffusers named it at publication, positions stored as weights."""
    before = picture(load(weights))
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for part, (plain, converted) in WEIGHTS.items():
        state = torch.load(file_of(weights, part), weights_only=True)
        if part == "vae":
            for now, then in former.items():
                state = {name.replace(f".{now}.", f".{then}."): tensor for name, tensor in state.items()}
            assert sum(".query." in name for name in state) == 4
        if part.endswith("encoder"):
            kind = part.replace("image_encoder", "vision_model").replace("text_encoder", "text_model")
            state[f"{kind}.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(state, file_of(weights, part).with_name(converted))
        (weights / CHECKPOINT.name / part / plain).unlink()
    after = picture(load(weights))
    for name, values in before.items():
        torch.testing.assert_close(after[name], values)


def test_the_text_unets_other_layers_do_not_matter(weights):
    before = picture(load(weights))
    path = file_of(weights, "text_unet")
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if ".attentions." in name}, path)
    assert torch.equal(picture(load(weights))["picture"], before["picture"])
    torch.save({name: value.flip(0) for name, value in state.items()}, path)
    assert not torch.equal(picture(load(weights))["picture"], before["picture"])


@pytest.mark.parametrize("part", ["tokenizer", "text_unet", "image_encoder"])
def test_missing_files_say_what_to_do(weights, part):
    shutil.rmtree(weights / CHECKPOINT.name / part)
    with pytest.raises(MissingWeightsError) as error:
        load(weights)
    message = str(error.value)
    assert f"{weights / CHECKPOINT.name} lacks {part}/" in message and "shi-labs/versatile-diffusion" in message
    assert "Licence: MIT" in message and "\n" not in message
    with pytest.raises(MissingWeightsError):
        VersatileDiffusion.weights_digest(options(weights))


def spoil(weights, part, change):
    path = file_of(weights, part)
    torch.save(change(torch.load(path, weights_only=True)), path)


def without_last(state):
    return dict(list(state.items())[:-1])


def narrower(state):
    return {name: value[..., :-1] if name.endswith("attn2.to_v.weight") else value for name, value in state.items()}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("image_unet", without_last, "image_unet.*holds the weights of another network: 1 missing"),
        ("image_unet", narrower, r"image_unet.*of another shape \(.*767.* instead of .*768"),
        ("vae", lambda state: {**state, "colour": torch.zeros(2)}, r"vae.*another network: 1 unknown \(colour"),
        ("text_encoder", without_last, "text_encoder.*another network: 1 missing"),
        ("text_unet", narrower, r"text_unet.*bin holds .* of another shape \(.*767.* instead of .*768"),
        ("text_unet", lambda _: {"conv_in.weight": torch.zeros(2)}, "text_unet.*bin holds .* missing"),
    ],
)
def test_weights_of_another_network_are_refused(weights, part, change, message):
    spoil(weights, part, change)
    with pytest.raises(CorruptFileError, match=message) as error:
        load(weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["text_unet/diffusion_pytorch_model.bin", "scheduler/scheduler_config.json"])
def test_unreadable_files_are_named(weights, name):
    (weights / CHECKPOINT.name / name).write_bytes(b"not what it should be")
    with pytest.raises(CorruptFileError, match=name.partition("/")[2]):
        load(weights)


def test_another_model_of_the_same_classes_is_refused(weights):
    place = weights / CHECKPOINT.name
    wider = small.build("text_encoder", projection_dim=1024)
    wider.config.save_pretrained(place / "text_encoder")
    torch.save(wider.state_dict(), file_of(weights, "text_encoder"))
    (place / "scheduler/scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    message = "is not Versatile Diffusion: caption token width 1024 instead of 768; prediction type v_prediction"
    with pytest.raises(CorruptFileError, match=message):
        load(weights)


def test_pixel_statistics_must_be_there(weights):
    path = weights / CHECKPOINT.name / "image_feature_extractor/preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(CorruptFileError, match=r"preprocessor_config.json must give three numbers .* None"):
        load(weights)


@pytest.mark.fullsize
@pytest.mark.timeout(1800)
def test_one_dual_guided_step_at_the_published_size():
    """Random weights: sizes of all parts, targets of the published shapes, one guided step of a 512-pixel picture."""
    started = time.monotonic()
    generator = VersatileDiffusion(
        VersatileDiffusionOptions(untrained=True, steps=1, precision="bfloat16"), torch.device("cpu")
    )
    loaded = time.monotonic()
    text = sum(p.numel() for name, p in generator.unet.named_parameters() if ".text." in name)
    found = {
        "image_unet": sum(p.numel() for p in generator.unet.parameters()) - text,
        "attention blocks of the text UNet": text,
        "vae": sum(p.numel() for p in generator.vae.parameters()),
        "image_encoder": sum(p.numel() for p in generator.embeddings._image_encoder.parameters()),
        "text_encoder": sum(p.numel() for p in generator.embeddings._text_encoder.parameters()),
    }
    assert found == PUBLISHED_PARAMETERS
    image = torch.zeros(1, 3, 425, 425, dtype=torch.uint8)
    targets = generator.encode(Stimuli(image, [["a dog", "a wave"]], [None]), ["vision", "text"], [0])
    assert targets["vision"].shape == (1, 257, 768) and targets["text"].shape == (1, 77, 768)
    encoded = time.monotonic()
    pictures = generator.render(targets, [1])
    assert pictures.shape == (1, 3, 512, 512) and pictures.float().std() > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = [round(b - a, 1) for a, b in ((started, loaded), (loaded, encoded), (encoded, time.monotonic()))]
    # Measured: 7.0 GiB. The networks are made in float32 (6.1 GiB) before they are halved.
    assert peak < 12, f"peak memory {peak:.1f} GiB; seconds to load, encode, render: {seconds}"
