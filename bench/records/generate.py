"""The JSON Schema of records, from the classes that hold them: `python -m bench.records.generate` writes it anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema

from bench.core.options import adapter
from bench.records.record import Record

FILE = Path(__file__).resolve().parent / "schema" / "record.schema.json"

_NULL, _OBJECT, _TEXT = {"type": "null"}, {"type": "object"}, {"type": "string"}
_EMPTY = {"maxProperties": 0}


class _AllRequired(GenerateJsonSchema):
    """A file holds every field, also those that have defaults in Python; names need no titles that repeat them."""

    def field_is_required(self, *_: Any, **__: Any) -> bool:  # noqa: ANN401 - pydantic's own arguments
        """Say whether a field has to be there; pydantic calls this."""
        return True

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        """Return the schema of a field that has a default; pydantic calls this."""
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, *_: Any) -> bool:  # noqa: ANN401 - pydantic's own arguments
        """Say whether a field gets a title; pydantic calls this."""
        return False


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of `record.json`: the classes' types and bounds, and what excludes what."""
    parts = adapter(Record).json_schema(schema_generator=_AllRequired)["$defs"]
    parts["MetricValue"] |= _when(
        {"status": "ok"},
        {"value": {"type": "number"}, "n": {"minimum": 1}},
        {"value": _NULL, "standard_error": _NULL, "interval": _NULL},
    )
    record = parts.pop("Record")
    record["properties"]["per_subject"]["additionalProperties"] = False  # pydantic only says what numbers lead to
    version = record["properties"]["schema_version"]["const"]
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": f"reconbench/record/{version}",
        **record,
        "title": "The record of one score",
        "allOf": [
            _when(
                {"status": "failed"},
                {"error": _OBJECT, "metrics": _EMPTY, "per_subject": _EMPTY, "samples": _NULL},
                {"error": _NULL, "metrics": {"minProperties": 1}},
            ),
            _when({"kind": "control"}, {"control": _TEXT}, {"control": _NULL}),
            _when({"kind": "system", "status": "ok"}, {"samples": _OBJECT}, {}),
            _when({"division": "open"}, {"division_reasons": {"minItems": 1}}, {"division_reasons": {"maxItems": 0}}),
        ],
        "$defs": parts,
    }


def _when(given: Mapping[str, str], then: Mapping[str, Any], otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rule that fields follow where others have given values, and the one that they follow elsewhere."""
    known = {name: {"const": value} for name, value in given.items()}
    return {"if": {"properties": known}, "then": {"properties": then}, "else": {"properties": otherwise}}


if __name__ == "__main__":
    FILE.write_text(json.dumps(record_schema(), indent=2) + "\n")
