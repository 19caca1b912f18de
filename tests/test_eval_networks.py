"""Feature networks: published architectures, weights that must fit, the scene network, its training script."""

import dataclasses
import importlib
import logging

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import eval.networks
from eval._listing import names
from eval.metrics._correlation import cross_correlation
from eval.metrics.identification import TWO_WAY_IDENTIFICATION
from eval.networks import _weights as weights
from eval.networks import lpips_alex
from eval.networks._state_file import WrongWeightsError
from eval.networks._weights import MissingWeightsError
from eval.networks.base import Network
from eval.networks.scene.network import SCENE
from eval.networks.scene.train import Options, normalise, read_scenes, train
from eval.networks.torchvision import (
    ALEXNET,
    EFFICIENTNET_B1_V1,
    EFFICIENTNET_B1_V2,
    EFFICIENTNET_V2_S,
    INCEPTION_V3,
    SWAV_RESNET50,
)
from eval.protocols.base import find
from eval.suite import score

CPU = torch.device("cpu")
FEATURES = {
    "features.4": 192 * 31 * 31,  # at 256 px
    "features.11": 256 * 15 * 15,
    "encode_image": 768,
    "avgpool": {"inception_v3": 2048, "swav_resnet50": 2048, "efficientnet_b1_v1": 1280, "efficientnet_b1_v2": 1280},
}


class _Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 2)


TINY = Network(
    name="tiny",
    taps=("body",),
    parameters=4 * 27 + 4 + 8 + 10,
    weights_file="tiny.pth",
    source="nowhere",
    mean=(0.5, 0.5, 0.5),
    std=(1.0, 1.0, 1.0),
    build=_Tiny,
    forward=lambda module, pixels: {"body": module.body(pixels)},
    unused=("fc",),
    foreign=("projection.",),
    prefix="visual.",
)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return _Tiny().state_dict()


def test_networks_are_found_by_the_names_of_their_constants():
    found = weights.networks()
    modules = {importlib.import_module(f"eval.networks.{name}") for name in names(eval.networks)}
    constants = {name: value for module in modules for name, value in vars(module).items() if value in found}
    assert constants == {network.name.upper(): network for network in found}
    assert [network.name for network in found] == sorted(network.name for network in found)


def test_two_objects_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(lpips_alex, "ANOTHER", dataclasses.replace(ALEXNET, taps=()), raising=False)
    with pytest.raises(ValueError, match=r"two objects of eval.networks are named 'alexnet', one in lpips_alex.py"):
        weights.networks()


@pytest.mark.parametrize("network", weights.networks(), ids=lambda network: network.name)
def test_architecture_has_the_published_size(network):
    with torch.device("meta"):
        built = network.build()
    assert sum(parameter.numel() for parameter in built.parameters()) == network.parameters


@pytest.mark.parametrize(
    "network", [ALEXNET, EFFICIENTNET_B1_V1, EFFICIENTNET_B1_V2, EFFICIENTNET_V2_S, INCEPTION_V3, SWAV_RESNET50]
)
def test_taps_are_the_published_layers_values(network):
    """What torchvision's own, whole model gives at the layers of those names, under one draw of its weights."""
    loaded = weights.load(network, "untrained", CPU)
    with torch.device("meta"):  # its heads, which no tap needs, stay there
        whole = network.build().eval().requires_grad_(False)
    whole.load_state_dict(loaded.state_dict(), strict=False, assign=True)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tapped = network.forward(loaded, pixels)
    expected = create_feature_extractor(whole, list(network.taps), suppress_diff_warning=True)(pixels)
    assert set(tapped) == set(network.taps)
    for tap in network.taps:
        assert expected[tap].std() > 0
        # In units of the layer's own spread: random weights of fifty layers give any size.
        values, reference = (side.flatten(1) / expected[tap].std() for side in (tapped[tap], expected[tap]))
        torch.testing.assert_close(values, reference, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_scene_taps_are_what_its_stages_give():
    """Stages before their ReLU, the last one pooled after it, and the standardised embedding, each by a hook."""
    module = weights.load(SCENE, None, CPU)
    caught = {}
    for name in ("stages.0", "stages.2", "stages.3", "embedding"):
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: caught.__setitem__(name, output.clone())
        )
    tapped = SCENE.forward(module, normalise(_smooth_pictures(4)))
    torch.testing.assert_close(tapped["low"], caught["stages.0"])
    torch.testing.assert_close(tapped["mid"], caught["stages.2"])
    torch.testing.assert_close(tapped["high"], caught["stages.3"].clamp(min=0).mean((2, 3)))
    torch.testing.assert_close(tapped["embedding"], (caught["embedding"] - module.centre) / module.spread)
    assert module.spread.std() > 0


