"""Generic Object Decoding with its true numbers of images and trials, but 60 voxels and pictures of 8 x 8 pixels.

Subjects 1 and 3 have bdpy files (3 spells its parts as older ones do, and has no grid), subjects 1 and 2 MinD-Vis' own.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

BOX = (6, 5, 4)
VOXELS = 60
ROIS = ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA")
JOINED = {"LVC": ("V1", "V2", "V3"), "HVC": ("LOC", "FFA", "PPA"), "VC": ROIS}
VARIANTS = {
    "bdpy": {},
    "imagery": {"trials": "imagery", "subjects": (1,)},
    "npz": {"betas": "npz", "voxelset": "ROI_V1 | ROI_LOC"},
}


@dataclass(frozen=True)
class Facts:
    """What was written.

    Attributes:
        training: Names of the 1,200 training images in the order of the label file, which is not sorted.
        test: Names of the 50 test images in the order of theirs.
        tables: By subject of bdpy files `(3450, V)` float64 voxels, in the order of the file's columns.
        kinds: By the same `(3450,)` DataType.
        shown: By the same the image's name of each row.
        grid: By the same `(V, 3)` voxel indices, None where the file has none.
        masks: By subject and ROI (`VC`...) `(V,)` booleans, of either form.
        npz: By subject what its `.npz` holds.
        pictures: By name `(8, 8, 3)` floats from 0 to 1.
    """

    training: list[str]
    test: list[str]
    tables: dict[int, np.ndarray]
    kinds: dict[int, np.ndarray]
    shown: dict[int, list[str]]
    grid: dict[int, np.ndarray | None]
    masks: dict[tuple[int, str], np.ndarray]
    npz: dict[int, dict[str, np.ndarray]]
    pictures: dict[str, np.ndarray]


def stimulus_id(name: str) -> float:
    """n01518878_14910 is 1518878.014910."""
    synset, image = name[1:].split("_")
    return float(f"{int(synset)}.{int(image):06d}")


def write(root: Path) -> Facts:
    root.mkdir(parents=True)
    rng = np.random.default_rng(2017)
    training, test = _images(rng)
    pictures = {name: rng.random((8, 8, 3)).astype(np.float32) for name in (*training, *test)}
    facts = Facts(training, test, {}, {}, {}, {}, {}, {}, pictures)
    for subject in (1, 3):
        _write_bdpy(root / f"Subject{subject}.h5", rng, subject, facts)
    folder = root / "npz"
    folder.mkdir()
    for subject in (1, 2):
        facts.npz[subject] = _npz(rng, subject, facts)
        np.savez(folder / f"sbj_{subject}.npz", **facts.npz[subject])
    stacks = {"train_images": np.stack([pictures[n] for n in training]), "test_images": [pictures[n] for n in test]}
    np.savez(folder / "images_256.npz", **stacks)
    write_labels(folder / "imagenet_training_label.csv", training)
    write_labels(folder / "imagenet_testing_label.csv", test)
    return facts


def write_labels(path: Path, names: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((f"{stimulus_id(name):.6f}", f"{name}.JPEG") for name in names)


def _images(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """150 x 8 and 50 images; a tenth of the numbers end in 0, as of the real ones; synsets of 7 and 8 digits."""
    synsets = rng.permutation(np.r_[1440764 : 1440764 + 5000, 13100000 : 13100000 + 5000])[:200].tolist()
    numbers = [rng.choice(6000, 8, replace=False) * 10 for _ in range(15)]
    numbers += [1 + rng.choice(64_000, 8, replace=False) for _ in range(185)]
    names = [[f"n{synset:08d}_{n + (n == 0)}" for n in some] for synset, some in zip(synsets, numbers, strict=True)]
    return [name for eight in names[:150] for name in eight], [one[0] for one in names[150:]]


def _masks(rng: np.random.Generator, subject: int, facts: Facts) -> dict[str, np.ndarray]:
    masks = {roi: rng.random(VOXELS) < 0.25 for roi in ROIS}
    for roi, parts in JOINED.items():
        masks[roi] = np.any([masks[part] for part in parts], axis=0)
    facts.masks.update({(subject, roi): mask for roi, mask in masks.items()})
    return masks


def _rows(rng: np.random.Generator, facts: Facts) -> tuple[np.ndarray, list[str]]:
    """Rows of all three types in a random order within each."""
    perceived = rng.permutation(np.repeat(facts.test, 35)).tolist()
    imagined = rng.permutation(np.repeat(facts.test, 10)).tolist()
    return np.repeat([1, 2, 3], [1200, 1750, 500]), [*rng.permutation(facts.training).tolist(), *perceived, *imagined]


def _write_bdpy(path: Path, rng: np.random.Generator, subject: int, facts: Facts) -> None:
    """Voxels first, then labels; metadata are NaN where they say nothing."""
    kind, shown = _rows(rng, facts)
    table = rng.normal(0, 2, (len(kind), VOXELS))
    masks = _masks(rng, subject, facts)
    grid = None if subject == 3 else np.argwhere(np.ones(BOX))[rng.permutation(np.prod(BOX))[:VOXELS]]
    labels = {"DataType": kind, "stimulus_id": [stimulus_id(name) for name in shown], "Run": kind}
    width = VOXELS + len(labels)
    rows: dict[str, np.ndarray] = {"VoxelData": _said(width, np.arange(VOXELS), 1.0)}
    for roi, mask in masks.items():
        # Zero in other voxels here, nothing at all there: both occur.
        rows[f"ROI_{roi}"] = _said(width, np.arange(VOXELS), mask) if roi != "FFA" else _said(width, mask.nonzero(), 1)
    for axis, name in enumerate("xyz" if grid is not None else ""):
        rows[f"voxel_{name}"] = _said(width, np.arange(VOXELS), grid[:, axis] * 3.0 - 40.5)
    for place, name in enumerate(labels):
        rows[name] = _said(width, np.array([VOXELS + place]), 1.0)
    old = subject == 3
    with h5py.File(path, "w") as file:
        file["dataSet" if old else "dataset"] = np.column_stack([table, *labels.values()])
        group = file.create_group("metaData" if old else "metadata")
        group["key"] = [key.encode() for key in rows]
        group["description"] = [b"Attribute"] * len(rows)
        group["value"] = np.stack(list(rows.values()))
        file["header/subject"] = f"Subject{subject}".encode()
        file["vmap/DataType/1.0"] = b"training"
    facts.tables[subject], facts.kinds[subject], facts.shown[subject] = table, kind, shown
    facts.grid[subject] = grid


def _said(width: int, columns: np.ndarray, values: np.ndarray | float) -> np.ndarray:
    row = np.full(width, np.nan)
    row[columns] = values
    return row


def _npz(rng: np.random.Generator, subject: int, facts: Facts) -> dict[str, np.ndarray]:
    masks = (
        {roi: facts.masks[subject, roi] for roi in (*ROIS, *JOINED)} if subject == 1 else _masks(rng, subject, facts)
    )
    test = rng.normal(0, 2, (1750, VOXELS))
    index = rng.permutation(np.repeat(np.arange(50), 35))
    arrays = [
        rng.normal(0, 2, (1200, VOXELS)),
        test,
        np.stack([test[index == image].mean(axis=0) for image in range(50)]),
        rng.permutation(1200),
        index,
        rng.random(VOXELS),
        rng.random(VOXELS),
    ]
    return {f"arr_{i}": values for i, values in enumerate(arrays)} | masks
