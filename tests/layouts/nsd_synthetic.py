"""NSD-synthetic with 744 trials of 284 pictures, in small volumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from nsd_side_copy import write_side

VARIANTS = {"hdf5": {}, "nifti": {"files": "nifti"}}


@dataclass(frozen=True)
class Facts:
    """Picture of each trial from 1, betas `(X, Y, Z, T)` by subject, pictures: common, and coloured by subject."""

    ordering: np.ndarray
    betas: dict[int, np.ndarray]
    common: np.ndarray
    coloured: dict[int, np.ndarray]


def write(root: Path) -> Facts:
    rng = np.random.default_rng(8)
    ordering = rng.permutation(np.r_[np.arange(1, 285), rng.integers(1, 285, 744 - 284)])
    design = root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    design.parent.mkdir(parents=True)
    scipy.io.savemat(design, {"masterordering": ordering[None].astype(np.uint16)})
    folder = root / "nsddata_stimuli/stimuli/nsdsynthetic"
    folder.mkdir(parents=True)
    common = rng.integers(0, 256, (220, 8, 8, 3)).astype(np.uint8)
    coloured = {subject: rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8) for subject in (1, 3)}
    names = {"nsdsynthetic_stimuli": common}
    names |= {f"nsdsynthetic_colorstimuli_subj{subject:02d}": images for subject, images in coloured.items()}
    for name, images in names.items():
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file["imgBrick"] = images
    return Facts(ordering, write_side(root, "nsdsynthetic", (1, 3), 744), common, coloured)
