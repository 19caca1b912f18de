"""The simulated brains: where the voxels lie, their ROI labels in NSD's convention, and their receptive fields.

A brain is an ellipsoid in its box; its cortex is the outer shell. Axes are NSD's: x grows to the right, y to the front,
z up. Areas follow one another from the posterior pole forwards, in the order V1, V2, V3, hV4, then the ventral, lateral
and parietal streams, with the voxel counts of the real subject scaled to the wanted size of nsdgeneral. Labels are -1
outside cortex, 0 in cortex without a label, 1 to N inside an area. Receptive fields are in the contralateral hemifield,
ventral V1 to V3 in the upper and dorsal ones in the lower quadrant, and change smoothly along the cortex.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.data.simulate.elementary import cos, power, sin
from bench.data.simulate.exact import normals
from bench.data.simulate.presets import NSDGENERAL, Preset

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

ROI_LABELS: dict[str, tuple[str, ...]] = {
    "nsdgeneral": ("nsdgeneral",),
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
}
"""Names of the labels 1 to N of every ROI file that is simulated."""

V1, V2, HV4 = (
    (1350, 1102, 1254, 877, 1113, 1127, 1142, 1074),
    (1433, 1075, 1141, 863, 1081, 1180, 986, 1033),
    (687, 483, 426, 475, 542, 477, 397, 495),
)
"""Voxels of prf-visualrois in func1pt8mm, subjects 1 to 8."""
V3_TO_V1_V2 = 1187 / (1350 + 1433)
"""Size of V3 relative to V1 and V2 together, as in subject 1."""
VENTRAL_SHARE = (594 / 1350, 834 / 1433, 646 / 1187)
"""Share of the ventral half in V1, V2 and V3, as in subject 1."""
STREAMS = {
    "early": (5917, 4611, 5148, 4054, 4494, 5860, 4559, 4596),
    "midventral": (910, 746, 850, 757, 831, 1138, 707, 780),
    "midlateral": (910, 746, 849, 757, 830, 1138, 706, 780),
    "midparietal": (950, 822, 826, 698, 678, 932, 692, 653),
    "ventral": (7604, 8185, 8167, 7645, 6619, 9666, 6515, 8350),
    "lateral": (7799, 6752, 8572, 7131, 7037, 9030, 6118, 8674),
    "parietal": (3548, 3355, 3885, 3346, 2838, 3374, 2459, 3390),
}
"""Voxels of each stream; only the sum of midventral and midlateral is known and is halved here."""
CORTEX_FROM = 0.72
"""Inner radius of the cortical shell, relative to the ellipsoid."""
LOW, HIGH = -0.34289780745545134, 0.5646424733950354
"""Sines of -0.35 and 0.6 radians."""
SECTORS = {"ventral": (-np.inf, LOW), "lateral": (LOW, HIGH), "parietal": (HIGH, np.inf)}
"""Range of elevation (sine of the angle from the horizontal plane) of the three streams."""
MAX_ECCENTRICITY = 5.6
ECCENTRICITY_EDGES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The voxels of one subject's brain.

    Attributes:
        shape: Box (X, Y, Z).
        positions: ``(V, 3)`` indices of the brain's voxels, x slowest and z fastest.
        right: ``(V,)`` True in the right hemisphere.
        labels: For every name in :data:`ROI_LABELS` the voxels' labels ``(V,)``, -1, 0 or 1 to N.
        field_x: ``(V,)`` centre of the receptive field, degrees to the right of fixation.
        field_y: ``(V,)`` degrees above fixation.
        field_size: ``(V,)`` standard deviation of the receptive field in degrees.
    """

    shape: tuple[int, int, int]
    positions: Ints
    right: Mask
    labels: dict[str, Ints]
    field_x: NDArray[np.float64]
    field_y: NDArray[np.float64]
    field_size: NDArray[np.float64]

    @property
    def brain(self) -> Mask:
        """The brain mask ``(X, Y, Z)``."""
        mask = np.zeros(self.shape, bool)
        mask[tuple(self.positions.T)] = True
        return mask

    def area(self, roi: str, *names: str) -> Mask:
        """Returns which voxels ``(V,)`` carry one of the named labels of an ROI file.

        Args:
            roi: A name in :data:`ROI_LABELS`.
            *names: Label names.

        Raises:
            KeyError: When the ROI is unknown.
            ValueError: When a label is unknown.
        """
        values = [ROI_LABELS[roi].index(name) + 1 for name in names]
        return np.isin(self.labels[roi], values)

    def roi_volume(self, roi: str, hemisphere: str = "both") -> NDArray[np.int16]:
        """Returns an ROI file's volume: -1 outside the cortex (of the hemisphere), 0 unlabelled, 1 to N.

        Args:
            roi: A name in :data:`ROI_LABELS`.
            hemisphere: ``both``, ``lh`` or ``rh``.

        Raises:
            ValueError: When the hemisphere is none of these.
        """
        if hemisphere not in ("both", "lh", "rh"):
            raise ValueError(f"hemisphere is {hemisphere!r}; allowed are both, lh, rh")
        volume = np.full(self.shape, -1, np.int16)
        keep = np.ones(len(self.right), bool) if hemisphere == "both" else self.right == (hemisphere == "rh")
        volume[tuple(self.positions[keep].T)] = self.labels[roi][keep]
        return volume


