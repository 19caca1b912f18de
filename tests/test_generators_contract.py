"""The contract every generator keeps, over all that the registry finds."""

import dataclasses

import numpy as np
import pytest
import small_checkpoints
import torch

from bench.core import registry
from bench.core.errors import OptionError, UnknownNameError
from bench.data.simulate.scenes.sampling import captions, draw_batch, sample_scene, stimulus_seed
from bench.generators.base import Stimuli
from bench.generators.choice import GeneratorChoice, settings_from

NAMES = sorted(registry.found("generator"))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def count(name):
    """Stimuli: fewer where a picture takes longer."""
    return 3 if small_checkpoints.needed(name) else 9


@pytest.fixture(scope="module")
def stimuli(count):
    scenes = [sample_scene(stimulus_seed(number, 77)) for number in range(count)]
    images = torch.from_numpy(draw_batch(scenes, 64).transpose(0, 3, 1, 2).copy())
    return Stimuli(images, [captions(scene) for scene in scenes], ["scene"] * count)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def settings(name, checkpoints):
    """Options under which the generator loads: none where its weights ship with the package."""
    return small_checkpoints.settings(name, checkpoints)


@pytest.fixture(scope="module")
def generator(name, settings):
    torch.set_num_threads(1)
    return GeneratorChoice(name, settings).load(torch.device("cpu"))


@pytest.fixture(scope="module")
def encoded(generator, stimuli, count):
    return generator.encode(stimuli, list(generator.targets), list(range(count)))


@pytest.fixture(scope="module")
def oracle(name, generator, encoded):
    """The true value of every input that has an oracle, of those that go together."""
    return {key: encoded[generator.inputs[key].oracle].float() for key in small_checkpoints.oracle_inputs(name)}


def select(inputs, rows):
    return {key: values[rows] for key, values in inputs.items()}


def test_the_embedded_default_is_found():
    assert "tiny-diffusion" in NAMES


@pytest.mark.parametrize("each", NAMES)
def test_every_generator_has_weights_to_be_tested_with(each):
    where = f"tests/small_checkpoints/{each.replace('-', '_')}.py"
    assert small_checkpoints.exists(each) == small_checkpoints.needed(each), where


def test_declarations(name):
    kind = registry.load("generator", name)
    assert isinstance(kind.version, int) and kind.version >= 1
    assert dataclasses.is_dataclass(kind.Options) and kind.Options.__dataclass_params__.frozen
    for spec in kind.targets.values():
        assert len(spec.shape) >= 1 and min(spec.shape) >= 1
        assert set(spec.needs) <= {"image", "captions", "labels"}
    for spec in kind.inputs.values():
        assert spec.oracle is None or spec.oracle in kind.targets
        assert spec.oracle is None or kind.targets[spec.oracle].shape == spec.shape
        assert spec.kind == "latent" or (len(spec.shape) == 3 and spec.shape[0] == 3)


def test_encode_gives_what_is_declared(generator, encoded, count):
    assert set(encoded) == set(generator.targets)
    for key, spec in generator.targets.items():
        assert tuple(encoded[key].shape) == (count, *spec.shape)
        assert str(encoded[key].dtype) == f"torch.{spec.dtype}"
        assert encoded[key].device.type == "cpu" and bool(torch.isfinite(encoded[key]).all())
        assert not encoded[key].requires_grad


def test_encode_of_some_targets_gives_only_those(generator, stimuli, count):
    first = next(iter(generator.targets))
    assert list(generator.encode(stimuli, [first], list(range(count)))) == [first]
    assert generator.encode(stimuli, [], list(range(count))) == {}


def test_targets_do_not_depend_on_the_batch(generator, stimuli, encoded, count):
    for rows in ([count // 2], [count - 1, 0]):
        part = Stimuli(stimuli.images[rows], [stimuli.captions[r] for r in rows], [stimuli.labels[r] for r in rows])
        again = generator.encode(part, list(generator.targets), rows)
        for key in generator.targets:
            np.testing.assert_allclose(again[key], encoded[key][rows], rtol=1e-4, atol=1e-4)


def test_unknown_target(name, generator, stimuli, count):
    with pytest.raises(UnknownNameError, match=f"unknown target 'nothing' in generator '{name}'"):
        generator.encode(stimuli, ["nothing"], list(range(count)))


def test_oracle_pictures(generator, oracle, count):
    if not generator.inputs:
        with pytest.raises(NotImplementedError, match="feature network"):
            generator.render({}, [0])
        return
    pictures = generator.render(oracle, list(range(count)))
    assert pictures.dtype == torch.uint8 and pictures.shape[:2] == (count, 3) and pictures.device.type == "cpu"
    assert torch.equal(pictures, generator.render(oracle, list(range(count))))


def test_a_picture_depends_on_its_own_input_and_seed_only(generator, oracle, count):
    if not oracle:
        pytest.skip("renders nothing from its own targets")
    seeds = list(range(100, 100 + count))
    alone = torch.cat([generator.render(select(oracle, [row]), [seeds[row]]) for row in range(count)])
    order = [3, 7, 0, 8, 5, 1, 2, 6, 4] if count == 9 else [2, 0, 1]
    mixed = generator.render(select(oracle, order), [seeds[row] for row in order])
    fewer = order[: count * 7 // 9]
    part = generator.render(select(oracle, fewer), [seeds[row] for row in fewer])
    assert (alone[order].int() - mixed.int()).abs().max() <= 1
    assert (alone[fewer].int() - part.int()).abs().max() <= 1


def test_weights_digest_is_stable_and_a_sha256(name, settings):
    chosen = GeneratorChoice(name, settings)
    first = chosen.kind.weights_digest(chosen.options)
    assert first == chosen.kind.weights_digest(chosen.options) and len(bytes.fromhex(first)) == 32


def test_unknown_option_and_value_out_of_range(name):
    with pytest.raises(UnknownNameError, match=r"unknown option 'no_such_option'.*Allowed:"):
        _ = GeneratorChoice(name, {"no_such_option": 1}).options
    for each in dataclasses.fields(GeneratorChoice(name).kind.Options):
        with pytest.raises(OptionError, match=each.name):
            _ = GeneratorChoice(name, {each.name: object()}).options


def test_unknown_generator_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny-diffusion'"):
        _ = GeneratorChoice("tiny-difusion").kind


def test_settings_are_typed_and_need_an_equals_sign():
    assert settings_from(["steps=4", "strength=.5", "name=x", "on=true"]) == {
        "steps": 4,
        "strength": 0.5,
        "name": "x",
        "on": True,
    }
    with pytest.raises(OptionError, match="NAME=VALUE, got 'steps'"):
        settings_from(["steps"])
    with pytest.raises(OptionError, match="--set names 'steps' twice: '4' and '5'"):
        settings_from(["steps=4", "steps=5"])
    with pytest.raises(OptionError, match="not a YAML value"):
        settings_from(["steps=[1"])


def test_render_options_do_not_change_the_identity_of_targets(name, settings):
    kind = GeneratorChoice(name).kind
    for each in dataclasses.fields(kind.Options):
        if each.metadata.get("stage") == "render" and isinstance(each.default, float):
            changed, plain = GeneratorChoice(name, {**settings, each.name: 0.75}), GeneratorChoice(name, settings)
            assert changed.identity(render=False) == plain.identity(render=False)
            assert changed.identity(render=True) != plain.identity(render=True)


def test_the_place_of_weights_is_in_no_identity(name, settings):
    for render in (False, True):
        assert not {"weights", "download"} & set(GeneratorChoice(name, settings).identity(render)["options"])
