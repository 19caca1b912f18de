"""Which records stand in one table, which stand beside it, and why.

Numbers compare only when the pictures, the test images, the protocol with its networks, the division and the subjects
are the same; each such combination is a table. Controls know no division and stand in the closed and the open table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.core.identity import digest
from bench.records.record import Record

FLOORS = ("shuffled", "mean-image", "chance")
CEILINGS = ("oracle",)


@dataclass(frozen=True)
class Exclusion:
    """A record that does not compete: `failed`, `superseded`, `leaky` or `oracle`, with the reason in words."""

    record: Record
    kind: str
    reason: str


@dataclass(frozen=True)
class Group:
    """The records of one table.

    Args:
        key: What they have in common, as JSON data.
        systems: Rows that compete, in no particular order but always the same.
        leaky: Systems that a finding of the leakage audit excludes: shown, not ranked.
        controls: Ceilings first, then floors.
    """

    key: Mapping[str, Any]
    systems: tuple[Record, ...]
    leaky: tuple[Record, ...]
    controls: tuple[Record, ...]

    @property
    def rows(self) -> tuple[Record, ...]:
        """All records of the table."""
        return (*self.systems, *self.leaky, *self.controls)

    @property
    def id(self) -> str:
        """The table's content address."""
        return digest(self.key)


def common_key(record: Record) -> dict[str, Any]:
    """Return what a record must share with others, division aside, to stand in a table with them."""
    data, protocol = record.dataset, record.protocol
    return {
        "dataset": data.name,
        "content": data.content,
        "split": data.split,
        "split_version": data.split_version,
        "test_digest": data.test_digest,
        "test_stimuli": data.test_stimuli,
        "subjects": sorted(data.subjects),
        "protocol": protocol.name,
        "untrained": protocol.untrained,
    }


def _scored_key(record: Record) -> dict[str, Any]:
    """Return the common key with the protocol's version and networks."""
    version = {"protocol_version": record.protocol.version, "weights": dict(record.protocol.weights)}
    return common_key(record) | version | {"metrics": [column.name for column in record.protocol.metrics]}


def group(records: Iterable[Record]) -> tuple[list[Group], list[Exclusion]]:
    """Sort records into tables.

    Args:
        records: Records in any order.

    Returns:
        The tables by dataset, protocol, division and subjects, untrained ones last; and what does not compete.
    """
    ordered = sorted(records, key=lambda record: record.id)
    failures = [Exclusion(r, "failed", _failure(r)) for r in ordered if r.status == "failed"]
    current, old = _current([r for r in ordered if r.status == "ok"])
    tables: list[Group] = []
    for members in _by(current, _scored_key):
        tables += _tables(members)
    leaky = [
        Exclusion(r, "oracle" if r.oracle else "leaky", "; ".join(_finding(r))) for table in tables for r in table.leaky
    ]
    return sorted(tables, key=_order), sorted((*failures, *old, *leaky), key=lambda e: (e.kind, e.record.id))


def _failure(record: Record) -> str:
    """Return why a run failed, in one line."""
    if record.error is None:
        raise ValueError(f"record {record.id} failed without an error")
    return f"{record.error.type} in {record.error.stage}: {record.error.message}"


def _finding(record: Record) -> list[str]:
    """Return the findings of the leakage audit that cost a row its rank, one line each."""
    return [f"{found.name}: {found.finding}" for found in record.leakage if found.excludes]


def _by(records: Sequence[Record], key: Any) -> list[list[Record]]:  # noqa: ANN401 - a function of a record
    """Return records of one key together, in the order of the keys' digests."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(digest(key(record)), []).append(record)
    return [found[name] for name in sorted(found)]


def _current(records: Sequence[Record]) -> tuple[list[Record], list[Exclusion]]:
    """Take out scores of older protocol versions, and older scores of the same name in the same table."""
    kept: list[Record] = []
    old: list[Exclusion] = []
    for members in _by(records, common_key):
        newest = max(record.protocol.version for record in members)
        for record in members:
            if record.protocol.version < newest:
                text = (
                    f"scored under version {record.protocol.version} of {record.protocol.name}, now {newest}: rescore"
                )
                old.append(Exclusion(record, "superseded", text))
            else:
                kept.append(record)
    latest: list[Record] = []
    for members in _by(kept, lambda r: _scored_key(r) | {"d": r.division, "k": r.kind, "c": r.control, "n": r.name}):
        winner = max(members, key=lambda record: (record.finished, record.id))
        latest.append(winner)
        text = f"{winner.name!r} was scored again later as {winner.id}"
        old += [Exclusion(record, "superseded", text) for record in members if record is not winner]
    return latest, old


def _tables(members: Sequence[Record]) -> list[Group]:
    """Return the closed and the open table of records that share all but the division."""
    controls = sorted((r for r in members if r.kind == "control"), key=_control_order)
    systems = [record for record in members if record.kind == "system"]
    divisions = sorted({record.division for record in systems or controls})
    empty = Group(_scored_key(members[0]), (), (), tuple(controls))
    return [
        replace(
            empty,
            key=dict(empty.key) | {"division": division},
            systems=tuple(r for r in systems if r.division == division and not r.excluded),
            leaky=tuple(r for r in systems if r.division == division and r.excluded),
        )
        for division in divisions
    ]


def _control_order(record: Record) -> tuple[int, str, str]:
    """Ceilings above floors, chance at the bottom."""
    return (*CEILINGS, *FLOORS).index(record.control or "chance"), record.name, record.id


def _order(table: Group) -> tuple[Any, ...]:
    """Order of the tables on the board: trained before untrained, then by name; more subjects first."""
    key = table.key
    names = (key["dataset"], key["protocol"], key["division"])
    return key["untrained"], *names, -len(key["subjects"]), key["subjects"], -key["test_stimuli"], table.id
