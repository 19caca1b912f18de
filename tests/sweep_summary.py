"""What a finished sweep is, in few lines: every address of it with the data's own digests masked, and the board.

Addresses hash what decides a result. Digests of data enter them, and data made by a network (targets) differ in their
last bits between processors; so each digest of data is replaced by its name, and each address by one over descriptions
that are masked the same way. What is left changes only when somebody changes what an address is made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.core.identity import canonical_json, digest


def summary(runs: Path) -> dict[str, Any]:
    """Return masked addresses by kind and description, and each row's values by metric.

    Args:
        runs: The runs folder of a finished sweep.
    """
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("scores/*/record.json"))]
    names = _data_names(runs, records)
    addresses: dict[str, list[str]] = {}
    for kind, address, description in _in_order(list(_described(runs, records))):
        masked = digest(json.loads(_masked(canonical_json(description), names)))
        names[address] = masked
        addresses.setdefault(kind, []).append(masked)
    return {
        "addresses": {kind: sorted(found) for kind, found in addresses.items()},
        "rows": {
            record["name"]: {name: metric["value"] for name, metric in sorted(record["metrics"].items())}
            for record in sorted(records, key=lambda record: str(record["name"]))
        },
    }


def _data_names(runs: Path, records: list[dict[str, Any]]) -> dict[str, str]:
    """Name every digest of data: shards, stimuli, targets, and the true latents that stand in for predictions."""
    names = {}
    for record in records:
        names |= {record["dataset"]["shards"]: "<shards>", record["dataset"]["content"]: "<stimuli>"}
    for path in runs.glob("fits/*/plan.json"):
        names |= {head["digest"]: f"<{head['target']}>" for head in json.loads(path.read_text())["heads"].values()}
    predicted = {path.parent.name for path in runs.glob("predictions/*/identity.json")}
    for path in runs.glob("images/*/identity.json"):
        source = json.loads(path.read_text()).get("source")
        if source is not None and source not in predicted:
            names[source] = "<true latents>"
    return names


def _described(runs: Path, records: list[dict[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield kind, address and description of everything that a sweep leaves."""
    for kind, name in (("fits", "plan.json"), ("predictions", "identity.json"), ("images", "identity.json")):
        for path in sorted(runs.glob(f"{kind}/*/{name}")):
            found = json.loads(path.read_text())
            # What stands beside a prediction's description (seconds, shapes) is no part of its address.
            yield kind, path.parent.name, found["description"] if kind == "predictions" else found
    for record in records:
        yield "scores", record["id"], record["identity"]["score"]["description"]


def _in_order(described: list[tuple[str, str, Mapping[str, Any]]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield descriptions so that each comes after those whose addresses it holds."""
    waiting = {address: (kind, address, description) for kind, address, description in described}
    while waiting:
        texts = {address: canonical_json(description) for address, (_, _, description) in waiting.items()}
        ready = [a for a, text in texts.items() if not any(other in text for other in waiting if other != a)]
        assert ready, f"addresses hold each other in a circle: {sorted(waiting)}"
        for address in ready:
            yield waiting.pop(address)


def _masked(text: str, names: Mapping[str, str]) -> str:
    """Return a text with every known digest replaced by its name."""
    for known, name in names.items():
        text = text.replace(known, name)
    return text
