"""`leaderboard.json`: a pure function of the records and of the published tables that ship with the package.

It is byte for byte the same in whatever order the records come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bench.board import comparisons, papers
from bench.board.groups import Exclusion, Group, group
from bench.board.published.load import published
from bench.board.ranking import SEED, Standing, standings
from bench.board.rows import row
from bench.core.identity import digest, plain
from bench.records import schemas
from bench.records.record import Record
from eval.statistics.bootstrap import LEVEL, RESAMPLES

SCHEMA = "reconbench/leaderboard"
SCHEMA_VERSION = "1.2.0"
UNTRAINED = "Untrained networks: numbers say nothing about quality; shown to exercise the pipeline."
RULE = (
    "Borda count over the ranked metrics of the protocol: in each metric a system gets one point for every system it "
    "beats and half a point for a tie; the points are averaged over metrics. Rank intervals come from a bootstrap over "
    "subjects and images, images drawn once for all subjects; systems whose interval overlaps that of the best of "
    "their group share its rank. Retrieval and costs never count."
)


def build(records: Sequence[Record], samples: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return the leaderboard as JSON data.

    Args:
        records: All records, in any order.
        samples: Per-image tables by record id.

    Raises:
        BadDataError: If systems of one table were scored on other test images than their neighbours.
        CorruptFileError: If what comes out does not follow its schema.
    """
    groups, excluded = group(records)
    board = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "records": {"count": len(records), "digest": digest(sorted(record.id for record in records))},
        "rule": {"text": RULE, "method": "borda", "resamples": RESAMPLES, "seed": SEED, "level": LEVEL}
        | {"comparisons": comparisons.rule()},
        "tables": [_table(members, samples) for members in groups],
        "excluded": [_excluded(entry) for entry in excluded],
        "published": papers.section(published()),
    }
    validate(board, "leaderboard.json")
    return board


def validate(board: Mapping[str, Any], where: str) -> None:
    """Check a leaderboard against the schema that ships with the package.

    Raises:
        CorruptFileError: Naming the place and what is wrong there.
    """
    schemas.check(board, schemas.schema("leaderboard"), where)


def _table(members: Group, samples: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return one table: what its rows share, the rows in order, and the winner against the floors."""
    first, ranked = members.rows[0], not members.key["untrained"]
    places = standings(members.systems, samples) if ranked and members.systems else {}
    systems = sorted(members.systems, key=lambda r: (*_place(places.get(r.id)), r.name, r.id))
    rows = [row(record, members, places.get(record.id)) for record in (*systems, *members.leaky, *members.controls)]
    return {
        "id": members.id,
        "ranked": ranked,
        "heading": _heading(members) if ranked else f"{_heading(members)}. {UNTRAINED}",
        "dataset": {
            name: members.key[name] for name in ("content", "split", "split_version", "test_digest", "test_stimuli")
        }
        | {"name": members.key["dataset"]},
        "protocol": plain(first.protocol),
        "division": members.key["division"],
        "subjects": list(members.key["subjects"]),
        "rows": rows,
        "comparisons": comparisons.against_floors(systems[0], members.controls, samples) if places else [],
        "pairs": comparisons.between(systems, samples) if places else [],
    }


def _place(standing: Standing | None) -> tuple[float, float]:
    """Sort by rank, within a shared rank by Borda points."""
    return (standing.rank, -standing.borda) if standing else (0.0, 0.0)


def _heading(members: Group) -> str:
    """Return a table's title in words."""
    key = members.key
    many = len(key["subjects"])
    people = f"subject {key['subjects'][0]}" if many == 1 else f"{many} subjects"
    return f"{key['dataset']}, {key['protocol']}, {key['division']} division, {people}"


def _excluded(entry: Exclusion) -> dict[str, Any]:
    """Return a record that does not compete."""
    record = entry.record
    return {
        "record_id": record.id,
        "name": record.name,
        "dataset": record.dataset.name,
        "protocol": record.protocol.name,
        "kind": entry.kind,
        "reason": entry.reason,
        "evidence": plain([f for f in record.leakage if f.excludes]) if entry.kind in ("leaky", "oracle") else [],
    }
