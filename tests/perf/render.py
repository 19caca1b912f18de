"""Render through Ray Serve against the bare generator loop, same batch size and threads, rounds interleaved.

python tests/perf/render.py [--pictures 640] [--rounds 4]
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch

from bench.core import cluster
from bench.core.storage import Folder
from bench.generators.choice import GeneratorChoice
from bench.rendering import jobs

BATCH = 32


def job_of(pictures: int) -> jobs.RenderJob:
    """Return a job of random latents into a new folder."""
    rng = np.random.default_rng(0)
    keys = pa.table(
        {
            "subject": pa.array(np.ones(pictures), pa.int32()),
            "stimulus": pa.array(np.arange(pictures), pa.int32()),
            "repeat": pa.array(np.zeros(pictures), pa.int8()),
            "sample": pa.array(np.zeros(pictures), pa.int8()),
        }
    )
    latents = rng.standard_normal((pictures, 4, 16, 16)).astype(np.float32)
    out = Folder.at(tempfile.mkdtemp(prefix="reconbench-perf-"))
    return jobs.RenderJob("tiny-diffusion", {}, keys, {"latent": latents}, np.arange(pictures), out, {"perf": 1})


def bare(generator: object, job: jobs.RenderJob) -> float:
    """Return pictures a second of the generator called in a loop."""
    latents, started = torch.from_numpy(job.inputs["latent"]), time.monotonic()
    for first in range(0, len(latents), BATCH):
        seeds = [int(seed) for seed in job.seeds[first : first + BATCH]]
        generator.render({"latent": latents[first : first + BATCH]}, seeds)
    return len(latents) / (time.monotonic() - started)


def main() -> None:
    """Print both rates and their ratio, each round."""
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--pictures", type=int, default=640)
    cli.add_argument("--rounds", type=int, default=4)
    given = cli.parse_args()
    torch.set_num_threads(1)
    chosen = GeneratorChoice("tiny-diffusion", {})
    generator = chosen.load(torch.device("cpu"))
    cluster.connect(cpus=2)
    from bench.rendering.client import run_plans
    from bench.rendering.serving import Scale, deployed, running

    scale = Scale(1, 1)
    ratios = []
    with running(), deployed(chosen, scale) as handle:
        for number in range(given.rounds + 1):
            job = job_of(given.pictures)
            plan = jobs._planned(job, chosen, BATCH, None)
            run_plans(handle, [plan], scale, BATCH, None)
            served, alone = job.out.read_json("images.json")["images_per_s"], bare(generator, job)
            job.out.delete()
            if number:  # the first round warms both up
                ratios.append(served / alone)
                print(f"serve {served:6.1f} images/s   bare {alone:6.1f} images/s   ratio {ratios[-1]:.2f}")
    print(f"median ratio {np.median(ratios):.2f} (PNG encoding and writing included on Serve's side)")


if __name__ == "__main__":
    main()
