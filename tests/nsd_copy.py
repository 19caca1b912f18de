"""A small copy of NSD made of random numbers, written with the simulator's writers, for tests of the reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.data.datasets.nsd import layout
from bench.data.simulate.design import Design, simulate_design
from bench.data.simulate.nsd_copy import tables
from bench.data.simulate.nsd_copy import volumes as nsd_volumes

BOX = (6, 8, 5)
SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
PICTURES = 16
STREAMS = ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")


@dataclass(frozen=True)
class Copy:
    """What was written: volumes `(X, Y, Z)`, betas `(X, Y, Z, 750)` by subject and session, pictures by nsdId."""

    root: Path
    design: Design
    volumes: dict[str, np.ndarray]
    betas: dict[tuple[int, int], np.ndarray]
    ncsnr: np.ndarray

    def betas_path(self, subject: int, session: int, files: str) -> Path:
        return self.root / layout.session_betas(layout.betas_folder(subject, SPACE, BETAS), session, files)


def label_volume(rng: np.random.Generator, labels: int) -> np.ndarray:
    """-1, 0 and every label, in no order that an axis mistake would leave unchanged."""
    return rng.integers(-1, labels + 1, BOX).astype(np.int16)


def formula_design() -> Design:
    """A design of NSD's size that no simulator draws: every 73rd picture shared, the others dealt in turn."""
    numbers = np.arange(1, 73_001, dtype=np.int32)
    shared, others = numbers[::73], np.delete(numbers, np.s_[::73])
    pictures = np.stack([np.concatenate([shared, others[subject::8]]) for subject in range(8)])
    order = np.random.RandomState(0).permutation(np.repeat(np.arange(1, 10_001), 3))
    counts = [np.bincount(np.bincount(session), minlength=4)[1:] for session in order.reshape(40, 750)]
    slots = np.zeros((40, 12, 75), np.uint8)
    slots[:, ::2, :62], slots[:, 1::2, :63] = 1, 1
    return Design(order[None].astype(np.uint16), pictures, shared[None], np.array(counts, np.uint16).T, slots)


def write_copy(root: Path, sessions: dict[int, tuple[int, ...]], seed: int = 0, design: Design | None = None) -> Copy:
    rng = np.random.default_rng(seed)
    design = design or simulate_design(seed)
    tables.write_design(root, design)
    tables.write_stimulus_info(root, design)
    volumes = {"nsdgeneral": label_volume(rng, 1), "streams": label_volume(rng, 7)}
    names = {"nsdgeneral": {"nsdgeneral": 1}, "streams": {name: i + 1 for i, name in enumerate(STREAMS)}}
    ncsnr = rng.random(BOX).astype(np.float32)
    ncsnr[rng.random(BOX) < 0.2] = np.nan
    betas = {}
    for subject, numbers in sessions.items():
        for atlas, volume in volumes.items():
            nsd_volumes.write_atlas(root, subject, SPACE, atlas, hemispheres(volume), names[atlas])
        nsd_volumes.write_brain_mask(root, subject, SPACE, np.ones(BOX, bool))
        folder = layout.betas_folder(subject, SPACE, BETAS)
        nsd_volumes.write_nifti(root / folder / "ncsnr.nii.gz", ncsnr, SPACE)
        tables.write_responses(root, design, subject, max(numbers), seed)
        for session in numbers:
            betas[subject, session] = rng.integers(-32768, 32768, (*BOX, 750)).astype("<i2")
            nsd_volumes.write_betas(root / layout.session_betas(folder, session, "hdf5"), betas[subject, session])
            nsd_volumes.write_nifti(
                root / layout.session_betas(folder, session, "nifti"), betas[subject, session], SPACE
            )
    return Copy(root, design, volumes, betas, ncsnr)


def hemispheres(volume: np.ndarray) -> dict[str, np.ndarray]:
    left = np.arange(BOX[0])[:, None, None] < BOX[0] // 2
    return {"": volume, "lh": np.where(left, volume, -1), "rh": np.where(left, -1, volume)}


def write_pictures(copy: Copy, numbers: np.ndarray, size: int = PICTURES) -> dict[int, np.ndarray]:
    """Random pictures and five captions each for some nsdIds."""
    rng = np.random.default_rng(7)
    numbers = np.sort(numbers)
    pictures = {int(n): rng.integers(0, 256, (size, size, 3)).astype(np.uint8) for n in numbers}
    tables.write_stimuli(copy.root, iter([(numbers, np.stack([pictures[int(n)] for n in numbers]))]), size)
    captions = {int(n): [f"picture {n}, sentence {i}" for i in range(5)] for n in numbers}
    tables.write_captions(copy.root, captions, copy.design.sharedix[0] - 1)
    return pictures
