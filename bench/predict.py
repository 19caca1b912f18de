"""Stage `predict`: a fit gives the latents of the test set.

    <runs>/predictions/<id>/head=<name>.parquet     subject, stimulus, repeat, sample, value (fixed-size binary)
    <runs>/predictions/<id>/identity.json           written last: what was predicted from what, and the heads' shapes

Only this stage and those after it open the test split.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
import numpy as np
import ray
import torch

from bench.core import cluster
from bench.core.console import Advance, console, guard, parser, progress
from bench.core.errors import BadDataError, OtherConfigurationError
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shards.columns import to_column
from bench.data.shards.pictures import keys_of
from bench.data.shards.targets import TargetTable
from bench.data.stream.load import FIT, TEST
from bench.data.stream.trials import SubjectTrials
from bench.fitting.inputs import FitInputs, make_heads
from bench.fitting.predictions import IDENTITY, Prediction, Repeats, planned
from bench.fitting.trial import loaded_encoder
from bench.recipes import post_steps
from encoders.base import assemble


@dataclass(frozen=True)
class Rows:
    """What each row of a prediction is: `(N,)` stimulus, repeat (-1 for a mean) and sample."""

    stimulus: np.ndarray
    repeat: np.ndarray
    sample: np.ndarray


def predict(
    predictions: Sequence[Prediction],
    test: Mapping[int, Any],
    train: Mapping[int, Any],
    targets: Mapping[str, Any],
    label_names: Mapping[str, Mapping[str, int]],
    runs: Folder,
    advance: Advance,
) -> list[Folder]:
    """Predict in Ray tasks, skipping what is done; return the predictions' folders.

    Args:
        predictions: What to predict.
        test: References to each subject's test trials.
        train: References to each subject's training trials, for post steps.
        targets: References to target tables by `<generator>.<target>`.
        label_names: Label numbers by atlas and name.
        runs: The runs folder.
        advance: Called with a count and a note.
    """
    pending = {}
    for job in predictions:
        if (runs / "predictions" / job.id).exists(IDENTITY):
            advance(1, "already predicted")
            continue
        tables = {spec.target: targets[spec.target] for spec in job.plan.heads.values()}
        given = (job, test[job.subject], train[job.subject], label_names, runs)
        pending[_predict.remote(*given, list(tables), *tables.values())] = job
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        ray.get(done)
        job = pending.pop(done)
        advance(1, f"subject {job.subject}")
    return [runs / "predictions" / job.id for job in predictions]


@ray.remote(num_cpus=1)
def _predict(
    job: Prediction,
    test: SubjectTrials,
    train: SubjectTrials,
    label_names: Mapping[str, Mapping[str, int]],
    runs: Folder,
    names: Sequence[str],
    *tables: TargetTable,
) -> None:
    """Predict one subject's test rows and write them; the identity is written last."""
    started = time.monotonic()
    inputs = FitInputs({job.subject: test}, dict(zip(names, tables, strict=True)), label_names)
    heads = make_heads(job.plan, inputs)
    voxels, stimulus, repeat = _test_rows(test, job)
    parts = []
    with loaded_encoder(job.plan, runs) as encoder:
        for sample in range(job.samples):
            blocks = encoder.predict(torch.from_numpy(voxels), job.subject, job.plan.seed + sample)
            parts.append(assemble(blocks, heads, len(voxels)))
    folder, shapes = runs / "predictions" / job.id, {}
    for head in heads:
        values = np.stack([part[head.name].numpy() for part in parts], axis=1)  # (rows, samples, *shape)
        values, rows = _averaged(values, stimulus, repeat, job.repeats)
        spec = job.plan.heads[head.name]
        truth = inputs.targets[spec.target].sliced(spec.take)
        values = _posted(values, truth, train, job.post)
        keys = keys_of(job.subject, rows.stimulus, rows.repeat, rows.sample)
        table = keys.append_column("value", to_column(values.reshape(len(values), -1)))
        folder.write_table(f"head={head.name}.parquet", table)
        shapes[head.name] = {"shape": list(head.shape), "dtype": "float32"}
    described = {"id": job.id, "description": job.description(), "heads": shapes, "plan": asdict(job.plan)}
    folder.write_json(IDENTITY, {**described, "rows": len(rows.stimulus), "seconds": time.monotonic() - started})


