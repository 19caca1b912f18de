"""Times reading a session's masked betas against the ways the field reads them, at subject 1's true volume.

    python tests/perf/prepare.py [--scale 1.0] [--repeats 2]

Writes one session of subject 1's dimensions (81 x 104 x 83 voxels, 750 trials, 1.1 GB of HDF5 in chunks of one voxel,
as MATLAB wrote NSD; the same numbers as NIfTI.gz) and a mask of 15,724 voxels on a folded sheet at the back of the
volume, and prints, each as seconds and peak memory of a process of its own:

    ours, HDF5         bench.data.datasets.nsd.volumes.read_hdf5
    ours, NIfTI        bench.data.datasets.nsd.volumes.read_nifti, decompressed as a stream
    ours, ranges       the same HDF5 through range requests: bytes and requests against the file's size
    h5py, by voxel     a plain loop over voxels
    nibabel, whole     numpy.asarray(nibabel.load(...).dataobj)[mask], as nsd_access reads it
    bound              the masked voxels' bytes (voxels x 750 x 2), read in one piece

`--scale` shortens every axis for a quick look.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow.fs as pafs

from bench.data.datasets.nsd import volumes
from bench.data.sources.ranges import RangeFile

BOX = (81, 104, 83)
TRIALS = 750
VOXELS = 15_724


def mask_of(box: tuple[int, ...], voxels: int) -> np.ndarray:
    """A folded sheet of grey matter in the back third: wanted voxels come in short runs, as a real ROI's do."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in box), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    sheet = np.abs(radius - 0.75 - 0.06 * np.sin(14 * x) * np.sin(14 * z) * np.sin(9 * y))
    sheet[y > -0.2] = np.inf
    chosen = np.zeros(box, bool)
    chosen.ravel()[np.argsort(sheet, axis=None)[:voxels]] = True
    return chosen


def write_session(folder: Path, box: tuple[int, ...]) -> None:
    """Betas in both file kinds: noise inside a brain of half the box, zero outside."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in box), indexing="ij")
    brain = (x**2 + y**2 + z**2) < 1
    betas = np.zeros((*box, TRIALS), dtype="<i2", order="F")
    for trial in range(TRIALS):
        betas[..., trial][brain] = rng.normal(0, 300, int(brain.sum()))
    nibabel.save(nibabel.Nifti1Image(betas, np.eye(4)), folder / "betas.nii.gz")
    with h5py.File(folder / "betas.hdf5", "w", libver="earliest") as file:
        dataset = file.create_dataset("betas", (TRIALS, *box[::-1]), "<i2", chunks=(TRIALS, 1, 1, 1))
        for plane in range(box[2]):
            dataset[:, plane] = betas[:, :, plane].transpose(2, 1, 0)
    chosen = mask_of(box, VOXELS * int(np.prod(box)) // int(np.prod(BOX)))
    np.save(folder / "coordinates.npy", np.argwhere(chosen).astype(np.int32))
    np.save(folder / "masked.npy", np.ascontiguousarray(betas[chosen].T))


def by_voxel(path: Path, coordinates: np.ndarray) -> np.ndarray:
    """Plain h5py, one voxel after the other."""
    with h5py.File(path) as file:
        betas = file["betas"]
        return np.stack([betas[:, z, y, x] for x, y, z in coordinates], axis=1)


def whole(path: Path, coordinates: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    """The whole 4-D volume in memory, then the mask."""
    mask = np.zeros(box, bool)
    mask[tuple(coordinates.T)] = True
    return np.asarray(nibabel.load(path).dataobj)[mask].T


def run_one(way: str, folder: Path, box: tuple[int, ...]) -> dict[str, float]:
    """Read once, compare with what was written, and say what it took."""
    coordinates = np.load(folder / "coordinates.npy")
    expected = np.load(folder / "masked.npy")
    before = peak()
    found: dict[str, float] = {}
    started = time.perf_counter()
    if way == "ours, HDF5":
        betas, _ = volumes.read_hdf5(folder / "betas.hdf5", coordinates, box, TRIALS)
    elif way == "ours, NIfTI":
        betas, _ = volumes.read_nifti(folder / "betas.nii.gz", coordinates, box, TRIALS)
    elif way == "ours, ranges":
        path = folder / "betas.hdf5"
        file = RangeFile(pafs.LocalFileSystem().open_input_file(str(path)), path.stat().st_size, str(path))
        betas, read = volumes.read_hdf5(file, coordinates, box, TRIALS)
        found = {"share of the file": read / path.stat().st_size, "requests": file.requests, "MB": read / 1e6}
    elif way == "h5py, by voxel":
        betas = by_voxel(folder / "betas.hdf5", coordinates)
    elif way == "nibabel, whole":
        betas = whole(folder / "betas.nii.gz", coordinates, box)
    else:
        betas = np.load(folder / "masked.npy")
    seconds = time.perf_counter() - started
    assert np.array_equal(betas, expected), way
    return {"s": seconds, "GB above start": (peak() - before) / 2**20, **found}


def peak() -> int:
    """The most memory of this process so far, kB; not `ru_maxrss`, which begins with what the parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


WAYS = ("bound", "ours, HDF5", "h5py, by voxel", "ours, ranges", "ours, NIfTI", "nibabel, whole")


def main() -> None:
    """Write the session, read it every way, print the ratios."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--scale", type=float, default=1.0)
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    box = tuple(round(n * given.scale) for n in BOX)
    if given.one:
        print(json.dumps(run_one(given.one[0], Path(given.one[1]), box)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_session(Path(folder), box)
        best: dict[str, dict[str, float]] = {}
        for _ in range(given.repeats):
            for way in WAYS:
                command = [sys.executable, __file__, "--scale", str(given.scale), "--one", way, folder]
                said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                best[way] = min(said, best.get(way, said), key=lambda found: found["s"])
    ours = best["ours, HDF5"]["s"]
    for way, found in best.items():
        numbers = "  ".join(f"{key} {value:.3g}" for key, value in found.items())
        print(f"{way:15s} {numbers}  ({found['s'] / ours:.2f} x ours)")


if __name__ == "__main__":
    main()
