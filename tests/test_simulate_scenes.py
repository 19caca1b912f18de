"""The procedural scenes: determinism, truthful captions, independent checks of the painting, variety."""

import re

import numpy as np
import pytest

from bench.data.simulate.scenes.attributes import COLOURS, KINDS, PAINTED_SETTINGS, SETTINGS, Scene, SceneObject
from bench.data.simulate.scenes.captions import TIME
from bench.data.simulate.scenes.drawing import COLOUR_RGB, LIGHT_GAIN, _grid
from bench.data.simulate.scenes.sampling import (
    attribute_names,
    attribute_vector,
    captions,
    draw,
    draw_batch,
    labels,
    sample_scene,
    stimulus_seed,
)
from bench.data.simulate.scenes.shapes import SHAPES, Part, signed_distance


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(stimulus_seed(stimulus, 3)) for stimulus in range(400)]


@pytest.fixture(scope="module")
def pictures(scenes: list[Scene]) -> np.ndarray:
    return draw_batch(scenes, 64)


def test_a_scene_is_a_function_of_its_seed(scenes):
    assert sample_scene(stimulus_seed(17, 3)) == scenes[17]
    assert len(set(scenes)) == len(scenes)
    assert sample_scene(stimulus_seed(17, 4)) != scenes[17]


def test_seeds_of_different_designs_do_not_meet():
    seeds = {stimulus_seed(stimulus, design) for design in range(4) for stimulus in (0, 1, 72_999)}
    assert len(seeds) == 12
    with pytest.raises(ValueError, match="must be in"):
        stimulus_seed(1 << 24, 0)
    with pytest.raises(ValueError, match="must be in"):
        stimulus_seed(0, -1)


def test_sampled_attributes_are_in_range_and_all_values_occur(scenes):
    assert {scene.setting for scene in scenes} == set(SETTINGS)
    assert {scene.light for scene in scenes} == set(TIME)
    assert {thing.kind for scene in scenes for thing in scene.objects} == set(KINDS)
    assert {thing.colour for scene in scenes for thing in scene.objects} == set(COLOURS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        assert (scene.backdrop in COLOURS) == (scene.setting in PAINTED_SETTINGS)
        assert len({thing.kind for thing in scene.objects}) == len(scene.objects)
        for thing in scene.objects:
            assert 0.1 < thing.x < 0.9
            assert 0.05 < thing.y < 0.95


def test_drawing_alone_and_in_a_batch_is_the_same(scenes, pictures):
    assert pictures.shape == (400, 64, 64, 3)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(draw(scenes[9]), pictures[9])
    assert draw_batch([], 16).shape == (0, 16, 16, 3)


def test_a_larger_picture_shows_the_same_thing(scenes, pictures):
    large = draw(scenes[2], 256).astype(float).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.corrcoef(large.ravel(), pictures[2].ravel())[0, 1] > 0.99


def test_too_small_a_picture_is_refused(scenes):
    with pytest.raises(ValueError, match="at least 8 pixels"):
        draw(scenes[0], 4)


def test_random_pictures_are_distinguishable(pictures):
    correlations = np.corrcoef(pictures.reshape(len(pictures), -1).astype(float))
    off_diagonal = correlations[np.triu_indices(len(pictures), 1)]
    assert off_diagonal.mean() < 0.2
    assert off_diagonal.max() < 0.97


def test_the_centre_of_an_object_has_its_colour():
    for colour, rgb in COLOUR_RGB.items():
        ball = SceneObject("ball", colour, 0.5, 0.5, 0.3)
        picture = draw(Scene("field", "day", "", 0.6, 0.0, 0.2, 0.0, 1.0, 5, (ball,)), 64)
        below_the_stripe = picture[40, 32] / 255
        v = ((40 + 0.5) / 64 - 0.5) / 0.3
        expected = np.clip(np.array(rgb) * (1.05 - 0.16 * v), 0, 1)
        np.testing.assert_allclose(below_the_stripe, expected, atol=1 / 255)


def test_night_is_darker_than_day():
    ball = SceneObject("ball", "red", 0.5, 0.5, 0.2)
    means = {light: draw(Scene("field", light, "", 0.5, 0.0, 0.3, 0.0, 1.0, 5, (ball,))).mean() for light in LIGHT_GAIN}
    assert means["night"] < 0.6 * min(value for light, value in means.items() if light != "night")


@pytest.mark.parametrize("form", ["ellipse", "box", "triangle", "hull"])
def test_signed_distance_is_negative_exactly_inside(form):
    part = Part(form, 0.113, -0.207, 0.6, 0.4)
    x, y = (plane * 3 - 1.5 for plane in _grid(60))
    inside = np.zeros((60, 60), bool)
    for row in range(60):  # slow, from the definition of each form
        for column in range(60):
            u, v = (float(x[0, column]) - 0.113) / 0.6, (float(y[row, 0]) + 0.207) / 0.4
            inside[row, column] = {
                "ellipse": u * u + v * v < 1,
                "box": max(abs(u), abs(v)) < 1,
                "triangle": abs(v) < 1 and abs(u) < (v + 1) / 2,
                "hull": abs(v) < 1 and abs(u) < 1 - 0.6 * (v + 1) * 0.4 / 0.6,
            }[form]
    np.testing.assert_array_equal(signed_distance(part, x, y) < 0, inside)


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="unknown form 'star'"):
        signed_distance(Part("star", 0, 0, 1, 1), *_grid(8))


