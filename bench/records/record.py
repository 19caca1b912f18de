"""The record of one score: a folder with `samples.parquet`, `events.jsonl` and, written last, `record.json`.

The presence of `record.json` means that the score is done. A failed run leaves a record too, with its error and
without metrics, so that nothing disappears from a sweep unseen. All that a leaderboard needs stands here: the board is
a pure function of records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pydantic

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.core.identity import canonical_json, plain
from bench.core.options import adapter
from bench.core.storage import Folder
from bench.records.parts import (
    SELECTION,
    Address,
    Chain,
    ControlName,
    Costs,
    DatasetPart,
    Event,
    Failure,
    Finding,
    LatentScore,
    MetricValue,
    Name,
    Positive,
    ProtocolPart,
    SampleFile,
    Sha256,
    StagePart,
    Step,
    SubjectKey,
    Time,
)
from bench.records.schemas import check, parse, schema

SCORES = "scores"
RECORD_FILE, SAMPLES_FILE, EVENTS_FILE = "record.json", "samples.parquet", "events.jsonl"
KEY_COLUMNS = {
    "subject": pa.int64(),
    "stimulus": pa.int64(),
    "sample": pa.int64(),
    "seed": pa.int64(),
    "image_sha256": pa.string(),
}


@dataclass(frozen=True)
class Record:
    """One score. Subjects are keys as decimal strings, because JSON has no other keys.

    Args:
        id: Content address of the score; the folder's name.
        name: Recipe, or the control's name.
        kind: A system that competes, or a control that stands on the board as a floor or a ceiling.
        control: Which control; None for a system.
        identity: The chain of content addresses.
        dataset: The data.
        protocol: The metrics.
        division: `closed` (one candidate, no choice by truth, no test-time tricks) or `open`.
        division_reasons: What makes it open.
        source_digest: sha256 of the source, see `bench.core.identity.source_digest`.
        packages: Versions by package.
        hardware: See `bench.records.provenance.hardware`.
        created: UTC time at which the work began, ISO 8601 with `Z`.
        finished: UTC time at which it ended.
        costs: What it cost.
        status: `ok`, or `failed` with an `error` and without metrics.
        error: Why it failed.
        metrics: Over subjects, by metric name.
        per_subject: By subject, then metric name.
        latents: Scores in voxel space and latent space.
        stages: What each training stage saw; none for pictures that no fit of ours led to.
        declared: Declared steps: post steps, blends, selections, what makers of outside pictures say.
        leakage: Findings of the audit; empty means audited and clean.
        configurations_tried: Configurations that tuning looked at to choose this one.
        commit: Commit of the source, `-dirty` behind it if changed; None when unknown.
        ray: Ray settings that can change a result or a cost.
        determinism: Determinism settings (seeds, TF32, deterministic algorithms).
        samples: The per-image table; `write_record` fills it in.
    """

    id: Address
    name: Name
    kind: Literal["system", "control"]
    control: ControlName | None
    identity: Chain
    dataset: DatasetPart
    protocol: ProtocolPart
    division: Literal["closed", "open"]
    division_reasons: tuple[Name, ...]
    source_digest: Sha256
    packages: Mapping[str, Name]
    hardware: Mapping[str, Any]
    created: Time
    finished: Time
    costs: Costs
    status: Literal["ok", "failed"] = "ok"
    error: Failure | None = None
    metrics: Mapping[Name, MetricValue] = field(default_factory=dict)
    per_subject: Mapping[SubjectKey, Mapping[Name, MetricValue]] = field(default_factory=dict)
    latents: tuple[LatentScore, ...] = ()
    stages: tuple[StagePart, ...] = ()
    declared: tuple[Step, ...] = ()
    leakage: tuple[Finding, ...] = ()
    configurations_tried: Positive = 1
    commit: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{7,64}(-dirty)?$")] | None = None
    ray: Mapping[str, Any] = field(default_factory=dict)
    determinism: Mapping[str, Any] = field(default_factory=dict)
    samples: SampleFile | None = None
    schema: Literal["reconbench/record"] = "reconbench/record"
    schema_version: Literal["1.1.0"] = "1.1.0"

    @property
    def excluded(self) -> bool:
        """Whether a finding of the leakage audit keeps the row out of the ranking."""
        return any(finding.excludes for finding in self.leakage)

    @property
    def oracle(self) -> bool:
        """Whether it is excluded only for selecting by the truth: an upper bound, shown apart."""
        return {finding.name for finding in self.leakage if finding.excludes} == {SELECTION}


def validate(value: Mapping[str, Any], where: str) -> Record:
    """Return the record that JSON data describes.

    Args:
        value: The content of a `record.json`.
        where: The file, for messages.

    Raises:
        CorruptFileError: If it does not follow the schema, or its parts contradict each other.
    """
    check(value, schema("record"), where)
    try:
        (record,) = adapter(Record).validate_python((dict(value),))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise CorruptFileError(f"{where}: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}") from None
    for problem in _contradictions(record):
        raise CorruptFileError(f"{where}: {problem}")
    return record


def _contradictions(record: Record) -> list[str]:
    """Return what no schema can say: ids, metrics and subjects that do not belong together."""
    found = []
    if record.id != record.identity.score.id:
        found.append(f"id {record.id} is not the score of its identity chain, {record.identity.score.id}")
    columns = {column.name: column for column in record.protocol.metrics}
    subjects = {str(subject) for subject in record.dataset.subjects}
    if record.status == "ok" and set(record.per_subject) != subjects:
        found.append(f"metrics for subjects {sorted(record.per_subject)}, dataset names {sorted(subjects)}")
    for values in ({"over subjects": record.metrics} | dict(record.per_subject)).values():
        if record.status == "ok" and set(values) != set(columns):
            found.append(f"metrics {sorted(values)}, protocol {record.protocol.name} has {sorted(columns)}")
        for name, metric in values.items():
            if name in columns and metric.higher_is_better != columns[name].higher_is_better:
                found.append(f"direction of metric {name!r} contradicts protocol {record.protocol.name}")
    return found


def write_record(
    folder: Folder, record: Record, samples: pa.Table | None = None, events: Sequence[Event] = ()
) -> Record:
    """Write a score: its per-image table, its events, and last of all the record.

    Args:
        folder: `<runs>/scores/<score id>`.
        record: The record; its `samples` are filled in here.
        samples: One row a subject x test image x sample seed, the columns of `KEY_COLUMNS` and one float64 column a
            metric; None for failed runs and for controls without pictures (chance).
        events: What happened on the way.

    Returns:
        The record as written.

    Raises:
        BadDataError: If the table does not fit the record.
        CorruptFileError: If the record does not follow its schema.
    """
    draft = SampleFile(samples.num_rows, "0" * 64) if samples is not None else None
    record = dataclasses.replace(record, samples=draft)
    validate(plain(record), f"{folder}/{RECORD_FILE}")
    if samples is not None:
        _check_samples(record, samples)
    canonical_json(record)  # refuses NaN before anything is written
    if samples is not None:
        _, sha256 = folder.write_table(SAMPLES_FILE, samples)
        record = dataclasses.replace(record, samples=SampleFile(samples.num_rows, sha256))
    folder.write_bytes(EVENTS_FILE, "".join(canonical_json(event) + "\n" for event in events).encode())
    folder.write_json(RECORD_FILE, record)
    return record


def _check_samples(record: Record, samples: pa.Table) -> None:
    """Check the per-image table against the record.

    Raises:
        BadDataError: If columns, types, subjects, values or the number of images are not what the record says.
    """
    computed = {name for name, metric in record.metrics.items() if metric.value is not None}
    types = KEY_COLUMNS | dict.fromkeys(sorted(computed), pa.float64())
    given = {name: samples.schema.field(name).type for name in samples.column_names}
    if given != types:
        wrong = sorted(name for name in given.keys() | types.keys() if given.get(name) != types.get(name))
        raise BadDataError(f"samples of score {record.id}: columns {wrong} are missing, unknown or of another type")
    subjects = sorted(set(samples["subject"].to_pylist()))
    if subjects != sorted(record.dataset.subjects):
        raise BadDataError(f"samples of score {record.id}: subjects {subjects}, record {record.dataset.subjects}")
    keys = samples.select(["subject", "stimulus", "sample"]).to_pylist()
    if len({tuple(key.values()) for key in keys}) != len(keys):
        raise BadDataError(f"samples of score {record.id}: a subject, stimulus and sample stands there twice")
    for name in computed:
        if not np.isfinite(samples[name].to_numpy()).all():
            raise BadDataError(f"samples of score {record.id}: metric {name!r} has NaN, infinite or missing values")


def read_records(runs: Folder) -> list[Record]:
    """Return all finished records of a runs folder, by id; folders without `record.json` are still at work.

    Raises:
        CorruptFileError: If a record is damaged or lies in another record's folder; the message names the file.
    """
    records = []
    for name in (runs / SCORES).names():
        folder = runs / SCORES / name
        if folder.exists(RECORD_FILE):
            where = f"{folder}/{RECORD_FILE}"
            record = validate(parse(folder.read_bytes(RECORD_FILE), where), where)
            if record.id != name:
                raise CorruptFileError(f"{where}: holds record {record.id}")
            records.append(record)
    return records


def read_samples(runs: Folder, record: Record) -> pa.Table | None:
    """Return a record's per-image table; None where it has none.

    Raises:
        MissingDataError: If the file is gone.
        CorruptFileError: If it is not the file that the record names.
    """
    if record.samples is None:
        return None
    folder = runs / SCORES / record.id
    if not folder.exists(SAMPLES_FILE):
        raise MissingDataError(f"no file {folder}/{SAMPLES_FILE}, though the record names it")
    if folder.sha256(SAMPLES_FILE) != record.samples.sha256:
        raise CorruptFileError(f"{folder}/{SAMPLES_FILE} is not the file that the record names: its sha256 differs")
    return folder.read_table(SAMPLES_FILE)
