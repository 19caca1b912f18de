"""Named orders of test images: which stimulus each picture of somebody's file is.

Systems number the same test images differently. Brain-Diffuser keeps the shared images of its 37 sessions in the order
in which they first appeared; MindEye2 sorts the shared 1000 by their number among the 73,000.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.core.errors import BadDataError, MissingDataError, UnknownNameError
from bench.core.storage import Folder
from bench.data.datasets.nsd.design import Design
from bench.data.shards.manifest import Manifest


@dataclass(frozen=True)
class Order:
    """An order of shared images.

    Attributes:
        by: Ascending stimulus numbers, or first appearance in the experiment.
        shown: Whether only images that were shown count; else all shared ones.
        sessions: The first so many sessions are looked at; None for all there are.
        count: How many images it has to give; None where that depends on the data.
        summary: Who uses it.
    """

    by: Literal["ascending", "first-appearance"]
    shown: bool
    sessions: int | None
    count: int | None
    summary: str


ORDERS: Mapping[str, Order] = {
    "nsd-shared-1000-sorted": Order("ascending", False, None, 1000, "MindEye2: all shared images by number"),
    "nsd-shared-982-first-appearance": Order(
        "first-appearance", True, 37, 982, "Brain-Diffuser: shared images of 37 sessions as they first appeared"
    ),
    "nsd-shared-982-sorted": Order("ascending", True, 37, 982, "the shared images of 37 sessions by number"),
    "shared-first-appearance": Order("first-appearance", True, None, None, "all sessions, any data"),
    "shared-sorted": Order("ascending", False, None, None, "all shared images by number, any data"),
}

Shown = Callable[[int | None], np.ndarray]
"""From a number of sessions (None: all) to the stimulus of each of their trials, `(T,)`, in the order of the trials."""


def find_order(name: str) -> Order:
    """Return the order of that name.

    Raises:
        UnknownNameError: If there is none; lists them and offers the nearest.
    """
    if name not in ORDERS:
        raise UnknownNameError("order", name, ORDERS)
    return ORDERS[name]


def stimuli_of(name: str, shared: np.ndarray, shown: Shown) -> tuple[int, ...]:
    """Return the stimulus number (0-based) of each picture of a named order.

    Args:
        name: A key of `ORDERS`.
        shared: Numbers of all shared images.
        shown: What trials showed; called only where the order depends on it.

    Raises:
        UnknownNameError: If there is no such order.
        MissingDataError: If `shown` lacks sessions.
        BadDataError: If the data give another number of images than the order has.
    """
    order = find_order(name)
    found = np.unique(shared)
    if order.shown:
        trials = shown(order.sessions)
        trials = trials[np.isin(trials, found)]
        found, first = np.unique(trials, return_index=True)
        if order.by == "first-appearance":
            found = found[np.argsort(first)]
    if order.count is not None and len(found) != order.count:
        raise BadDataError(f"order {name!r} has {order.count} images, these data give {len(found)}")
    return tuple(int(stimulus) for stimulus in found)


def shown_by_design(design: Design, subject: int = 1) -> Shown:
    """Return what NSD's design showed; which shared image a trial shows is the same for every subject."""

    def shown(sessions: int | None) -> np.ndarray:
        wanted = design.sessions if sessions is None else sessions
        if wanted > design.sessions:
            raise MissingDataError(f"the order needs sessions 1 to {wanted}, the design has {design.sessions}")
        return np.asarray(design.pictures[subject - 1][design.order[: design.starts[wanted]]])

    return shown


def shown_by_shards(folder: Folder, manifest: Manifest, subject: int) -> Shown:
    """Return what the trials of a set of shards showed a subject."""

    def shown(sessions: int | None) -> np.ndarray:
        entries = manifest.sessions(subject)
        there = [entry.session for entry in entries]
        wanted = list(range(1, (sessions or max(there)) + 1))
        if there[: len(wanted)] != wanted:
            raise MissingDataError(
                f"the order needs sessions 1 to {len(wanted)} of subject {subject}, {folder} has {there}; "
                "nsd_expdesign.mat (--design) has them all"
            )
        parts = [folder.read_table(entry.path, ["trial", "stimulus"]) for entry in entries[: len(wanted)]]
        trials = np.concatenate([part["trial"].to_numpy() for part in parts])
        return np.asarray(np.concatenate([part["stimulus"].to_numpy() for part in parts])[np.argsort(trials)])

    return shown
