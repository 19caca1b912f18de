"""Reads pictures that were made elsewhere: folders of PNG or JPEG, `.pt`, `.npy`, `.npz`, HDF5.

Whatever comes in, `(N, S, 3, H, W)` uint8 comes out, S samples an image. Nothing is unpickled but tensors. Pictures in
floating point are rounded to 8 bits, as saving them as PNG would, and the reader says so.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.fs as pafs
import torch
from PIL import Image, UnidentifiedImageError

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, ReconbenchError, UnknownNameError
from bench.core.storage import Folder

PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png")
ALLOWED = "uint8, or floating point in [0, 1], of shape (N, 3, H, W) or (N, S, 3, H, W)"
MOST_SAMPLES = 127
"""Samples an image that the table of rendered pictures can number."""


@dataclass(frozen=True)
class Pictures:
    """Pictures as they were found.

    Attributes:
        values: `(N, S, 3, H, W)` uint8.
        names: For folders the file name of each image without its suffix, in natural order; else empty.
        rounded: Whether they came in floating point.
    """

    values: np.ndarray
    names: tuple[str, ...] = ()
    rounded: bool = False

    @property
    def digest(self) -> str:
        """The sha256 of shape and values."""
        total = hashlib.sha256(f"{self.values.shape}".encode())
        for image in self.values:
            total.update(np.ascontiguousarray(image).tobytes())
        return total.hexdigest()


def read_place(place: str, key: str | None = None) -> Pictures:
    """Read pictures from a local path or an `s3://` address; see `read_pictures`.

    What lies in S3 is copied to this machine for as long as it takes to read it: the formats need files.
    """
    if "://" not in place:
        return read_pictures(Path(place), key)
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / Folder.at(place).name
        _copy(Folder.at(place), copy)
        try:
            return read_pictures(copy, key)
        except ReconbenchError as error:  # the message names what the user knows, not our copy of it
            told = (part.replace(str(copy), place) if isinstance(part, str) else part for part in error.args)
            raise type(error)(*told) from None


def _copy(source: Folder, target: Path) -> None:
    """Copy a file, or a folder with all below it.

    Raises:
        MissingDataError: If there is neither.
    """
    kind = source.filesystem.get_file_info(source.path).type
    if kind == pafs.FileType.NotFound:
        raise MissingDataError(f"no file or folder {source}")
    if kind == pafs.FileType.Directory:
        target.mkdir()
    pafs.copy_files(source.path, str(target), source_filesystem=source.filesystem)


def read_pictures(path: Path, key: str | None = None) -> Pictures:
    """Read pictures.

    Args:
        path: A folder of pictures, or of one folder of pictures a sample; or a file.
        key: Name of the array in a file that holds several (`.npz`, HDF5, a mapping in `.pt`).

    Raises:
        MissingDataError: If there is nothing at the path, or no picture in the folder.
        CorruptFileError: If a file cannot be read.
        UnknownNameError: If the file is of another kind, or holds no array of that name.
        BadDataError: If shapes, types or values are not those of RGB pictures; names the file or image.
    """
    if not path.exists():
        raise MissingDataError(f"no file or folder {path}")
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() not in _READERS:
        raise UnknownNameError(
            "kind of file", path.suffix or path.name, [*_READERS, "a folder of PNG or JPEG"], str(path)
        )
    return _checked(_READERS[path.suffix.lower()](path, key), path)


def read_ids(path: Path) -> tuple[int, ...]:
    """Return 0-based stimulus numbers from a text file with one a line, or a `.npy` of whole numbers.

    Raises:
        MissingDataError: If there is no such file.
        CorruptFileError: If it cannot be read.
        BadDataError: If it holds anything but whole numbers from 0, or one of them twice.
    """
    if not path.is_file():
        raise MissingDataError(f"no file {path}")
    if path.suffix == ".npy":
        found = _npy(path, None).ravel()
        if found.dtype.kind not in "iu":
            raise BadDataError(f"{path}: ids are whole numbers, got {found.dtype}")
        return unique_ids(found.tolist(), str(path))
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not text: {error}") from None
    wrong = [(place, line) for place, line in enumerate(lines, start=1) if line and not line.isdecimal()]
    if wrong:
        raise BadDataError(f"{path}, line {wrong[0][0]}: one whole number from 0 is needed, got {wrong[0][1]!r}")
    return unique_ids([int(line) for line in lines if line], str(path))


def ids_in_names(names: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the last whole number in each file name.

    Raises:
        BadDataError: If a name has none, or two have the same.
    """
    found = [re.findall(r"\d+", name) for name in names]
    for name, numbers in zip(names, found, strict=True):
        if not numbers:
            raise BadDataError(f"{where}: the name {name!r} holds no stimulus number")
    return unique_ids([int(numbers[-1]) for numbers in found], where)


def unique_ids(ids: Sequence[int], where: str) -> tuple[int, ...]:
    """Return ids after checking that there are some, none negative and none twice.

    Raises:
        BadDataError: If not.
    """
    if not ids or min(ids) < 0:
        raise BadDataError(f"{where}: stimulus numbers from 0 are needed, got {list(ids)[:5] or 'none'}")
    numbers, counts = np.unique(np.asarray(ids), return_counts=True)
    if twice := numbers[counts > 1].tolist():
        raise BadDataError(f"{where}: stimulus {twice[0]} stands there {counts.max()} times ({len(twice)} such ids)")
    return tuple(int(number) for number in ids)


