"""Predictions -> images: generators render latents through Ray Serve.

A request is one whole render batch with a seed for each picture. Every finished batch is written at once, so that a
rerun renders only what is missing; `images.json` is written last and means that all pictures are there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from bench.core import cluster, console
from bench.core.errors import OptionError
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.fitting.predictions import read_predictions
from bench.generators.choice import GeneratorChoice, settings_from
from bench.rendering.jobs import RenderJob, render, scale_for


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
    feeds = console.pairs(arguments.inputs, "--inputs", "INPUT=HEAD")
    job = _job(Folder.at(arguments.predictions), chosen, feeds, arguments.seed, Folder.at(arguments.out))
    with console.progress("render", job.keys.num_rows) as advance:
        render([job], batch_size=arguments.batch_size, replicas=arguments.replicas, advance=advance)
    console.console().print(f"images  {job.out}", markup=False, soft_wrap=True)
    return 0


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

    scale = scale_for(replicas, 1.0, replicas or 1)
    with running(port), deployed(chosen, scale, batch_size):
        console.console().print(f"POST .npz with inputs and seed to http://127.0.0.1:{port}/", markup=False)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
