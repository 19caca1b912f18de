"""What every versioned thing gives on fixed input: dataset readers, encoders, generators, post steps, split, protocols.

Inputs are formulas and seeded numbers, not draws of the simulator, so that only the thing itself can change its output.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layouts
import nsd_copy
import numpy as np
import small_checkpoints
import torch
from eval_fakes import with_fakes
from fake_subjects import linear_subject
from torchvision.models import VisionTransformer

from bench.core import registry
from bench.core.identity import canonical_json
from bench.core.options import build
from bench.data.datasets.base import Dataset
from bench.data.splits import Split
from bench.generators.base import InputSpec, Stimuli
from bench.generators.choice import GeneratorChoice
from bench.recipes import post_steps
from encoders.base import Head, Runtime, assemble
from eval.networks import _weights as weights
from eval.networks._features import Extractor
from eval.networks.base import Network
from eval.protocols import base as protocols
from eval.suite import score

SMALLER = {"epochs": 3, "batch_size": 48, "dropout": 0.1}
HEADS = [Head("z", (2, 3)), Head("c", (4,))]
DATASETS: Mapping[str, Mapping[str, Any]] = {
    "nsd": {"hdf5": {"files": "hdf5"}, "nifti": {"files": "nifti", "voxelset": "streams:early | streams:ventral"}},
    **{name: layouts.variants(name) for name in layouts.names()},
}
"""Options beside the root under which a dataset's small copy is read, each by a name."""


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
        for name in sorted(registry.found("dataset")):
            yield from dataset_outputs(name)
        for name in sorted(registry.found("encoder")):
            yield f"encoder {name}", encoder_output(name)
        for name in sorted(registry.found("generator")):
            yield from generator_outputs(name)
        for name in sorted(post_steps.STEPS):
            yield f"post {name}", post_output(name)
        for name in protocols.names():
            yield from protocol_outputs(protocols.find(name))
        yield "split shared-test", split_output()
    finally:
        torch.set_num_threads(before)


