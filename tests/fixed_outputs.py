"""What every versioned thing gives on fixed input: encoders, generators, post steps, the split, protocols.

Inputs are formulas, not draws of the simulator, so that only the thing itself can change its output.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import small_checkpoints
import torch
from fake_subjects import linear_subject

from bench.core import registry
from bench.data.splits import Split
from bench.generators.base import Stimuli
from bench.generators.choice import GeneratorChoice
from bench.recipes import post_steps
from encoders.base import Head, Runtime, assemble
from eval.protocols.base import find
from eval.suite import score

SMALLER = {"epochs": 3, "batch_size": 48, "dropout": 0.1}
HEADS = [Head("z", (2, 3)), Head("c", (4,))]
PROTOCOLS = ("scenes-1",)
"""Protocols whose networks ship with the package; the others need weights that no test downloads."""


@dataclass(frozen=True)
class Output:
    """A thing's version and what it gave, with the difference that machines may make.

    Attributes:
        version: The thing's own.
        values: A few hundred numbers.
        tolerance: Largest difference between machines.
    """

    version: int
    values: np.ndarray
    tolerance: float


def outputs() -> Iterator[tuple[str, Output]]:
    """Yield the name and output of everything that carries a version."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in sorted(registry.found("encoder")):
            yield f"encoder {name}", encoder_output(name)
        for name in sorted(registry.found("generator")):
            yield from generator_outputs(name)
        for name in sorted(post_steps.STEPS):
            yield f"post {name}", post_output(name)
        for name in PROTOCOLS:
            yield f"protocol {name}", protocol_output(name)
        yield "split shared-test", split_output()
    finally:
        torch.set_num_threads(before)


def small(options: type) -> object:
    """An encoder's default options with what takes long made small."""
    chosen = {}
    for field in dataclasses.fields(options):
        if field.name in SMALLER:
            chosen[field.name] = SMALLER[field.name]
        if field.name == "hidden":
            chosen[field.name] = (32, 32) if isinstance(field.default, tuple) else 32
    return options(**chosen)


def encoder_output(name: str) -> Output:
    """Predictions of ten trials after a fit on two small subjects."""
    kind = registry.load("encoder", name)
    counts = {"train": 120, "validation": 30}
    data = {s: linear_subject(s, HEADS, voxels, counts, noise=0.5, seed=3) for s, voxels in ((1, 20), (2, 27))}
    encoder = kind(small(kind.Options))
    encoder.fit(data, HEADS, Runtime(seed=5))
    voxels = data[2].roles["validation"].voxels[:10]
    heads = assemble(encoder.predict(voxels, 2, 0), HEADS, 10)
    return Output(kind.version, torch.cat([heads[h.name].flatten(1) for h in HEADS], dim=1).numpy(), 0.02)


def pictures(count: int, size: int) -> torch.Tensor:
    """`(count, 3, size, size)` uint8: coloured waves over gradients, none like another."""
    y, x = np.mgrid[0:size, 0:size] / size
    made = []
    for number in range(count):
        waves = [
            0.5 + 0.3 * np.sin(2 * np.pi * ((1 + number % 3) * x + (c + number / 4) * y)) + 0.2 * (x - y) * (c - 1)
            for c in range(3)
        ]
        made.append(np.stack(waves))
    return torch.from_numpy((255 * np.clip(np.stack(made), 0, 1)).round().astype(np.uint8))


def pooled(images: torch.Tensor, size: int = 8) -> np.ndarray:
    """Pictures as `(N, 3, size, size)` means of squares of pixels."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), size).numpy()


def generator_outputs(name: str) -> Iterator[tuple[str, Output]]:
    """Targets of two pictures, and the pictures rendered from those that are the truth of an input.

    Generators whose weights do not ship run on their small checkpoints.
    """
    kind = registry.load("generator", name)
    with tempfile.TemporaryDirectory() as folder:
        generator = GeneratorChoice(name, small_checkpoints.settings(name, Path(folder))).load(torch.device("cpu"))
    stimuli = Stimuli(pictures(2, 64), [["a wave"], ["another wave"]], ["wave", "wave"])
    targets = generator.encode(stimuli, list(kind.targets), [0, 1])
    for target, values in targets.items():
        step = max(1, values[0].numel() // 256)
        yield f"generator {name} target {target}", Output(kind.version, values.flatten(1)[:, ::step].numpy(), 0.02)
    inputs = {key: targets[kind.inputs[key].oracle] for key in small_checkpoints.oracle_inputs(name)}
    if inputs:
        images = generator.render(inputs, [11, 12])
        yield f"generator {name} pictures", Output(kind.version, pooled(images), 2.0)


def post_output(name: str) -> Output:
    """A step over fixed predictions."""
    rng = np.random.RandomState(0)
    predictions, train = (rng.standard_normal(shape).astype(np.float32) * 3 + 1 for shape in ((12, 5), (40, 5)))
    step = post_steps.step(name)
    return Output(step.version, step.apply(predictions, train), 1e-4)


def protocol_output(name: str) -> Output:
    """Every metric of a protocol over eight pictures and blends of them with others."""
    truth = pictures(8, 64)
    blended = (0.5 * truth.float() + 0.5 * truth.roll(3, 0).float()).round().to(torch.uint8)
    scores = score(blended, truth, name)
    values = [np.nan if metric.value is None else metric.value for metric in scores.metrics]
    return Output(find(name).version, np.array(values), 1e-3)


def split_output() -> Output:
    """Roles of a thousand stimuli."""
    stimuli = np.arange(1000)
    return Output(Split().version, Split().roles(stimuli, stimuli % 7 == 0), 0.0)
