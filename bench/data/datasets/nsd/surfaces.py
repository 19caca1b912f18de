"""NSD's surfaces: label and noise-ceiling maps of a hemisphere, betas at chosen vertices.

`fsaverage` betas are MGH files: float32, big-endian, percent signal change, one trial's vertices after the other, NaN
where a session has no valid data of a subject: the edge of what was scanned moves with the head. `nativesurface` betas
are HDF5: int16 times 300, `(trials, vertices)` in chunks of one vertex, 0 for NaN.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.datasets.nsd import volumes
from bench.data.sources.ranges import RangeFile

HEADER_BYTES = 284
"""Of an MGH file; the numbers follow."""
DTYPE = np.dtype(">f4")
"""Of the betas in an MGH file."""


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
    return volumes.labels_of(read_map(path), path)


def _check_header(file: RangeFile, count: int, trials: int) -> None:
    """Compare the header of an MGH file with what the label maps and the design ask for; errors as in `read_mgh`."""
    try:
        header = MGHHeader.from_fileobj(io.BytesIO(file.range(0, HEADER_BYTES)))
        shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    except (EOFError, OSError, HeaderDataError, WrapStructError) as error:
        raise CorruptFileError(f"{file} cannot be read as MGH: {error}") from None
    if shape != (count, 1, 1, trials) or dtype != DTYPE:
        raise BadDataError(
            f"{file} holds betas {shape} {dtype}; the label maps and the design need {(count, 1, 1, trials)} float32"
        )


def read_mgh(file: RangeFile, vertices: np.ndarray, count: int, trials: int) -> tuple[np.ndarray, int]:
    """Return betas `(trials, V)` float32 of some vertices of a hemisphere, and the bytes read.

    One trial's vertices at a time is in memory (and a few on the way): never the whole 0.5 GB.

    Raises:
        CorruptFileError: If it is not an MGH file or ends early.
        BadDataError: If it is not `(count, 1, 1, trials)` float32.
    """
    _check_header(file, count, trials)
    result = np.empty((trials, len(vertices)), dtype="<f4")
    frame = count * DTYPE.itemsize
    try:
        frames = file.ranges([(HEADER_BYTES + trial * frame, frame) for trial in range(trials)])
        for trial, content in enumerate(frames):
            result[trial] = np.frombuffer(content, DTYPE)[vertices]
    except EOFError as error:
        raise CorruptFileError(f"{file} ends early: {error}") from None
    return result, file.bytes_read


def read_valid(file: RangeFile, count: int, trials: int) -> np.ndarray:
    """Return which vertices of a hemisphere have betas in a session, `(count,)` bool, from its first trial alone.

    A session is fitted as a whole, so a vertex without valid data is NaN in all of its trials. That this holds is
    checked where all trials are read, see `check_finite`.

    Raises:
        CorruptFileError: If it is not an MGH file or ends early.
        BadDataError: If it is not `(count, 1, 1, trials)` float32.
    """
    _check_header(file, count, trials)
    try:
        first = file.range(HEADER_BYTES, count * DTYPE.itemsize)
    except EOFError as error:
        raise CorruptFileError(f"{file} ends early: {error}") from None
    valid: np.ndarray = np.isfinite(np.frombuffer(first, DTYPE))
    return valid


def check_finite(betas: np.ndarray, vertices: np.ndarray, where: str) -> None:
    """Raise if betas `(T, V)` that must all be numbers hold NaN or infinity.

    Args:
        betas: Of chosen vertices.
        vertices: `(V,)` their numbers in the hemisphere, for the message.
        where: The file, for the message.

    Raises:
        BadDataError: If they do; the message names vertex and trial.
    """
    finite = np.isfinite(betas)
    if not finite.all():
        trial, column = np.argwhere(~finite)[0]
        raise BadDataError(
            f"{where}: {int((~finite).any(axis=0).sum())} vertices that have valid data in the first trial of every "
            f"prepared session are NaN or infinite, such as vertex {vertices[column]} in trial {trial} (from 0)"
        )


def read_hdf5(file: RangeFile, vertices: np.ndarray, count: int, trials: int) -> tuple[np.ndarray, int]:
    """Return betas `(trials, V)` int16 of some vertices of a hemisphere, and the bytes read.

    Raises:
        CorruptFileError: If the file is truncated or has no `betas`.
        BadDataError: If `betas` is not `(trials, count)` int16.
    """
    with volumes.betas_in(file) as betas:
        if betas.shape != (trials, count) or betas.dtype != volumes.DTYPE:
            raise BadDataError(
                f"{file} holds betas {betas.shape} {betas.dtype}; the label maps and the design need "
                f"{(trials, count)} int16"
            )
        return volumes.read_places(betas, file, vertices[:, None]), file.bytes_read
