"""`leaderboard.md`, made from `leaderboard.json` and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.board import papers, text


def markdown(board: Mapping[str, Any]) -> str:
    """Return the leaderboard as GitHub-flavoured Markdown with a trailing newline."""
    rule = board["rule"]
    parts = ["# Leaderboard", f"{board['records']['count']} records (digest `{board['records']['digest']}`)."]
    for table in board["tables"]:
        parts += _table(table)
    if board["excluded"]:
        parts += ["## Not competing", _excluded(board["excluded"])]
    if board["published"]:
        parts += _published(board["published"])
    parts += [
        "## How to read this",
        f"Values are means over subjects; ± is half of the bootstrap {rule['level']:.0%} interval. Arrows point to the "
        "better side. Floors and ceilings do not compete. "
        f"{text.escaped(rule['text'])} ({rule['resamples']} resamples, seed {rule['seed']}.)",
        text.escaped(rule["comparisons"]["text"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(table: Mapping[str, Any]) -> list[str]:
    """Return one table's heading, facts, rows and comparisons."""
    columns = table["protocol"]["metrics"]
    head = ["rank", "system", *(text.heading(column) for column in columns), "tried", "CPU", "GPU"]
    rows = [*(_row(row, columns) for row in table["rows"]), *_expected(columns)]
    parts = [f"## {text.escaped(table['heading'])}", f"{text.escaped(text.summary(table))}.", grid(head, rows)]
    if notes := text.notes(table):
        parts.append(
            "\n".join(f"- {', '.join(map(text.escaped, names))}: {text.escaped(note)}" for note, names in notes)
        )
    for system, control, entries in text.verdicts(table):
        parts += [_comparison(system, control, entries, columns)]
    return [*parts, *_pairs(table, columns), *_normalised(table, columns), *_latents(table)]


