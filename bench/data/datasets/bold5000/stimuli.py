"""BOLD5000's pictures as they were presented, their labels, and COCO's captions for those that are COCO's.

`coco_final_annotations.pkl` is not read: it is a pickle, and opening a pickle may run whatever its maker wrote.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.core.errors import CorruptFileError, MissingDataError
from bench.data.datasets._coco import read_captions
from bench.data.datasets.bold5000 import layout
from bench.data.datasets.bold5000.design import kind_of
from bench.data.sources.files import SourceFiles
from bench.data.sources.pictures import decode

CAPTIONS = (("captions_train2014.json",), ("captions_train2017.json", "captions_val2017.json"))
"""COCO's captions files: one of 2014, or both of 2017, which divide the same images otherwise under the same ids."""


def read_picture(files: SourceFiles, name: str) -> np.ndarray:
    """Return a picture `(H, W, 3)` uint8 RGB.

    Raises:
        MissingDataError: If there is none of this name.
        CorruptFileError: If it is truncated or no picture.
    """
    key = f"{layout.PICTURES}/{kind_of(name)}/{name}"
    with files.open(key) as file:
        return decode(file.range(0, files.size(key)), files.where(key))


def coco_id(name: str) -> int | None:
    """Return the COCO image id of a picture by its name (`COCO_train2014_000000396550.jpg`), None for others."""
    number = Path(name).stem.rpartition("_")[2]
    return int(number) if kind_of(name) == "COCO" and number.isdecimal() else None


def origin_of(name: str) -> str:
    """Return what a picture is in its source: `coco-train2017:396550`, `imagenet:n01440764_10026`, `scene:airport1`."""
    image = coco_id(name)
    if image is None:
        return f"{kind_of(name).lower()}:{name.rpartition('.')[0]}"
    # COCO's training images of 2017 are all of 2014's and most of 2014's validation images.
    return f"coco-train2017:{image}" if name.startswith("COCO_train2014_") else f"coco:{image}"


def read_labels(files: SourceFiles) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return the labels of ImageNet's synsets, and the scenes' labels, longest first; empty where a file is missing.

    Raises:
        CorruptFileError: If a file is not such a table.
    """
    synsets = {}
    for line in _lines(files, layout.IMAGENET_LABELS):
        synset, blank, label = line.partition(" ")
        if not blank or not synset.startswith("n") or not synset[1:].isdecimal():
            where = files.where(layout.IMAGENET_LABELS)
            raise CorruptFileError(f"{where}: {line!r} is not a synset and its label")
        synsets[synset] = label.strip()
    scenes = sorted(_lines(files, layout.SCENE_LABELS), key=lambda label: (-len(label), label))
    return synsets, tuple(scenes)


def _lines(files: SourceFiles, key: str) -> list[str]:
    """Return the lines of a text file that are not blank; none where there is no such file."""
    if not files.exists(key):
        return []
    try:
        lines = files.local(key).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{files.where(key)} is not text: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def label_of(name: str, synsets: Mapping[str, str], scenes: Sequence[str]) -> str | None:
    """Return a picture's class label, None where the label files have none; COCO's pictures have no single one.

    Args:
        name: The picture's.
        synsets: Labels of ImageNet's synsets.
        scenes: The scenes' labels, longest first: a scene is its label and a number (`airplanecabin12.jpg`).
    """
    kind = kind_of(name)
    if kind == "ImageNet":
        return synsets.get(name.partition("_")[0])
    if kind == "Scene":
        return next((label for label in scenes if name.lower().startswith(label.lower())), None)
    return None


def captions_of(annotations: str) -> Mapping[int, tuple[str, ...]]:
    """Return COCO's captions by image id from a local folder of its annotations.

    Raises:
        MissingDataError: If the folder has them of neither year.
        CorruptFileError: If a file is not COCO's.
    """
    for names in CAPTIONS:
        paths = [Path(annotations) / name for name in names]
        if all(path.exists() for path in paths):
            return functools.reduce(lambda one, other: one | other, (read_captions(path) for path in paths))
    wanted = " or ".join(" and ".join(names) for names in CAPTIONS)
    raise MissingDataError(f"{annotations} has no {wanted} of COCO's annotations")
