"""HCP's visual areas of two subjects: 1,200 slowly varying frames of few voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

VARIANTS = {"mean of ten": {}, "frames": {"frames": 1}}
SIZES = {100307: {"V1": 7, "V2": 5, "V3": 3, "V4": 2}, 211417: {"V1": 4, "V2": 6, "V3": 2, "V4": 5}}


@dataclass(frozen=True)
class Facts:
    """For each subject and area `(1200, V)` float32."""

    areas: dict[int, dict[str, np.ndarray]]


def write(root: Path) -> Facts:
    rng = np.random.default_rng(10)
    areas = {}
    for subject, sizes in SIZES.items():
        slow = {name: np.repeat(rng.normal(size=(60, size)), 20, axis=0) for name, size in sizes.items()}
        areas[subject] = {name: (v + 0.5 * rng.normal(size=v.shape)).astype(np.float32) for name, v in slow.items()}
        folder = root / "npz" / str(subject)
        folder.mkdir(parents=True)
        np.savez(folder / "HCP_visual_voxel.npz", **areas[subject])
    return Facts(areas)
