"""NSD's volumes: label and ncsnr maps whole, betas at the voxels of a mask only.

Both beta files hold the same int16 numbers, percent signal change times 300: NIfTI on axes (x, y, z, trial), HDF5
reversed, (trial, z, y, x), in chunks of one voxel. Reading a voxel's trials is cheap in HDF5, reading one trial of
all voxels is not; NIfTI.gz can only be read from its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from bench.core.errors import BadDataError, CorruptFileError
from bench.data.sources import hdf5_chunks, nifti
from bench.data.sources.ranges import RangeFile

DTYPE = np.dtype("<i2")
SCALE = 1 / 300
GAP = 1 << 16
"""Bytes between two wanted chunks that are read along with them rather than with a request of their own."""
LARGEST_RANGE = 1 << 23
"""Bytes of one request at most, so that the requests in flight stay small beside a session's betas."""


def read_labels(path: Path) -> np.ndarray:
    """Return an ROI volume `(X, Y, Z)` as int16: -1 not cortex, 0 unlabelled, 1...N labels.

    Raises:
        CorruptFileError: If it cannot be read as NIfTI.
        BadDataError: If it holds NaN, fractions, or numbers outside -1...32767.
    """
    volume = nifti.read_volume(path)
    unknown = int(np.isnan(volume).sum()) if volume.dtype.kind == "f" else 0
    if unknown:
        raise BadDataError(f"{path}: {unknown} voxels are NaN; label numbers (-1, 0, 1...) are needed")
    return labels_of(volume, path)


def labels_of(values: np.ndarray, path: Path) -> np.ndarray:
    """Return a map's values as int16 labels.

    Raises:
        BadDataError: If it holds fractions, or numbers outside -1...32767.
    """
    labels = values.astype(np.int16)
    if np.any(labels != values) or (labels.size and labels.min() < -1):
        raise BadDataError(f"{path} goes from {values.min()} to {values.max()}; whole label numbers from -1 are needed")
    return labels


def read_hdf5(
    file: Path | RangeFile, coordinates: np.ndarray, box: tuple[int, ...], trials: int
) -> tuple[np.ndarray, int]:
    """Return the betas of some voxels from `betas_sessionNN.hdf5`.

    Locally, voxels are read in runs along x, each run once for all trials: never trial by trial. From a bucket, the
    chunks' places are looked up in the file's index and fetched by ranges.

    Args:
        file: A local file, or an open file of a bucket.
        coordinates: `(V, 3)` voxel indices x, y, z on the NIfTI axes, in any order.
        box: `(X, Y, Z)` shape of the volume the coordinates were taken from.
        trials: Trials of the session in the design.

    Returns:
        Raw `(trials, V)` int16 in the order of the coordinates, and the bytes read.

    Raises:
        CorruptFileError: If the file is truncated or has no `betas`.
        BadDataError: If type or shape of `betas` are not what NSD has.
        UnreachableError: If ranges of a bucket's file do not come.
    """
    with betas_in(file) as betas:
        _check_type(betas.dtype, file)
        _check_shape(betas.shape, (trials, *box[::-1]), "(trials, z, y, x)", file)
        if isinstance(file, Path):
            return _read_runs(betas, coordinates), len(coordinates) * trials * DTYPE.itemsize
        return read_places(betas, file, coordinates), file.bytes_read


@contextmanager
def betas_in(file: Path | RangeFile) -> Iterator[h5py.Dataset]:
    """Open the dataset `betas` of a file; what h5py raises inside becomes an error that names the file.

    Raises:
        CorruptFileError: If the file is truncated or has no such dataset.
    """
    try:
        with h5py.File(file, "r") as opened:
            betas = opened.get("betas")
            if not isinstance(betas, h5py.Dataset):
                raise CorruptFileError(f"{file} has no dataset 'betas'; it holds {sorted(opened) or 'nothing'}")
            yield betas
    except (OSError, RuntimeError, EOFError) as error:
        raise CorruptFileError(f"{file} cannot be read as HDF5: {error}") from None


def read_places(betas: h5py.Dataset, file: RangeFile, coordinates: np.ndarray) -> np.ndarray:
    """Return the betas of some places, `(T, V)`, by ranges of their chunks where the file is made of them.

    Args:
        betas: `(T, ..., y, x)`, in chunks of one place as NSD's files are, or stored in any other way.
        file: The file it lies in.
        coordinates: `(V, n)` places, the file's last axis first.
    """
    index = None
    if betas.chunks == (betas.shape[0], *[1] * (betas.ndim - 1)):
        index = hdf5_chunks.index_of(betas, file)
    return _read_runs(betas, coordinates) if index is None else _read_chunks(file, index, coordinates)


