"""THINGS-fMRI's table format with its true trials, images, columns and types, but 60 voxels of two subjects.

Betas have the standard deviation of the real ones, 0.1 of the time course's. Pictures of 8 x 8 pixels are there of the
first session of subject 1 only.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

BOX = (7, 6, 5)
VOXELS = 60
SESSIONS, RUNS, RUN_TRAIN, RUN_TEST = 12, 10, 72, 10
TRIALS = SESSIONS * RUNS * (RUN_TRAIN + RUN_TEST)
PRF = ("V1", "V2", "V3", "hV4", "VO1", "VO2", "LO1 (prf)", "LO2 (prf)", "TO1", "TO2", "V3b", "V3a")
FLOC = (
    *("lEBA", "rEBA", "lFFA", "rFFA", "lOFA", "rOFA", "lSTS", "rSTS"),
    *("lPPA", "rPPA", "lRSC", "rRSC", "lTOS", "rTOS", "lLOC", "rLOC", "IT"),
)
GLASSER = tuple(
    f"glasser-{name}"
    for name in (
        *("V1", "V2", "OP2-3", "p9-\n46v", "a9-\n46v", "9-46d", "i6-8", "H"),
        *(f"area{number}" for number in range(172)),
    )
)
NUMBERS = ("splithalf_uncorrected", "splithalf_corrected")
PRF_NUMBERS = ("prf-eccentricity", "prf-polarangle", "prf-rsquared", "prf-size")
VARIANTS = {"prf and floc": {}, "glasser": {"voxelset": "glasser-V1 | glasser-p9-46v", "sessions": 2}}


@dataclass(frozen=True)
class Facts:
    """What was written.

    Attributes:
        betas: By subject `(60, 9840)` float64, in the order of `voxel`.
        voxel: By subject `(60,)` the `voxel_id` of each row of the responses.
        test: The 100 test images.
        pictures: By image what was encoded.
    """

    betas: dict[int, np.ndarray]
    voxel: dict[int, np.ndarray]
    test: list[str]
    pictures: list[str]


def write(root: Path) -> Facts:
    rng = np.random.default_rng(2023)
    folder = root / "betas_csv"
    folder.mkdir(parents=True)
    concepts = sorted(f"{'aardvark' if i % 3 else 'tree_trunk'}{i}" for i in range(720))
    training = [f"{concept}_{number:02d}{'sbn'[number % 3]}.jpg" for concept in concepts for number in range(1, 13)]
    test = [f"{concept}_13s.jpg" for concept in rng.choice(concepts, 100, replace=False).tolist()]
    facts = Facts({}, {}, test, [])
    for subject in (1, 2):
        shown = _trials(rng, subject, training, test)
        shown.to_csv(folder / f"sub-{subject:02d}_StimulusMetadata.csv", index=False)
        if subject == 1:
            facts.pictures.extend(_write_pictures(root / "images", shown[shown["session"] == 1]))
        _voxels(rng, subject).to_csv(folder / f"sub-{subject:02d}_VoxelMetadata.csv", index=False)
        # The second subject's rows lie in another order than its table of voxels.
        facts.voxel[subject] = np.arange(VOXELS) if subject == 1 else rng.permutation(VOXELS)
        facts.betas[subject] = rng.normal(0, 0.1, (VOXELS, TRIALS))
        write_responses(folder / f"sub-{subject:02d}_ResponseData.h5", facts.voxel[subject], facts.betas[subject])
    return facts


def _trials(rng: np.random.Generator, subject: int, training: list[str], test: list[str]) -> pd.DataFrame:
    """12 sessions x 10 runs x (72 training images + 10 test images)."""
    order = iter(rng.permutation(training).tolist())
    rows = []
    for session in range(1, SESSIONS + 1):
        tested = iter(rng.permutation(test).tolist())
        for run in range(1, RUNS + 1):
            shown = [("train", next(order)) for _ in range(RUN_TRAIN)] + [
                ("test", next(tested)) for _ in range(RUN_TEST)
            ]
            rows += [
                (kind, session, run, subject, name) for kind, name in (shown[i] for i in rng.permutation(len(shown)))
            ]
    table = pd.DataFrame(rows, columns=["trial_type", "session", "run", "subject_id", "stimulus"])
    table.insert(4, "trial_id", np.arange(len(table)))
    table["concept"] = [name.rpartition("_")[0] for name in table["stimulus"]]
    return table


def _voxels(rng: np.random.Generator, subject: int) -> pd.DataFrame:
    """Voxels at places in no order; ROIs overlap; two have no noise ceiling of single trials, one none at all."""
    places = np.argwhere(np.ones(BOX))[rng.permutation(np.prod(BOX))[:VOXELS]]
    snr = rng.gamma(1.0, 0.3, VOXELS) * (rng.random(VOXELS) < 0.9)
    single, mean = (100 * snr**2 / (snr**2 + 1 / n) for n in (1, 12))
    single[[3, 7]], mean[7] = np.nan, np.nan
    table = pd.DataFrame({"voxel_id": np.arange(VOXELS), "subject_id": subject})
    table[["voxel_x", "voxel_y", "voxel_z"]] = places
    table["nc_singletrial"], table["nc_testset"] = single, mean
    for name in (*NUMBERS, *PRF_NUMBERS):
        table[name] = rng.normal(size=VOXELS)
    rois = {name: (rng.random(VOXELS) < 0.15).astype(int) for name in (*PRF, *FLOC, *GLASSER)}
    for name in ("LO1 (prf)", "lEBA", "IT"):
        rois[name][5] = 1
    return pd.concat([table, pd.DataFrame(rois)], axis=1)


def _write_pictures(folder: Path, shown: pd.DataFrame) -> list[str]:
    rng = np.random.default_rng(7)
    for name, concept in zip(shown["stimulus"], shown["concept"], strict=True):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(content, "JPEG", quality=95)
        (folder / concept).mkdir(parents=True, exist_ok=True)
        (folder / concept / name).write_bytes(content.getvalue())
    return shown["stimulus"].tolist()


def write_responses(
    path: Path,
    voxel: np.ndarray,
    betas: np.ndarray,
    words: bool = False,
    together: bool = False,
    chunks: tuple[int, int] | None = None,
    order: np.ndarray | None = None,
) -> None:
    """Write what `DataFrame.to_hdf(path, key="ResponseData")` of pandas with PyTables writes.

    Args:
        path: The file.
        voxel: `(V,)` voxel_id of each row.
        betas: `(V, T)`.
        words: Names of trials are words, which are not pickled.
        together: voxel_id is a float as the betas are, and lies in one block with them.
        chunks: Compress in such chunks, as with `complevel`.
        order: `(T,)` trial of each column; 0, 1, 2... by default.
    """
    trials = (np.arange(betas.shape[1]) if order is None else order).tolist()
    names = [str(trial) for trial in trials] if words else trials
    blocks = [(["voxel_id", *names], np.column_stack([voxel.astype(float), betas]))] if together else []
    blocks = blocks or [(names, betas), (["voxel_id"], voxel[:, None])]
    with h5py.File(path, "w", track_order=False) as file:
        _attributes(file, CLASS="GROUP", PYTABLES_FORMAT_VERSION="2.1", TITLE="", VERSION="1.0")
        frame = file.create_group("ResponseData")
        _attributes(
            frame, CLASS="GROUP", TITLE="", VERSION="1.0", encoding="UTF-8", errors="strict", pandas_type="frame"
        )
        frame.attrs.update({"nblocks": len(blocks), "ndim": 2})
        _write_names(frame, "axis0", ["voxel_id", *names])
        _write_array(frame, "axis1", np.arange(len(voxel)), kind="integer")
        for number, (items, values) in enumerate(blocks):
            _write_names(frame, f"block{number}_items", items)
            compression = {"chunks": chunks, "compression": "gzip"} if chunks is not None and number == 0 else {}
            _write_array(frame, f"block{number}_values", values, **compression)


def _attributes(item: h5py.Group | h5py.Dataset, **values: str) -> None:
    """Words of fixed length, marked as UTF-8: PyTables takes others for bytes."""
    for name, value in values.items():
        dtype = h5py.string_dtype("utf-8", max(len(value), 1))
        item.attrs.create(name, np.array(value.encode(), dtype) if value else h5py.Empty(dtype), dtype=dtype)


def _write_array(frame: h5py.Group, name: str, values: np.ndarray, kind: str = "", **compression: object) -> None:
    array = frame.create_dataset(name, data=values, **compression)
    _attributes(array, CLASS="CARRAY" if compression else "ARRAY", FLAVOR="numpy", TITLE="", VERSION="2.4")
    array.attrs["transposed"] = np.uint8(1)
    if kind:
        _attributes(array, kind=kind, name="N.")
        _attributes(frame, **{f"{name}_variety": "regular"})


def _write_names(frame: h5py.Group, name: str, names: list) -> None:
    """Words as they are; anything else as PyTables' ObjectAtom: one pickled array of objects."""
    if all(isinstance(item, str) for item in names):
        _write_array(frame, name, np.array(names, dtype="S"), kind="string")
        return
    write_pickled(frame, name, pickle.dumps(np.array(names, dtype=object), pickle.HIGHEST_PROTOCOL))


def write_pickled(frame: h5py.Group, name: str, pickled: bytes) -> None:
    """One row of a variable-length array of bytes."""
    array = frame.create_dataset(name, (1,), h5py.vlen_dtype(np.uint8), chunks=(65536,), maxshape=(None,))
    array[0] = np.frombuffer(pickled, np.uint8)
    _attributes(array, CLASS="VLARRAY", PSEUDOATOM="object", TITLE="", VERSION="1.4", kind="object", name="N.")
    _attributes(frame, **{f"{name}_variety": "regular"})
