"""The ranked table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.board import text

_STYLES = {"ceiling": "green", "oracle": "green", "floor": "dim", "leaky": "yellow"}


def print_table(board: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every table of a leaderboard.

    Args:
        board: Content of `leaderboard.json`.
        console: Where to; standard output by default, because the table is the result.
    """
    screen = console or Console(highlight=False)
    for table in board["tables"]:
        shown = _table(table)
        # A log has no width of its own; a terminal that is too narrow shortens the names.
        if not screen.is_terminal:
            screen.width = max(screen.width, screen.measure(shown, options=screen.options.update(width=400)).maximum)
        screen.print(shown)
        for system, control, entries in text.verdicts(table):
            better = sum(entry["better"] for entry in entries)
            line = (
                f"{system} is better than {control} on {better} of {len(entries)} metrics (95 % interval beyond zero, "
                "corrected p at most .05)"
            )
            screen.print(Text(line), soft_wrap=True)
        for each in text.pairs(table):
            screen.print(Text(text.verdict(*each)), soft_wrap=True)
        for name, head, value, ceiling, share in text.latents(table):
            bound = "no noise ceiling" if ceiling is None else f"noise ceiling {ceiling:.3f}"
            of = "" if share is None else f", {share:.0%} of it"
            screen.print(Text(f"{name}: test correlation of {head} {value:.3f} ({bound}{of})"), soft_wrap=True)
        for note, names in text.notes(table):
            screen.print(Text(f"note: {', '.join(names)}: {note}", style="dim"), soft_wrap=True)
    for entry in board["excluded"]:
        screen.print(
            Text(f"not competing: {entry['name']} ({entry['kind']}): {entry['reason']}", style="yellow"), soft_wrap=True
        )


def _table(table: Mapping[str, Any]) -> Table:
    """Return one table; names come from data and are never read as markup."""
    columns = table["protocol"]["metrics"]
    shown = Table(title=Text(table["heading"]), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("rank", no_wrap=True)
    shown.add_column("system", no_wrap=True, min_width=12)
    for column in columns:
        # Two lines a heading, so that eight metrics fit a terminal of ordinary width.
        shown.add_column(Text(text.heading(column).replace("(", "\n").replace(")", "")), justify="right", min_width=5)
    shown.add_column("CPU", justify="right", no_wrap=True)
    previous = "system"
    for row in table["rows"]:
        if row["kind"] == "control" and previous == "system":
            shown.add_section()
        previous = row["kind"]
        values = [text.number(row["metrics"][column["name"]]["value"], column) for column in columns]
        cells = [text.rank(row), row["name"], *values, text.seconds(row["costs"]["cpu_seconds"])]
        shown.add_row(*(Text(cell) for cell in cells), style=_STYLES.get(row["role"], ""))
    return shown
