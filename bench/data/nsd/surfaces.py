"""NSD's surfaces: label and noise-ceiling maps of a hemisphere, betas at chosen vertices.

`fsaverage` betas are MGH files: float32, big-endian, percent signal change, one trial's vertices after the other, NaN
where a subject has no valid data. `nativesurface` betas are HDF5: int16 times 300, `(trials, vertices)` in chunks of
one vertex, 0 for NaN.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from bench.data.nsd import volumes
from bench.data.range_file import RangeFile
from bench.errors import BadDataError, CorruptFileError

HEADER_BYTES = 284
"""Of an MGH file; the numbers follow."""


def read_map(path: Path) -> np.ndarray:
    """Return one number a vertex, `(V,)`, of a `.mgh` or `.mgz` file.

    Raises:
        CorruptFileError: If it cannot be read.
        BadDataError: If it holds more than one number a vertex.
    """
    try:
        values = np.asarray(MGHImage.from_filename(path).dataobj)
    except (nibabel.filebasedimages.ImageFileError, HeaderDataError, WrapStructError) as error:
        raise CorruptFileError(f"{path} cannot be read as MGH: {error}") from None
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be read as MGH: {error}") from None
    if values.size != values.shape[0]:
        raise BadDataError(f"{path} has shape {values.shape}; one number a vertex, (V, 1, 1), is needed")
    return values.reshape(-1)


def read_labels(path: Path) -> np.ndarray:
    """Return labels `(V,)` int16 of a hemisphere: 0 unlabelled, 1...N labels (-1 not cortex).

    Raises:
        CorruptFileError: If it cannot be read.
        BadDataError: If it holds fractions, or numbers outside -1...32767.
    """
    values = read_map(path)
    labels = values.astype(np.int16)
    if np.any(labels != values) or (labels.size and labels.min() < -1):
        raise BadDataError(f"{path} goes from {values.min()} to {values.max()}; whole label numbers from -1 are needed")
    return labels


def read_mgh(file: RangeFile, vertices: np.ndarray, count: int, trials: int) -> tuple[np.ndarray, int]:
    """Return betas `(trials, V)` float32 of some vertices of a hemisphere, and the bytes read.

    One trial's vertices at a time is in memory (and a few on the way): never the whole 0.5 GB.

    Raises:
        CorruptFileError: If it is not an MGH file or ends early.
        BadDataError: If it is not `(count, 1, 1, trials)` float32.
    """
    try:
        header = MGHHeader.from_fileobj(io.BytesIO(file.range(0, HEADER_BYTES)))
        shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    except (EOFError, OSError, HeaderDataError, WrapStructError) as error:
        raise CorruptFileError(f"{file} cannot be read as MGH: {error}") from None
    if shape != (count, 1, 1, trials) or dtype != np.dtype(">f4"):
        raise BadDataError(
            f"{file} holds betas {shape} {dtype}; the label maps and the design need {(count, 1, 1, trials)} float32"
        )
    result = np.empty((trials, len(vertices)), dtype="<f4")
    frame = count * dtype.itemsize
    try:
        frames = file.ranges([(HEADER_BYTES + trial * frame, frame) for trial in range(trials)])
        for trial, content in enumerate(frames):
            result[trial] = np.frombuffer(content, ">f4")[vertices]
    except EOFError as error:
        raise CorruptFileError(f"{file} ends early: {error}") from None
    return result, file.bytes_read


def read_hdf5(file: RangeFile, vertices: np.ndarray, count: int, trials: int) -> tuple[np.ndarray, int]:
    """Return betas `(trials, V)` int16 of some vertices of a hemisphere, and the bytes read.

    Raises:
        CorruptFileError: If the file is truncated or has no `betas`.
        BadDataError: If `betas` is not `(trials, count)` int16.
    """
    try:
        with h5py.File(file, "r") as opened:
            betas = opened.get("betas")
            if not isinstance(betas, h5py.Dataset):
                raise CorruptFileError(f"{file} has no dataset 'betas'; it holds {sorted(opened) or 'nothing'}")
            if betas.shape != (trials, count) or betas.dtype != volumes.DTYPE:
                raise BadDataError(
                    f"{file} holds betas {betas.shape} {betas.dtype}; the label maps and the design need "
                    f"{(trials, count)} int16"
                )
            return volumes.read_places(betas, file, vertices[:, None]), file.bytes_read
    except (OSError, RuntimeError, EOFError) as error:
        raise CorruptFileError(f"{file} cannot be read as HDF5: {error}") from None
