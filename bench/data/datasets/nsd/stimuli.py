"""NSD's pictures, their captions and the facts of `nsd_stim_info_merged.csv`; rows are 0-based nsdIds."""

from __future__ import annotations

import hashlib
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
    """

    coco_id: np.ndarray
    coco_split: np.ndarray
    shared: np.ndarray

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
    needed = ["nsdId", "cocoId", "cocoSplit", "shared1000"]
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
    return StimulusInfo(table["cocoId"].to_numpy(), table["cocoSplit"].to_numpy(dtype=str), flags)


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
