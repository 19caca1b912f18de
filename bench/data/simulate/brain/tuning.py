"""What each simulated voxel responds to, as matrices from image features to the noise-free signal.

Early voxels pool opponent channels and Gabor energy under a Gaussian receptive field, the energy through a compressive
exponent (Kay et al. 2008; Kay et al. 2013 for the exponent after pooling); higher voxels are tuned to attributes of the
scene and to planted conjunctions of them; in between, both. The signal of a voxel is

    sqrt(1 - share) * z(linear part) + sqrt(share) * z(nonlinear part),   again standardised,

with z over reference scenes. The linear part is an affine function of opponent channels and attributes, the nonlinear
part holds the compressed energy and the conjunctions, and ``share`` is the preset's ``nonlinear_share``: at 0 the best
linear decoder is known in closed form from :attr:`Tuning.linear`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.data.simulate.brain.anatomy import Anatomy
from bench.data.simulate.brain.features import (
    CHANNEL_GRID,
    CHANNELS,
    ENERGY_GRID,
    FIELD_OF_VIEW,
    FREQUENCIES,
    ORIENTATIONS,
    Floats,
    ImageFeatures,
    conjunction_names,
    grid_centres,
    image_features,
)
from bench.data.simulate.elementary import cos, exp, log, power
from bench.data.simulate.exact import deviation, mean, normals, product, total
from bench.data.simulate.presets import Preset
from bench.data.simulate.scenes.attributes import attribute_names
from bench.data.simulate.scenes.drawing import draw_batch
from bench.data.simulate.scenes.sampling import sample_scene

REFERENCE_SCENES = 768
PIXEL_SHARE = {
    "early": 0.9,
    "midventral": 0.6,
    "midlateral": 0.6,
    "midparietal": 0.6,
    "ventral": 0.3,
    "lateral": 0.3,
    "parietal": 0.4,
}
"""Share of the signal that comes from pixels rather than attributes; V1 to V3 have 1."""
PREFERENCES: dict[tuple[str, str], tuple[str, ...]] = {
    ("floc-faces", "OFA FFA-1 FFA-2"): ("face",),
    ("floc-bodies", "EBA FBA-1 FBA-2"): ("dog", "bird"),
    ("floc-places", "OPA PPA RSC"): ("setting", "light", "backdrop", "horizon", "sun_x", "house", "tower"),
    ("streams", "parietal"): ("count", "horizon", "tilt", *(f".{axis}" for axis in ("x", "y", "size"))),
}
"""For the voxels of these areas, what the names of the attributes they prefer contain."""
PREFERRED_GAIN = 3.0
CHANNEL_LIMIT, ATTRIBUTE_LIMIT, ENERGY_LIMIT = 2.0, 4.0, 64.0
"""What features cannot exceed: differences of colours, the number of objects, a unit filter on 1,024 pixels."""
DENSITY = 0.3
"""Share of the attributes a voxel is tuned to at all."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """The noise-free signal of R voxels as a function of image features.

    ``signal = [channels, attributes] @ linear + gain * (energy @ pool) ** exponent + conjunctions @ pairs + offset``

    Attributes:
        linear: ``(768 + A, R)`` weights of the opponent channels, then of the attributes.
        pool: ``(E, R)`` receptive field, frequency and orientation tuning, non-negative.
        exponent: ``(R,)`` compressive exponent of the pooled energy.
        gain: ``(R,)`` weight of the compressed energy.
        pairs: ``(C, R)`` weights of the conjunctions.
        offset: ``(R,)`` constant; the signal has mean 0 and variance 1 over the reference scenes.
    """

    linear: Floats
    pool: Floats
    exponent: Floats
    gain: Floats
    pairs: Floats
    offset: Floats

    def signal(self, features: ImageFeatures) -> Floats:
        """Returns the signal of N pictures, ``(N, R)``, in units of its standard deviation over scenes."""
        out = _linear_part(features, self.linear)
        if self.gain.any():
            out += self.gain * _compressed_energy(features, self.pool, self.exponent)
            out += product(features.conjunctions, self.pairs, 1.0)
        out += self.offset
        return out


def reference_features(preset: Preset) -> ImageFeatures:
    """Returns the features of the scenes over which signals are standardised; none of them is a stimulus."""
    base = 1 << 62  # stimulus seeds stay far below
    scenes = [sample_scene(base + preset.seed * REFERENCE_SCENES + index) for index in range(REFERENCE_SCENES)]
    return image_features(draw_batch(scenes, 64), scenes)


def build_tuning(
    preset: Preset, subject: int, anatomy: Anatomy, voxels: NDArray[np.int64], reference: ImageFeatures
) -> Tuning:
    """Draws the tuning of a subject's responsive voxels.

    Args:
        preset: Gives the seed and the nonlinear share.
        subject: Subject number.
        anatomy: The subject's brain.
        voxels: ``(R,)`` indices of the responsive voxels.
        reference: Features of :func:`reference_features`.

    Returns:
        The tuning; the same for equal arguments.
    """
    rng = np.random.default_rng([preset.seed, 0x7051, subject])
    share = pixel_share(anatomy)[voxels].astype(np.float32)
    channels = _channel_weights(rng, anatomy, voxels)
    pool = _energy_weights(rng, anatomy, voxels)
    exponent = (0.3 + 0.5 * rng.random(voxels.size)).astype(np.float32)
    attributes = _attribute_weights(rng, anatomy, voxels, attribute_names())
    pairs = _attribute_weights(rng, anatomy, voxels, conjunction_names())
    # Each part is brought to its share of the variance on its own, so that no unit of a feature matters.
    attributes /= np.maximum(deviation(reference.attributes), 1e-3)[:, None]
    channels *= np.sqrt(share) / _spread(product(reference.channels, channels, CHANNEL_LIMIT))
    attributes *= np.sqrt(1 - share) / _spread(product(reference.attributes, attributes, ATTRIBUTE_LIMIT))
    linear = np.concatenate([channels, attributes])
    linear /= _spread(_linear_part(reference, linear))
    energy = _compressed_energy(reference, pool, exponent)
    gain = np.sqrt(share) / _spread(energy)
    pairs *= np.sqrt(1 - share) / _spread(product(reference.conjunctions, pairs, 1.0))
    both = _spread(gain * energy + product(reference.conjunctions, pairs, 1.0))
    linear *= np.sqrt(1 - preset.nonlinear_share)
    gain, pairs = (part * np.sqrt(preset.nonlinear_share) / both for part in (gain, pairs))
    return _standardised(linear, pool, exponent, gain, pairs, reference)


def pixel_share(anatomy: Anatomy) -> NDArray[np.float64]:
    """Returns for each voxel ``(V,)`` the share of its signal that comes from pixels; 0.5 outside the streams."""
    share = np.full(len(anatomy.positions), 0.5)
    for name, value in PIXEL_SHARE.items():
        share[anatomy.area("streams", name)] = value
    share[anatomy.area("prf-visualrois", "hV4")] = 0.65
    share[anatomy.area("prf-visualrois", "V1v", "V1d", "V2v", "V2d", "V3v", "V3d")] = 1.0
    return share


def _standardised(
    linear: Floats, pool: Floats, exponent: Floats, gain: Floats, pairs: Floats, reference: ImageFeatures
) -> Tuning:
    """Scales and shifts the sum of all parts to mean 0 and variance 1 over the reference scenes."""
    linear, pool, exponent, gain, pairs = (part.astype(np.float32) for part in (linear, pool, exponent, gain, pairs))
    raw = Tuning(linear, pool, exponent, gain, pairs, np.zeros(gain.shape, np.float32)).signal(reference)
    scale: Floats = np.reciprocal(_spread(raw))
    offset = (-mean(raw) * scale).astype(np.float32)
    return Tuning(linear * scale, pool, exponent, gain * scale, pairs * scale, offset)


def _linear_part(features: ImageFeatures, linear: Floats) -> Floats:
    """Weighted opponent channels and attributes, ``(N, R)``."""
    split = features.channels.shape[1]
    out = product(features.channels, linear[:split], CHANNEL_LIMIT)
    out += product(features.attributes, linear[split:], ATTRIBUTE_LIMIT)
    return out


def _compressed_energy(features: ImageFeatures, pool: Floats, exponent: Floats) -> Floats:
    """Pooled Gabor energy through the compressive exponents, ``(N, R)``."""
    # Rounding leaves no weight negative, so no pooled energy is.
    return power(product(features.energy, pool, ENERGY_LIMIT), exponent).astype(np.float32)


def _spread(values: NDArray[np.floating]) -> Floats:
    """Standard deviation over pictures, kept away from 0."""
    return np.maximum(deviation(values), 1e-6).astype(np.float32)


def _receptive_field(anatomy: Anatomy, voxels: NDArray[np.int64], cells: int) -> NDArray[np.float64]:
    """Gaussian weights ``(cells * cells, R)`` that sum to 1; fields centred outside are moved to the picture's edge."""
    edge = 0.48 * FIELD_OF_VIEW
    centre_x, centre_y = (np.clip(field[voxels], -edge, edge) for field in (anatomy.field_x, anatomy.field_y))
    width = np.maximum(anatomy.field_size[voxels], 0.6 * FIELD_OF_VIEW / cells)
    centres = grid_centres(cells)
    across = exp(-((centres[:, None] - centre_x) ** 2) / (2 * width**2))
    down = exp(-((centres[:, None] + centre_y) ** 2) / (2 * width**2))  # rows run downwards
    field = (down[:, None] * across[None]).reshape(cells * cells, -1)
    return field / total(field)


