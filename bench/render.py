"""Predictions -> images: generators render latents through Ray Serve.

A request is one whole render batch with a seed for each picture. Every finished batch is written at once, so that a
rerun renders only what is missing; `images.json` is written last and means that all pictures are there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from bench.core import cluster, console
from bench.core.errors import BadDataError, OptionError
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.data.shards.pictures import claim, found_parts, key_table, read_images, seal, write_images
from bench.generators.choice import GeneratorChoice, settings_from
from bench.predict import read_predictions
from bench.rendering.client import Batch, Plan, run_plans
from bench.rendering.inputs import checked_inputs

__all__ = ["RenderJob", "main", "read_images", "render", "write_images"]

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
            scale = _scale(replicas, gpus_per_replica, sum(len(plan.batches) for plan in plans))
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


def _scale(replicas: int | None, gpus_per_replica: float, batches: int) -> Any:  # noqa: ANN401 - imported late
    """Return how a generator is deployed on this cluster: on its GPUs, or on its CPUs where it has none."""
    from bench.rendering.serving import Scale

    gpus, cpus = cluster.gpus(), max(1, int(ray.cluster_resources().get("CPU", 1)))
    if gpus:
        count = replicas or max(1, math.floor(gpus / gpus_per_replica))
        return Scale(min(count, batches), 1, gpus_per_replica)
    count = min(replicas or min(cpus, _MAX_CPU_REPLICAS), batches)
    return Scale(count, max(1, min(cpus // count, cluster.largest_node_cpus())))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage from the command line; returns the exit status."""
    return console.guard(_run, argv)


def _run(argv: Sequence[str]) -> int:
    """Parse arguments; render a predictions folder, or serve single pictures until interrupted."""
    parser = console.parser(
        "render",
        "Render predicted latents into images through Ray Serve; a rerun renders only what is missing.",
        "reconbench render --predictions .reconbench/runs/predictions/0123456789abcdef --generator tiny-diffusion \\\n"
        "      --inputs latent=latent --set strength=0.5 --out .reconbench/runs/images/mine",
    )
    parser.add_argument("--predictions", help="predictions folder, a path or s3://")
    parser.add_argument("--generator", default="tiny-diffusion", help="its name in recipes")
    parser.add_argument("--inputs", nargs="+", metavar="INPUT=HEAD", help="head that feeds each input")
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help="option of the generator")
    parser.add_argument("--out", help="folder for the images, a path or s3://")
    parser.add_argument("--seed", type=int, default=0, help="base seed of all pictures")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a request")
    parser.add_argument(
        "--replicas", type=int, default=None, help="copies of the generator; by default one a GPU, or one a CPU"
    )
    parser.add_argument(
        "--listen", type=int, default=None, metavar="PORT", help="serve single pictures over HTTP instead"
    )
    arguments = parser.parse_args(argv)
    chosen = GeneratorChoice(arguments.generator, settings_from(arguments.set or []))
    if arguments.listen is not None:
        return _listen(chosen, arguments.listen, arguments.batch_size, arguments.replicas)
    if not (arguments.predictions and arguments.inputs and arguments.out):
        raise OptionError("render needs --predictions, --inputs and --out, or --listen")
    feeds = dict(_feed(text) for text in arguments.inputs)
    job = _job(Folder.at(arguments.predictions), chosen, feeds, arguments.seed, Folder.at(arguments.out))
    with console.progress("render", job.keys.num_rows) as advance:
        render([job], batch_size=arguments.batch_size, replicas=arguments.replicas, advance=advance)
    console.console().print(f"images  {job.out}", markup=False, soft_wrap=True)
    return 0


def _feed(text: str) -> tuple[str, str]:
    """Return input and head of `INPUT=HEAD`."""
    name, equals, head = text.partition("=")
    if not (name and equals and head):
        raise OptionError(f"--inputs takes INPUT=HEAD, got {text!r}")
    return name, head


def _job(predictions: Folder, chosen: GeneratorChoice, feeds: Mapping[str, str], seed: int, out: Folder) -> RenderJob:
    """Return the job that renders a predictions folder."""
    read = {name: read_predictions(predictions, head) for name, head in feeds.items()}
    keys = next(iter(read.values()))[0]
    named = zip(*(keys[column].to_pylist() for column in ("stimulus", "repeat", "sample")), strict=True)
    seeds = [picture_seed(stimulus, repeat, sample, seed) for stimulus, repeat, sample in named]
    identity = {"images": 1, "predictions": predictions.read_json("identity.json"), "inputs": feeds, "seed": seed}
    identity |= {"render": chosen.identity(render=True)}
    inputs = {name: values for name, (_, values) in read.items()}
    return RenderJob(chosen.name, chosen.settings, keys, inputs, np.array(seeds, np.int64), out, identity)


def _listen(chosen: GeneratorChoice, port: int, batch_size: int, replicas: int | None) -> int:
    """Serve single pictures over HTTP on 127.0.0.1 until interrupted."""
    chosen.identity(render=True)
    cluster.connect()
    from bench.rendering.serving import deployed, running

    scale = _scale(replicas, 1.0, replicas or 1)
    with running(port), deployed(chosen, scale, batch_size):
        console.console().print(f"POST .npz with inputs and seed to http://127.0.0.1:{port}/", markup=False)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