def test_every_kind_has_a_shape_that_fits_its_box():
    assert set(SHAPES) == set(KINDS)
    for parts in SHAPES.values():
        assert all(abs(part.x) + part.rx <= 1.01 and abs(part.y) + part.ry <= 1.051 for part in parts)


def test_captions_are_five_distinct_true_sentences(scenes):
    for scene in scenes:
        sentences = captions(scene)
        assert len(set(sentences)) == 5
        for sentence in sentences:
            assert re.fullmatch(r"[A-Z][A-Za-z, ]+\.", sentence), sentence
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", sentence), sentence
        words = set(re.findall(r"[a-z]+", " ".join(sentences).lower()))
        assert {thing.kind for thing in scene.objects} == words & set(KINDS)
        # "green field" and "orange" may be said of the setting, never of an absent object
        assert {thing.colour for thing in scene.objects} <= words & set(COLOURS)
        assert TIME[scene.light] in sentences[0]


def test_captions_say_left_and_right_correctly():
    pair = (SceneObject("car", "red", 0.8, 0.7, 0.2), SceneObject("dog", "orange", 0.2, 0.7, 0.15))
    sentences = captions(Scene("room", "night", "blue", 0.5, 0.0, 0.5, 0.0, 1.0, 1, pair))
    assert sentences[3] == "An orange dog to the left of a red car at night."
    assert sentences[2] == "There is a red car on the right of the picture, in a room with blue walls."
    assert sentences[0] == "A red car and an orange dog in a room with blue walls at night."


def test_labels_and_attributes_agree(scenes):
    names = attribute_names()
    assert len(set(names)) == len(names)
    for scene in scenes[:50]:
        code = dict(zip(names, attribute_vector(scene), strict=True))
        told = labels(scene)
        assert code[f"setting={told['setting']}"] == 1
        assert code["count"] == told["count"]
        assert {kind for kind in KINDS if code[f"{kind}.present"]} == set(told["kinds"])
        largest = max(KINDS, key=lambda kind, code=code: code[f"{kind}.size"])
        assert largest == told["dominant"]
        for thing in scene.objects:
            assert code[f"{thing.kind}.x"] == pytest.approx(thing.x - 0.5)
        total = sum(code[f"colour={colour}.size"] for colour in COLOURS)
        assert total == pytest.approx(sum(thing.size for thing in scene.objects), rel=1e-5)
