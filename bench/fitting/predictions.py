"""Predictions as artefacts: their address, what they are of, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from bench.core import options
from bench.core.errors import CorruptFileError, MissingDataError, OptionError
from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data.shards.columns import from_column
from bench.fitting.plan import FitPlan
from bench.recipes import post_steps

IDENTITY = "identity.json"
Repeats = Literal["mean-before", "mean-after", "each"]


@dataclass(frozen=True)
class Prediction:
    """One set of predictions: one fit, one subject's test pictures.

    Attributes:
        plan: The fit.
        subject: Whose betas.
        test: The test stimuli, ascending.
        repeats: Betas averaged over showings before prediction, predictions averaged after, or each showing alone.
        samples: Predictions a row, each with its own seed (deterministic encoders repeat themselves).
        post: Named steps that follow.
    """

    plan: FitPlan
    subject: int
    test: tuple[int, ...]
    repeats: Repeats = "mean-before"
    samples: int = 1
    post: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise OptionError(f"{self.samples} samples a picture were asked for; at least 1 is needed")

    def description(self) -> dict[str, Any]:
        """Return what the content address is made of."""
        return {
            "predictions": 1,
            "fit": self.plan.id,
            "subject": self.subject,
            "test": digest(list(self.test)),
            "repeats": self.repeats,
            "samples": self.samples,
            "post": [[name, post_steps.step(name).version] for name in self.post],  # a list: their order counts
        }

    @property
    def id(self) -> str:
        """The content address."""
        return digest(self.description())


def read_predictions(folder: Folder, head: str) -> tuple[pa.Table, np.ndarray]:
    """Return a head's rows (subject, stimulus, repeat, sample) and its `(N, *shape)` float32 values.

    Raises:
        MissingDataError: If the predictions were never finished or have no such head.
    """
    if not folder.exists(IDENTITY):
        raise MissingDataError(f"no {IDENTITY} in {folder}: not finished predictions")
    heads = folder.read_json(IDENTITY)["heads"]
    if head not in heads:
        raise MissingDataError(f"predictions {folder.name} have heads {sorted(heads)}, not {head!r}")
    table = folder.read_table(f"head={head}.parquet")
    values = from_column(table["value"].combine_chunks(), np.dtype(heads[head]["dtype"]), tuple(heads[head]["shape"]))
    return table.drop_columns(["value"]), values


def planned(runs: Folder, fit: str) -> FitPlan:
    """Return the plan of a finished fit.

    Raises:
        MissingDataError: If there is no such fit.
        CorruptFileError: If its plan is not the one that its address names.
    """
    folder = runs / "fits" / fit
    plan = options.build(FitPlan, folder.read_json("plan.json"), f"{folder}/plan.json")
    if plan.id != fit:
        raise CorruptFileError(f"{folder}/plan.json describes fit {plan.id}")
    return plan