def _folder(path: Path) -> Pictures:
    """Return the pictures of a folder, or of its folders, one a sample."""
    entries = sorted((e for e in path.iterdir() if not e.name.startswith(".")), key=_natural)
    files = [e for e in entries if e.suffix.lower() in PICTURE_SUFFIXES and e.is_file()]
    folders = [e for e in entries if e.is_dir()]
    if not files and folders:
        return _samples(path, [_folder(folder) for folder in folders], folders)
    if not files:
        raise MissingDataError(f"{path} holds no {', '.join(PICTURE_SUFFIXES)}; it holds {len(entries)} other files")
    if folders:
        raise BadDataError(f"{path} holds pictures and folders; pictures, or one folder a sample, are needed")
    first = _picture(files[0])
    values = np.empty((len(files), 1, *first.shape), np.uint8)
    for place, file in enumerate(files):
        picture = _picture(file)
        if picture.shape != first.shape:
            sizes = f"{picture.shape[2]}x{picture.shape[1]}, {files[0].name} is {first.shape[2]}x{first.shape[1]}"
            raise BadDataError(f"{file} is {sizes}: all pictures of a folder need one size")
        values[place, 0] = picture
    return Pictures(values, tuple(file.stem for file in files))


def _samples(path: Path, samples: Sequence[Pictures], folders: Sequence[Path]) -> Pictures:
    """Return the samples of several folders as one."""
    first = samples[0]
    for folder, other in zip(folders, samples, strict=True):
        if (other.values.shape, other.names) != (first.values.shape, first.names) or first.values.shape[1] != 1:
            raise BadDataError(f"{folder} does not hold the same file names and sizes as {folders[0]}")
    if len(samples) > MOST_SAMPLES:
        raise BadDataError(f"{path}: {len(samples)} samples an image, at most {MOST_SAMPLES} are allowed")
    return Pictures(np.concatenate([sample.values for sample in samples], axis=1), first.names)


def _natural(path: Path) -> tuple[tuple[bool, int, str], ...]:
    """Return a sort key by which `2.png` stands before `10.png`."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def _picture(path: Path) -> np.ndarray:
    """Return a picture file as `(3, H, W)` uint8."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode != "RGB":
                raise BadDataError(f"{path} is of mode {image.mode}; RGB without transparency is needed")
            return np.asarray(image).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise CorruptFileError(f"{path} cannot be read as PNG or JPEG: {error}") from None


def _pt(path: Path, key: str | None) -> np.ndarray:
    """Return the tensor of a file saved with `torch.save`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{path} is not a tensor saved with torch.save: {str(error)[:200]}") from None
    if isinstance(content, Mapping):
        content = content[_key(list(content), key, path)]
    if not isinstance(content, torch.Tensor):
        raise BadDataError(f"{path} must hold a tensor, or tensors by name; got {type(content).__name__}")
    return content.float().numpy() if content.dtype == torch.bfloat16 else content.numpy()


def _npy(path: Path, key: str | None) -> np.ndarray:
    """Return the array of a NumPy file."""
    del key
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read as a NumPy array: {error}") from None


def _npz(path: Path, key: str | None) -> np.ndarray:
    """Return an array of a NumPy archive."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[_key(archive.files, key, path)])
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} cannot be read as a NumPy archive: {error}") from None


def _hdf5(path: Path, key: str | None) -> np.ndarray:
    """Return a data set of an HDF5 file."""
    try:
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            return np.asarray(file[_key(names, key, path)][()])
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read as HDF5: {error}") from None


_READERS: Mapping[str, Callable[[Path, str | None], np.ndarray]] = {
    ".pt": _pt, ".pth": _pt, ".npy": _npy, ".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5,
}  # fmt: skip


def _key(names: Sequence[Any], key: str | None, path: Path) -> str:
    """Return the name of the array to read: the given one, or the only one."""
    known = [str(name) for name in names]
    if key is None and len(known) != 1:
        raise BadDataError(f"{path} holds {len(known)} arrays ({', '.join(known[:8])}): name one with --key")
    if key is not None and key not in known:
        raise UnknownNameError("array", key, known, str(path))
    return key if key is not None else known[0]


def _checked(values: np.ndarray, path: Path) -> Pictures:
    """Return pictures of an array after checking shape, type and range; `(N, S, 3, H, W)` uint8."""
    if values.ndim not in (4, 5) or values.shape[-3] != 3 or values.size == 0:
        hint = "; the channels stand last: move them before height and width" if values.shape[-1:] == (3,) else ""
        raise BadDataError(f"{path} must hold {ALLOWED}; got shape {values.shape}{hint}")
    stacked = values if values.ndim == 5 else values[:, None]
    if stacked.shape[1] > MOST_SAMPLES:
        raise BadDataError(f"{path}: {stacked.shape[1]} samples an image, at most {MOST_SAMPLES} are allowed")
    if stacked.dtype == np.uint8:
        return Pictures(stacked)
    if stacked.dtype.kind != "f":
        raise BadDataError(f"{path} must hold {ALLOWED}; got {stacked.dtype}")
    result = np.empty(stacked.shape, np.uint8)
    for index, image in enumerate(stacked):  # one at a time: no second copy of all pictures in floating point
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            what = "NaN" if np.isnan(low) else f"values from {low:g} to {high:g}"
            hint = "; divide 0-255 values by 255 first" if high > 2 else ""
            raise BadDataError(f"{path}: image {index} has {what}, must be {ALLOWED}{hint}")
        result[index] = np.rint(image.astype(np.float32) * 255)
    return Pictures(result, rounded=True)
