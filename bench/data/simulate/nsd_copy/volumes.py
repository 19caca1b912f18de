"""Writers of NSD's volumes: betas as HDF5 and NIfTI, ROI atlases with their label names, brain masks.

Arrays here are on the NIfTI axes (x to the right, y to the front, z up), header fields as NSD's own writer leaves
them: no scaling, no qform, a diagonal sform centred on the box.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import h5py
import nibabel
import numpy as np

from bench.data.datasets.nsd import layout
from bench.data.datasets.nsd.volumes import SCALE
from bench.data.simulate.nsd_copy.tables import aside

MM = {"func1pt8mm": 1.8, "func1mm": 1.0}
SECONDS = {"func1pt8mm": 4 / 3, "func1mm": 1.0}


def stored(psc: np.ndarray) -> np.ndarray:
    """Return percent signal change as NSD stores it: int16, times 300, saturating."""
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(psc / SCALE), limits.min, limits.max).astype("<i2")


def embed(betas: np.ndarray, coordinates: np.ndarray, box: tuple[int, int, int]) -> np.ndarray:
    """Return betas `(T, V)` in their volume, `(X, Y, Z, T)`, zero elsewhere.

    Args:
        betas: `(T, V)` int16.
        coordinates: `(V, 3)` x, y, z.
        box: `(X, Y, Z)`.
    """
    volume = np.zeros((*box, betas.shape[0]), dtype=betas.dtype)
    volume[tuple(coordinates.T)] = betas.T
    return volume


def write_betas(path: Path, volume: np.ndarray) -> None:
    """Write `betas_sessionNN.hdf5`: `betas` is `(T, Z, Y, X)` `<i2` in uncompressed chunks of one voxel.

    Args:
        path: The file.
        volume: `(X, Y, Z, T)` int16.
    """
    x, y, z, trials = volume.shape
    with aside(path) as temporary, h5py.File(temporary, "w", libver="earliest") as file:
        data = file.create_dataset("betas", shape=(trials, z, y, x), dtype="<i2", chunks=(trials, 1, 1, 1))
        rows = np.ascontiguousarray(volume, "<i2").reshape(-1, trials)
        # The chunks go straight to the file: under half the time of scattering one large array into them.
        for place, row in zip(np.ndindex(x, y, z), rows, strict=True):
            data.id.write_direct_chunk((0, *place[::-1]), row)


def write_nifti(path: Path, volume: np.ndarray, space: str) -> None:
    """Write a volume `(X, Y, Z)` or `(X, Y, Z, T)` as `.nii.gz` in its own dtype, with NSD's header."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(volume.shape)
    header.set_data_dtype(volume.dtype)
    affine = np.diag([MM[space]] * 3 + [1.0])
    affine[:3, 3] = -(np.array(volume.shape[:3]) - 1) / 2 * MM[space]
    header.set_sform(affine, code=1)
    header["pixdim"][1:4] = MM[space]
    if volume.ndim == 4:
        header["pixdim"][4] = SECONDS[space]
    header["scl_slope"] = header["scl_inter"] = 0
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + volume.tobytes(order="F")
    with aside(path) as temporary:
        temporary.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))


def write_atlas(
    root: Path, subject: int, space: str, atlas: str, labels: Mapping[str, np.ndarray], names: Mapping[str, int]
) -> None:
    """Write an atlas of a subject: the plain volume, one a hemisphere, and its label names.

    Args:
        root: The simulated NSD.
        subject: From 1.
        space: Functional space.
        atlas: Its name.
        labels: Volumes `(X, Y, Z)` under "", "lh" and "rh": -1 not cortex of the hemisphere, 0 unlabelled, 1...N.
        names: Label numbers by name.
    """
    for hemisphere, volume in labels.items():
        write_nifti(root / layout.roi_volume(subject, space, atlas, hemisphere), volume.astype(np.int16), space)
    lines = ["0 Unknown", *(f"{number} {name}" for name, number in sorted(names.items(), key=lambda item: item[1]))]
    with aside(root / layout.label_names(subject, atlas)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_brain_mask(root: Path, subject: int, space: str, brain: np.ndarray) -> None:
    """Write `brainmask.nii.gz`, 1 inside the brain."""
    write_nifti(root / layout.roi_volume(subject, space, "brainmask"), brain.astype(np.int16), space)
