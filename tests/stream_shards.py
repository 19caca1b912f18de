"""A small set of trial shards whose every number is known, and the same trials worked out by obvious loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data.shards import manifest as shards
from bench.data.shards.manifest import FileEntry, Manifest
from bench.data.shards.targets import TargetTable
from bench.data.shards.trials import trials_table, voxels_table
from bench.data.splits import ROLES, Split
from bench.data.stream.trials import Betas, SubjectTrials
from bench.fitting.plan import DataDigests

N_STIMULI = 100
SHARED = np.arange(90, 100, dtype=np.int32)
VOXELS = {1: 12, 2: 9}
SESSIONS = (1, 2)
TRIALS = 60
SCALE = 1 / 300
LABEL_NAMES = {"streams": {"early": 1, "ventral": 5}}
TARGET = "tiny-diffusion.latent"
TARGET_SHAPE = (2, 3)


def latents() -> np.ndarray:
    """What each stimulus is: `(100, 6)`; targets are these numbers, voxels are noisy mixtures of them."""
    return np.random.default_rng(7).standard_normal((N_STIMULI, 6))


def raw(subject: int) -> dict[str, np.ndarray]:
    """All trials of a subject as they lie in its files: 120 showings of 100 pictures, 20 of them shown twice."""
    rng = np.random.default_rng([11, subject])
    stimulus = np.concatenate([rng.permutation(N_STIMULI), rng.permutation(N_STIMULI)[:20]]).astype(np.int32)
    mixing = rng.standard_normal((6, VOXELS[subject]))
    signal = latents()[stimulus] @ mixing + 0.7 * rng.standard_normal((len(stimulus), VOXELS[subject]))
    session = np.repeat(SESSIONS, TRIALS).astype(np.int32)
    drift = 3.0 * session[:, None] + np.arange(VOXELS[subject])
    repeat = [int((stimulus[:i] == s).sum()) for i, s in enumerate(stimulus)]
    return {
        "betas": np.rint(300 * (signal * session[:, None] + drift)).astype(np.int16),
        "trial": np.arange(len(stimulus), dtype=np.int32),
        "stimulus": stimulus,
        "repeat": np.array(repeat, dtype=np.int8),
        "session": session,
    }


def coordinates(subject: int) -> np.ndarray:
    return (np.arange(VOXELS[subject] * 3).reshape(-1, 3) + subject).astype(np.int32)


def labels(subject: int) -> Mapping[str, np.ndarray]:
    """The first four voxels are early, the rest ventral."""
    return {"streams": np.where(np.arange(VOXELS[subject]) < 4, 1, 5).astype(np.int16)}


def write_session(folder: Folder, subject: int, session: int, betas: np.ndarray | None = None) -> FileEntry:
    """Write one session's file, with other betas where they are given."""
    data = raw(subject)
    rows = data["session"] == session
    values = data["betas"][rows] if betas is None else betas
    table = trials_table(data["trial"][rows], data["stimulus"][rows], data["repeat"][rows], values)
    path = shards.session_path(subject, session)
    size, sha256 = folder.write_table(path, table)
    return FileEntry(path, table.num_rows, size, sha256, subject, session)


def write_voxels(folder: Folder, subject: int) -> FileEntry:
    """Write a subject's voxel table."""
    ncsnr = np.linspace(0.1, 1.0, VOXELS[subject])
    table = voxels_table(coordinates(subject), ncsnr, labels(subject))
    size, sha256 = folder.write_table(shards.voxels_path(subject), table)
    return FileEntry(shards.voxels_path(subject), table.num_rows, size, sha256, subject)


def manifest_of(files: list[FileEntry], dtype: str = "<i2") -> Manifest:
    source = {"made by": "tests/stream_shards.py"}
    return Manifest(
        kind="trials",
        dataset="small",
        digest=digest(source),
        source=source,
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        dtype=dtype,
        scale=SCALE,
        voxels={str(subject): count for subject, count in VOXELS.items()},
        stimuli="stimuli@0",
    )


def write_shards(folder: Folder) -> Manifest:
    """Write the whole set."""
    files = [write_session(folder, subject, session) for subject in VOXELS for session in SESSIONS]
    files += [write_voxels(folder, subject) for subject in VOXELS]
    manifest = manifest_of(files)
    manifest.write(folder)
    return manifest


def written(path: Path) -> Folder:
    """Return a folder with the whole set, below `path`."""
    folder = Folder.at(path / "small")
    write_shards(folder)
    return folder


def reference_z(data: Mapping[str, np.ndarray], train: np.ndarray, rule: str) -> np.ndarray:
    """z-scores of all trials, voxel by voxel and trial by trial, from training trials only."""
    betas = data["betas"].astype(np.float64)
    if rule == "none":
        return betas * SCALE
    out = np.empty_like(betas)
    for row in range(len(betas)):
        peers = train & (data["session"] == data["session"][row]) if rule == "session" else train
        for voxel in range(betas.shape[1]):
            values = betas[peers, voxel]
            spread = np.sqrt(np.mean((values - values.mean()) ** 2))
            out[row, voxel] = 0.0 if spread == 0 else (betas[row, voxel] - values.mean()) / spread
    return out


def role_of(stimulus: np.ndarray) -> np.ndarray:
    return Split().roles(stimulus, np.isin(stimulus, SHARED))


def betas_of(rows: np.ndarray, session: np.ndarray) -> Betas:
    """Rows of betas as the blocks of their sessions."""
    return Betas(arrays=tuple(rows[session == number] for number in SESSIONS))


def trials_of(subject: int) -> SubjectTrials:
    """A subject's training and validation trials as a fit gets them, made without Ray; betas are already z-scored."""
    data = raw(subject)
    role = role_of(data["stimulus"])
    z = reference_z(data, role == ROLES.index("train"), "session").astype(np.float32)
    keep = role != ROLES.index("test")
    shape = (len(SESSIONS), VOXELS[subject])
    return SubjectTrials(
        subject=subject,
        coordinates=coordinates(subject),
        labels=labels(subject),
        betas=betas_of(z[keep], data["session"][keep]),
        trial=data["trial"][keep],
        stimulus=data["stimulus"][keep],
        repeat=data["repeat"][keep],
        session=data["session"][keep],
        role=role[keep],
        mean=np.zeros(shape, np.float32),
        scale=np.ones(shape, np.float32),
        sessions=np.array(SESSIONS, dtype=np.int32),
    )


def target_table() -> TargetTable:
    """Targets of all pictures, test pictures too."""
    return TargetTable(np.arange(N_STIMULI, dtype=np.int32), latents().reshape(-1, *TARGET_SHAPE).astype(np.float32))


def digests() -> DataDigests:
    return DataDigests(shards={"": "small-shards"}, targets={TARGET: "small-targets"})


def written_for(scope: str) -> Callable[..., Folder]:
    """Return a fixture that gives a set of shards: of a module, never to be changed, or of a function, to be spoilt."""

    @pytest.fixture(scope=scope)
    def folder(tmp_path_factory) -> Folder:
        return written(tmp_path_factory.mktemp("shards"))

    return folder
