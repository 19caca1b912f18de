"""NIfTI, gzipped or not: maps whole, and betas at some voxels only, one volume a trial.

All is read to the end of the stream, where gzip's checksum tells damage: nibabel stops at the last voxel, before it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.sources.ranges import RangeFile

LARGEST_READ = 1 << 23
"""Bytes of one request at most, so that what was fetched stays small beside a session's betas."""
_FAULTS = (OSError, EOFError, zlib.error, HeaderDataError, WrapStructError, ImageFileError, ValueError, MemoryError)
"""What nibabel and gzip raise on damaged files, depending on which byte is wrong."""


def read_volume(path: Path, what: str = "volume") -> np.ndarray:
    """Return a 3-D volume of numbers `(X, Y, Z)` as it is stored.

    Args:
        path: A `.nii` or `.nii.gz` file.
        what: What it is, for the message: `mask`.

    Raises:
        CorruptFileError: If it cannot be read as NIfTI.
        BadDataError: If it is not 3-D, or not of numbers.
    """
    try:
        content = path.read_bytes()
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
        volume = np.asarray(image.dataobj)
    except _FAULTS as error:
        raise CorruptFileError(f"{path} cannot be read as NIfTI: {error}") from None
    if volume.ndim != 3 or volume.dtype.kind not in "biuf":
        raise BadDataError(f"{path} has shape {volume.shape}; a {what} of three axes (x, y, z) is needed")
    return volume


def shape_of(path: Path) -> tuple[int, ...]:
    """Return a volume's shape from its header alone.

    Raises:
        CorruptFileError: If it cannot be read as NIfTI.
    """
    try:
        return tuple(nibabel.Nifti1Image.from_filename(path).shape)
    except _FAULTS as error:
        raise CorruptFileError(f"{path} cannot be read as NIfTI: {error}") from None


def read_voxels(
    file: Path | RangeFile,
    coordinates: np.ndarray,
    box: tuple[int, ...],
    trials: int,
    check: Callable[[np.dtype, tuple[int, ...]], None],
    whose: str,
) -> np.ndarray:
    """Return some voxels of a gzipped file of betas; no more than one trial's volume is ever in memory.

    Args:
        file: A local file, or an open file of a bucket.
        coordinates: As in `read_trials`, like `box` and `trials`.
        box: See there.
        trials: See there.
        check: Raises unless it is given the type and the shape that the betas must have.
        whose: See `check_unscaled`.

    Returns:
        `(trials, V)` of the file's type, little-endian.

    Raises:
        CorruptFileError: If it is not NIfTI, truncated or damaged, or goes on behind the last volume.
        BadDataError: If the numbers are scaled, or as `check` says.
        UnreachableError: If a bucket's file does not come.
    """
    try:
        with gzip.open(file if isinstance(file, Path) else io.BufferedReader(file, LARGEST_READ)) as stream:
            header = nibabel.Nifti1Header.from_fileobj(stream)
            check(header.get_data_dtype(), tuple(header.get_data_shape()))
            check_unscaled(header, file, whose)
            result = read_trials(stream, header, coordinates, box, trials)
            # Beyond the last trial: gzip compares its checksum where the stream ends.
            if stream.read(1):
                raise CorruptFileError(f"{file} holds more than its header says")
    except _FAULTS as error:
        raise CorruptFileError(f"{file} cannot be read as NIfTI: {error}") from None
    return result


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
