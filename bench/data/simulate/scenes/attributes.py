"""What a procedural scene is made of: the attributes that determine its picture, its captions and its labels.

A scene is a setting (field, sea, room, ...) under a light (day, sunset, ...), with one to three objects of different
kinds. All of it is in one frozen :class:`Scene`; drawing, captions and the simulated voxels are pure functions of it.
Coordinates run from 0 (left, top) to 1 (right, bottom).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SETTINGS = ("field", "sea", "room", "city", "desert", "snow")
LIGHTS = ("day", "overcast", "sunset", "night")
KINDS = ("ball", "house", "tree", "car", "dog", "face", "tower", "boat", "flower", "bird")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
PAINTED_SETTINGS = ("room", "city")
"""Settings whose wall or buildings have a colour of their own (:attr:`Scene.backdrop`)."""
MAX_OBJECTS = 3


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        kind: One of :data:`KINDS`.
        colour: One of :data:`COLOURS`.
        x: Horizontal centre, 0 (left) to 1 (right).
        y: Vertical centre, 0 (top) to 1 (bottom).
        size: Half of the extent, as a fraction of the picture's width.
    """

    kind: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Everything that determines a picture.

    Attributes:
        setting: One of :data:`SETTINGS`.
        light: One of :data:`LIGHTS`.
        backdrop: Colour of the wall or of the buildings; ``""`` outside :data:`PAINTED_SETTINGS`.
        horizon: Height of the line between ground and background, 0 (top) to 1 (bottom).
        tilt: Rise of that line from the left to the right edge.
        sun_x: Horizontal position of the sun, the moon or the window.
        warmth: Colour cast, -1 (cold) to 1 (warm).
        exposure: Gain on the whole picture, about 1.
        detail: Seed of the texture phases and of the skyline.
        objects: One to three objects of different kinds, in painting order (far to near).
    """

    setting: str
    light: str
    backdrop: str
    horizon: float
    tilt: float
    sun_x: float
    warmth: float
    exposure: float
    detail: int
    objects: tuple[SceneObject, ...]

    @property
    def dominant(self) -> SceneObject:
        """The largest object."""
        return max(self.objects, key=lambda thing: thing.size)


def labels(scene: Scene) -> dict[str, Any]:
    """Returns the categories of a scene as plain values that JSON can hold.

    Args:
        scene: The scene.

    Returns:
        ``setting``, ``light``, ``kinds`` and ``colours`` (one an object, in painting order), ``dominant`` (kind of the
        largest object), ``dominant_colour`` and ``count``.
    """
    return {
        "setting": scene.setting,
        "light": scene.light,
        "kinds": [thing.kind for thing in scene.objects],
        "colours": [thing.colour for thing in scene.objects],
        "dominant": scene.dominant.kind,
        "dominant_colour": scene.dominant.colour,
        "count": len(scene.objects),
    }


def attribute_names() -> tuple[str, ...]:
    """Returns the names of the entries of :func:`attribute_vector`, in order."""
    names = [f"setting={name}" for name in SETTINGS] + [f"light={name}" for name in LIGHTS]
    names += [f"backdrop={name}" for name in COLOURS]
    names += ["horizon", "tilt", "sun_x", "warmth", "exposure", "count"]
    for quantity in ("present", "x", "y", "size"):
        names += [f"{kind}.{quantity}" for kind in KINDS]
    return (*names, *(f"colour={name}.size" for name in COLOURS))


def attribute_vector(scene: Scene) -> NDArray[np.float32]:
    """Codes a scene as a fixed-length vector.

    One-hot setting, light and backdrop; the continuous attributes, centred; for every kind its presence, its position
    relative to the centre and its size (all 0 when absent); for every colour the summed size of its objects.

    Args:
        scene: The scene.

    Returns:
        Array ``(A,)`` in the order of :func:`attribute_names`.
    """
    one_hot = [float(scene.setting == name) for name in SETTINGS] + [float(scene.light == name) for name in LIGHTS]
    one_hot += [float(scene.backdrop == name) for name in COLOURS]
    scalars = [scene.horizon - 0.5, scene.tilt, scene.sun_x - 0.5, scene.warmth, scene.exposure - 1.0]
    kinds = np.zeros((4, len(KINDS)), np.float32)
    colours = np.zeros(len(COLOURS), np.float32)
    for thing in scene.objects:
        kinds[:, KINDS.index(thing.kind)] = 1.0, thing.x - 0.5, thing.y - 0.5, thing.size
        colours[COLOURS.index(thing.colour)] += thing.size
    head = np.array([*one_hot, *scalars, float(len(scene.objects))], np.float32)
    return np.concatenate([head, kinds.ravel(), colours])
