"""What the simulated voxels see of a picture: colour channels, Gabor energy and scene attributes.

Pictures are brought to 32 x 32 pixels and to three opponent channels (luminance, red-green, blue-yellow).
Zero-frequency channels are these, pooled to 16 x 16. Gabor energy is that of a quadrature pair,
``sqrt(even^2 + odd^2)``, at three spatial frequencies, four orientations and 8 x 8 positions: the Gabor pyramid of Kay
et al. 2008 at the resolution of these pictures. Attributes are those of :mod:`bench.data.simulate.scenes.attributes`;
conjunctions of them (a red ball, a face in the upper left) are what a linear function of the attributes cannot give.
Nothing here comes from a trained network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bench.data.simulate.elementary import cos, exp, sin
from bench.data.simulate.exact import Doubles, norm, product, total, whole_product
from bench.data.simulate.scenes.attributes import COLOURS, KINDS, LIGHTS, SETTINGS, Scene, attribute_vector

Floats = NDArray[np.float32]

FIELD_OF_VIEW = 8.4
"""Width of the pictures in degrees of visual angle (Allen et al. 2022)."""
SIZE = 32
CHANNEL_GRID = 16
ENERGY_GRID = 8
FREQUENCIES = (3.0, 6.0, 11.0)
"""Cycles per picture."""
ORIENTATIONS = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
CHANNELS = 3
BLOCK = 1024
"""Pictures filtered at once, which bounds memory."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of N pictures.

    Attributes:
        channels: ``(N, 3 * 16 * 16)`` opponent channels, channel by channel; linear in the pixels.
        energy: ``(N, 3 * 4 * 8 * 8)`` Gabor energy by frequency, orientation and position; never negative.
        attributes: ``(N, A)`` attribute vectors.
        conjunctions: ``(N, C)`` pairs of attributes.
    """

    channels: Floats
    energy: Floats
    attributes: Floats
    conjunctions: Floats

    def __len__(self) -> int:
        return len(self.channels)

    def take(self, rows: NDArray[np.int64]) -> "ImageFeatures":
        """Returns the features of the pictures at ``rows``, in that order."""
        return ImageFeatures(self.channels[rows], self.energy[rows], self.attributes[rows], self.conjunctions[rows])


def image_features(pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> ImageFeatures:
    """Computes the features of pictures and of the scenes they show.

    Args:
        pictures: ``(N, H, H, 3)`` RGB, at least 32 pixels a side.
        scenes: The N scenes.

    Returns:
        Their features, row by row.

    Raises:
        ValueError: When the pictures are not square RGB of at least 32 pixels, or not as many as the scenes.
    """
    if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2] or pictures.shape[3] != 3:
        raise ValueError(f"pictures have shape {pictures.shape}; expected (N, H, H, 3)")
    if pictures.shape[1] < SIZE or len(pictures) != len(scenes):
        raise ValueError(
            f"{len(pictures)} pictures of {pictures.shape[1]} pixels a side and {len(scenes)} scenes; "
            f"expected equal numbers and at least {SIZE} pixels"
        )
    channels = np.empty((len(pictures), CHANNELS * CHANNEL_GRID**2), np.float32)
    energy = np.empty((len(pictures), len(FREQUENCIES) * len(ORIENTATIONS) * ENERGY_GRID**2), np.float32)
    for start in range(0, len(pictures), BLOCK):
        block = slice(start, start + BLOCK)
        opponent = _opponent_channels(pictures[block])
        channels[block] = _pool(opponent)
        energy[block] = _gabor_energy(opponent[:, 0].reshape(-1, SIZE * SIZE))
    attributes = [attribute_vector(scene) for scene in scenes]
    conjunctions = [conjunction_vector(scene) for scene in scenes]
    return ImageFeatures(channels, energy, _rows(attributes), _rows(conjunctions))


def conjunction_names() -> tuple[str, ...]:
    """Returns the names of the entries of :func:`conjunction_vector`, in order."""
    names = [f"{kind}&{colour}" for kind in KINDS for colour in COLOURS]
    names += [f"{kind}&{row}-{column}" for kind in KINDS for row in ("upper", "lower") for column in ("left", "right")]
    return (*names, *(f"{setting}&{light}" for setting in SETTINGS for light in LIGHTS))


def conjunction_vector(scene: Scene) -> Floats:
    """Codes the planted interactions of a scene: kind and colour, kind and quadrant, setting and light.

    Args:
        scene: The scene.

    Returns:
        Zeros and ones ``(C,)`` in the order of :func:`conjunction_names`.
    """
    colours = np.zeros((len(KINDS), len(COLOURS)), np.float32)
    quadrants = np.zeros((len(KINDS), 2, 2), np.float32)
    places = np.zeros((len(SETTINGS), len(LIGHTS)), np.float32)
    for thing in scene.objects:
        kind = KINDS.index(thing.kind)
        colours[kind, COLOURS.index(thing.colour)] = 1.0
        quadrants[kind, int(thing.y >= 0.5), int(thing.x >= 0.5)] = 1.0
    places[SETTINGS.index(scene.setting), LIGHTS.index(scene.light)] = 1.0
    return np.concatenate([colours.ravel(), quadrants.ravel(), places.ravel()])


def grid_centres(count: int) -> NDArray[np.float64]:
    """Centres of ``count`` equal cells across the picture, in degrees from its middle."""
    return ((np.arange(count) + 0.5) / count - 0.5) * FIELD_OF_VIEW


def _rows(vectors: list[Floats]) -> Floats:
    return np.array(vectors, np.float32)


def _opponent_channels(pictures: NDArray[np.uint8]) -> Floats:
    """Area-averaged opponent channels ``(n, 3, 32, 32)``, mid-grey at 0: luminance, red - green, blue - yellow."""
    count, size = pictures.shape[:2]
    shrink = _overlaps(size)
    rows = whole_product(shrink, pictures.reshape(count, size, -1).astype(np.float64))
    rows = np.ascontiguousarray(rows.reshape(count, SIZE, size, 3).transpose(3, 0, 1, 2))
    red, green, blue = whole_product(rows.reshape(3, -1, size), shrink.T).reshape(3, count, SIZE, SIZE)
    # Whole numbers up to here; size * size of them make one grey value.
    scale = 1 / (127.5 * size**2)
    luminance = (red + green + blue) * (scale / 3) - 1.0
    opponent = [luminance, (red - green) * scale, (blue - (red + green) / 2) * scale]
    return np.stack(opponent, axis=1).astype(np.float32)


@lru_cache(maxsize=4)
def _overlaps(size: int) -> Doubles:
    """How much of each pixel lies in each of 32 equal cells, in 32nds of a pixel: whole numbers ``(32, size)``."""
    edges = np.arange(SIZE + 1) * size
    pixel = np.arange(size) * SIZE
    overlap = np.minimum(edges[1:, None], pixel + SIZE) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(overlap, 0).astype(np.float64)


def _pool(opponent: Floats) -> Floats:
    """Means of 2 x 2 pixels, ``(n, 3 * 16 * 16)``."""
    above = opponent[:, :, ::2, ::2] + opponent[:, :, ::2, 1::2]
    below = opponent[:, :, 1::2, ::2] + opponent[:, :, 1::2, 1::2]
    means: Floats = (above + below) * np.float32(0.25)
    return means.reshape(len(opponent), -1)


def _gabor_energy(luminance: Floats) -> Floats:
    """Energy of quadrature pairs ``(n, 768)`` from luminance ``(n, 1024)``."""
    even, odd = gabor_filters()
    first, second = product(luminance, even, 1.0), product(luminance, odd, 1.0)
    energy: Floats = np.sqrt(first * first + second * second)
    return energy


@lru_cache(maxsize=1)
def gabor_filters() -> tuple[Floats, Floats]:
    """Builds the quadrature pairs.

    A Gaussian envelope of half a wavelength (standard deviation) times a cosine and a sine; the mean is removed under
    the envelope, so that uniform light gives no energy, and each filter has norm 1 over the picture.

    Returns:
        Even and odd filters, each ``(1024, 768)``, columns by frequency, orientation, row, column.
    """
    y, x = (axis.reshape(-1, 1) for axis in np.meshgrid(grid_centres(SIZE), grid_centres(SIZE), indexing="ij"))
    rows, columns = (
        axis.ravel() for axis in np.meshgrid(grid_centres(ENERGY_GRID), grid_centres(ENERGY_GRID), indexing="ij")
    )
    dx, dy = x - columns, y - rows
    filters: list[list[Doubles]] = [[], []]
    for cycles in FREQUENCIES:
        wavelength = FIELD_OF_VIEW / cycles
        envelope = exp(-(dx**2 + dy**2) / (2 * (0.5 * wavelength) ** 2))
        for angle in ORIENTATIONS:
            phase = 2 * np.pi * (dx * cos(angle) + dy * sin(angle)) / wavelength
            for bank, carrier in zip(filters, (cos(phase), sin(phase)), strict=True):
                gabor = envelope * (carrier - total(envelope * carrier) / total(envelope))
                bank.append(gabor / norm(gabor))
    even, odd = (np.concatenate(bank, axis=1).astype(np.float32) for bank in filters)
    return even, odd
