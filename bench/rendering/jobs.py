"""Render jobs: which pictures of a folder are missing, in which batches, and on how many replicas they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from bench.core import cluster, console
from bench.core.errors import BadDataError, OptionError
from bench.core.storage import Folder
from bench.data.shards.pictures import claim, found_parts, key_table, seal
from bench.generators.choice import GeneratorChoice
from bench.rendering.client import Batch, Plan, run_plans
from bench.rendering.inputs import checked_inputs

_MAX_CPU_REPLICAS = 8


@dataclass(frozen=True)
class RenderJob:
    """Pictures to render into one folder.

    Attributes:
        generator: Name of the generator.
        options: What to set of its options.
        keys: N rows of subject, stimulus (int32), repeat, sample (int8).
        inputs: For each input `(N, *shape)`: latents as floats, pictures `(N, 3, H, W)` as uint8.
        seeds: `(N,)` int64.
        out: The folder.
        identity: Plain data that says what the pictures are; it stands in the folder and guards it.
    """

    generator: str
    options: Mapping[str, Any]
    keys: pa.Table
    inputs: Mapping[str, np.ndarray]
    seeds: np.ndarray
    out: Folder
    identity: Mapping[str, Any]


def render(
    jobs: Sequence[RenderJob],
    *,
    batch_size: int = 32,
    replicas: int | None = None,
    advance: console.Advance | None = None,
    gpus_per_replica: float = 1.0,
) -> None:
    """Render the pictures of all jobs that are not there yet.

    Serve is started once; each generator with its options is deployed once, one after the other.

    Args:
        jobs: What to render, each into a folder of its own.
        batch_size: Pictures a request; changes no picture beyond one grey level of rounding.
        replicas: Copies of the generator; None for one a GPU, or one a CPU where the cluster has no GPU.
        advance: Counts finished pictures.
        gpus_per_replica: Share of a GPU of a replica where the cluster has GPUs.

    Raises:
        UnknownNameError: If a generator, an option or an input does not exist.
        MissingWeightsError: If a generator's weights are not on this machine.
        BadDataError: If inputs, keys and seeds do not fit each other or the generator.
        OtherConfigurationError: If a folder holds pictures of another identity.
    """
    if batch_size < 1 or (replicas is not None and replicas < 1):
        raise OptionError(f"batch size and replicas must be at least 1, got {batch_size} and {replicas}")
    groups: dict[str, tuple[GeneratorChoice, list[Plan]]] = {}
    for job in jobs:
        chosen = GeneratorChoice(job.generator, job.options)
        if plan := _planned(job, chosen, batch_size, advance):
            groups.setdefault(repr(chosen.identity(render=True)), (chosen, []))[1].append(plan)
    if not groups:
        return
    cluster.connect()
    from bench.rendering.serving import deployed, running  # after connect: Ray Serve reads its settings when imported

    with running():
        for chosen, plans in groups.values():
            scale = scale_for(replicas, gpus_per_replica, sum(len(plan.batches) for plan in plans))
            with deployed(chosen, scale) as handle:
                run_plans(handle, plans, scale, batch_size, advance)


def _planned(job: RenderJob, chosen: GeneratorChoice, batch_size: int, advance: console.Advance | None) -> Plan | None:
    """Return what a job still has to render; None where all its pictures are there."""
    keys = key_table(job.keys)
    seeds = np.asarray(job.seeds)
    if seeds.shape != (keys.num_rows,) or not np.issubdtype(seeds.dtype, np.integer) or (seeds < 0).any():
        raise BadDataError(f"{job.out}: {keys.num_rows} pictures need as many seeds, integers from 0")
    inputs = checked_inputs(job.inputs, keys.num_rows, chosen.kind.inputs, f"generator {job.generator!r}")
    chosen.identity(render=True)  # weights that are missing are found here, not in a replica
    done = claim(job.out, job.identity)
    found = {} if done else found_parts(job.out, keys, seeds)
    there = keys.num_rows if done else sum(entry.rows for entry in found.values())
    if advance and there:
        advance(there, "already there")
    if done:
        return None
    missing = np.ones(keys.num_rows, bool)
    for first, entry in found.items():
        missing[first : first + entry.rows] = False
    plan = Plan(job.out, job.identity, keys, inputs, seeds, tuple(found.values()), _batches(missing, batch_size))
    if not plan.batches:
        seal(job.out, job.identity, plan.found, {"rendered": 0})
        return None
    return plan


def _batches(missing: np.ndarray, batch_size: int) -> tuple[Batch, ...]:
    """Cut the runs of missing rows into batches."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8)))
    return tuple(
        Batch(first, min(first + batch_size, int(stop)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
        for first in range(int(start), int(stop), batch_size)
    )


def scale_for(replicas: int | None, gpus_per_replica: float, batches: int) -> Any:  # noqa: ANN401 - imported late
    """Return how a generator is deployed on this cluster: on its GPUs, or on its CPUs where it has none."""
    from bench.rendering.serving import Scale

    gpus, cpus = cluster.gpus(), max(1, int(ray.cluster_resources().get("CPU", 1)))
    if gpus:
        count = replicas or max(1, math.floor(gpus / gpus_per_replica))
        return Scale(min(count, batches), 1, gpus_per_replica)
    count = min(replicas or min(cpus, _MAX_CPU_REPLICAS), batches)
    return Scale(count, max(1, min(cpus // count, cluster.largest_node_cpus())))
