"""The board's section of published results, as JSON data made from the tables that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from bench.board.published.load import PublishedTable
from bench.core.identity import plain


def section(tables: Sequence[PublishedTable]) -> list[dict[str, Any]]:
    """Return published tables as they stand in `leaderboard.json`; nothing in them is ranked."""
    return [_table(table) for table in tables]


def _table(table: PublishedTable) -> dict[str, Any]:
    """Return one table, with the digits that its columns are printed with."""
    found: dict[str, Any] = plain(table)
    for row in found["rows"]:
        del row["mean_of"]
    for column in found["columns"]:
        del column["allowed"]
        values = [row["values"][column["name"]] for row in found["rows"] if column["name"] in row["values"]]
        column["decimals"] = max(_decimals(value, column) for value in values)
    return found


def _decimals(value: float, column: Mapping[str, Any]) -> int:
    """Return how many digits after the point a value needs; of its percentage where it is shown as one."""
    exponent = Decimal(str(value)).normalize().as_tuple().exponent
    digits = -exponent if isinstance(exponent, int) else 0
    # Every paper prints at least one digit of a percentage and three of anything else; trailing zeros are not in data.
    return (
        max(digits - 2, 1)
        if column["kind"] == "identification"
        else max(digits, 2 if column["kind"] == "points" else 3)
    )


def shown(value: float | None, column: Mapping[str, Any]) -> str:
    """Return a published value with the digits of its column; identification in percent; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001 - the typographic dash for "no number"
    factor = 100 if column["kind"] == "identification" else 1
    return f"{factor * value:.{column['decimals']}f}{'%' if factor == 100 else ''}"
