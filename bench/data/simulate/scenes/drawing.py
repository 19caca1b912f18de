"""Paints a scene: background, then the objects from far to near, all with edges one pixel soft.

The pictures are made of gradients, gentle textures and soft-edged shapes, so that a small autoencoder can carry them;
they differ in layout, light, colour and content, so that decoding has something to tell apart.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bench.data.simulate.elementary import exp, sin
from bench.data.simulate.exact import interpolate
from bench.data.simulate.scenes.attributes import Scene, SceneObject
from bench.data.simulate.scenes.shapes import PAINTS, SHAPES, Plane, signed_distance

Rgb = tuple[float, float, float]

COLOUR_RGB: dict[str, Rgb] = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.97, 0.86, 0.16),
    "green": (0.16, 0.66, 0.24),
    "blue": (0.13, 0.33, 0.88),
    "purple": (0.55, 0.20, 0.72),
    "white": (0.96, 0.96, 0.96),
    "black": (0.09, 0.09, 0.11),
}
SKY_RGB: dict[str, tuple[Rgb, Rgb]] = {
    "day": ((0.25, 0.52, 0.95), (0.75, 0.88, 1.00)),
    "overcast": ((0.50, 0.53, 0.57), (0.80, 0.81, 0.82)),
    "sunset": ((0.42, 0.22, 0.50), (1.00, 0.58, 0.22)),
    "night": ((0.02, 0.03, 0.12), (0.10, 0.12, 0.32)),
}
"""Colour at the top of the picture and at the horizon."""
GROUND_RGB: dict[str, Rgb] = {
    "field": (0.36, 0.62, 0.20),
    "sea": (0.05, 0.32, 0.52),
    "room": (0.52, 0.34, 0.20),
    "city": (0.40, 0.40, 0.43),
    "desert": (0.88, 0.70, 0.40),
    "snow": (0.94, 0.96, 1.00),
}
LIGHT_GAIN: dict[str, Rgb] = {
    "day": (1.0, 1.0, 1.0),
    "overcast": (0.78, 0.78, 0.80),
    "sunset": (1.0, 0.74, 0.60),
    "night": (0.42, 0.46, 0.66),
}
TEXTURE: dict[str, tuple[float, float, float]] = {
    "field": (5.0, 7.0, 0.05),
    "sea": (1.5, 9.0, 0.07),
    "room": (6.0, 0.5, 0.06),
    "city": (0.5, 5.0, 0.03),
    "desert": (2.0, 4.0, 0.06),
    "snow": (2.5, 3.0, 0.03),
}
"""Cycles of the ground's texture across the width and the height of the picture, and its amplitude."""
GOLDEN = 0.6180339887498949


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """Paints one scene.

    Args:
        scene: What to paint.
        size: Width and height in pixels.

    Returns:
        RGB picture ``(size, size, 3)``.

    Raises:
        ValueError: When ``size`` is below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size}; a picture needs at least 8 pixels a side")
    canvas = _background(scene, size)
    gain = np.sqrt(np.array(LIGHT_GAIN[scene.light], np.float32))  # objects keep more of their own colour at night
    for thing in scene.objects:
        _paint_object(canvas, thing, gain)
    cast = np.array([1 + 0.08 * scene.warmth, 1.0, 1 - 0.08 * scene.warmth], np.float32) * scene.exposure
    canvas *= cast[:, None, None] * 255.0
    np.clip(canvas, 0.0, 255.0, out=canvas)
    return np.ascontiguousarray(np.rint(canvas).astype(np.uint8).transpose(1, 2, 0))


def draw_batch(scenes: Sequence[Scene], size: int = 64) -> NDArray[np.uint8]:
    """Paints several scenes.

    Args:
        scenes: N scenes.
        size: Width and height in pixels.

    Returns:
        RGB pictures ``(N, size, size, 3)``.
    """
    pictures = np.empty((len(scenes), size, size, 3), np.uint8)
    for picture, scene in zip(pictures, scenes, strict=True):
        picture[...] = draw(scene, size)
    return pictures


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Plane, Plane]:
    """Pixel centres as a row ``(1, size)`` and a column ``(size, 1)``."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


def _phases(scene: Scene, count: int) -> NDArray[np.float32]:
    """Phases in [0, 1), fixed by the scene's detail seed."""
    steps = np.arange(1, count + 1)
    return np.modf(scene.detail * 0.7548776662 * steps + steps**2 * GOLDEN)[0].astype(np.float32)


def _background(scene: Scene, size: int) -> Plane:
    """Wall or sky above the horizon and textured ground below, ``(3, size, size)`` in 0 to 1."""
    x, y = _grid(size)
    edge = scene.horizon - scene.tilt * (x - 0.5)
    back = _wall(scene, x, y) if scene.setting == "room" else _sky(scene, x, y)
    if scene.setting == "city":
        back = _blend(back, _skyline_mask(scene, x, y, edge), _lit(scene, COLOUR_RGB[scene.backdrop], 0.75))
    ground_mask = np.clip(0.5 + (y - edge) * size / 1.5, 0.0, 1.0)
    return back + ground_mask * (_ground(scene, x, y) - back)


