"""Image features of the simulated voxels against direct, slow computations."""

import numpy as np
import pytest
from PIL import Image

from bench.data.simulate.brain.features import (
    BLOCK,
    ENERGY_GRID,
    FREQUENCIES,
    ORIENTATIONS,
    ImageFeatures,
    conjunction_names,
    conjunction_vector,
    gabor_filters,
    grid_centres,
    image_features,
)
from bench.data.simulate.scenes.attributes import COLOURS, KINDS, LIGHTS, SETTINGS, Scene, SceneObject
from bench.data.simulate.scenes.sampling import draw_batch, sample_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def features(scenes) -> ImageFeatures:
    return image_features(draw_batch(scenes, 64), scenes)


def energy_index(frequency: int, orientation: int, row: int, column: int) -> int:
    return int(
        np.ravel_multi_index(
            (frequency, orientation, row, column), (len(FREQUENCIES), len(ORIENTATIONS), ENERGY_GRID, ENERGY_GRID)
        )
    )


def grating(cycles: float, angle: float, phase: float) -> np.ndarray:
    """A full-field grey grating ``(1, 64, 64, 3)`` whose stripes vary along ``angle``."""
    pixel = (np.arange(64) + 0.5) / 64
    x, y = np.meshgrid(pixel, pixel)
    wave = np.cos(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return np.repeat(np.rint(127.5 + 100 * wave)[None, :, :, None], 3, axis=3).astype(np.uint8)


def test_channels_are_pooled_opponent_colours(scenes, features):
    pictures = draw_batch(scenes, 64).astype(float) / 127.5 - 1
    for row, column in ((0, 0), (7, 3), (15, 15)):
        red, green, blue = pictures[2, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].mean(axis=(0, 1))
        at = features.channels[2].reshape(3, 16, 16)[:, row, column]
        expected = [(red + green + blue) / 3, red - green, blue - (red + green) / 2]
        np.testing.assert_allclose(at, expected, atol=1e-5)


def test_energy_of_one_filter_by_hand(scenes, features):
    small = np.stack([np.asarray(Image.fromarray(p).reduce(2), float) for p in draw_batch(scenes, 64)])
    luminance = small[3].mean(axis=2) / 127.5 - 1
    pixel = ((np.arange(32) + 0.5) / 32 - 0.5) * 8.4
    centre_x, centre_y = grid_centres(8)[5], grid_centres(8)[2]
    wavelength = 8.4 / FREQUENCIES[1]
    even = odd = 0.0
    bank = np.zeros((2, 32, 32))
    envelope = np.zeros((32, 32))
    for i in range(32):
        for j in range(32):
            dx, dy = pixel[j] - centre_x, pixel[i] - centre_y
            envelope[i, j] = np.exp(-(dx * dx + dy * dy) / (2 * (wavelength / 2) ** 2))
            along = dx * np.cos(ORIENTATIONS[1]) + dy * np.sin(ORIENTATIONS[1])
            bank[:, i, j] = np.cos(2 * np.pi * along / wavelength), np.sin(2 * np.pi * along / wavelength)
    bank = envelope * (bank - (envelope * bank).sum(axis=(1, 2), keepdims=True) / envelope.sum())
    even, odd = (float((luminance * filt / np.linalg.norm(filt)).sum()) for filt in bank)
    # PIL rounds the reduced picture to whole grey values.
    assert features.energy[3, energy_index(1, 1, 2, 5)] == pytest.approx(np.hypot(even, odd), abs=0.03)


def test_energy_prefers_its_own_frequency_and_orientation_whatever_the_phase():
    scene = [sample_scene(0)]
    for frequency, cycles in enumerate(FREQUENCIES):
        for orientation, angle in enumerate(ORIENTATIONS):
            energies = [image_features(grating(cycles, angle, phase), scene).energy[0] for phase in (0.0, 1.0, 2.5)]
            for energy in energies:
                middle = energy.reshape(len(FREQUENCIES), len(ORIENTATIONS), 8, 8)[:, :, 3:5, 3:5].mean(axis=(2, 3))
                assert np.unravel_index(middle.argmax(), middle.shape) == (frequency, orientation)
            centre = [energy[energy_index(frequency, orientation, 3, 3)] for energy in energies]
            assert max(centre) / min(centre) < 1.15


def test_uniform_light_has_no_energy_and_filters_have_norm_one():
    grey = np.full((1, 64, 64, 3), 200, np.uint8)
    assert np.abs(image_features(grey, [sample_scene(0)]).energy).max() < 1e-4
    for bank in gabor_filters():
        np.testing.assert_allclose(np.linalg.norm(bank, axis=0), 1.0, rtol=1e-5)


def test_conjunctions_name_what_is_there():
    ball = SceneObject("ball", "red", 0.2, 0.8, 0.2)
    face = SceneObject("face", "black", 0.7, 0.3, 0.2)
    scene = Scene("snow", "night", "", 0.5, 0.0, 0.5, 0.0, 1.0, 0, (face, ball))
    names = np.array(conjunction_names())
    assert set(names[conjunction_vector(scene) > 0]) == {
        "ball&red",
        "face&black",
        "ball&lower-left",
        "face&upper-right",
        "snow&night",
    }
    assert len(names) == len(KINDS) * (len(COLOURS) + 4) + len(SETTINGS) * len(LIGHTS)


def test_pictures_of_any_size_give_nearly_the_same_features(scenes, features):
    for size in (32, 50, 128):
        other = image_features(draw_batch(scenes, size), scenes)
        assert np.corrcoef(other.channels.ravel(), features.channels.ravel())[0, 1] > 0.99
        assert np.corrcoef(other.energy.ravel(), features.energy.ravel())[0, 1] > 0.97


def test_blocks_and_rows_do_not_matter(scenes, features):
    many = [scenes[index % 6] for index in range(BLOCK + 3)]
    rows = np.arange(BLOCK + 3) % 6
    repeated = image_features(draw_batch(scenes, 64)[rows], many)
    expected = features.take(rows)
    assert len(expected) == BLOCK + 3
    for name in ("channels", "energy", "attributes", "conjunctions"):
        np.testing.assert_allclose(getattr(repeated, name), getattr(expected, name), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 64, 64), "expected \\(N, H, H, 3\\)"),
        ((6, 64, 32, 3), "expected \\(N, H, H, 3\\)"),
        ((6, 16, 16, 3), "at least 32 pixels"),
        ((5, 64, 64, 3), "5 pictures .* and 6 scenes"),
    ],
)
def test_wrong_pictures_are_refused(scenes, shape, message):
    with pytest.raises(ValueError, match=message):
        image_features(np.zeros(shape, np.uint8), scenes)
