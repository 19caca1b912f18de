"""NSD's pictures, their captions and the facts of `nsd_stim_info_merged.csv`; rows are 0-based nsdIds."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.data.datasets.nsd import layout
from bench.data.sources.files import SourceFiles
from bench.data.sources.ranges import RangeFile


@dataclass(frozen=True)
class StimulusInfo:
    """What is known of every picture.

    Attributes:
        coco_id: `(73000,)` COCO image id.
        coco_split: `(73000,)` `train2017` or `val2017`.
        shared: `(73000,)` whether all subjects were to see it.
        crop: `(73000, 4)` share of COCO's picture cut away at the top, bottom, left and right.
    """

    coco_id: np.ndarray
    coco_split: np.ndarray
    shared: np.ndarray
    crop: np.ndarray

    @property
    def digest(self) -> str:
        """Digest of what decides captions, origins and shared flags."""
        total = hashlib.sha256(self.coco_id.astype("<i8").tobytes() + self.shared.tobytes())
        total.update((self.coco_split == "train2017").tobytes())
        return total.hexdigest()[:16]


def read_info(path: Path, shared: np.ndarray) -> StimulusInfo:
    """Read `nsd_stim_info_merged.csv`.

    Args:
        path: The file.
        shared: 0-based nsdIds of the shared pictures by the design file, to compare with `shared1000`.

    Raises:
        CorruptFileError: If it is not the table.
        BadDataError: If its rows are not in the order of nsdId, or its shared pictures are not the design's.
    """
    needed = ["nsdId", "cocoId", "cocoSplit", "shared1000", "cropBox"]
    try:
        table = pd.read_csv(path, usecols=needed)
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} cannot be read as a table with {', '.join(needed)}: {error}") from None
    # Rows are looked up by number from here on: a table sorted otherwise would mislabel every picture.
    if not np.array_equal(table["nsdId"], np.arange(len(table))):
        raise BadDataError(f"{path}: nsdId must count the rows from 0")
    flags = table["shared1000"].to_numpy(dtype=bool)
    # The split rests on the shared pictures: two files that disagree could let test pictures into training.
    if not np.array_equal(np.flatnonzero(flags), np.sort(shared)):
        raise BadDataError(
            f"{path}: shared1000 marks {int(flags.sum())} pictures, not the {len(shared)} of the design's sharedix"
        )
    crop = _crop_boxes(table["cropBox"], path)
    return StimulusInfo(table["cocoId"].to_numpy(), table["cocoSplit"].to_numpy(dtype=str), flags, crop)


def _crop_boxes(texts: pd.Series, path: Path) -> np.ndarray:
    """Return crop boxes `(N, 4)` from strings such as `(0, 0, 0.16640625, 0.16640625)`.

    Raises:
        BadDataError: If one is not four shares that leave something of the picture.
    """
    try:
        boxes = np.array([[float(part) for part in text.strip("()").split(",")] for text in texts])
    except (ValueError, AttributeError) as error:
        raise BadDataError(f"{path}: cropBox must hold '(top, bottom, left, right)': {error}") from None
    fits = boxes.ndim == 2 and boxes.shape[1] == 4 and np.all(boxes >= 0)
    if not fits or np.any(boxes[:, :2].sum(axis=1) >= 1) or np.any(boxes[:, 2:].sum(axis=1) >= 1):
        raise BadDataError(f"{path}: cropBox must hold four shares from 0 that leave something of the picture")
    return boxes


def cropped(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the part of a COCO picture that NSD shows, before it is made 425 x 425.

    Args:
        image: `(H, W, 3)`.
        box: `(4,)` share cut away at the top, bottom, left and right.
    """
    height, width = image.shape[:2]
    top, bottom = round(box[0] * height), height - round(box[1] * height)
    left, right = round(box[2] * width), width - round(box[3] * width)
    return image[top:bottom, left:right]


def captions_file(files: SourceFiles, annotations: str, split: str) -> Path:
    """Return COCO's captions of a split.

    Args:
        files: The dataset's files; a copy may hold COCO's annotations where nsd_access puts them.
        annotations: Local folder of them, "" for the copy's own.
        split: `train2017` or `val2017`.

    Raises:
        MissingDataError: If they are not there; the message says where they come from.
    """
    key = layout.captions(split)
    own = Path(annotations) / key.rpartition("/")[2]
    # A named folder wins, and is not fallen back from: a misspelt one must not go unnoticed.
    if annotations and own.exists():
        return own
    if not annotations and files.exists(key):
        return files.local(key)
    raise MissingDataError(
        f"no {own if annotations else files.where(key)}: NSD's bucket has no captions; unzip COCO's "
        "annotations_trainval2017.zip and name its folder with --annotations, or prepare with --no-captions"
    )


def read_captions(path: Path) -> dict[int, tuple[str, ...]]:
    """Return the captions of each COCO image id, in the order of their annotation ids.

    A process parses a file (90 MB for COCO's training captions) once, until it changes.

    Raises:
        CorruptFileError: If it is not a COCO captions file.
    """
    return _parsed_captions(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _parsed_captions(path: Path, changed: int) -> dict[int, tuple[str, ...]]:
    """Parse a COCO captions file that was last changed at `changed` nanoseconds."""
    try:
        annotations = json.loads(path.read_bytes())["annotations"]
        found: dict[int, list[str]] = {}
        # COCO's files are in no particular order; here the order is part of what is stored.
        for entry in sorted(annotations, key=lambda entry: entry["id"]):
            found.setdefault(entry["image_id"], []).append(entry["caption"].strip())
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a COCO captions file: {error!r}") from None
    return {image: tuple(captions) for image, captions in found.items()}


def read_images(path: Path | RangeFile, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield pictures `(H, W, 3)` uint8 RGB from `nsd_stimuli.hdf5`, in the order of the numbers.

    Raises:
        CorruptFileError: If the file is truncated or has no `imgBrick`.
        BadDataError: If `imgBrick` is not `(N, H, W, 3)` uint8.
        MissingDataError: If it has no such picture.
    """
    try:
        with h5py.File(path, "r") as file:
            brick = file.get("imgBrick")
            if not isinstance(brick, h5py.Dataset):
                raise CorruptFileError(f"{path} has no dataset 'imgBrick'; it holds {sorted(file) or 'nothing'}")
            if brick.ndim != 4 or brick.shape[3] != 3 or brick.dtype != np.uint8:
                raise BadDataError(
                    f"{path}: imgBrick is {brick.shape} {brick.dtype}, NSD's is (73000, 425, 425, 3) uint8"
                )
            for number in numbers:
                if not 0 <= number < brick.shape[0]:
                    raise MissingDataError(f"{path} has pictures 0 to {brick.shape[0] - 1}, not {number}")
                yield brick[number]
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read as HDF5: {error}") from None