def _test_rows(trials: SubjectTrials, job: Prediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return normalised betas, stimulus and repeat of the rows to predict, ordered by stimulus, then repeat.

    Raises:
        BadDataError: If a test stimulus was not shown to the subject in these sessions.
    """
    rows = trials.rows("test")
    rows = rows[np.isin(trials.stimulus[rows], job.test)]
    rows = rows[np.lexsort((trials.repeat[rows], trials.stimulus[rows]))]
    missing = sorted(set(job.test) - set(trials.stimulus[rows].tolist()))
    if missing:
        raise BadDataError(f"subject {job.subject} was not shown test stimuli {missing[:5]} ({len(missing)} in all)")
    voxels, stimulus, repeat = trials.z(rows), trials.stimulus[rows], trials.repeat[rows]
    if job.repeats == "mean-before":
        distinct, inverse = np.unique(stimulus, return_inverse=True)
        return _mean(voxels, inverse, len(distinct)), distinct, np.full(len(distinct), -1)
    return voxels, stimulus, repeat


def _mean(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Return `(groups, ...)` means of rows by group, as float32."""
    total = np.zeros((groups, *values.shape[1:]), np.float64)
    np.add.at(total, group, values)
    count = np.bincount(group, minlength=groups).reshape(-1, *[1] * (values.ndim - 1))
    return (total / count).astype(np.float32)


def _averaged(
    values: np.ndarray, stimulus: np.ndarray, repeat: np.ndarray, repeats: Repeats
) -> tuple[np.ndarray, Rows]:
    """Return `(N, *shape)` predictions and their rows from `(rows, samples, *shape)`."""
    if repeats == "mean-after":
        stimulus, inverse = np.unique(stimulus, return_inverse=True)
        values, repeat = _mean(values, inverse, len(stimulus)), np.full(len(stimulus), -1)
    n, samples = values.shape[:2]
    rows = Rows(np.repeat(stimulus, samples), np.repeat(repeat, samples), np.tile(np.arange(samples), n))
    return values.reshape(n * samples, *values.shape[2:]), rows


def _posted(values: np.ndarray, truth: TargetTable, train: SubjectTrials, steps: Sequence[str]) -> np.ndarray:
    """Return the predictions after the recipe's post steps."""
    if not steps:
        return values
    flat = values.reshape(len(values), -1)
    known = truth.of(np.unique(train.stimulus[train.rows("train")])).reshape(-1, flat.shape[1])
    for name in steps:
        flat = post_steps.step(name).apply(flat, known)
    return flat.reshape(values.shape).astype(np.float32)


def run(argv: Sequence[str]) -> int:
    """Parse, predict one fit's subjects, print the folders."""
    cli = parser(
        "predict",
        "Predict the test set's latents from a fit; what is already predicted is kept.",
        "reconbench predict --runs .reconbench/runs/demo --fit 0123456789abcdef \\\n"
        "      --shards .reconbench/data/nsd-sim/...@0123456789abcdef",
    )
    cli.add_argument("--runs", required=True, help="runs folder that holds the fit")
    cli.add_argument("--fit", required=True, help="address of the fit: the name of its folder in fits/")
    cli.add_argument("--shards", required=True, help="trial shards of the fit")
    cli.add_argument("--repeats", choices=("mean-before", "mean-after", "each"), default="mean-before")
    cli.add_argument("--samples", type=int, default=1, help="predictions a row, each with its own seed")
    cli.add_argument("--post", nargs="*", default=[], help=f"named steps that follow: {', '.join(post_steps.STEPS)}")
    cli.add_argument("--test-images", type=int, help="test pictures a subject (all shared ones that were shown)")
    given = cli.parse_args(argv)
    runs = Folder.at(given.runs)
    plan = planned(runs, given.fit)
    cluster.connect()
    data = shard_set.open_data(Folder.at(given.shards))
    if data.manifest.content_digest != plan.shards:
        raise OtherConfigurationError(
            f"fit {plan.id} read shards {plan.shards}, these are {data.manifest.content_digest}"
        )
    digests = {spec.target: spec.digest for spec in plan.heads.values()}
    targets, _ = shard_set.target_refs(shard_set.find_targets(data, digests))
    train, test = data.load(plan.subjects, (FIT, TEST), plan.sessions, plan.normalise)
    tested = shard_set.tested_stimuli(test, given.test_images)
    chosen = given.repeats, given.samples, tuple(given.post)
    jobs = [Prediction(plan, subject, tested[subject], *chosen) for subject in plan.subjects]
    with progress("predict", len(jobs)) as advance:
        folders = predict(jobs, test, train, targets, data.label_names, runs, advance)
    for folder in folders:
        console().print(f"predictions  {folder}", markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; return its exit status."""
    return guard(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
