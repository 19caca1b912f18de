"""Betas in gzipped NIfTI, one volume a trial: BOLD5000's, and those of NSD, NSD-synthetic and NSD-imagery."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np

from bench.core.errors import BadDataError
from bench.data.sources.ranges import RangeFile


def read_trials(
    stream: gzip.GzipFile, header: nibabel.Nifti1Header, coordinates: np.ndarray, box: tuple[int, ...], trials: int
) -> np.ndarray:
    """Take some voxels out of each trial's volume; no more than one volume is ever in memory.

    Args:
        stream: The decompressed file, its header read.
        header: Its header: axes (x, y, z, trial).
        coordinates: `(V, 3)` voxel indices x, y, z, in any order.
        box: `(X, Y, Z)` shape of a volume.
        trials: How many there are.

    Returns:
        `(trials, V)` of the file's type, little-endian.

    Raises:
        EOFError: If the stream ends before.
    """
    dtype, voxels = header.get_data_dtype(), int(np.prod(box))
    # NIfTI stores x fastest, which NumPy calls Fortran's order.
    flat = np.ravel_multi_index(tuple(coordinates.T), box, order="F")
    result = np.empty((trials, len(flat)), dtype=dtype.newbyteorder("<"))
    stream.seek(int(header["vox_offset"]))
    for trial in range(trials):
        content = stream.read(voxels * dtype.itemsize)
        if len(content) != voxels * dtype.itemsize:
            raise EOFError(f"it ends in trial {trial + 1} of {trials}")
        result[trial] = np.frombuffer(content, dtype)[flat]
    return result


def check_unscaled(header: nibabel.Nifti1Header, file: Path | RangeFile, whose: str) -> None:
    """Raise if a header asks for a scaling of the stored numbers, which `read_trials` does not do.

    Args:
        header: The header.
        file: Whose it is, for the message.
        whose: What has none, for the message: `BOLD5000's betas`.

    Raises:
        BadDataError: If it does.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # NIfTI: a slope of 0 means no scaling at all, and NSD writes 0 and 0; nibabel writes NaN for the same.
    if (slope not in (0.0, 1.0) and not np.isnan(slope)) or (slope == 1.0 and intercept != 0.0):
        raise BadDataError(f"{file} has scl_slope {slope}, scl_inter {intercept}; {whose} have none")
