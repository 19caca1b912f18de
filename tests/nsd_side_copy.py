"""What small copies of NSD-synthetic and NSD-imagery share: atlases and betas of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nsd_copy import BOX, SPACE, hemispheres, label_volume

from bench.data.datasets.nsd import layout
from bench.data.simulate.nsd_copy import volumes


def write_side(root: Path, experiment: str, subjects: tuple[int, ...], trials: int) -> dict[int, np.ndarray]:
    """Write atlases and betas of some subjects; return the betas `(X, Y, Z, T)`."""
    rng = np.random.default_rng(4)
    betas = {}
    for subject in subjects:
        volume = label_volume(rng, 1)
        volumes.write_atlas(root, subject, SPACE, "nsdgeneral", hemispheres(volume), {"nsdgeneral": 1})
        betas[subject] = rng.integers(-900, 900, (*BOX, trials)).astype("<i2")
        folder = root / layout.betas_folder(subject, SPACE, f"{experiment}betas_fithrf_GLMdenoise_RR")
        volumes.write_betas(folder / f"betas_{experiment}.hdf5", betas[subject])
        volumes.write_nifti(folder / f"betas_{experiment}.nii.gz", betas[subject], SPACE)
    return betas
