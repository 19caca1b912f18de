"""What a record is made of: identity chain, data, protocol, values, findings, costs. Plain frozen dataclasses.

The JSON Schema of records is generated from these types and their bounds, see `bench.records.generate`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Name = Annotated[str, Field(min_length=1)]
Address = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z$")]
"""UTC, ISO 8601."""
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
SubjectKey = Annotated[str, Field(pattern="^[1-9][0-9]*$")]
"""A subject as a key: JSON has no keys but text."""
Amount = Annotated[float, Field(ge=0)]
Seconds = Mapping[str, Amount]
"""Seconds by stage."""
SplitName = Literal["train", "validation", "test"]
ControlName = Literal["mean-image", "shuffled", "oracle", "chance"]
SELECTION = "selection-by-truth"
"""The finding of rows that choose among samples by the true picture."""


@dataclass(frozen=True)
class Link:
    """One content address of the identity chain and the description that it is the digest of."""

    id: Address
    description: Mapping[str, Any]


@dataclass(frozen=True)
class Chain:
    """What was scored, back to the fits: score -> images -> predictions -> fits, each by subject where it has one.

    Images made elsewhere have no predictions and no fits; the mean image has no fits.
    """

    score: Link
    images: Mapping[str, Link]
    predictions: Mapping[str, Link]
    fits: Mapping[str, tuple[Link, ...]]


@dataclass(frozen=True)
class DatasetPart:
    """The data of a score.

    Args:
        name: Dataset ("nsd", "simulated-nsd").
        shards: Digest of the shards that were read; other betas or voxels are other shards.
        content: Digest of the pictures and trials, the same whichever betas and voxels were taken. Rows whose content
            differs never share a table.
        betas: Beta version.
        space: Volume or surface space of the betas.
        voxelset: ROI expression of the voxels.
        split: Named split.
        split_version: Its version.
        subjects: Subjects that were scored, ascending.
        test_stimuli: Test images of each subject.
        test_digest: Digest of the test images' ids.
    """

    name: Name
    shards: Name
    content: Name
    betas: str
    space: str
    voxelset: str
    split: Name
    split_version: Count
    subjects: Annotated[tuple[Positive, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True})]
    test_stimuli: Positive
    test_digest: Name


@dataclass(frozen=True)
class Column:
    """One metric of a protocol.

    Args:
        name: Its name in results.
        label: Its heading.
        higher_is_better: Direction.
        chance: Expected value over random pairings, where it is known beforehand.
        ranked: Whether ranks count it; retrieval never counts.
        kind: What sort of number it is ("pixel", "identification", "distance"); identification is shown in percent.
    """

    name: Name
    label: Name
    higher_is_better: bool
    chance: float | None = None
    ranked: bool = True
    kind: str = ""


@dataclass(frozen=True)
class ProtocolPart:
    """How pictures became numbers.

    Args:
        name: The protocol.
        version: Its version; scores under older versions are superseded.
        metrics: Its metrics, in the order of the table.
        weights: sha256 by weights file; rows scored with other networks never share a table.
        untrained: Whether networks, its own or a generator's behind the pictures, were random; such rows are never
            ranked.
        summary: What the protocol is, in a sentence.
    """

    name: Name
    version: Count
    metrics: Annotated[tuple[Column, ...], Field(min_length=1)]
    weights: Mapping[str, Name]
    untrained: bool
    summary: str = ""


@dataclass(frozen=True)
class MetricValue:
    """One metric's value, or why it has none.

    Args:
        value: The number; None when it was not computed.
        n: Test images behind it.
        standard_error: Over images, in the metric's unit.
        interval: Bootstrap 95 % interval.
        higher_is_better: Direction.
        status: `ok`, or `not computed: needs ...`.
    """

    value: float | None
    n: Count
    standard_error: Amount | None
    interval: tuple[float, float] | None
    higher_is_better: bool
    status: Annotated[str, Field(pattern="^(ok|not computed: .+)$")] = "ok"


@dataclass(frozen=True)
class LatentScore:
    """A voxel-space or latent-space score of one head, e.g. the mean correlation with the validation targets.

    Args:
        subject: Subject.
        head: Target that was predicted.
        name: Which score ("validation correlation", "test correlation").
        value: The score.
        ceiling: Its noise ceiling in the same unit: for latents what the noise of the responses lets through
            (`eval.statistics.noise_ceiling.prediction_ceiling`), the mean over targets. None without repeated showings,
            and for validation trials, which are single showings.
        relative: value / ceiling, unclipped; None without a ceiling.
    """

    subject: Positive
    head: Name
    name: Name
    value: float
    ceiling: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class StagePart:
    """What a training stage saw: its data, and which splits were open to the fit and to the choice of a checkpoint.

    Args:
        name: The stage.
        encoder: What it trains.
        subjects: One fit a subject, a joint one, or one over all others.
        dataset: Its data set; "" for the one that is scored.
        normalise: Rule of z-scoring.
        fitted_on: Splits that trained it.
        chosen_on: Splits by which training was stopped and a checkpoint or configuration chosen.
        pretrained_on: Sets behind outside weights that it starts from.
    """

    name: Name
    encoder: Name
    subjects: Literal["each", "joint", "others"]
    dataset: str
    normalise: Name
    fitted_on: tuple[SplitName, ...]
    chosen_on: tuple[SplitName, ...]
    pretrained_on: tuple[Name, ...] = ()


@dataclass(frozen=True)
class Step:
    """A declared step beyond one picture a stimulus.

    Args:
        kind: `post`, `blend`, `select`, or `declared` for what makers of outside pictures say.
        name: The step's or the render node's name.
        what: Its options.
    """

    kind: Literal["post", "blend", "select", "declared"]
    name: Name
    what: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One finding of the leakage audit.

    Args:
        name: Which check.
        finding: What it found, in words.
        evidence: The numbers behind it.
        excludes: Whether the row loses its rank; otherwise the finding is a note that readers should know.
    """

    name: Name
    finding: Name
    evidence: Mapping[str, Any]
    excludes: bool = True


@dataclass(frozen=True)
class ModelSize:
    """A model of the chain: its role (encoder, generator, metric network), parameters and bytes of weights."""

    name: Name
    role: Name
    parameters: Count
    bytes: Count


@dataclass(frozen=True)
class Costs:
    """What a score cost: seconds by stage, peak resident memory in bytes, bytes read, and its models' sizes."""

    gpu_seconds: Seconds
    cpu_seconds: Seconds
    wall_seconds: Seconds
    peak_memory_bytes: Count | None = None
    bytes_read: Count | None = None
    models: tuple[ModelSize, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a run has no score: the error's type, its message, and the stage that raised it."""

    type: Name
    message: str
    stage: Name


@dataclass(frozen=True)
class SampleFile:
    """The per-image table beside the record: its rows and the sha256 of the file."""

    rows: Positive
    sha256: Sha256


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`: a UTC time, what happened, and to what."""

    time: str
    event: str
    key: str
    value: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def now() -> str:
    """Return the time as it stands on records: UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
