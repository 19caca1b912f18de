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
OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [1, -1, 0], [-0.5, -0.5, 1]], np.float32)
"""Rows: luminance, red minus green, blue minus yellow."""


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
    """Area-averaged opponent channels ``(n, 3, 32, 32)``, mid-grey at 0."""
    shrink = _area_average(pictures.shape[1])
    small = np.einsum("ih,nhwc->niwc", shrink, pictures.astype(np.float32), optimize=True)
    small = np.einsum("jw,niwc->nijc", shrink, small, optimize=True)
    return np.einsum("kc,nijc->nkij", OPPONENT, small / 127.5 - 1.0, optimize=True).astype(np.float32)


@lru_cache(maxsize=4)
def _area_average(size: int) -> Floats:
    """Matrix ``(32, size)`` that averages over equal cells, splitting pixels that lie across a border."""
    edges = np.linspace(0, size, SIZE + 1)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0.0) * SIZE / size).astype(np.float32)


def _pool(opponent: Floats) -> Floats:
    """Means of 2 x 2 pixels, ``(n, 3 * 16 * 16)``."""
    step = SIZE // CHANNEL_GRID
    cells = opponent.reshape(-1, CHANNELS, CHANNEL_GRID, step, CHANNEL_GRID, step)
    return cells.mean(axis=(3, 5)).reshape(len(opponent), -1)


def _gabor_energy(luminance: Floats) -> Floats:
    """Energy of quadrature pairs ``(n, 768)`` from luminance ``(n, 1024)``."""
    even, odd = gabor_filters()
    return np.hypot(luminance @ even, luminance @ odd)


@lru_cache(maxsize=1)
def gabor_filters() -> tuple[Floats, Floats]:
    """Builds the quadrature pairs.

    A Gaussian envelope of half a wavelength (standard deviation) times a cosine and a sine; the mean is removed under
    the envelope, so that uniform light gives no energy, and each filter has norm 1 over the picture.

    Returns:
        Even and odd filters, each ``(1024, 768)``, columns by frequency, orientation, row, column.
    """
    pixel = grid_centres(SIZE)
    x, y = np.meshgrid(pixel, pixel)
    filters: list[list[NDArray[np.float64]]] = [[], []]
    for cycles in FREQUENCIES:
        wavelength = FIELD_OF_VIEW / cycles
        for angle in ORIENTATIONS:
            for row in grid_centres(ENERGY_GRID):
                for column in grid_centres(ENERGY_GRID):
                    dx, dy = x - column, y - row
                    envelope = np.exp(-(dx**2 + dy**2) / (2 * (0.5 * wavelength) ** 2))
                    phase = 2 * np.pi * (dx * np.cos(angle) + dy * np.sin(angle)) / wavelength
                    for bank, carrier in zip(filters, (np.cos(phase), np.sin(phase)), strict=True):
                        gabor = envelope * (carrier - (envelope * carrier).sum() / envelope.sum())
                        bank.append((gabor / np.linalg.norm(gabor)).ravel())
    even, odd = (np.array(bank, np.float32).T.copy() for bank in filters)
    return even, odd
