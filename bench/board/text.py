"""How numbers and names of the board are written, for Markdown and the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_DASH = "–"  # noqa: RUF001 - the typographic dash for "no number"
BADGES = {
    "ceiling": "ceiling",
    "floor": "floor",
    "leaky": "leaky, not ranked",
    "oracle": "oracle: selects by the truth, not ranked",
}


def escaped(text: str) -> str:
    """Return text that Markdown and the HTML made from it show letter by letter, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def number(value: float | None, column: Mapping[str, Any]) -> str:
    """Return a metric's value: identification in percent, as papers print it; a dash where there is none."""
    if value is None:
        return _DASH
    return f"{100 * value:.1f}%" if column["kind"] == "identification" else f"{value:.3f}"


def rank(row: Mapping[str, Any]) -> str:
    """Return a row's rank with its interval: `1`, `2 (2-3)`, or a dash."""
    if row["rank"] is None:
        return _DASH
    low, high = row["rank_interval"]
    return str(row["rank"]) if low == high else f"{row['rank']} ({low}-{high})"


def p_value(value: float) -> str:
    """Return a p-value: three digits, or what it lies below."""
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def heading(column: Mapping[str, Any]) -> str:
    """Return a metric's heading with an arrow to its better side."""
    return f"{column['label']} {'↑' if column['higher_is_better'] else '↓'}"


def half_width(cell: Mapping[str, Any]) -> float | None:
    """Return half the interval's width, in the metric's unit."""
    if cell["interval"] is None:
        return None
    low, high = cell["interval"]
    return float(high - low) / 2


def seconds(value: float) -> str:
    """Return a duration: `0.4 s`, `75 s`, `12 min`, `3.5 h`."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def summary(table: Mapping[str, Any]) -> str:
    """Return in one sentence what a table was computed on."""
    data, protocol = table["dataset"], table["protocol"]
    people = subjects(table["subjects"])
    split = f"split {data['split']} v{data['split_version']}"
    rules = f"protocol {protocol['name']} v{protocol['version']}, {table['division']} division"
    return f"{data['name']}, {data['test_stimuli']} test images of {people}, {split}, {rules}"


def subjects(found: Sequence[int]) -> str:
    """Return subjects in words: `subject 1`, `subjects 1-8`, `subjects 1, 2, 5, 7`."""
    if len(found) == 1:
        return f"subject {found[0]}"
    if list(found) == list(range(found[0], found[-1] + 1)):
        return f"subjects {found[0]}-{found[-1]}"
    return f"subjects {', '.join(map(str, found))}"


def verdicts(table: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return the winner's comparisons by control: its name, the control's name, one entry a metric."""
    return _by_rows(table, "comparisons", ("system", "control"))


def pairs(table: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return the pairs of systems that were tested: their names, one entry a metric."""
    return _by_rows(table, "pairs", ("first", "second"))


def _by_rows(
    table: Mapping[str, Any], kind: str, sides: tuple[str, str]
) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return tests of two rows against each other, those of the same two together, in the order they first come."""
    # By record and not by name: two rows of one table may bear the same name.
    names = {row["record_id"]: row["name"] for row in table["rows"]}
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in table[kind]:
        found.setdefault((entry[sides[0]], entry[sides[1]]), []).append(entry)
    return [(names[first], names[second], entries) for (first, second), entries in found.items()]


def verdict(first: str, second: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return in words on how many metrics either of two systems is better."""
    ahead = sum(entry["better"] == entry["first"] for entry in entries)
    behind = sum(entry["better"] == entry["second"] for entry in entries)
    rest = len(entries) - ahead - behind
    return f"{first} against {second}: better on {ahead}, worse on {behind}, no difference shown on {rest} metrics"


def latents(table: Mapping[str, Any]) -> list[tuple[str, str, float, float | None, float | None]]:
    """Return each system's test correlation by head: name, head, value, noise ceiling, share; means over subjects."""
    found = []
    for row in table["rows"]:
        mine = [each for each in row["latents"] if each["name"] == "test correlation"]
        for head in sorted({each["head"] for each in mine}):
            own = [each for each in mine if each["head"] == head]
            means = [_mean([each[key] for each in own]) for key in ("value", "ceiling", "relative")]
            found.append((row["name"], head, means[0] or 0.0, means[1], means[2]))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Return a mean; None where a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def notes(table: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return what readers should know of a table's systems: each note with the names of the rows it is about.

    Notes are declared steps and the findings of the leakage audit; what many rows share is said once.
    """
    found: dict[str, list[str]] = {}
    for row in table["rows"]:
        if row["kind"] != "system":
            continue
        lines = [described(step) for step in row["declared"]]
        lines += [f"{each['name']}: {each['finding']}" for each in row["leakage"]]
        for line in lines:
            found.setdefault(line, []).append(row["name"])
    return list(found.items())


def described(step: Mapping[str, Any]) -> str:
    """Return a declared step of a board's row in words."""
    what = ", ".join(f"{key} {_value(value)}" for key, value in sorted(step["what"].items()) if value is not None)
    return f"{step['kind']} {step['name']}: {what}"


def _value(value: Any) -> str:  # noqa: ANN401 - JSON data
    """Return a declared value in words."""
    if isinstance(value, Mapping):
        return " + ".join(f"{weight:g} {name}" for name, weight in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