def test_alexnet_taps_follow_the_second_and_fifth_relu():
    module = weights.load(ALEXNET, "untrained", CPU)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tapped, x, relus = ALEXNET.forward(module, pixels), pixels, []
    for layer in module.features:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            relus.append(x.clone())
    torch.testing.assert_close(tapped["features.4"], relus[1])
    torch.testing.assert_close(tapped["features.11"], relus[4])


def test_loads_own_entries_and_ignores_heads(tmp_path, state):
    published = {
        f"visual.{name}": value.half() if value.is_floating_point() else value for name, value in state.items()
    }
    published |= {"text.weight": torch.zeros(3)}
    torch.save(published, tmp_path / "tiny.pth")
    prefixed = weights.load(TINY, tmp_path, CPU)
    torch.save({"state_dict": state | {"projection.weight": torch.zeros(1)}}, tmp_path / "tiny.pth")
    plain = weights.load(TINY, tmp_path, CPU)
    assert isinstance(plain.fc, nn.Identity)
    assert not plain.training
    assert prefixed.body[0].weight.dtype == torch.float32
    torch.testing.assert_close(plain.body[0].weight, state["body.0.weight"])
    torch.testing.assert_close(prefixed.body[0].weight, state["body.0.weight"].half().float())


def test_digest_is_the_files(tmp_path, state):
    torch.save(state, tmp_path / "tiny.pth")
    first = weights.digest(TINY, tmp_path)
    torch.save(state | {"body.0.bias": torch.ones(4)}, tmp_path / "tiny.pth")
    assert len(first) == 64
    assert weights.digest(TINY, tmp_path) != first
    assert weights.digest(TINY, "untrained") == "untrained:0"


def test_missing_weights_say_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(MissingWeightsError, match=r"alexnet.pth, which does not exist.*alexnet-owt-7be5be79.pth"):
        score(images, images, "mindeye2", tmp_path)
    with pytest.raises(MissingWeightsError, match=r"pass weights=FOLDER that holds it, or weights='untrained'"):
        score(images, images, "mindeye2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "body.0.bias"}, r"another network: 1 missing \(body.0.bias"),
        (lambda s: s | {"more": torch.zeros(1)}, r"1 unknown \(more"),
        (lambda s: s | {"body.0.bias": torch.zeros(5)}, r"1 of another shape \(body.0.bias \(5,\) instead of \(4,\)"),
        (lambda s: [1, 2], "must hold a state dict .* got list"),
        (lambda s: {"a": 1}, "must hold a state dict"),
        (lambda s: _Tiny(), "is not a state dict saved with torch.save"),
    ],
)
def test_wrong_weights_are_named(tmp_path, state, content, message):
    torch.save(content(state), tmp_path / "tiny.pth")
    with pytest.raises(WrongWeightsError, match=message):
        weights.load(TINY, tmp_path, CPU)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "tiny.pth").write_bytes(b"not a file of weights")
    with pytest.raises(WrongWeightsError, match=r"tiny.pth is not a state dict"):
        weights.load(TINY, tmp_path, CPU)


def test_untrained_weights_repeat_and_differ_between_networks():
    first, second = (weights.load(TINY, "untrained", CPU).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights.load(EFFICIENTNET_B1_V1, "untrained", CPU).state_dict()
    same = weights.load(EFFICIENTNET_B1_V2, "untrained", CPU).state_dict()
    assert not torch.equal(other["features.0.0.weight"], same["features.0.0.weight"])


def _smooth_pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    pictures = gaussian_filter(rng.random((n, 3, 64, 64)), (0, 0, 6, 6))
    low, high = pictures.min((1, 2, 3), keepdims=True), pictures.max((1, 2, 3), keepdims=True)
    return torch.from_numpy((pictures - low) / (high - low)).float()


@torch.inference_mode()
def test_scene_features_survive_degradation_by_degrees():
    module = weights.load(SCENE, None, CPU)
    pictures = _smooth_pictures(60)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures.shape, generator=generator)
    truth = module.taps(normalise(pictures))
    mild = module.taps(normalise((pictures + 0.05 * noise).clamp(0, 1)))
    strong = module.taps(normalise((pictures + 4.0 * noise).clamp(0, 1)))
    others = module.taps(normalise(pictures.roll(7, 0)))
    for tap in SCENE.taps:
        identified = [TWO_WAY_IDENTIFICATION(side[tap], truth[tap]).mean() for side in (mild, strong, others)]
        assert identified[0] > 0.85, tap
        assert identified[1] < identified[0] - 0.005, tap
        assert abs(identified[2] - 0.5) < 0.12, tap