def _lit(scene: Scene, colour: Rgb, gain: float = 1.0) -> Plane:
    """A surface colour under the scene's light, ``(3, 1, 1)``."""
    return (np.array(colour, np.float32) * np.array(LIGHT_GAIN[scene.light], np.float32) * gain)[:, None, None]


def _sky(scene: Scene, x: Plane, y: Plane) -> Plane:
    """A vertical gradient with the sun or the moon and its glow."""
    top, low = (np.array(colour, np.float32)[:, None, None] for colour in SKY_RGB[scene.light])
    sky = top + (low - top) * np.minimum(y / scene.horizon, 1.0)
    if scene.light == "overcast":
        return sky + 0.05 * sin(2 * np.pi * (2 * x + _phases(scene, 1)[0] + 3 * y)).astype(np.float32)
    height = scene.horizon * (0.8 if scene.light == "sunset" else 0.35)
    square = (x - scene.sun_x) ** 2 + (y - height) ** 2
    sun = np.array((0.9, 0.92, 1.0) if scene.light == "night" else (1.0, 0.95, 0.6), np.float32)[:, None, None]
    disc = np.clip(0.5 + (0.07 - np.sqrt(square)) * y.shape[0] / 2.0, 0.0, 1.0)
    return sky + np.maximum(disc, 0.45 * exp(-square / 0.04).astype(np.float32)) * (sun - sky)


def _wall(scene: Scene, x: Plane, y: Plane) -> Plane:
    """A painted wall, brighter on one side, with a window onto the sky."""
    wall = _lit(scene, COLOUR_RGB[scene.backdrop], 0.8) * 0.85 + 0.1 + 0.12 * (1.0 - np.abs(x - scene.sun_x))
    distance = np.maximum(np.abs(x - scene.sun_x) - 0.12, np.abs(y - 0.45 * scene.horizon) - 0.13)
    window = np.array(SKY_RGB[scene.light][1], np.float32)[:, None, None]
    framed = _blend(wall, np.clip(0.5 - (distance - 0.02) * y.shape[0] / 1.5, 0.0, 1.0), _lit(scene, (0.9, 0.88, 0.8)))
    return _blend(framed, np.clip(0.5 - distance * y.shape[0] / 1.5, 0.0, 1.0), window)


def _skyline_mask(scene: Scene, x: Plane, y: Plane, edge: Plane) -> Plane:
    """Coverage of seven buildings of different heights standing on the horizon."""
    heights = 0.10 + 0.28 * _phases(scene, 7)
    walls = np.linspace(0, 1, 8)
    knots = np.sort(np.concatenate([walls[:-1] + 0.008, walls[1:] - 0.008]))
    profile = interpolate(x[0], knots, np.repeat(heights, 2)).astype(np.float32)
    return np.clip(0.5 + (y - (edge - profile[None, :])) * y.shape[0] / 1.5, 0.0, 1.0)


def _ground(scene: Scene, x: Plane, y: Plane) -> Plane:
    """Ground that brightens towards the viewer, with a gentle texture."""
    across, down, amplitude = TEXTURE[scene.setting]
    first, second, third = _phases(scene, 3) * (2 * np.pi)
    wave = sin(2 * np.pi * across * x + first + 1.5 * sin(2 * np.pi * y + third))
    texture = amplitude * wave * sin(2 * np.pi * down * y + second)
    shade = 0.80 + 0.35 * np.maximum(y - scene.horizon, 0.0) / (1.0 - scene.horizon)
    return _lit(scene, GROUND_RGB[scene.setting]) * (shade + texture.astype(np.float32))


def _blend(below: Plane, mask: Plane, colour: Plane) -> Plane:
    """Paints ``colour`` over ``below`` where ``mask`` is 1."""
    return below + mask * (colour - below)


def _paint_object(canvas: Plane, thing: SceneObject, gain: NDArray[np.float32]) -> None:
    """Paints one object into the canvas ``(3, size, size)``, touching only its bounding box."""
    size = canvas.shape[-1]
    reach = thing.size * 1.05 + 1.5 / size
    columns = slice(max(int((thing.x - reach) * size), 0), min(int((thing.x + reach) * size) + 1, size))
    rows = slice(max(int((thing.y - reach) * size), 0), min(int((thing.y + reach) * size) + 1, size))
    x, y = _grid(size)
    u, v = (x[:, columns] - thing.x) / thing.size, (y[rows] - thing.y) / thing.size
    patch = canvas[:, rows, columns]
    softness = thing.size * size / 1.25
    shading = (1.05 - 0.16 * v)[None]  # lit from above
    main = np.array(COLOUR_RGB[thing.colour], np.float32)
    shades = {"main": main, "dark": main * 0.68, "light": main * 0.5 + 0.5}
    for part in SHAPES[thing.kind]:
        colour = shades[part.paint] if part.paint in shades else np.array(PAINTS[part.paint], np.float32)
        mask = np.clip(0.5 - signed_distance(part, u, v) * softness, 0.0, 1.0)
        patch += mask * ((colour * gain)[:, None, None] * shading - patch)
