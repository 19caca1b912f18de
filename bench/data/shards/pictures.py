"""Rendered pictures: one Parquet row a picture, in parts, and `images.json` that seals them.

Layout of `<runs>/images/<id>/`:

    identity.json          what these pictures are; written first, so that a folder never mixes two
    part-<first>.parquet   subject, stimulus, repeat, sample, seed, image (PNG), sha256 of the pixels
    images.json            identity, files with rows and sha256, timings; written last: its presence means done
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike
from PIL import Image

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OtherConfigurationError
from bench.core.identity import digest, plain
from bench.core.options import build
from bench.core.storage import Folder
from bench.data.shards.manifest import FileEntry, read_checked
from bench.data.sources.pictures import decode

SEAL = "images.json"
IDENTITY = "identity.json"
KEY_COLUMNS: Mapping[str, pa.DataType] = {
    "subject": pa.int32(),
    "stimulus": pa.int32(),
    "repeat": pa.int8(),
    "sample": pa.int8(),
}
FAST = 1
"""Level of compression of PNG that costs the least time."""


def png_of(picture: np.ndarray, level: int = FAST) -> bytes:
    """Return a picture `(3, H, W)` uint8 as PNG, which loses nothing; a higher level of compression takes longer."""
    sink = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(sink, "PNG", compress_level=level)
    return sink.getvalue()


def keys_of(subject: int, stimuli: ArrayLike, repeat: ArrayLike = -1, sample: ArrayLike = 0) -> pa.Table:
    """Return the keys of N pictures of a subject: one of each stimulus, unless `repeat` and `sample` say which.

    Args:
        subject: Whose, from 1; 0 for pictures that are the same for all.
        stimuli: `(N,)`.
        repeat: `(N,)` or one for all; -1 for a mean over showings.
        sample: `(N,)` or one for all.
    """
    columns = dict(zip(KEY_COLUMNS, np.broadcast_arrays(subject, stimuli, repeat, sample), strict=True))
    return key_table(pa.table({name: np.atleast_1d(values) for name, values in columns.items()}))


def key_table(keys: pa.Table) -> pa.Table:
    """Return the key columns of a table in their own types and order.

    Raises:
        BadDataError: If one is missing or holds what its type cannot.
    """
    if absent := [name for name in KEY_COLUMNS if name not in keys.column_names]:
        raise BadDataError(f"keys lack {absent}; they have {keys.column_names}")
    try:
        return keys.select(list(KEY_COLUMNS)).cast(pa.schema(list(KEY_COLUMNS.items()))).combine_chunks()
    except pa.ArrowInvalid as error:
        raise BadDataError(f"keys are not subject, stimulus (int32), repeat, sample (int8): {error}") from None


def claim(folder: Folder, identity: Mapping[str, Any]) -> bool:
    """Take a folder for these pictures; say whether they are all there already.

    Raises:
        OtherConfigurationError: If it holds pictures of another identity.
    """
    if not folder.exists(IDENTITY):
        if folder.exists(SEAL):
            raise OtherConfigurationError(f"{folder} holds {SEAL} but no {IDENTITY}: not a folder of this stage")
        folder.write_json(IDENTITY, identity)
        return False
    there = folder.read_json(IDENTITY)
    if there != plain(identity):
        differing = sorted(k for k in {*there, *identity} if there.get(k) != plain(identity).get(k))
        raise OtherConfigurationError(
            f"{folder} holds pictures of another configuration (they differ in {', '.join(differing)}); "
            f"choose another folder, theirs is {digest(there)}, this is {digest(identity)}"
        )
    return folder.exists(SEAL)


def part_name(first: int) -> str:
    """Return the file name of the part whose first picture has this row."""
    return f"part-{first:07d}.parquet"


def write_part(folder: Folder, first: int, keys: pa.Table, seeds: np.ndarray, pictures: np.ndarray) -> FileEntry:
    """Write pictures as one part.

    Args:
        folder: Where the pictures go.
        first: Row of the first among all pictures of the folder.
        keys: Their keys, see `KEY_COLUMNS`.
        seeds: `(B,)` int64.
        pictures: `(B, 3, H, W)` uint8.
    """
    table = keys.append_column("seed", pa.array(seeds, pa.int64()))
    table = table.append_column("image", pa.array([png_of(p) for p in pictures], pa.binary()))
    hashes = [hashlib.sha256(p.tobytes()).hexdigest() for p in pictures]
    table = table.append_column("sha256", pa.array(hashes, pa.string()))
    size, sha256 = folder.write_table(part_name(first), table)
    return FileEntry(part_name(first), len(pictures), size, sha256)


def found_parts(folder: Folder, keys: pa.Table, seeds: np.ndarray) -> dict[int, FileEntry]:
    """Return the parts an earlier run left, by first row; unreadable ones do not count and get rewritten.

    Raises:
        OtherConfigurationError: If a part holds other pictures than these keys and seeds name.
    """
    rows = keys.append_column("seed", pa.array(seeds, pa.int64()))
    entries: dict[int, FileEntry] = {}
    for name in folder.names():
        if not (name.startswith("part-") and name.endswith(".parquet")):
            continue
        first = int(name.removeprefix("part-").removesuffix(".parquet"))
        try:
            table = folder.read_table(name, columns=rows.column_names)
        except CorruptFileError:
            continue
        if not table.equals(rows.slice(first, table.num_rows)):
            raise OtherConfigurationError(f"{folder}/{name} holds other pictures than those asked for")
        entries[first] = FileEntry(name, table.num_rows, folder.size(name), folder.sha256(name))
    return entries


def seal(folder: Folder, identity: Mapping[str, Any], files: Sequence[FileEntry], timings: Mapping[str, Any]) -> None:
    """Write `images.json`: the folder is done."""
    parts = sorted(files, key=lambda entry: entry.path)
    rows = sum(entry.rows for entry in parts)
    folder.write_json(SEAL, {"identity": identity, "rows": rows, "files": parts, **timings})


def write_images(
    folder: Folder, keys: pa.Table, seeds: np.ndarray, pictures: np.ndarray, identity: Mapping[str, Any]
) -> None:
    """Write pictures that no generator rendered (a blend, a control); nothing happens where they are there.

    Args:
        folder: Where they go.
        keys: subject, stimulus, repeat, sample.
        seeds: `(N,)` int64, 0 where no chance is involved.
        pictures: `(N, 3, H, W)` uint8.
        identity: What they are.

    Raises:
        OtherConfigurationError: If the folder holds pictures of another identity.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.dtype != np.uint8 or len(pictures) != keys.num_rows:
        raise BadDataError(f"{keys.num_rows} keys need (N, 3, H, W) uint8, got {pictures.shape} {pictures.dtype}")
    if claim(folder, identity):
        return
    entry = write_part(folder, 0, key_table(keys), seeds, pictures)
    seal(folder, identity, [entry], {})