@torch.inference_mode()
def test_scene_features_tell_pictures_apart():
    taps = weights.load(SCENE, None, CPU).taps(normalise(_smooth_pictures(60)))
    for tap, features in taps.items():
        unrelated = cross_correlation(features, features)[~torch.eye(60, dtype=torch.bool)]
        assert unrelated.mean() < 0.7, tap


def _write_scenes(path, n=400):
    """Pictures of one colour patch whose brightness and side are the attributes."""
    rng = np.random.default_rng(0)
    side, level = rng.integers(0, 2, n), rng.random(n)
    images = np.full((n, 64, 64, 3), 60, np.uint8)
    for i in range(n):
        start = 36 * side[i]
        images[i, 20:44, start : start + 28] = 100 + int(155 * level[i])
    attributes = np.stack([side, level], axis=1).astype(np.float32)
    np.savez(path, images=images, attributes=attributes, attribute_names=np.array(["right", "level"]))


def test_training_learns_attributes(tmp_path, caplog):
    _write_scenes(tmp_path / "scenes.npz")
    scenes = read_scenes(tmp_path / "scenes.npz")
    assert scenes.binary.tolist() == [True, False]
    with caplog.at_level(logging.INFO):
        network = train(scenes, Options(epochs=4, batch=50, held_out=100))
    assert "epoch 4" in caplog.text
    with torch.inference_mode():
        guess = network(normalise(scenes.images[300:].float() / 255))
        embedding = network.taps(normalise(scenes.images[:300].float() / 255))["embedding"]
    assert ((guess[:, 0] > 0) == scenes.attributes[300:, 0].bool()).float().mean() > 0.95
    assert np.corrcoef(guess[:, 1], scenes.attributes[300:, 1])[0, 1] > 0.5
    assert embedding.mean(0).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, r"lacks \['images'\]"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8)}, r"got \(4, 32, 32, 3\) uint8"),
        ({"attributes": np.zeros((3, 2), np.float32)}, r"4 images, 2 names, but attributes \(3, 2\)"),
        ({"attributes": np.eye(4, 2, dtype=np.float32) * [0, 1]}, r"never vary cannot be learnt: \['a'\]"),
    ],
)
def test_bad_training_files_are_named(tmp_path, change, message):
    arrays = {
        "images": np.zeros((4, 64, 64, 3), np.uint8),
        "attributes": np.eye(4, 2, dtype=np.float32),
        "attribute_names": np.array(["a", "b"]),
    } | change
    np.savez(tmp_path / "bad.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        read_scenes(tmp_path / "bad.npz")


@pytest.mark.networks
def test_mindeye2_runs_untrained_on_the_full_networks():
    pictures = _smooth_pictures(3)
    caught = {}

    def catching(network):
        def forward(module, pixels):
            tapped = network.forward(module, pixels)
            caught.update({(network.name, tap): values.flatten(1).clone() for tap, values in tapped.items()})
            return tapped

        return dataclasses.replace(network, forward=forward)

    protocol = find("mindeye2")
    metrics = [
        dataclasses.replace(m, feature=dataclasses.replace(m.feature, network=networks[m.feature.network.name]))
        if m.feature
        else m
        for networks in [{network.name: catching(network) for network in protocol.networks}]
        for m in protocol.metrics
    ]
    scores = score(pictures.roll(1, 2), pictures, dataclasses.replace(protocol, metrics=tuple(metrics)), "untrained")
    assert scores.untrained
    assert len(scores.weights) == 5
    for (network, tap), features in caught.items():
        expected = FEATURES[tap][network] if tap == "avgpool" else FEATURES[tap]
        assert features.shape == (3, expected)
        assert features.isfinite().all()
        assert features.std(dim=1).min() > 0
    assert len(caught) == 6
    assert all(metric.status == "ok" and 0 <= metric.value <= 1 for metric in scores.metrics[:8])
    assert all(metric.status.startswith("not computed: needs") for metric in scores.metrics[8:])
