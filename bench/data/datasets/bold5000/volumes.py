"""BOLD5000's volumes: masks whole, betas at the voxels of masks only; both as gzipped NIfTI.

Both are read to the end of their streams, where gzip's checksum tells damage.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.sources import nifti
from bench.data.sources.ranges import RangeFile

LARGEST_READ = 1 << 23
_FAULTS = (OSError, EOFError, zlib.error, HeaderDataError, WrapStructError, ImageFileError, ValueError, MemoryError)


def read_mask(path: Path) -> np.ndarray:
    """Return which voxels a mask holds (everything above 0), `(X, Y, Z)` booleans.

    Raises:
        CorruptFileError: If it is not gzipped NIfTI, truncated or damaged.
        BadDataError: If it is not a volume of three axes, or holds NaN.
    """
    try:
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        values = np.asarray(image.dataobj)
    except _FAULTS as error:
        raise CorruptFileError(f"{path} cannot be read as NIfTI: {error}") from None
    if values.ndim != 3 or values.dtype.kind not in "biuf":
        raise BadDataError(f"{path} has shape {values.shape}; a mask of three axes (x, y, z) is needed")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise BadDataError(f"{path}: {int(np.isnan(values).sum())} voxels of the mask are NaN")
    inside: np.ndarray = values > 0
    return inside


def read_betas(file: RangeFile, coordinates: np.ndarray, box: tuple[int, ...], trials: int) -> np.ndarray:
    """Return the betas of some voxels from a gzipped NIfTI volume, `(trials, V)` float32.

    Args:
        file: The open file.
        coordinates: `(V, 3)` voxel indices x, y, z on the NIfTI axes, in any order.
        box: `(X, Y, Z)` shape of the masks.
        trials: Trials of the session in the design.

    Raises:
        CorruptFileError: If it is not NIfTI, truncated or damaged.
        BadDataError: If its type, shape or scaling are not BOLD5000's.
    """
    try:
        with gzip.open(io.BufferedReader(file, LARGEST_READ)) as stream:
            header = nibabel.Nifti1Header.from_fileobj(stream)
            _check_header(header, (*box, trials), file)
            result = nifti.read_trials(stream, header, coordinates, box, trials)
            # Beyond the last trial: gzip compares its checksum where the stream ends.
            if stream.read(1):
                raise CorruptFileError(f"{file} holds more than its header says")
    except _FAULTS as error:
        raise CorruptFileError(f"{file} cannot be read as NIfTI: {error}") from None
    return result


def _check_header(header: nibabel.Nifti1Header, expected: tuple[int, ...], file: RangeFile) -> None:
    """Compare type, shape and scaling of a betas volume with BOLD5000's."""
    dtype, came = header.get_data_dtype(), tuple(header.get_data_shape())
    if dtype.kind != "f" or dtype.itemsize != 4:
        raise BadDataError(f"{file} holds betas of {dtype}; BOLD5000's volumes are float32 percent signal change")
    if came != expected:
        hint = ": the axes are in another order" if sorted(came) == sorted(expected) else ""
        raise BadDataError(f"{file} holds betas {came}, masks and design need {expected} (x, y, z, images){hint}")
    nifti.check_unscaled(header, file, "BOLD5000's betas")
