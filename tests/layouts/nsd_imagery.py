"""NSD-imagery with its 12 runs and 18 targets, in small volumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from nsd_side_copy import write_side
from PIL import Image

VARIANTS = {"vision": {}, "imagery": {"trials": "imagery"}}
TARGETS = {
    "A": ["bar0", "bar45", "bar90", "bar135", "cross", "xcross"],
    "B": [
        "shared0385_nsd28752",
        "shared0413_nsd30857",
        "shared0741_nsd53882",
        "shared0842_nsd61178",
        "shared0907_nsd65873",
        "shared0000_nsd00000",
    ],
    "C": ["stripes", "zebra", "mammal", "yellow", "banana", "fruit"],
}
RUNS = {"visA": 48, "attA": 96, "imgA_1": 48, "visB": 48, "attB": 96, "imgB_1": 48}
RUNS |= {"visC": 48, "attC": 96, "imgC_1": 48, "imgA_2": 48, "imgB_2": 48, "imgC_2": 48}


@dataclass(frozen=True)
class Facts:
    """Target of each of the 720 rows by subject (0-17, -1 in attention runs), betas, pictures by name."""

    shown: dict[int, np.ndarray]
    betas: dict[int, np.ndarray]
    pictures: dict[str, np.ndarray]


def write(root: Path) -> Facts:
    rng = np.random.default_rng(9)
    pictures = {}
    for letter in "AB":
        folder = root / f"nsddata/experiments/nsdimagery/rawtargetimages/set{letter}"
        folder.mkdir(parents=True)
        for name in TARGETS[letter]:
            pictures[name] = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pictures[name]).save(folder / f"{name}.png")
    behaviour = root / "nsddata/bdata/nsdimagery"
    behaviour.mkdir(parents=True)
    shown = {}
    for subject in (1, 2):
        rows = []
        for run, count in RUNS.items():
            letter, first = run[3], 6 * "ABC".index(run[3])
            order = rng.permutation(np.repeat(np.arange(6), 8))
            suffix = ".png" if letter != "C" else ""
            table = pd.DataFrame(
                {
                    "SUBJECT": subject,
                    "RUN": list(RUNS).index(run) + 1,
                    "TRIAL": np.arange(1, 49),
                    "CONDITION": first + order + 1,
                    "IMAGEFILE": [f"{TARGETS[letter][k]}{suffix}" for k in order],
                }
            )
            table.to_csv(behaviour / f"nsdimagery_subj{subject:02d}_{run}.tsv", sep="\t", index=False)
            rows.extend([-1] * count if run.startswith("att") else (first + order).tolist())
        shown[subject] = np.array(rows)
    return Facts(shown, write_side(root, "nsdimagery", (1, 2), sum(RUNS.values())), pictures)
