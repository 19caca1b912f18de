"""What is asked of a render graph: whose graph, and the predictions or true latents that feed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from bench.core.storage import Folder
from bench.fitting.predictions import read_predictions
from bench.recipes.base import Recipe


@dataclass(frozen=True)
class Source:
    """What feeds a render graph.

    Attributes:
        id: Content address of the predictions, or of the true latents that stand in for them.
        keys: Rows: subject, stimulus, repeat, sample.
        heads: For each head `(N, *shape)` float32.
    """

    id: str
    keys: pa.Table
    heads: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Request:
    """A render graph over one source.

    Attributes:
        recipe: Whose graph.
        source: What feeds it.
        targets: References to tables of true targets by `<generator>.<target>`: only selection by truth opens one.
        digests: Their content digests.
    """

    recipe: Recipe
    source: Source
    targets: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def source_of(folder: Folder, heads: Sequence[str]) -> Source:
    """Return the source made of a predictions folder.

    Raises:
        MissingDataError: If the predictions are not finished or lack a head.
    """
    read = {head: read_predictions(folder, head) for head in heads}
    keys = next(iter(read.values()))[0]
    return Source(folder.name, keys, {head: values for head, (_, values) in read.items()})
