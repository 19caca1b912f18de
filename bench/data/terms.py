"""Terms of use of datasets: shown before anything is fetched, accepted once on a machine, remembered by their text."""

from __future__ import annotations

import hashlib

from bench.core.errors import OptionError
from bench.core.storage import Folder, home
from bench.data.datasets.base import Dataset

ACCEPTED = "accepted_terms.json"


def accept(dataset: Dataset) -> None:
    """Remember that the terms of a dataset, as they read now, are accepted."""
    folder = Folder.at(home())
    folder.write_json(ACCEPTED, {**_accepted(folder), dataset.name: _digest(dataset.terms)})


def require(dataset: Dataset) -> None:
    """Check that the terms of a dataset whose files would be fetched are accepted.

    A local copy needs no acceptance: whoever fetched it accepted them then.

    Raises:
        OptionError: If they are not; the message holds the terms and says how to accept them.
    """
    if not dataset.remote or not dataset.terms:
        return
    if _accepted(Folder.at(home())).get(dataset.name) != _digest(dataset.terms):
        raise OptionError(
            f"terms of use of {dataset.name}: {dataset.terms} Nothing is fetched from {dataset.options.root} before "
            "they are accepted: do so once with --accept-terms"
        )


def _accepted(folder: Folder) -> dict[str, str]:
    """Return the digests of the accepted terms by dataset."""
    return dict(folder.read_json(ACCEPTED)) if folder.exists(ACCEPTED) else {}


def _digest(terms: str) -> str:
    """Return what tells one wording of terms from another."""
    return hashlib.sha256(terms.encode()).hexdigest()[:16]
