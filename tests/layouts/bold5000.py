"""BOLD5000 with its true lists of trials, runs and showings, but a box of 60 voxels and pictures of 8 x 8 pixels.

Pictures are there only of the first sessions: 4,916 small files would take longer to write than all the rest.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

BOX = (5, 4, 3)
TYPES = ("TYPEA-ASSUMEHRF", "TYBEB-FITHRF", "TYPEC-FITHRF-GLMDENOISE", "TYPED-FITHRF-GLMDENOISE-RR")
TYPED = TYPES[3]
ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
LONG_SESSIONS = {
    1: {1, 2, 3, 5, 7, 10, 15},
    2: {1, 3, 4, 5, 11, 12, 14},
    3: {1, 3, 5, 6, 7, 11, 15},
    4: {1, 4, 9},
}
SESSIONS = {1: 15, 2: 15, 3: 15, 4: 9}
VOLUMES = {1: (1, 2), 4: (1,)}
"""Sessions that volumes are written of; ROI arrays are written of the same subjects, with all sessions."""
MISPRINTS = {(4, "LHLOC"): "LHLO", (4, "RHRSC"): "RHRRSC"}
"""Masks that bear the names OpenNeuro misprinted (there of CSI2 and CSI3)."""
VARIANTS = {"volumes": {}, "arrays": {"space": "rois", "sessions": 2}}


@dataclass(frozen=True)
class Facts:
    """What was written.

    Attributes:
        names: The 4,916 image names, sorted.
        repeated: The 113 test images.
        shown: For each subject the name shown in each trial.
        betas: By subject, session and type `(X, Y, Z, T)` float32.
        masks: By subject and `LHEarlyVis`... `(X, Y, Z)` booleans.
        arrays: By subject and `LHEarlyVis`... `(T of all sessions, V)` float32.
    """

    names: list[str]
    repeated: list[str]
    shown: dict[int, list[str]]
    betas: dict[tuple[int, int, str], np.ndarray]
    masks: dict[tuple[int, str], np.ndarray]
    arrays: dict[tuple[int, str], np.ndarray]


def trials_of(subject: int, session: int) -> int:
    return 37 * (10 if session in LONG_SESSIONS[subject] else 9)


def write(root: Path) -> Facts:
    rng = np.random.default_rng(5000)
    names = _names(rng)
    repeated = sorted(rng.choice(names, 113, replace=False).tolist())
    shown = _shown(rng, names, repeated)
    root.mkdir(parents=True)
    for subject, images in shown.items():
        (root / f"CSI{subject}_imgnames.txt").write_text("".join(f"{name}\n" for name in images))
    stimuli = root / "BOLD5000_Stimuli"
    seen = {name for s in VOLUMES for name in shown[s][: trials_of(s, 1) + trials_of(s, 2)]}
    _write_pictures(stimuli / "Scene_Stimuli" / "Presented_Stimuli", sorted(seen))
    (stimuli / "Scene_Stimuli" / "repeated_stimuli_113_list.txt").write_text("\n".join(repeated) + "\n")
    _write_labels(stimuli / "Image_Labels", names)
    masks = {key: mask for subject in VOLUMES for key, mask in _write_masks(root, rng, subject).items()}
    return Facts(names, repeated, shown, _write_volumes(root, rng), masks, _write_arrays(root, rng))


def _names(rng: np.random.Generator) -> list[str]:
    coco = [f"COCO_train2014_{i:012d}.jpg" for i in rng.choice(580_000, 2000, replace=False)]
    imagenet = [f"n{1440764 + i // 2:08d}_{rng.integers(20_000) * 2 + i % 2}.JPEG" for i in range(1916)]
    scenes = [f"{_scene(i // 4)}{i % 4 + 1}.jpg" for i in range(1000)]
    return sorted([*coco, *imagenet, *scenes])


def _scene(number: int) -> str:
    """Names of 250 places, some of which begin like others."""
    return ("bath", "bathroom", "nursery", "pier", "kitchen")[number % 5] + "abcdefghij"[number // 5 % 10] * (
        1 + number // 50
    )


def _shown(rng: np.random.Generator, names: list[str], repeated: list[str]) -> dict[int, list[str]]:
    """Every subject's showings in a random order, as often as datasets of the real lists were counted."""
    once = [name for name in names if name not in set(repeated)]
    often = {1: [3] + [4] * 112, 2: [4] * 112 + [3], 3: [2, 3, 3] + [4] * 107 + [5] * 3}
    shown = {s: [*once, *np.repeat(repeated, counts).tolist()] for s, counts in often.items()}
    shown[4] = [*once[: 2952 - 52], *np.repeat(repeated[:52], 4).tolist()]  # 2,952 images in 3,108 trials
    return {subject: rng.permutation(images).tolist() for subject, images in shown.items()}


