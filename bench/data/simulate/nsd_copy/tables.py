"""Writers of NSD's tables and pictures: the same keys, fields, columns and dtypes as the real files."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io

from bench.data.datasets.nsd import layout
from bench.data.simulate.design import IMAGES, IMAGES_PER_SUBJECT, SHOWINGS, SUBJECTS, TRIALS, Design

DAY_S = 86400.0
NEW, OLD = 1, 2
"""Buttons of the continuous recognition task."""

RESPONSE_COLUMNS = (
    "SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID",
    "TIME", "ISOLD", "ISCORRECT", "RT", "CHANGEMIND", "MEMORYRECENT",
    "MEMORYFIRST", "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2", "BUTTON",
    "MISSINGDATA",
)  # fmt: skip


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a path beside a file to write to; it takes the file's name only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_design(root: Path, design: Design) -> None:
    """Write `nsd_expdesign.mat`, a MATLAB 5 file; its ids count from 1."""
    fields = {
        "masterordering": design.masterordering,
        "subjectim": design.subjectim,
        "sharedix": design.sharedix,
        "basiccnt": design.basiccnt,
        "stimpattern": design.stimpattern,
    }
    with aside(root / layout.DESIGN) as path:
        scipy.io.savemat(path, fields, appendmat=False, do_compression=True)


def coco_ids(images: int = IMAGES) -> np.ndarray:
    """Return a COCO id for each picture, `(images,)`: distinct, and never the picture's own number."""
    return 581_929 - 7 * np.arange(images)


def coco_splits(shared: np.ndarray, images: int = IMAGES) -> np.ndarray:
    """Return the COCO split of each picture, `(images,)`: shared ones are all `train2017`, as in NSD.

    Args:
        shared: 0-based numbers of the shared pictures.
        images: Number of pictures.
    """
    splits = np.where(np.arange(images) % 20 == 7, "val2017", "train2017")
    splits[shared] = "train2017"
    return splits


def write_stimulus_info(root: Path, design: Design) -> None:
    """Write `nsd_stim_info_merged.csv`: one row a picture, 41 columns with the unnamed first.

    `nsdId` counts from 0; the `rep` columns hold the planned trial of each showing, from 1, and 0 where none is.
    """
    shared = design.sharedix[0] - 1
    is_shared = np.isin(np.arange(IMAGES), shared)
    columns: dict[str, object] = {
        "cocoId": coco_ids(),
        "cocoSplit": coco_splits(shared),
        "cropBox": ["(0, 0, 0, 0)"] * IMAGES,
        "loss": np.zeros(IMAGES),
        "nsdId": np.arange(IMAGES),
        "flagged": np.zeros(IMAGES, bool),
        "BOLD5000": is_shared,
        "shared1000": is_shared,
    }
    own = {f"subject{s + 1}": np.isin(np.arange(IMAGES), design.subjectim[s] - 1).astype(int) for s in range(SUBJECTS)}
    columns |= own | _planned_showings(design)
    with aside(root / layout.STIMULUS_INFO) as path:
        pd.DataFrame(columns).to_csv(path)


def _planned_showings(design: Design) -> dict[str, np.ndarray]:
    """Return the 24 `subject*_rep*` columns."""
    columns = {}
    for subject in range(SUBJECTS):
        for showing in range(SHOWINGS):
            trials = np.zeros(IMAGES, np.int64)
            trials[design.subjectim[subject] - 1] = design.showings[:, showing]
            columns[f"subject{subject + 1}_rep{showing}"] = trials
    return columns


def write_captions(root: Path, captions: Mapping[int, Sequence[str]], shared: np.ndarray) -> None:
    """Write COCO's two caption files, keyed by COCO image id.

    Args:
        root: The simulated NSD.
        captions: Captions by 0-based picture.
        shared: 0-based numbers of the shared pictures.
    """
    ids, splits = coco_ids(), coco_splits(shared)
    for split in ("train2017", "val2017"):
        numbers = [number for number in sorted(captions) if splits[number] == split]
        annotations = [
            {"image_id": int(ids[number]), "id": 5 * int(ids[number]) + place, "caption": text}
            for number in numbers
            for place, text in enumerate(captions[number])
        ]
        images = [{"id": int(ids[number]), "file_name": f"{ids[number]:012d}.jpg"} for number in numbers]
        content = {"info": {"description": "simulated"}, "licenses": [], "images": images, "annotations": annotations}
        with aside(root / layout.captions(split)) as path:
            path.write_text(json.dumps(content), encoding="utf-8")


