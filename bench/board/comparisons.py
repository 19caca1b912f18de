"""Paired comparisons of a table's rows: the best system with the floors, systems with each other, any two on request.

Every comparison is one family of tests under Holm's correction: all metrics of all pairs that were asked for together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from bench.board.ranking import DECIMALS, SEED, shared_columns, values_of
from bench.records.parts import Column
from bench.records.record import Record
from eval.statistics.bootstrap import LEVEL, RESAMPLES
from eval.statistics.paired import FLIPS, PairedTest, holm, paired_tests

FLOORS = ("mean-image", "shuffled")
"""What a system must beat; chance has pictures of its own only by pairing."""
ALL_PAIRS = 6
"""Up to so many systems every pair of a table is stored, beyond it neighbours in rank: pairs grow with the square."""
RULE = (
    "Paired by subject and test image. The interval is the 95 % percentile interval of a bootstrap over subjects and "
    "images, images drawn once for all subjects. The p-value is that of a two-sided sign-flip permutation test over "
    "images, an image's values in all subjects flipped together; adjusted p-values are Holm's over all metrics and "
    "pairs of the list. A row is called better where the adjusted p-value is at most .05 and the interval excludes "
    "zero."
)
Pair = tuple[Record, Record]


def rule() -> dict[str, Any]:
    """Return how rows are compared, as it stands in `leaderboard.json`."""
    return {"text": RULE, "test": "sign-flip", "flips": FLIPS, "correction": "holm", "all_pairs_up_to": ALL_PAIRS}


def against_floors(system: Record, controls: Sequence[Record], samples: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Compare a system with the mean image and with shuffled pairs.

    Args:
        system: The best system of a table.
        controls: The table's controls.
        samples: Per-image tables by record id.

    Returns:
        One entry a floor and metric.
    """
    floors = [c for name in FLOORS for c in controls if c.control == name]
    entries = compare([(system, floor) for floor in floors], samples)
    named = {"first": "system", "second": "control"}
    return [
        {named.get(key, key): value for key, value in entry.items()} | {"better": entry["better"] == system.id}
        for entry in entries
    ]


def between(systems: Sequence[Record], samples: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Compare systems with each other: all pairs of a small table, neighbours in rank of a large one.

    Args:
        systems: Ranked systems of one table, best first.
        samples: Per-image tables by record id.
    """
    pairs = combinations(systems, 2) if len(systems) <= ALL_PAIRS else pairwise(systems)
    return compare(list(pairs), samples)


def compare(pairs: Sequence[Pair], samples: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Compare pairs of rows that were scored on the same images, as one family of tests.

    Args:
        pairs: First and second row of each.
        samples: Per-image tables by record id.

    Returns:
        One entry a pair and metric that both have, in the metric's own unit and direction, first minus second.

    Raises:
        BadDataError: If two rows were scored on different images, or one has no per-image table.
    """
    asked: list[tuple[Pair, Column]] = []
    deltas = []
    for pair in pairs:
        if columns := shared_columns(pair):
            first, second = values_of(pair, [column.name for column in columns], samples)
            deltas.append(first - second)
            asked += [(pair, column) for column in columns]
    if not asked:
        return []
    # One call for all: every test sees the same draws, and they are drawn once.
    done = paired_tests(np.concatenate(deltas), RESAMPLES, None, LEVEL, SEED)
    adjusted = holm(np.array([test.p_value for test in done]))
    return [_entry(*each, test, float(p)) for each, test, p in zip(asked, done, adjusted, strict=True)]


def _entry(pair: Pair, column: Column, test: PairedTest, adjusted: float) -> dict[str, Any]:
    """Return one comparison as JSON data."""
    low, high = round(test.low, DECIMALS), round(test.high, DECIMALS)
    return {
        "first": pair[0].id,
        "second": pair[1].id,
        "metric": column.name,
        "difference": round(test.difference, DECIMALS),
        "interval": [low, high],
        "n": test.n,
        "p_value": round(test.p_value, DECIMALS),
        "p_adjusted": round(adjusted, DECIMALS),
        "better": _better(pair, column, (low, high), adjusted),
    }


def _better(pair: Pair, column: Column, ends: tuple[float, float], adjusted: float) -> str | None:
    """Return the id of the row that both the interval and the corrected test call better, or None."""
    low, high = ends if column.higher_is_better else (-ends[1], -ends[0])
    if adjusted > 1 - LEVEL + 1e-12:
        return None
    if low > 0:
        return pair[0].id
    return pair[1].id if high < 0 else None