def read_images(folder: Folder) -> tuple[pa.Table, np.ndarray]:
    """Return the keys (with `seed`) and the pictures `(N, 3, H, W)` uint8 of a finished folder, in the order asked for.

    Raises:
        MissingDataError: If the folder is not finished.
        CorruptFileError: If a file differs from its entry, or a picture from its checksum.
    """
    if not folder.exists(SEAL):
        raise MissingDataError(f"no {SEAL} in {folder}: rendering was not finished")
    entries = [build(FileEntry, entry, f"{folder}/{SEAL}") for entry in folder.read_json(SEAL)["files"]]
    table = pa.concat_tables([pq.read_table(io.BytesIO(read_checked(folder, entry))) for entry in entries])
    pictures = [
        _pixels(folder, *row) for row in zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    ]
    return table.select([*KEY_COLUMNS, "seed"]), np.stack(pictures)


def _pixels(folder: Folder, png: bytes, sha256: str) -> np.ndarray:
    """Return a stored picture `(3, H, W)`, compared with its checksum."""
    picture = np.ascontiguousarray(decode(png, str(folder)).transpose(2, 0, 1))
    if hashlib.sha256(picture.tobytes()).hexdigest() != sha256:
        raise CorruptFileError(f"{folder}: a picture does not have the checksum {sha256[:16]}... it was stored with")
    return picture


@dataclass(frozen=True)
class ImageSet:
    """Finished pictures: their content address, its description and where they lie."""

    id: str
    description: Mapping[str, Any]
    folder: Folder