def write_stimuli(root: Path, pictures: Iterator[tuple[np.ndarray, np.ndarray]], size: int) -> None:
    """Write `nsd_stimuli.hdf5`; rows that are never written take no space.

    Args:
        root: The simulated NSD.
        pictures: Pairs of increasing 0-based numbers `(n,)` and their pictures `(n, size, size, 3)` uint8 RGB.
        size: Height and width of a picture; 425 in the real file.
    """
    with aside(root / layout.STIMULI) as path, h5py.File(path, "w") as file:
        shape = (IMAGES, size, size, 3)
        brick = file.create_dataset("imgBrick", shape=shape, dtype="u1", chunks=(1, *shape[1:]))
        for numbers, images in pictures:
            for number, image in zip(numbers, images, strict=True):
                brick.id.write_direct_chunk((int(number), 0, 0, 0), np.ascontiguousarray(image).tobytes())


def write_responses(root: Path, design: Design, subject: int, sessions: int, seed: int) -> None:
    """Write `responses.tsv` of a subject who remembers four of five pictures: 750 rows a session, 19 columns."""
    rng = np.random.default_rng([seed, subject, 0xBE4A])
    order = design.masterordering[0, : sessions * TRIALS].astype(np.int64) - 1
    trial = np.arange(1, order.size + 1)
    session = (trial - 1) // TRIALS + 1
    slots = np.argwhere(design.stimpattern[:sessions] == 1)
    recent, first = _since_showings(order)
    current = np.isfinite(recent) & (recent < (trial - 1) % TRIALS + 1)
    button = np.where(rng.random(order.size) < 0.8, np.where(recent > 0, OLD, NEW), np.where(recent > 0, NEW, OLD))
    # Whole milliseconds: the last bit of a gamma number depends on the C library.
    reaction = np.rint(rng.gamma(8.0, 110.0, order.size))
    columns = (
        np.full(order.size, subject), session, slots[:, 1] + 1, _within_runs(slots),
        design.subjectim[subject - 1, order], order + 1,
        session - 0.5 + (slots[:, 1] * 400 + slots[:, 2] * 4) / DAY_S,
        recent > 0, (button == OLD) == (recent > 0), reaction, np.zeros(order.size),
        recent, first, current, (button == OLD) == current, button == NEW, button == OLD, button, np.zeros(order.size),
    )  # fmt: skip
    with aside(root / layout.responses(subject)) as path:
        table = pd.DataFrame({name: np.asarray(c, float) for name, c in zip(RESPONSE_COLUMNS, columns, strict=True)})
        table.to_csv(path, sep="\t", index=False, na_rep="NaN", float_format="%.20g")


def _within_runs(slots: np.ndarray) -> np.ndarray:
    """Return the 1-based number of each picture within its run, from rows of session, run, slot."""
    run = slots[:, 0] * 100 + slots[:, 1]
    starts = np.flatnonzero(np.r_[True, np.diff(run) != 0])
    return np.arange(len(run)) - np.repeat(starts, np.diff(np.r_[starts, len(run)])) + 1


def _since_showings(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many trials ago each picture was last and first shown, NaN where it is new."""
    last, first = np.full(IMAGES_PER_SUBJECT, -1), np.full(IMAGES_PER_SUBJECT, -1)
    recent, oldest = np.full(order.size, np.nan), np.full(order.size, np.nan)
    for trial, image in enumerate(order):
        if last[image] >= 0:
            recent[trial], oldest[trial] = trial - last[image], trial - first[image]
        else:
            first[image] = trial
        last[image] = trial
    return recent, oldest
