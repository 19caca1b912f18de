"""Published tables, checked and typed.

A table is one file; a row is one system's results with everything that decides whether it compares with another row:
source, protocol, subjects, test images, sessions, known deviations, and how the number was read. Where a source
contradicts itself, the value is the corrected one and the printed one stands beside it with the reason.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.core.errors import BadDataError, UnknownNameError
from bench.core.options import build, read_yaml

FOLDER = Path(__file__).parent / "tables"
COLUMNS_FILE = Path(__file__).parent / "columns.yaml"

Read = Literal["read", "verified", "secondary", "inferred", "memory"]
READ: Mapping[str, str] = {
    "read": "read in the paper or the code that the source names",
    "verified": "recomputed from numbers or code of the source",
    "secondary": "quoted by another paper, slide or note",
    "inferred": "plausible from what was read, not shown there",
    "memory": "not looked up",
}
PROTOCOLS: Mapping[str, str] = {
    "mindeye2": "MindEye2's evaluation code: 1000 images, two-dimensional SSIM, EfficientNet-B1 V2 at 255 px",
    "brain-diffuser": "Brain-Diffuser's evaluation code: 982 images, column-wise SSIM, EfficientNet-B1 V1 at 224 px",
    "mindeye1": "MindEye1's evaluation code: 982 images, EfficientNet-B1 V2 at 255 px",
    "takagi": "identification among reconstructions, over five samples",
    "nway-top1": "n-way top-1 with an ImageNet ViT classifier, as in Mind-Vis",
    "cs292f": "CS292F's own definitions",
    "prism": "PRISM's own definitions",
    "basic": "BASIC: segmentation and scene graphs",
    "brainhub-captions": "BrainHub's caption metrics",
    "unstated": "where the row was read, its metric code is not named",
}
KINDS = (
    "main", "low-data", "zero-shot", "per-subject", "bound", "ablation", "reproduction", "quoted", "other",
)  # fmt: skip
MEAN_TOLERANCE = 0.001
"""How far a printed mean may lie from that of printed rows: half a unit of the third decimal on either side."""


@dataclass(frozen=True)
class Column:
    """A column of published tables: its heading, its direction, what sort of number it is, and its possible range."""

    name: str
    label: str
    higher_is_better: bool
    kind: str
    allowed: tuple[float, float]


@dataclass(frozen=True)
class Correction:
    """A value that a source prints and that cannot be right; the row holds the corrected one."""

    column: str
    printed: float
    reason: str


@dataclass(frozen=True)
class PublishedRow:
    """One system's published results.

    Attributes:
        system: The system as the source names it.
        values: By column; identification, retrieval and n-way accuracy as shares of 1.
        source: Paper and table.
        read: How the numbers were read, a key of `READ`.
        protocol: The protocol that the row follows, a key of `PROTOCOLS`.
        subjects: Subjects that the values are means over; empty where the source does not say.
        test_images: Test images a subject; None where the source does not say.
        sessions: Sessions of the subject's data; None where the source does not say.
        setting: What tells the row from others of its system.
        deviations: What is known to differ from the protocol or from neighbouring rows.
        corrections: Printed values that were corrected.
        mean_of: Name of the table whose rows of this system have these values as their means.
    """

    system: str
    values: Mapping[str, float]
    source: str
    read: Read
    protocol: str
    subjects: tuple[int, ...]
    test_images: int | None
    sessions: int | None
    setting: str = ""
    deviations: tuple[str, ...] = ()
    corrections: tuple[Correction, ...] = ()
    mean_of: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table. Rows of different tables never compare."""

    name: str
    title: str
    dataset: str
    protocol: str
    kind: str
    columns: tuple[Column, ...]
    deviations: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


@dataclass(frozen=True)
class _File:
    """What a table's file holds: facts that its rows share unless they say otherwise, and the rows."""

    title: str
    dataset: str
    protocol: str
    kind: str
    source: str
    read: Read
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    subjects: tuple[int, ...] = ()
    test_images: int | None = None
    sessions: int | None = None
    percent: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


@functools.cache
def published() -> tuple[PublishedTable, ...]:
    """Return the tables that ship with the package, main ones first."""
    return load_tables(FOLDER, load_columns(COLUMNS_FILE))


def load_columns(path: Path) -> dict[str, Column]:
    """Return all known columns by name.

    Raises:
        OptionError: If the file is not YAML, or a column lacks something.
    """
    return {
        name: build(Column, {"name": name, **entry}, f"{path.name}, column {name!r}")
        for name, entry in read_yaml(path).items()
    }


def load_tables(folder: Path, columns: Mapping[str, Column]) -> tuple[PublishedTable, ...]:
    """Return the tables of a folder: main ones first, NSD before other data, long tables before short ones.

    Raises:
        BadDataError: If a value is out of its column's range, a row stands there twice, or a mean does not follow.
        OptionError: If a file is not YAML, or a field is missing or of the wrong type.
        UnknownNameError: If a field, column, protocol, kind or table is unknown.
    """
    tables = [load_table(path, columns) for path in sorted(folder.glob("*.yaml"))]
    by_name = {table.name: table for table in tables}
    for table in tables:
        for row in table.rows:
            if row.mean_of:
                _check_mean(row, table, by_name)
    return tuple(sorted(tables, key=_place))