def build_anatomy(preset: Preset, subject: int) -> Anatomy:
    """Lays out one subject's brain.

    Args:
        preset: Gives the box and the size of nsdgeneral.
        subject: 1 to the number of subjects of the preset.

    Returns:
        The anatomy; the same for equal arguments.

    Raises:
        ValueError: When the cortex of the box is too small for nsdgeneral.
    """
    shape, wanted = preset.boxes[subject - 1], preset.nsdgeneral[subject - 1]
    half = (np.array(shape) - 1) / 2
    unit = (np.indices(shape).reshape(3, -1).T - half) / half
    squares = np.square(unit)
    radius = np.sqrt(squares[:, 0] + squares[:, 1] + squares[:, 2])
    inside = radius <= 1.0
    unit, radius = unit[inside], radius[inside]
    cortex = radius >= CORTEX_FROM
    if cortex.sum() < wanted:
        raise ValueError(
            f"preset {preset.name}, subject {subject}: a box of {shape} has {cortex.sum()} cortical voxels, "
            f"fewer than the {wanted} of nsdgeneral"
        )
    # Voxels are ranked by sines rather than angles: they order alike, and have the same bits on every machine.
    forward = np.where(cortex, unit[:, 1] / np.maximum(radius, 1e-9), np.inf)
    elevation = unit[:, 2] / np.maximum(np.sqrt(np.square(unit[:, 0]) + np.square(unit[:, 2])), 1e-9)
    layout = _Layout(cortex, forward, elevation, np.abs(unit[:, 0]), wanted / NSDGENERAL[subject - 1], subject)
    right = unit[:, 0] > 0
    labels = layout.labels(wanted)
    eccentricity, angle, size = _retinotopy(preset, subject, layout, labels, right)
    labels["prf-eccrois"] = np.where(
        labels["prf-visualrois"] > 0, np.digitize(eccentricity, ECCENTRICITY_EDGES) + 1, labels["prf-visualrois"]
    )
    positions = np.argwhere(inside.reshape(shape))
    side = np.where(right, -1.0, 1.0)  # a hemisphere sees the opposite half of the visual field
    return Anatomy(shape, positions, right, labels, side * eccentricity * cos(angle), eccentricity * sin(angle), size)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Cortical coordinates of the brain's voxels, from which the areas are cut."""

    cortex: Mask
    forward: NDArray[np.float64]  # -1 at the posterior pole, 1 at the front; infinite outside cortex
    elevation: NDArray[np.float64]  # sine of the angle from the horizontal plane
    lateral: NDArray[np.float64]
    scale: float
    subject: int

    def labels(self, nsdgeneral: int) -> dict[str, Ints]:
        """All ROI files but the eccentricity one."""
        general = self.first(self.cortex, nsdgeneral)
        streams = self._streams()
        return {
            "nsdgeneral": self.file([general]),
            "prf-visualrois": self.file(self._visual_areas()),
            "streams": self.file([streams[name] for name in ROI_LABELS["streams"]]),
            **self._functional_areas(streams),
        }

    def file(self, areas: list[Mask]) -> Ints:
        """Labels 1 to N from masks; -1 outside cortex."""
        labels = np.where(self.cortex, 0, -1)
        for value, area in enumerate(areas, start=1):
            labels[area] = value
        return labels

    def first(self, mask: Mask, count: int) -> Mask:
        """The ``count`` voxels of the mask nearest to the posterior pole (all, if there are fewer)."""
        return _lowest(mask, self.forward, min(count, int(mask.sum())))

    def real(self, counts: tuple[int, ...]) -> int:
        """A real subject's voxel count at this size, at least 1."""
        return max(round(counts[self.subject - 1] * self.scale), 1)

    def _visual_areas(self) -> list[Mask]:
        """V1v, V1d, V2v, V2d, V3v, V3d and hV4."""
        free = self.cortex.copy()
        sizes = [self.real(V1), self.real(V2), 0]
        sizes[2] = max(round((sizes[0] + sizes[1]) * V3_TO_V1_V2), 1)
        areas = []
        for size, share in zip(sizes, VENTRAL_SHARE, strict=True):
            whole = self.first(free, size)
            ventral = _lowest(whole, self.elevation, round(size * share))
            areas += [ventral, whole & ~ventral]
            free &= ~whole
        return [*areas, self.first(free & (self.elevation < 0), self.real(HV4))]

    def _streams(self) -> dict[str, Mask]:
        """The seven streams by name."""
        early = self.first(self.cortex, self.real(STREAMS["early"]))
        streams = {"early": early}
        for name, (low, high) in SECTORS.items():
            sector = self.cortex & ~early & (self.elevation >= low) & (self.elevation < high)
            streams[f"mid{name}"] = self.first(sector, self.real(STREAMS[f"mid{name}"]))
            streams[name] = self.first(sector & ~streams[f"mid{name}"], self.real(STREAMS[name]))
        return streams

    def _functional_areas(self, streams: dict[str, Mask]) -> dict[str, Ints]:
        """Face, place and body areas, cut from the streams by their position along and across them."""
        ventral, lateral, parietal = streams["ventral"], streams["lateral"], streams["parietal"]
        outer = ventral & ~_lowest(ventral, self.lateral, int(ventral.sum()) // 2)
        low = _lowest(lateral, self.elevation, int(lateral.sum()) // 3)
        ventral_line = [self.band(outer, start, start + 0.16) for start in (0.1, 0.26, 0.42, 0.58)]
        faces = [self.band(low, 0.0, 0.3), ventral_line[0], ventral_line[2]]
        places = [self.band(streams["midparietal"], 0.0, 1.0), self.band(ventral & ~outer, 0.2, 0.6)]
        bodies = [self.band(lateral & ~low, 0.1, 0.4), ventral_line[1], ventral_line[3]]
        return {
            "floc-faces": self.file(faces),
            "floc-places": self.file([*places, self.band(parietal, 0.0, 0.25)]),
            "floc-bodies": self.file(bodies),
        }

    def band(self, mask: Mask, start: float, stop: float) -> Mask:
        """The voxels of the mask between two fractions of its extent from back to front."""
        count = int(mask.sum())
        return self.first(mask, round(stop * count)) & ~self.first(mask, round(start * count))


def _lowest(mask: Mask, score: NDArray[np.float64], count: int) -> Mask:
    """The ``count`` voxels of the mask with the lowest score."""
    members = np.flatnonzero(mask)
    chosen = np.zeros(mask.shape, bool)
    chosen[members[np.argsort(score[members], kind="stable")[:count]]] = True
    return chosen


def _retinotopy(
    preset: Preset, subject: int, layout: _Layout, labels: dict[str, Ints], right: Mask
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Eccentricity (degrees), polar angle (radians above the horizontal meridian) and receptive field size."""
    rng = np.random.default_rng([preset.seed, 0xA7A7, subject])
    visual, streams = labels["prf-visualrois"], labels["streams"]
    group = np.where(visual > 0, visual, np.where(streams > 0, 7 + streams, 0))
    along, around = np.zeros(group.shape), np.zeros(group.shape)
    for value in np.unique(group):
        for side in (False, True):
            members = np.flatnonzero((group == value) & (right == side))
            along[members] = _jittered_rank(rng, layout.forward[members])
            around[members] = _jittered_rank(rng, layout.elevation[members])
    # A density falling slowly with eccentricity: the exponent 0.5 would be uniform over the visual field.
    eccentricity = 0.1 + (MAX_ECCENTRICITY - 0.1) * power(along, 0.6)
    quarter = np.isin(visual, (1, 2, 3, 4, 5, 6))
    upper = np.isin(visual, (1, 3, 5))
    angle = np.where(quarter, np.where(upper, 1 - around, -around), 1 - 2 * around) * np.pi / 2
    base = np.array([1.4, 0.30, 0.30, 0.40, 0.40, 0.55, 0.55, 0.9])[np.where(visual > 0, visual, 0)]
    slope = np.where(quarter, 0.08, 0.15)
    return eccentricity, angle, base + slope * eccentricity


def _jittered_rank(rng: np.random.Generator, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks scaled to 0..1 with a little noise: neighbours on the cortex see neighbouring places."""
    if values.size == 0:
        return values
    ranks = (np.argsort(np.argsort(values, kind="stable")) + 0.5) / values.size
    return np.clip(ranks + 0.03 * normals(rng, values.size), 0.0, 1.0)