def _read_chunks(file: RangeFile, index: hdf5_chunks.ChunkIndex, coordinates: np.ndarray) -> np.ndarray:
    """Fetch the chunks of voxels, one chunk a voxel, neighbours in the file together."""
    trials = index.chunk[0]
    ranks = np.ravel_multi_index(tuple(coordinates.T[::-1]), index.grid[1:])
    unique, inverse = np.unique(ranks, return_inverse=True)
    offsets = hdf5_chunks.locate(file, index, unique) if len(unique) else unique
    rows = np.zeros((len(unique), trials), dtype=DTYPE)  # zero is what HDF5 gives for a chunk that was never written
    written = np.flatnonzero(offsets >= 0)
    written = written[np.argsort(offsets[written])]
    size = trials * DTYPE.itemsize
    groups = _groups(offsets[written], size)
    spans = [(int(offsets[written[a]]), int(offsets[written[b - 1]] - offsets[written[a]]) + size) for a, b in groups]
    for (a, b), (start, _), content in zip(groups, spans, file.ranges(spans), strict=True):
        for row in written[a:b]:
            rows[row] = np.frombuffer(content, DTYPE, trials, int(offsets[row]) - start)
    return np.ascontiguousarray(rows[inverse].T)


def _groups(offsets: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Cut ascending offsets of chunks of `size` bytes into runs that one request fetches; return (start, stop)s."""
    groups, start = [], 0
    for i in range(1, len(offsets) + 1):
        last = i == len(offsets)
        if last or offsets[i] - offsets[i - 1] - size > GAP or offsets[i] + size - offsets[start] > LARGEST_RANGE:
            groups.append((start, i))
            start = i
    return groups if len(offsets) else []


def _read_runs(betas: h5py.Dataset, coordinates: np.ndarray) -> np.ndarray:
    """Read places in runs of neighbours along the fastest axis of the file."""
    order = np.lexsort(coordinates.T)
    places = coordinates[order]
    step = np.diff(places, axis=0)
    breaks = np.flatnonzero((step[:, 0] != 1) | np.any(step[:, 1:] != 0, axis=1)) + 1
    rows = np.empty((len(order), betas.shape[0]), dtype=DTYPE)
    for start, stop in zip(np.r_[0, breaks], np.r_[breaks, len(order)], strict=True):
        if stop > start:
            run = slice(places[start, 0], places[stop - 1, 0] + 1)
            rows[start:stop] = betas[(slice(None), *places[start, :0:-1], run)].T
    result = np.empty((betas.shape[0], len(order)), dtype=DTYPE)
    result[:, order] = rows.T
    return result


def read_nifti(
    file: Path | RangeFile, coordinates: np.ndarray, box: tuple[int, ...], trials: int
) -> tuple[np.ndarray, int]:
    """Return the betas of some voxels from `betas_sessionNN.nii.gz`, decompressed as a stream.

    Arguments, result and errors are those of `read_hdf5`; no more than one trial's volume is ever in memory.
    """

    def check(dtype: np.dtype, shape: tuple[int, ...]) -> None:
        _check_type(dtype, file)
        _check_shape(shape, (*box, trials), "(x, y, z, trial)", file)

    result = nifti.read_voxels(file, coordinates, box, trials, check, "NSD's raw int16 betas")
    return result, file.stat().st_size if isinstance(file, Path) else file.bytes_read


def _check_type(dtype: np.dtype, path: Path | RangeFile) -> None:
    """Raise if betas are not int16."""
    if dtype.kind != "i" or dtype.itemsize != 2:
        raise BadDataError(f"{path} holds betas of {dtype}; NSD's volumes are int16 (percent signal change x 300)")


def _check_shape(came: tuple[int, ...], expected: tuple[int, ...], axes: str, path: Path | RangeFile) -> None:
    """Raise if betas have another shape than mask and design ask for, and say what is likely wrong."""
    if tuple(came) == expected:
        return
    differing = [axes.strip("()").split(", ")[i] for i in range(4) if len(came) == 4 and came[i] != expected[i]]
    hint = f" (differs in {', '.join(differing)})" if differing else ""
    if sorted(came) == sorted(expected):
        hint = ": the axes are in another order"
    raise BadDataError(
        f"{path} holds betas of shape {tuple(came)}, the mask and the design need {expected} {axes}{hint}"
    )
