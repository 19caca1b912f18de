"""The shapes of the objects: each kind is a short list of soft-edged parts in a box from -1 to 1.

A part is given by a signed distance (negative inside), so that its edge can be made exactly one pixel soft at any
picture size; no supersampling is needed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """One part of a shape, in the object's box (x to the right, y downwards, both -1 to 1).

    Attributes:
        form: ``ellipse``, ``box``, ``triangle`` (apex up) or ``hull`` (a box that narrows downwards).
        x: Centre.
        y: Centre.
        rx: Half width.
        ry: Half height.
        paint: ``main`` (the object's colour), ``dark`` or ``light`` (shades of it), or a name of :data:`PAINTS`.
    """

    form: str
    x: float
    y: float
    rx: float
    ry: float
    paint: str = "main"


PAINTS: dict[str, tuple[float, float, float]] = {
    "trunk": (0.40, 0.26, 0.14),
    "ink": (0.12, 0.12, 0.14),
    "glass": (0.70, 0.85, 0.95),
    "cream": (0.96, 0.94, 0.86),
    "stem": (0.15, 0.45, 0.15),
}

SHAPES: dict[str, tuple[Part, ...]] = {
    "ball": (
        Part("ellipse", 0, 0, 0.9, 0.9),
        Part("box", 0, 0, 0.82, 0.14, "cream"),
        Part("ellipse", -0.32, -0.42, 0.22, 0.18, "light"),
    ),
    "house": (
        Part("box", 0, 0.35, 0.78, 0.6),
        Part("triangle", 0, -0.55, 1.0, 0.4, "dark"),
        Part("box", 0, 0.6, 0.18, 0.35, "ink"),
        Part("box", -0.48, 0.15, 0.16, 0.16, "glass"),
        Part("box", 0.48, 0.15, 0.16, 0.16, "glass"),
    ),
    "tree": (
        Part("box", 0, 0.65, 0.14, 0.35, "trunk"),
        Part("ellipse", -0.35, 0.0, 0.5, 0.42, "dark"),
        Part("ellipse", 0.35, 0.0, 0.5, 0.42, "dark"),
        Part("ellipse", 0, -0.35, 0.58, 0.58),
    ),
    "car": (
        Part("ellipse", 0, -0.12, 0.58, 0.5),
        Part("ellipse", 0, -0.12, 0.42, 0.34, "glass"),
        Part("box", 0, 0.2, 1.0, 0.28),
        Part("ellipse", -0.55, 0.48, 0.25, 0.25, "ink"),
        Part("ellipse", 0.55, 0.48, 0.25, 0.25, "ink"),
    ),
    "dog": (
        Part("box", -0.5, 0.55, 0.13, 0.4, "dark"),
        Part("box", 0.4, 0.55, 0.13, 0.4, "dark"),
        Part("ellipse", -0.05, 0.15, 0.72, 0.36),
        Part("ellipse", 0.62, -0.3, 0.34, 0.34),
        Part("ellipse", 0.42, -0.5, 0.13, 0.26, "dark"),
        Part("ellipse", 0.72, -0.36, 0.08, 0.08, "ink"),
    ),
    "face": (
        Part("ellipse", 0, 0, 0.75, 0.92),
        Part("ellipse", -0.3, -0.22, 0.17, 0.17, "cream"),
        Part("ellipse", 0.3, -0.22, 0.17, 0.17, "cream"),
        Part("ellipse", -0.3, -0.2, 0.09, 0.1, "ink"),
        Part("ellipse", 0.3, -0.2, 0.09, 0.1, "ink"),
        Part("ellipse", 0, 0.45, 0.34, 0.13, "ink"),
    ),
    "tower": (
        Part("box", 0, 0.15, 0.36, 0.85),
        Part("box", 0, -0.62, 0.46, 0.12, "dark"),
        Part("triangle", 0, -0.85, 0.44, 0.15, "dark"),
        Part("box", 0, -0.2, 0.13, 0.2, "glass"),
        Part("box", 0, 0.45, 0.13, 0.2, "glass"),
    ),
    "boat": (
        Part("box", 0, -0.2, 0.05, 0.75, "trunk"),
        Part("triangle", 0.3, -0.3, 0.42, 0.6, "cream"),
        Part("hull", 0, 0.62, 1.0, 0.3),
    ),
    "flower": (
        Part("box", 0, 0.5, 0.07, 0.5, "stem"),
        Part("ellipse", 0.28, 0.6, 0.28, 0.12, "stem"),
        Part("ellipse", 0, -0.75, 0.27, 0.27),
        Part("ellipse", 0, -0.02, 0.27, 0.27),
        Part("ellipse", -0.38, -0.38, 0.27, 0.27),
        Part("ellipse", 0.38, -0.38, 0.27, 0.27),
        Part("ellipse", 0, -0.38, 0.24, 0.24, "cream"),
    ),
    "bird": (
        Part("triangle", -0.72, 0.1, 0.28, 0.3, "dark"),
        Part("ellipse", 0, 0.1, 0.72, 0.34),
        Part("ellipse", -0.05, -0.3, 0.3, 0.55, "dark"),
        Part("ellipse", 0.62, -0.15, 0.27, 0.27),
        Part("ellipse", 0.7, -0.2, 0.07, 0.07, "ink"),
    ),
}


def signed_distance(part: Part, x: Plane, y: Plane) -> Plane:
    """Returns the (approximate) signed distance to the part's edge, negative inside.

    Args:
        part: The part.
        x: Horizontal coordinates in the object's box, broadcastable with ``y``.
        y: Vertical coordinates in the object's box.

    Returns:
        Distances in the object's units.

    Raises:
        ValueError: When the part's form is unknown.
    """
    u, v = x - part.x, y - part.y
    if part.form == "ellipse":
        return (np.sqrt(np.square(u / part.rx) + np.square(v / part.ry)) - 1.0) * min(part.rx, part.ry)
    if part.form == "box":
        return np.maximum(np.abs(u) - part.rx, np.abs(v) - part.ry)
    if part.form == "triangle":
        slope = 2.0 * part.ry / part.rx
        side = (np.abs(u) * slope - (v + part.ry)) / math.sqrt(slope * slope + 1.0)
        return np.maximum(side, v - part.ry)
    if part.form == "hull":
        return np.maximum((np.abs(u) + 0.6 * (v + part.ry) - part.rx) * 0.86, np.abs(v) - part.ry)
    raise ValueError(f"unknown form {part.form!r}; allowed: ellipse, box, triangle, hull")