def dataset_outputs(name: str) -> Iterator[tuple[str, Output]]:
    """What a reader gives of a small copy: voxels and trials exactly, pictures up to a decoder's rounding."""
    kind = registry.load("dataset", name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        if name == "nsd":
            copy = nsd_copy.write_copy(root, {1: (1, 2), 2: (1,)}, design=nsd_copy.formula_design())
            nsd_copy.write_pictures(copy, np.unique(copy.design.stimuli_of(1, 1)), size=8)
        else:
            layouts.load(name).write(root)
        for variant, chosen in DATASETS[name].items():
            dataset = kind(build(kind.Options, {"root": str(root), **chosen}, name))
            yield f"dataset {name} {variant}", Output(kind.version, read_trials(dataset), 1e-3)
            yield f"dataset {name} {variant} stimuli", Output(kind.version, read_stimuli(dataset), 2.0)


def read_trials(dataset: Dataset) -> np.ndarray:
    """Names, sessions, each subject's voxels, and trials and betas of its first and its last session."""
    sessions = np.array(dataset.sessions())
    named = [dataset.name, dataset.label, dataset.unit.name, canonical_json(dataset.source()["label_names"])]
    parts = [[_word(text) for text in named], [dataset.scale], _sample(sessions, 40), [len(sessions)]]
    for subject in np.unique(sessions[:, 0]).tolist():
        table = dataset.voxels(subject)
        labels = np.stack([table.labels[atlas] for atlas in sorted(table.labels)])
        parts += [[len(table.ncsnr), table.left_out], _sample(table.coordinates, 24), _sample(table.ncsnr, 16)]
        parts += [_sample(labels, 40), _sample(labels.sum(axis=1), 16)]
        own = sessions[sessions[:, 0] == subject, 1]
        for session in sorted({int(own[0]), int(own[-1])}):
            read = dataset.read_session(subject, session, table)
            parts += [_sample(values, 8) for values in (read.trial, read.stimulus, read.repeat)]
            parts += [list(read.betas.shape), _sample(read.betas * dataset.scale, 40)]
    return np.concatenate([np.asarray(part, dtype=float) for part in parts])


def read_stimuli(dataset: Dataset) -> np.ndarray:
    """The first stimuli of the first session: pictures, words, and whether they are shared."""
    shown = dataset.trials(*dataset.sessions()[0]).stimulus
    numbers = np.unique(shown[shown >= 0])[:6].tolist()
    parts: list[Any] = [[len(numbers)]]
    for stimulus, origin in zip(dataset.stimuli(numbers), dataset.origins(numbers), strict=True):
        words = [canonical_json(list(stimulus.captions)), str(stimulus.label), str(origin)]
        parts.append([stimulus.number, stimulus.shared, *map(_word, words)])
        if stimulus.image is not None:
            parts += [stimulus.image.shape, _sample(stimulus.image, 24)]
    return np.concatenate([np.asarray(part, dtype=float) for part in parts])


def _sample(values: np.ndarray, count: int) -> np.ndarray:
    """Some numbers of an array, evenly spaced and not all in one of its columns."""
    flat = np.asarray(values, dtype=float).ravel()
    return flat[np.linspace(0, flat.size - 1, min(count, flat.size)).astype(int)]


def _word(text: str) -> int:
    """A number for a text: what differs in a letter differs by thousands."""
    return zlib.crc32(text.encode()) & 0xFFFFFF


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
    required = {key: targets[spec.oracle] for key, spec in kind.inputs.items() if spec.required and spec.oracle}
    for key in kind.inputs.keys() - inputs.keys():
        images = generator.render(required | {key: input_of(kind.inputs[key], targets)}, [11, 12])
        yield f"generator {name} pictures from {key}", Output(kind.version, pooled(images), 2.0)


def input_of(spec: InputSpec, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """An input's truth where there is one; else pictures of its size, or waves as a latent."""
    if spec.oracle:
        return targets[spec.oracle].float()
    if spec.kind == "picture":
        return pictures(2, spec.shape[-1])
    rows = torch.arange(1, 3)[:, None] * torch.arange(np.prod(spec.shape))
    return torch.sin(rows / 7).reshape(2, *spec.shape)


def post_output(name: str) -> Output:
    """A step over fixed predictions."""
    rng = np.random.RandomState(0)
    predictions, train = (rng.standard_normal(shape).astype(np.float32) * 3 + 1 for shape in ((12, 5), (40, 5)))
    step = post_steps.step(name)
    return Output(step.version, step.apply(predictions, train), 1e-4)


def protocol_outputs(protocol: protocols.Protocol) -> Iterator[tuple[str, Output]]:
    """Every metric of a protocol, and the features of its networks: both are what its version stands for.

    Metrics over eight pictures are computed on the networks where these ship, else on stand-ins of a few hundred
    numbers; metrics of latents over as many rows as a pool of theirs asks for.
    """
    name, version = f"protocol {protocol.name}", protocol.version
    shipped = all(network.shipped for network in protocol.networks)
    chosen, given = (protocol, None) if shipped else (with_fakes(protocol), weights.UNTRAINED)
    truth = pictures(8, 64)
    blended = (0.5 * truth.float() + 0.5 * truth.roll(3, 0).float()).round().to(torch.uint8)
    measured = torch.from_numpy(pooled(truth, 4)).flatten(1)
    scores = score(blended, truth, chosen, given, betas=(measured, _encoding_model))
    values = [np.nan if metric.value is None else metric.value for metric in scores.metrics]
    yield name, Output(version, np.array(values), 1e-3)
    if rows := [metric for metric in protocol.metrics if "images" not in metric.needs]:
        yield (
            f"{name} latents",
            Output(version, latent_scores(dataclasses.replace(protocol, metrics=tuple(rows))), 1e-3),
        )
    for network in protocol.networks:
        yield f"{name} network {network.name}", Output(version, network_features(network), 0.01)


def _encoding_model(images: torch.Tensor) -> torch.Tensor:
    """Betas of 48 voxels: mean colours of 4 x 4 places, some of them by the square."""
    colours = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
    return torch.where(torch.arange(colours.shape[1]) % 3 == 0, colours.square(), colours)


def latent_scores(protocol: protocols.Protocol) -> np.ndarray:
    """The protocol's values over 300 noisy latents; the pictures, which it does not look at, have four pixels."""
    rng = np.random.RandomState(0)
    true, noise = (torch.from_numpy(rng.standard_normal((300, 12))) for _ in range(2))
    nothing = torch.zeros(300, 3, 2, 2)
    scores = score(nothing, nothing, protocol, latents=(true + 0.3 + 0.9 * noise, true + 0.3))
    return np.array([metric.value for metric in scores.metrics])


@functools.cache
def network_features(network: Network) -> np.ndarray:
    """Features of two small pictures under seeded random weights, or the shipped ones, in units of their own spread.

    Transformers of hundreds of millions of parameters have the same classes' layers here, fewer and narrower.
    """
    narrow = NARROW.get(network.weights_file)
    drawn = dataclasses.replace(network, build=narrow) if narrow else network
    module = weights.load(drawn, None if network.shipped else weights.UNTRAINED, CPU)
    if not narrow:
        # Random weights of fifty layers make a float32's last bit, in which processors differ, the whole of a feature.
        module = module.double()
        drawn = dataclasses.replace(drawn, forward=lambda module, pixels: network.forward(module, pixels.double()))
    size = 64 if network.shipped else 28 if narrow else 80
    features = Extractor(drawn, module, None, None, 2)(pictures(2, size), network.taps)
    return np.concatenate([_sample((values / values.std()).numpy(), 40) for values in features.values()])


def _clip_tower() -> torch.nn.Module:
    with warnings.catch_warnings():  # clip-anytorch imports pkg_resources, which warns of its own end
        warnings.simplefilter("ignore", UserWarning)
        from clip.model import VisionTransformer as Tower

    return Tower(input_resolution=28, patch_size=14, width=32, layers=13, heads=2, output_dim=40)


CPU = torch.device("cpu")
NARROW = {
    "clip_vit_l14.pt": _clip_tower,
    "vit_h_14.pth": lambda: VisionTransformer(28, 14, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64),
}
"""By their weights file networks that would take seconds to draw: what is built in their stead."""


def split_output() -> Output:
    """Roles of a thousand stimuli."""
    stimuli = np.arange(1000)
    return Output(Split().version, Split().roles(stimuli, stimuli % 7 == 0), 0.0)