def _write_pictures(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (len(names), 8, 8, 3), dtype=np.uint8)
    for kind in ("COCO", "ImageNet", "Scene"):
        (folder / kind).mkdir(parents=True)
    for name, picture in zip(names, pixels, strict=True):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "JPEG", quality=95)
        kind = "COCO" if name.startswith("COCO") else "ImageNet" if name.endswith(".JPEG") else "Scene"
        (folder / kind / name).write_bytes(content.getvalue())


def _write_labels(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    synsets = sorted({name.partition("_")[0] for name in names if name.endswith(".JPEG")})
    (folder / "imagenet_final_labels.txt").write_text("".join(f"{s} thing {s[1:]}, other name\n" for s in synsets))
    (folder / "scene_final_labels.txt").write_text("".join(f"{_scene(i)}\n" for i in range(250)))


def write_run_lists(root: Path, facts: Facts) -> None:
    """The presentation lists, with `rep_` before images that were shown before."""
    folder = root / "BOLD5000_Stimuli" / "Stimuli_Presentation_Lists"
    for subject, images in facts.shown.items():
        seen: set[str] = set()
        rest = iter(images)
        for session in range(1, SESSIONS[subject] + 1):
            place = folder / f"CSI{subject}" / f"CSI{subject}_sess{session:02d}"
            place.mkdir(parents=True)
            for run in range(1, trials_of(subject, session) // 37 + 1):
                lines = list(_marked(rest, seen))
                (place / f"CSI_sess{session:02d}_run{run:02d}.txt").write_text("\n".join(lines) + "\n")


def _marked(rest: Iterator[str], seen: set[str]) -> Iterator[str]:
    for _ in range(37):
        name = next(rest)
        yield f"rep_{name}" if name in seen else name
        seen.add(name)


def _write_masks(root: Path, rng: np.random.Generator, subject: int) -> dict[tuple[int, str], np.ndarray]:
    """Masks in no order that an axis mistake would leave unchanged; some voxels belong to several ROIs."""
    folder = root / "derivatives" / "spm" / f"sub-CSI{subject}"
    folder.mkdir(parents=True)
    masks = {}
    for roi in ROIS:
        for hemisphere in ("LH", "RH"):
            name = f"{hemisphere}{roi}"
            mask = rng.random(BOX) < 0.2
            mask[tuple(rng.integers(0, BOX))] = True
            masks[subject, name] = mask
            written = MISPRINTS.get((subject, name), name)
            save(folder / f"sub-CSI{subject}_mask-{written}.nii.gz", mask.astype(np.uint8))
    save(root / f"CSI{subject}_brainmask.nii.gz", np.ones(BOX, np.uint8))
    return masks


def _write_volumes(root: Path, rng: np.random.Generator) -> dict[tuple[int, int, str], np.ndarray]:
    betas = {}
    for subject, sessions in VOLUMES.items():
        for session in sessions:
            for kind in TYPES if (subject, session) == (1, 1) else (TYPED,):
                values = rng.normal(0.5, 2, (*BOX, trials_of(subject, session))).astype(np.float32)
                save(root / f"CSI{subject}_GLMbetas-{kind}_ses-{session:02d}.nii.gz", values)
                betas[subject, session, kind] = values
    return betas


def save(path: Path, volume: np.ndarray) -> None:
    """As the makers' NIfTI toolbox does: 2 mm, no scaling."""
    image = nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0]))
    nibabel.save(image, path)


def _write_arrays(root: Path, rng: np.random.Generator) -> dict[tuple[int, str], np.ndarray]:
    folder = root / "BOLD5000_GLMsingle_ROI_betas" / "py"
    folder.mkdir(parents=True)
    arrays = {}
    for subject in VOLUMES:
        trials = sum(trials_of(subject, session) for session in range(1, SESSIONS[subject] + 1))
        for roi in ROIS:
            for hemisphere in ("LH", "RH"):
                values = rng.normal(0.5, 2, (trials, int(rng.integers(2, 6)))).astype(np.float32)
                np.save(folder / f"CSI{subject}_GLMbetas-{TYPED}_allses_{hemisphere}{roi}.npy", values)
                arrays[subject, f"{hemisphere}{roi}"] = values
    return arrays