def _row(row: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one row's cells."""
    badge = text.BADGES.get(row["role"])
    name = text.escaped(row["name"])
    system = f"*{name}* ({badge})" if badge else f"**{name}**"
    cells = [_score(row["metrics"][column["name"]], column) for column in columns]
    spent = [text.seconds(row["costs"][kind]) for kind in ("cpu_seconds", "gpu_seconds")]
    return [text.rank(row), system, *cells, str(row["configurations_tried"]), *spent]


def _expected(columns: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the line of chance: values expected of random pairings, where they are known beforehand."""
    if all(column["chance"] is None for column in columns):
        return []
    cells = [text.number(column["chance"], column) for column in columns]
    return [[text.rank({"rank": None}), "*expected by chance*", *cells, "", "", ""]]


def _normalised(table: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return image scores between the mean image (0) and the oracle (1), unclipped."""
    rows = []
    for row in table["rows"]:
        shares = [row["metrics"][column["name"]]["normalised"] for column in columns]
        if row["kind"] == "system" and any(share is not None for share in shares):
            shown = ["" if share is None else f"{share:.2f}" for share in shares]
            rows.append([text.escaped(row["name"]), *shown])
    if not rows:
        return []
    title = "The same between the mean image (0) and the oracle (1):"
    return [title, grid(["system", *(column["label"] for column in columns)], rows)]


def _latents(table: Mapping[str, Any]) -> list[str]:
    """Return how well latents are predicted, beside what the noise of the responses allows."""
    rows = []
    for name, head, value, ceiling, share in text.latents(table):
        bounds = ["" if number is None else f"{number:.3f}" for number in (ceiling, share)]
        rows.append([text.escaped(name), text.escaped(head), f"{value:.3f}", *bounds])
    if not rows:
        return []
    title = "Correlation of predicted latents with the true ones over test images, and its noise ceiling:"
    return [title, grid(["row", "head", "correlation", "noise ceiling", "share of it"], rows)]


def _score(cell: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    """Return a value with half its interval."""
    half = text.half_width(cell)
    value = text.number(cell["value"], column)
    return value if half is None else f"{value} ± {text.number(half, column)}"


def _comparison(
    system: str, control: str, entries: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]
) -> str:
    """Return the winner's paired differences to one floor."""
    labels = {column["name"]: text.heading(column) for column in columns}
    rows = []
    for entry in entries:
        low, high = entry["interval"]
        verdict = "better" if entry["better"] else "not shown to be better"
        chance = text.escaped(text.p_value(entry["p_adjusted"]))
        numbers = [f"{entry['difference']:+.3f}", f"[{low:+.3f}, {high:+.3f}]", chance]
        rows.append([labels[entry["metric"]], *numbers, verdict])
    title = f"Paired differences, **{text.escaped(system)}** minus *{text.escaped(control)}*:"
    return f"{title}\n\n{grid(['metric', 'difference', 'interval', 'p (Holm)', 'verdict'], rows)}"


def _pairs(table: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tests between systems: first minus second with Holm's p; bold where a difference is shown."""
    rows = []
    for first, second, entries in text.pairs(table):
        own = {entry["metric"]: entry for entry in entries}
        cells = [_tested(own[column["name"]]) if column["name"] in own else "" for column in columns]
        rows.append([f"{text.escaped(first)} − {text.escaped(second)}", *cells])  # noqa: RUF001 - a minus sign
    if not rows:
        return []
    title = "Paired tests between systems, first minus second (p by Holm over the whole list):"
    return [title, grid(["pair", *(text.heading(column) for column in columns)], rows)]


def _tested(entry: Mapping[str, Any]) -> str:
    """Return one tested difference."""
    shown = f"{entry['difference']:+.3f} (p {text.escaped(text.p_value(entry['p_adjusted']))})"
    return f"**{shown}**" if entry["better"] else shown


def _excluded(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return what does not compete, and why."""
    rows = [
        [text.escaped(entry["name"]), f"`{entry['record_id']}`", entry["kind"], text.escaped(entry["reason"])]
        for entry in entries
    ]
    return grid(["system", "record", "why", "in detail"], rows)


def _published(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the main published tables, folded; the others stand in the JSON and on the page."""
    main = [table for table in tables if table["kind"] == "main"]
    rows = sum(len(table["rows"]) for table in tables)
    title = f"{rows} rows of {len(tables)} tables in papers, never ranked with the rows above"
    parts = ["## Published results", f"<details><summary>{title}</summary>"]
    for table in main:
        notes = " ".join(text.escaped(f"{note[0].upper()}{note[1:].rstrip('.')}.") for note in table["deviations"])
        facts = f"Data {text.escaped(table['dataset'])}, protocol {text.escaped(table['protocol'])}."
        parts += [f"### {text.escaped(table['title'])}", f"{facts} {notes}".strip(), _paper_rows(table)]
    others = ", ".join(text.escaped(table["title"]) for table in tables if table["kind"] != "main")
    return [*parts, f"Further tables, in `leaderboard.json` and on the page: {others}.", "</details>"]


def _paper_rows(table: Mapping[str, Any]) -> str:
    """Return a published table's rows; a corrected value stands before the printed one, which is struck out."""
    columns = table["columns"]
    rows = []
    for row in table["rows"]:
        printed = {each["column"]: each["printed"] for each in row["corrections"]}
        subjects = f"S{row['subjects'][0]}" if len(row["subjects"]) == 1 else ""
        name = " ".join(part for part in (row["system"], row["setting"], subjects) if part)
        cells = [papers.shown(row["values"].get(column["name"]), column) for column in columns]
        for place, column in enumerate(columns):
            if column["name"] in printed:
                cells[place] += f" ~~{papers.shown(printed[column['name']], column)}~~"
        reasons = [f"{each['column']} corrected: {each['reason']}" for each in row["corrections"]]
        notes = "; ".join(text.escaped(note) for note in (*row["deviations"], *reasons))
        rows.append([text.escaped(name), *cells, row["read"], text.escaped(row["protocol"]), notes])
    return grid(
        ["system", *(text.heading(column) for column in columns), "how read", "protocol", "known deviations"], rows
    )


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells must be escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
