"""Small, made-up but complete records for the tests of the record and of the leaderboard."""

import hashlib

import numpy as np
import pyarrow as pa

from bench.core.identity import digest
from bench.records.parts import (
    Chain,
    Column,
    Costs,
    DatasetPart,
    Link,
    MetricValue,
    ModelSize,
    ProtocolPart,
    SampleFile,
)
from bench.records.record import Record

COLUMNS = (
    Column("pixcorr", "PixCorr", True, 0.0),
    Column("ssim", "SSIM", True, None),
    Column("low", "Low(2-way)", True, 0.5),
    Column("high", "High(2-way)", True, 0.5),
    Column("distance", "Mid dist.", False, 1.0),
)


def link(**description):
    return Link(digest(description), description)


def protocol(columns=COLUMNS, **changes):
    values = {"name": "scenes-1", "version": 1, "metrics": columns, "weights": {"scene.safetensors": "ab" * 32}}
    return ProtocolPart(**(values | {"untrained": False} | changes))


def dataset(subjects=(1, 2), images=20, **changes):
    values = {
        "name": "simulated-nsd", "shards": "5" * 16, "content": "c" * 16, "betas": "fithrf_GLMdenoise_RR",
        "space": "func1pt8mm", "voxelset": "nsdgeneral", "split": "shared", "split_version": 1,
        "subjects": tuple(subjects), "test_stimuli": images, "test_digest": "7" * 16,
    }  # fmt: skip
    return DatasetPart(**(values | changes))


def value_of(per_image, column):
    """A metric's value with a normal interval, from `(images,)` values."""
    mean = float(np.mean(per_image))
    error = float(np.std(per_image, ddof=1) / np.sqrt(len(per_image)))
    interval = (mean - 1.96 * error, mean + 1.96 * error)
    return MetricValue(mean, len(per_image), error, interval, column.higher_is_better)


def scored(name, per_image, *, control=None, part=None, rules=None, stimuli=None, **changes):
    """A record and its samples from `{metric: (subjects, images)}`."""
    rules = rules or protocol()
    subjects, images = next(iter(per_image.values())).shape
    part = part or dataset(range(1, subjects + 1), images)
    stimuli = range(images) if stimuli is None else stimuli
    score = link(name=name, protocol=[rules.name, rules.version], extra=changes.pop("salt", 0))
    keys = [str(subject) for subject in part.subjects]
    columns = {column.name: column for column in rules.metrics}
    defaults = {
        "division": "closed",
        "division_reasons": (),
        "created": "2026-11-21T10:00:00Z",
        "finished": "2026-11-21T10:05:00Z",
        "metrics": {m: value_of(v.ravel(), columns[m]) for m, v in per_image.items()},
        "per_subject": {k: {m: value_of(v[i], columns[m]) for m, v in per_image.items()} for i, k in enumerate(keys)},
        "samples": SampleFile(subjects * images, "0" * 64),
    }
    record = Record(
        id=score.id,
        name=name,
        kind="control" if control else "system",
        control=control,
        identity=Chain(
            score,
            {key: link(images=name, subject=key) for key in keys},
            {key: link(predictions=name, subject=key) for key in keys},
            {key: (link(fit=name, subject=key),) for key in keys},
        ),
        dataset=part,
        protocol=rules,
        source_digest="0f" * 32,
        packages={"python": "3.11.2", "torch": "2.15.0"},
        hardware={"processor": "example", "cores": 2, "memory_bytes": 8 << 30, "gpus": []},
        costs=Costs(
            {},
            {"fit": 12.5, "render": 30.0},
            {"fit": 7.0, "render": 16.0},
            1 << 30,
            1 << 24,
            (ModelSize(name, "encoder", 1_234_567, 4_938_268),),
        ),
        **(defaults | changes),
    )
    return record, samples_of(record, per_image, stimuli)


def samples_of(record, per_image, stimuli):
    rows = [(subject, stimulus) for subject in record.dataset.subjects for stimulus in stimuli]
    table = {
        "subject": [subject for subject, _ in rows],
        "stimulus": [stimulus for _, stimulus in rows],
        "sample": [0] * len(rows),
        "seed": [7] * len(rows),
        "image_sha256": [hashlib.sha256(f"{record.name}{row}".encode()).hexdigest() for row in rows],
    }
    return pa.table(table | {name: values.ravel().astype(float) for name, values in per_image.items()})


def draw(quality, subjects=2, images=20, seed=0, columns=COLUMNS):
    """Per-image values around a quality in [0, 1]; the same images are hard for every system."""
    shared, own = np.random.default_rng(1), np.random.default_rng([seed, 2])
    found = {}
    for column in columns:
        noise = 0.15 * shared.standard_normal((subjects, images)) + 0.05 * own.standard_normal((subjects, images))
        level = quality if column.higher_is_better else 1 - quality
        found[column.name] = level + noise
    return found


CONTROLS = (("mean image", "mean-image", 0.25), ("shuffled", "shuffled", 0.2), ("oracle", "oracle", 0.95))


def controls(**sizes):
    rules = sizes.pop("rules", None)
    columns = rules.metrics if rules else COLUMNS
    return [
        scored(name, draw(quality, seed=90 + i, columns=columns, **sizes), control=control, rules=rules)
        for i, (name, control, quality) in enumerate(CONTROLS)
    ]
