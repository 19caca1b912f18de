"""Procedural scenes: the pictures of the simulated NSD.

``draw(sample_scene(stimulus_seed(stimulus, design_seed)))`` is the picture of a stimulus. Pictures, captions, labels
and attributes are pure functions of the scene, and the scene of the seed, so any process can make any of them alone.
"""

import numpy as np

from bench.data.simulate.scenes.attributes import (
    COLOURS,
    KINDS,
    LIGHTS,
    MAX_OBJECTS,
    PAINTED_SETTINGS,
    SETTINGS,
    Scene,
    SceneObject,
    attribute_names,
    attribute_vector,
    labels,
)
from bench.data.simulate.scenes.captions import captions
from bench.data.simulate.scenes.drawing import draw, draw_batch

__all__ = [
    "FIRST_TRAINING_DESIGN",
    "Scene",
    "SceneObject",
    "attribute_names",
    "attribute_vector",
    "captions",
    "draw",
    "draw_batch",
    "labels",
    "sample_scene",
    "stimulus_seed",
]

STIMULUS_BITS = 24
FIRST_TRAINING_DESIGN = 1_000_000
"""Design seeds from here on belong to scenes that train a generator or a metric network; datasets stay below."""
AIRBORNE = ("ball", "face", "bird")
"""Kinds that may float anywhere; the others stand below the horizon."""
CANDIDATES = 6
"""Positions tried for each object; the one farthest from the objects already placed is kept."""


def stimulus_seed(stimulus: int, design_seed: int = 0) -> int:
    """Returns the scene seed of a stimulus; different designs never share one.

    Args:
        stimulus: 0-based stimulus id, below 2**24.
        design_seed: Seed of the whole simulated dataset, non-negative.

    Raises:
        ValueError: When either number is out of range.
    """
    if not 0 <= stimulus < 1 << STIMULUS_BITS or design_seed < 0:
        raise ValueError(f"stimulus {stimulus} must be in [0, 2**{STIMULUS_BITS}) and design_seed {design_seed} >= 0")
    return (design_seed << STIMULUS_BITS) | stimulus


def sample_scene(seed: int) -> Scene:
    """Draws a scene at random.

    Args:
        seed: Any non-negative integer; the same seed gives the same scene.

    Returns:
        A scene with one to three objects of different kinds.
    """
    rng = np.random.default_rng(seed)
    u = rng.random(8)
    setting = SETTINGS[int(u[0] * len(SETTINGS))]
    horizon = 0.32 + 0.36 * u[1]
    return Scene(
        setting=setting,
        light=LIGHTS[int(u[2] * len(LIGHTS))],
        backdrop=COLOURS[int(u[3] * len(COLOURS))] if setting in PAINTED_SETTINGS else "",
        horizon=float(horizon),
        tilt=0.0 if setting in ("room", "sea") else float(0.3 * u[4] - 0.15),
        sun_x=float(0.1 + 0.8 * u[5]),
        warmth=float(2 * u[6] - 1),
        exposure=float(0.85 + 0.25 * u[7]),
        detail=int(rng.integers(1 << 16)),
        objects=_sample_objects(rng, float(horizon)),
    )


def _sample_objects(rng: np.random.Generator, horizon: float) -> tuple[SceneObject, ...]:
    """One to three objects of different kinds, spread out, ordered from far (high base) to near."""
    count = 1 + int(rng.random() * MAX_OBJECTS)
    order = np.argsort(rng.random(len(KINDS)))[:count]
    colours = (rng.random(count) * len(COLOURS)).astype(int)
    shrink = (1.0, 0.85, 0.72)[count - 1]  # more objects, each smaller: they stay visible
    placed: list[SceneObject] = []
    for kind, colour in zip(order, colours, strict=True):
        size = float(shrink * (0.19 + 0.14 * rng.random()))
        x, y = _place(rng, KINDS[kind], size, horizon, placed)
        placed.append(SceneObject(KINDS[kind], COLOURS[colour], x, y, size))
    return tuple(sorted(placed, key=lambda thing: thing.y + thing.size))


def _place(
    rng: np.random.Generator, kind: str, size: float, horizon: float, placed: list[SceneObject]
) -> tuple[float, float]:
    """The candidate position farthest from the objects already placed."""
    u = rng.random((CANDIDATES, 2))
    xs = 0.85 * size + (1 - 1.7 * size) * u[:, 0]
    if kind in AIRBORNE:
        ys = 0.85 * size + (1 - 1.7 * size) * u[:, 1]
    else:
        base = max(horizon + 0.03, 1.9 * size)
        ys = base + (0.98 - base) * u[:, 1] - size
    if not placed:
        return float(xs[0]), float(ys[0])
    others = np.array([(thing.x, thing.y) for thing in placed])
    gaps = (np.square(xs[:, None] - others[:, 0]) + np.square(ys[:, None] - others[:, 1])).min(axis=1)
    best = int(gaps.argmax())
    return float(xs[best]), float(ys[best])
