"""`reconbench leaderboard compare`: finds the rows that were named, refuses those that do not compare, prints tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.board import text
from bench.board.comparisons import Pair, compare
from bench.board.groups import Group, group
from bench.core.errors import BadDataError, UnknownNameError
from bench.core.identity import plain
from bench.records.record import Record

LEAST_PREFIX = 4
"""Characters of a record's id that are enough to name it."""
WIDE = 200
"""Columns of a table that goes to a file or a pipe."""


def named_pairs(records: Sequence[Record], first: str, second: str) -> list[Pair]:
    """Return the pairs that two names stand for, one for each table in which both have a row.

    Args:
        records: All records.
        first: Name of a row, or (the beginning of) a record's id.
        second: The other.

    Raises:
        UnknownNameError: If no row has a name.
        BadDataError: If the two stand in no table together; the message says what differs.
    """
    placed = _placed(group(records)[0])
    ones, others = _rows(placed, first), _rows(placed, second)
    pairs = [(a, b) for key, a in ones for other, b in others if key == other and a.id != b.id]
    if pairs:
        return pairs
    if {row.id for _, row in ones} == {row.id for _, row in others}:
        raise BadDataError(f"{first!r} and {second!r} are one row: name two")
    raise BadDataError(f"rows {first!r} and {second!r} do not compare: {_difference(ones[0][0], others[0][0])}")


def table_pairs(records: Sequence[Record], table: str | None) -> list[list[Pair]]:
    """Return every pair of competing systems, a list for each table.

    Args:
        records: All records.
        table: The table's id or its beginning; None for all tables that are ranked.

    Raises:
        UnknownNameError: If no ranked table has that id.
        BadDataError: If there are no two systems to compare.
    """
    tables = [found for found in group(records)[0] if not found.key["untrained"]]
    if table is not None:
        known = {found.id: found for found in tables}
        tables = [found for name, found in known.items() if name.startswith(table)]
        if not tables:
            raise UnknownNameError("table", table, known)
    pairs = [list(combinations(sorted(found.systems, key=lambda r: (r.name, r.id)), 2)) for found in tables]
    if not any(pairs):
        raise BadDataError("no ranked table has two systems to compare")
    return [found for found in pairs if found]


def _placed(tables: Sequence[Group]) -> list[tuple[dict[str, Any], Record]]:
    """Return every current row with what it must share with others; the division may differ."""
    rows = [(table, row) for table in tables for row in table.rows]
    found = {row.id: ({k: v for k, v in table.key.items() if k != "division"}, row) for table, row in rows}
    return list(found.values())


def _rows(placed: Sequence[tuple[dict[str, Any], Record]], name: str) -> list[tuple[dict[str, Any], Record]]:
    """Return the rows of a name or id, with their keys."""
    by_id = [each for each in placed if len(name) >= LEAST_PREFIX and each[1].id.startswith(name)]
    found = [each for each in placed if each[1].name == name] or by_id
    if not found:
        raise UnknownNameError("row", name, {row.name for _, row in placed}, "the board; a record's id does as well")
    return found


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in words what two rows do not share."""
    changed = [key for key in one if one[key] != other[key]]
    return "; ".join(f"{key} {plain(one[key])} and {plain(other[key])}" for key in changed)


def print_comparison(pairs: Sequence[Pair], samples: Mapping[str, pa.Table], screen: Console) -> None:
    """Test pairs as one family and print a table for each.

    Args:
        pairs: Rows of one table of the board.
        samples: Per-image tables by record id.
        screen: Where to.
    """
    entries = compare(pairs, samples)
    # A log has no width of its own, and numbers that are cut off say nothing.
    if not screen.is_terminal:
        screen.width = max(screen.width, WIDE)
    for pair in pairs:
        own = [e for e in entries if (e["first"], e["second"]) == (pair[0].id, pair[1].id)]
        screen.print(_title(pair), soft_wrap=True)
        screen.print(_shown(pair, own))
    if len(pairs) > 1:
        screen.print(Text(f"adjusted p-values are Holm's over all {len(entries)} tests of these {len(pairs)} pairs"))


def _title(pair: Pair) -> Text:
    """Return which rows are compared, on what, and which of them does not compete."""
    first, second = pair
    marks = [f"{row.name} is leaky, not ranked" for row in pair if row.excluded]
    facts = f"{first.dataset.name}, {first.protocol.name}, {text.subjects(sorted(first.dataset.subjects))}"
    return Text(". ".join((f"{first.name} minus {second.name}", facts, *marks)), style="italic")


def _shown(pair: Pair, entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return one pair's tests; names come from data and are never read as markup."""
    columns = {column.name: plain(column) for column in pair[0].protocol.metrics}
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("metric", pair[0].name, pair[1].name, "difference", "95 % interval", "p", "p (Holm)", "better"):
        shown.add_column(Text(heading), justify="left" if heading == "metric" else "right", no_wrap=True)
    names = {row.id: row.name for row in pair}
    for entry in entries:
        column = columns[entry["metric"]]
        values = [text.number(row.metrics[entry["metric"]].value, column) for row in pair]
        low, high = entry["interval"]
        numbers = [f"{entry['difference']:+.4f}", f"[{low:+.4f}, {high:+.4f}]"]
        chances = [text.p_value(entry["p_value"]), text.p_value(entry["p_adjusted"])]
        verdict = names.get(entry["better"], "not shown")
        shown.add_row(*map(Text, [text.heading(column), *values, *numbers, *chances, verdict]))
    return shown
