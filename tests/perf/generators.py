"""Images a second of each generator of published size with random weights, against the bare diffusers loop.

python tests/perf/generators.py [--only stable-diffusion ip-adapter] [--batch 8] [--rounds 3]

On a GPU: full size, half precision, published settings. On a CPU: the tests' small checkpoints and their few steps,
which says what our code costs around the networks, not how fast a published model is. Both sides use the same networks,
inputs and seeds and take turns; the best round of each counts. vdvae and versatile-diffusion have no loop beside them:
the first is not in diffusers, the second is measured by its tests against a pipeline that diffusers has deprecated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import small_checkpoints.stable_diffusion  # noqa: E402 - the path is set above

from bench.core import registry  # noqa: E402
from bench.generators._diffusion.sampler import scheduler  # noqa: E402
from bench.generators.choice import GeneratorChoice  # noqa: E402

Inputs = Mapping[str, torch.Tensor]
Loop = Callable[[Inputs, list[int]], torch.Tensor]
INPUTS = {"stable-diffusion": ("z512", "text")}
"""Inputs where not all that have an oracle go together: a latent of the loop's own size, so that both do the same."""


def loop(kind: Any, generator: Any, conditions: Callable[[Inputs, int], dict[str, Any]]) -> Loop:
    """Return what draws pictures with a pipeline of diffusers over a generator's own networks and settings.

    Args:
        kind: The pipeline's class.
        generator: The generator.
        conditions: Gives the pipeline's arguments for inputs and a number of pictures.
    """
    chosen = generator.options
    steps = scheduler(chosen.sampler, generator.networks.noise)
    pipeline = small_checkpoints.stable_diffusion.pipeline(kind, generator.networks, scheduler=steps)

    def call(inputs: Inputs, seeds: list[int]) -> torch.Tensor:
        return pipeline(
            **conditions(inputs, len(seeds)),
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images

    return call


def stable_diffusion_loop(generator: Any) -> Loop:
    """img2img from latents with text states, as diffusers does it."""
    from diffusers import StableDiffusionImg2ImgPipeline

    dtype, device = generator.networks.unet.dtype, generator.device

    def conditions(inputs: Inputs, count: int) -> dict[str, Any]:
        return {
            "prompt_embeds": inputs["text"].to(device, dtype),
            "negative_prompt_embeds": generator.null.expand(count, -1, -1).to(dtype),
            "image": inputs["z512"].to(device, dtype),
            "strength": generator.options.strength,
        }

    return loop(StableDiffusionImg2ImgPipeline, generator, conditions)


def ip_adapter_loop(generator: Any) -> Loop:
    """Text-to-image with given image tokens, as diffusers does it."""
    from diffusers import StableDiffusionPipeline

    dtype, device = generator.networks.unet.dtype, generator.device

    def conditions(inputs: Inputs, count: int) -> dict[str, Any]:
        null = generator.null["tokens"].expand(count, -1, -1, -1)
        return {
            "prompt_embeds": generator.prompt.expand(count, -1, -1).to(dtype),
            "negative_prompt_embeds": generator.null["text"].expand(count, -1, -1).to(dtype),
            "ip_adapter_image_embeds": [torch.cat([null, inputs["tokens"][:, None].to(device)]).to(dtype)],
        }

    return loop(StableDiffusionPipeline, generator, conditions)


LOOPS = {"stable-diffusion": stable_diffusion_loop, "ip-adapter": ip_adapter_loop}


def rate(call: Callable[[], Any], pictures: int, device: torch.device) -> float:
    """Return pictures a second of one call."""
    started = time.monotonic()
    with torch.no_grad():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return pictures / (time.monotonic() - started)


def measure(name: str, settings: dict[str, Any], device: torch.device, batch: int, rounds: int) -> str:
    """Return a line of the table: our rate, the loop's, and their ratio."""
    generator = GeneratorChoice(name, settings).load(device)
    draws = torch.Generator().manual_seed(0)
    chosen = INPUTS.get(name) or [key for key, spec in generator.inputs.items() if spec.kind == "latent"]
    inputs = {key: torch.randn((batch, *generator.inputs[key].shape), generator=draws) for key in chosen}
    if any(spec.kind == "picture" and spec.required for spec in generator.inputs.values()):
        shapes = {key: spec.shape for key, spec in generator.inputs.items() if spec.kind == "picture"}
        inputs |= {k: torch.randint(0, 256, (batch, *s), generator=draws, dtype=torch.uint8) for k, s in shapes.items()}
    seeds = list(range(batch))
    sides = {"ours": lambda: generator.render(inputs, seeds)}
    if name in LOOPS:
        bare = LOOPS[name](generator)
        sides["loop"] = lambda: bare(inputs, seeds)
    best = dict.fromkeys(sides, 0.0)
    for turn in range(rounds + 1):
        for side, call in sides.items():
            found = rate(call, batch, device)
            best[side] = max(best[side], found) if turn else 0.0  # the first round warms up
    ratio = f"{best['ours'] / best['loop']:.2f}" if "loop" in best else "-"
    return f"{name:<22} {best['ours']:>9.3f} {best.get('loop', float('nan')):>9.3f} {ratio:>6}"


def main() -> None:
    """Print images a second of each generator."""
    names = [name for name in sorted(registry.found("generator")) if small_checkpoints.needed(name)]
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--only", nargs="+", choices=names, default=names)
    cli.add_argument("--batch", type=int, help="pictures a call (8 on a GPU, 2 on a CPU)")
    cli.add_argument("--rounds", type=int, default=3)
    given = cli.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = given.batch or (8 if device.type == "cuda" else 2)
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads, small"
    print(f"{what}, batches of {batch}, best of {given.rounds} rounds")
    print(f"{'images/s':<22} {'ours':>9} {'loop':>9} {'ratio':>6}")
    with tempfile.TemporaryDirectory(prefix="reconbench-perf-") as folder:
        for name in given.only:
            small = device.type == "cpu"
            settings = small_checkpoints.settings(name, Path(folder)) if small else {"untrained": True}
            print(measure(name, settings, device, batch, given.rounds), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