def _place(table: PublishedTable) -> tuple[int, bool, int, str]:
    """Return what tables are sorted by."""
    return KINDS.index(table.kind), table.dataset != "nsd", -len(table.rows), table.name


def load_table(path: Path, columns: Mapping[str, Column]) -> PublishedTable:
    """Return the table of one file; see `load_tables`."""
    file = build(_File, read_yaml(path), path.name)
    for name in (*file.columns, *file.percent):
        _known("column", name, columns, path.name)
    _known("kind of table", file.kind, KINDS, path.name)
    rows = tuple(_row(values, file, f"{path.name}, row {place}") for place, values in enumerate(file.rows, start=1))
    for place, row in enumerate(rows, start=1):
        _check_row(row, file, columns, f"{path.name}, row {place} ({row.system})")
    _check_table(file, rows, path.name)
    chosen = tuple(columns[name] for name in file.columns)
    return PublishedTable(path.stem, file.title, file.dataset, file.protocol, file.kind, chosen, file.deviations, rows)


def _known(kind: str, name: str, allowed: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Raise UnknownNameError unless a name is allowed."""
    if name not in allowed:
        raise UnknownNameError(kind, name, allowed, where)


def _row(values: Mapping[str, Any], file: _File, where: str) -> PublishedRow:
    """Return a row with the facts of its file where it has none of its own, and percents as shares."""
    shared = {
        name: getattr(file, name) for name in ("source", "read", "protocol", "subjects", "test_images", "sessions")
    }
    made = build(PublishedRow, {**shared, **values}, where)
    corrections = tuple(
        Correction(each.column, _share(each.column, each.printed, file), each.reason) for each in made.corrections
    )
    shares = {name: _share(name, value, file) for name, value in made.values.items()}
    return replace(made, values=shares, corrections=corrections)


def _share(column: str, value: float, file: _File) -> float:
    """Return a value as the package holds it; nine decimals remove what dividing by 100 adds."""
    return round(value / 100, 9) if column in file.percent else value


def _check_row(row: PublishedRow, file: _File, columns: Mapping[str, Column], where: str) -> None:
    """Check a row's values, names and facts."""
    _known("protocol", row.protocol, PROTOCOLS, where)
    if not row.values:
        raise BadDataError(f"{where}: no values")
    for name, value in row.values.items():
        _known("column", name, file.columns, where)
        low, high = columns[name].allowed
        if not (math.isfinite(value) and low <= value <= high):
            raise BadDataError(f"{where}: {name} is {value:g}, allowed are {low:g} to {high:g}")
    if list(row.subjects) != sorted(set(row.subjects)) or any(subject < 1 for subject in row.subjects):
        raise BadDataError(f"{where}: subjects are numbers from 1, ascending, each once; got {list(row.subjects)}")
    if (row.test_images is not None and row.test_images < 1) or (row.sessions or 0) < 0:
        raise BadDataError(f"{where}: {row.test_images} test images and {row.sessions} sessions cannot be")
    for correction in row.corrections:
        if row.values.get(correction.column, correction.printed) == correction.printed:
            raise BadDataError(f"{where}: the correction of {correction.column!r} changes no value of the row")


def _check_table(file: _File, rows: Sequence[PublishedRow], where: str) -> None:
    """Check that no row stands there twice and no column is empty."""
    _known("protocol", file.protocol, PROTOCOLS, where)
    keys = [(row.system, row.setting, row.subjects) for row in rows]
    for key in keys:
        if keys.count(key) > 1:
            raise BadDataError(f"{where}: system {key[0]!r} {key[1]} stands there twice for subjects {list(key[2])}")
    empty = [name for name in file.columns if not any(name in row.values for row in rows)]
    if empty or len(set(file.columns)) != len(file.columns):
        raise BadDataError(f"{where}: columns {list(file.columns)} must differ and each have a value; empty: {empty}")


def _check_mean(row: PublishedRow, table: PublishedTable, tables: Mapping[str, PublishedTable]) -> None:
    """Compare a row with the mean of the rows it is the mean of."""
    where = f"{table.name}, {row.system}"
    _known("table", row.mean_of, [name for name in tables if name != table.name], where)
    parts = [part for part in tables[row.mean_of].rows if part.system == row.system]
    if sorted(subject for part in parts for subject in part.subjects) != list(row.subjects):
        raise BadDataError(f"{where}: {row.mean_of} does not hold each of subjects {list(row.subjects)} once")
    for name, value in row.values.items():
        mean = sum(part.values[name] for part in parts) / len(parts)
        if abs(mean - value) > MEAN_TOLERANCE:
            raise BadDataError(f"{where}: {name} is {value:g}, but the mean of {row.mean_of} is {mean:.4f}")