def _channel_weights(rng: np.random.Generator, anatomy: Anatomy, voxels: NDArray[np.int64]) -> Floats:
    """Receptive field times a preference for luminance and the two opponent colours, ``(768, R)``."""
    field = _receptive_field(anatomy, voxels, CHANNEL_GRID)
    preference = normals(rng, (CHANNELS, 1, voxels.size))
    return (preference * field).reshape(CHANNELS * CHANNEL_GRID**2, -1).astype(np.float32)


def _energy_weights(rng: np.random.Generator, anatomy: Anatomy, voxels: NDArray[np.int64]) -> Floats:
    """Receptive field times frequency and orientation tuning, ``(E, R)``; small fields prefer fine detail."""
    field = _receptive_field(anatomy, voxels, ENERGY_GRID)
    octaves = log(2.5 / np.sqrt(anatomy.field_size[voxels])) / log(2)
    best = octaves + 0.4 * normals(rng, voxels.size) + 1.0
    frequency = exp(-((log(FREQUENCIES)[:, None] / log(2) - best) ** 2) / 2)
    preferred = np.pi * rng.random(voxels.size)
    orientation = exp(1.5 * cos(2 * (np.array(ORIENTATIONS)[:, None] - preferred)))
    weights = frequency[:, None, None] * orientation[None, :, None] * field[None, None]
    weights = weights.reshape(-1, voxels.size)
    return (weights / total(weights)).astype(np.float32)


def _attribute_weights(
    rng: np.random.Generator, anatomy: Anatomy, voxels: NDArray[np.int64], names: tuple[str, ...]
) -> Floats:
    """Sparse random weights ``(len(names), R)``, larger for what the voxel's area prefers."""
    weights = normals(rng, (len(names), voxels.size)) * (rng.random((len(names), voxels.size)) < DENSITY)
    for (roi, areas), wanted in PREFERENCES.items():
        preferred = np.array([any(word in name for word in wanted) for name in names])
        members = anatomy.area(roi, *areas.split())[voxels]
        gain = np.abs(normals(rng, (int(preferred.sum()), int(members.sum())))) * PREFERRED_GAIN
        weights[np.ix_(preferred, members)] = gain * np.where(rng.random(gain.shape) < 0.5 + DENSITY, 1, -1)
    return weights.astype(np.float32)
