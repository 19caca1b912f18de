"""The metric suite against bare forward passes and against the per-metric loop of the published notebooks.

python tests/perf/suite.py [--pairs 64] [--rounds 3] [--threads 1] [--device cuda] [--clock wall] [--part PART ...]

Parts: forward, rest (what is not a forward pass), memory (982 pairs at 425 px), precision.

Every network has the published architecture and seeded random weights, written to files once and read by all sides.
Each round runs the sides one after the other; the best round of each side counts. Prints ratios, and checks that the
suite's numbers are the loop's to 1e-4.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms

from eval.metrics.identification import TWO_WAY_IDENTIFICATION
from eval.networks import _weights as weights
from eval.networks.base import Network
from eval.pictures import Resize
from eval.protocols.base import MetricSpec, Protocol, find
from eval.statistics.bootstrap import RESAMPLES, bootstraps
from eval.suite import score

SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
PROTOCOL = find("mindeye2")
FEATURES = tuple(metric for metric in PROTOCOL.metrics if metric.feature)
Work = Callable[[], object]
Array = np.ndarray
Passes = Callable[[MetricSpec], Callable[[Tensor], Array]]
"""Of a metric, what takes all of its preprocessed pictures through its network."""


def pictures(pairs: int, size: int) -> tuple[Tensor, Tensor]:
    """Reconstructions and truths `(N, 3, size, size)` uint8: smooth scenes; a reconstruction is half its truth."""
    rng = np.random.default_rng(0)
    truth, shown = torch.empty(2, pairs, 3, size, size, dtype=torch.uint8)
    for place in range(pairs):  # one at a time: the peak of memory is to be the suite's
        own, other = torch.from_numpy(rng.random((2, 1, 3, 7, 7))).float()
        noise = torch.from_numpy(rng.random((1, 3, size // 8, size // 8))).float()
        grown = [functional.interpolate(x, (size, size), mode="bicubic") for x in (own, 0.5 * own + 0.5 * other, noise)]
        truth[place] = (grown[0].clamp(0, 1) * 255).round().to(torch.uint8)[0]
        shown[place] = ((0.85 * grown[1] + 0.15 * grown[2]).clamp(0, 1) * 255).round().to(torch.uint8)[0]
    return shown, truth


def write_weights(folder: Path) -> None:
    """Write every network's seeded random state dict under its published name."""
    for network in PROTOCOL.networks:
        torch.save(weights.load(network, "untrained", torch.device("cpu")).state_dict(), folder / network.weights_file)
        weights.digest(network, folder)  # read once before anything is timed; a second reading costs nothing


# -- The loop of the notebooks -----------------------------------------------------------------------------------------


def notebook_pixcorr(shown: Tensor, truth: Tensor) -> float:
    """MindEye2's cell: resize all, then `numpy.corrcoef` of each pair."""
    preprocess = transforms.Resize(425, interpolation=transforms.InterpolationMode.BILINEAR, antialias=False)
    gt = preprocess(truth).reshape(len(truth), -1).cpu()
    fake = preprocess(shown).reshape(len(shown), -1).cpu()
    return float(np.mean([np.corrcoef(gt[i], fake[i])[0][1] for i in range(len(truth))]))


def notebook_ssim(shown: Tensor, truth: Tensor) -> float:
    """MindEye2's cell: resize all, grey, then scikit-image for each pair."""
    preprocess = transforms.Resize(425, interpolation=transforms.InterpolationMode.BILINEAR, antialias=False)
    gt = rgb2gray(preprocess(truth).permute((0, 2, 3, 1)).cpu())
    fake = rgb2gray(preprocess(shown).permute((0, 2, 3, 1)).cpu())
    return float(np.mean([structural_similarity(x, y, **SSIM) for x, y in zip(fake, gt, strict=True)]))


def notebook_identification(fake: np.ndarray, gt: np.ndarray) -> float:
    """The published function: correlations of both stacks, then a strict comparison with the diagonal."""
    r = np.corrcoef(gt, fake)[: len(gt), len(gt) :]
    return float((r < np.diag(r)).sum(0).mean() / (len(gt) - 1))


def notebook_distance(fake: np.ndarray, gt: np.ndarray) -> float:
    """1 - r of each pair."""
    return float(np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(gt, fake, strict=True)]))


def notebook_bootstrap(values: np.ndarray) -> tuple[float, float]:
    """A resample at a time."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(RESAMPLES)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def notebook_preprocess(images: Tensor, metric: MetricSpec) -> Tensor:
    """Resize and normalise all pictures for one metric's network."""
    assert metric.feature is not None
    resize = metric.feature.resize
    assert isinstance(resize, Resize)
    network = metric.feature.network
    steps = [
        transforms.Resize((resize.size, resize.size), antialias=False),
        transforms.Normalize(network.mean, network.std),
    ]
    return transforms.Compose(steps)(images)


def notebook_features(module: nn.Module, metric: MetricSpec, images: Tensor, batch: int) -> np.ndarray:
    """Features of all pictures at one metric's layer."""
    assert metric.feature is not None
    tap = metric.feature.tap
    if tap.startswith("features."):  # a feature extractor stops at its node
        layers = module.features[: int(tap.removeprefix("features.")) + 1]
    parts = []
    with torch.inference_mode():
        for part in images.split(batch):
            made = layers(part) if tap.startswith("features.") else metric.feature.network.forward(module, part)[tap]
            parts.append(made.flatten(1).float().cpu())
    return torch.cat(parts).numpy()


def notebook(shown: Tensor, truth: Tensor, device: torch.device, passes: Passes) -> dict[str, float]:
    """All eight metrics, one after the other: each resizes everything and runs its network on both sides."""
    first = transforms.Resize((256, 256), antialias=False)
    shown, truth = (first(side.float() / 255).to(device) for side in (shown, truth))
    values = {"pixcorr": notebook_pixcorr(shown, truth), "ssim": notebook_ssim(shown, truth)}
    for metric in FEATURES:
        through = passes(metric)
        gt, fake = (through(notebook_preprocess(side, metric)) for side in (truth, shown))
        compare = notebook_identification if metric.kind == "identification" else notebook_distance
        values[metric.name] = compare(fake, gt)
    for value in values:
        notebook_bootstrap(np.full(len(truth), values[value]))
    return values


def notebook_passes(metric: MetricSpec, folder: Path, device: torch.device, batch: int) -> Callable[[Tensor], Array]:
    """Load a metric's network."""
    assert metric.feature is not None
    module = weights.load(metric.feature.network, folder, device)
    return lambda images: notebook_features(module, metric, images, batch)


# -- Timing ------------------------------------------------------------------------------------------------------------


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.monotonic}


def best(sides: Mapping[str, Work], given: argparse.Namespace) -> tuple[dict[str, float], dict[str, object]]:
    """Return the shortest time of each side over alternating rounds, and what it gave."""
    clock, device = CLOCKS[given.clock], torch.device(given.device)
    seconds, results = dict.fromkeys(sides, float("inf")), {}
    for _ in range(given.rounds):
        for name, work in sides.items():
            gc.collect()
            started = clock()
            results[name] = work()
            settle(device)
            seconds[name] = min(seconds[name], clock() - started)
    return seconds, results


def peak_gb() -> float:
    """Return the largest memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def bare(folder: Path, device: torch.device, pairs: int, batch: int) -> None:
    """Load each network and pass as many pictures through it, ready at its size; nothing else."""
    for network, size in {m.feature.network.name: (m.feature.network, m.feature.resize) for m in FEATURES}.values():
        module = weights.load(network, folder, device)
        pixels = torch.rand(batch, 3, size.size, size.size, device=device)
        with torch.inference_mode():
            for start in range(0, pairs, batch):
                network.forward(module, pixels[: pairs - start])


def forward_part(given: argparse.Namespace, folder: Path) -> None:
    """Print the suite's time over the bare passes', the loop's over the suite's, and the largest difference."""
    device = torch.device(given.device)
    shown, truth = pictures(given.pairs, 425)
    cache: dict[tuple[str, str, str], np.ndarray] = {}
    protocol = dataclasses.replace(PROTOCOL, metrics=PROTOCOL.metrics[:8])
    started = time.monotonic()
    score(shown, truth, protocol, folder, device, features=cache, batch=given.batch)
    print(f"suite, truth not yet cached: {time.monotonic() - started:.1f} s")
    sides: dict[str, Work] = {
        "bare": lambda: bare(folder, device, given.pairs, given.batch),
        "suite": lambda: score(shown, truth, protocol, folder, device, features=cache, batch=given.batch),
        "loop": lambda: notebook(shown, truth, device, lambda m: notebook_passes(m, folder, device, given.batch)),
    }
    seconds, results = best(sides, given)
    ours, theirs = results["suite"], results["loop"]
    apart = {name: abs(ours[name].value - value) for name, value in theirs.items()}
    print("  ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), f" {given.pairs} pairs")
    print(f"suite / bare {seconds['suite'] / seconds['bare']:.3f} (target <= 1.05)")
    print(f"loop / suite {seconds['loop'] / seconds['suite']:.2f} (target >= 1.9)")
    print(f"largest difference from the loop {max(apart.values()):.1e} in {max(apart, key=apart.__getitem__)}")
    assert max(apart.values()) < 1e-4, apart


# -- What is not a forward pass ----------------------------------------------------------------------------------------

WIDTHS = {"alex2": 192 * 31 * 31, "alex5": 256 * 15 * 15, "inception": 2048, "clip": 768, "effnet": 1280, "swav": 2048}


def rest_part(given: argparse.Namespace, _: Path) -> None:
    """Print loop / suite for all that is not a forward pass, and for parts of it.

    Both sides score the same pictures from beginning to end with networks that hand out stored features instead of
    computing them, so that nothing either of them does beside forward passes is left out.
    """
    shown, truth = pictures(given.pairs, 425)
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(2, given.pairs, width, generator=generator) for name, width in WIDTHS.items()}
    columns = list(np.random.default_rng(0).random((len(FEATURES), given.pairs)))
    whole, cache = without_passes({name: pair[0] for name, pair in features.items()}), {}
    score(shown, truth, whole, "untrained", features=cache, batch=given.batch)
    pairs: dict[str, tuple[Work, Work]] = {
        "both pixel metrics": (
            lambda: score(shown, truth, pixels(0, 1), features=cache),
            lambda: pixel_loop(shown, truth, 0, 1),
        ),
        "PixCorr": (lambda: score(shown, truth, pixels(0), features=cache), lambda: pixel_loop(shown, truth, 0)),
        "SSIM": (lambda: score(shown, truth, pixels(1), features=cache), lambda: pixel_loop(shown, truth, 1)),
        "identification": (
            lambda: [float(TWO_WAY_IDENTIFICATION(*features[m.name]).mean()) for m in FEATURES[:4]],
            lambda: [notebook_identification(*(side.numpy() for side in features[m.name])) for m in FEATURES[:4]],
        ),
        "bootstrap": (lambda: bootstraps(columns), lambda: [notebook_bootstrap(values) for values in columns]),
        "all that is not a forward pass": (
            lambda: score(shown, truth, whole, "untrained", features=cache, batch=given.batch),
            lambda: notebook(shown, truth, torch.device("cpu"), lambda m: lambda _: features[m.name][0].numpy()),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        seconds, _ = best({"suite": ours, "loop": theirs}, given)
        report(name, seconds["suite"], seconds["loop"])


def without_passes(features: Mapping[str, Tensor]) -> Protocol:
    """Return the protocol's eight metrics on networks that hand out stored features."""
    taps: dict[str, dict[str, Tensor]] = {}
    for metric in FEATURES:
        taps.setdefault(metric.feature.network.name, {})[metric.feature.tap] = features[metric.name]
    networks = {network.name: stored(network, taps[network.name]) for network in PROTOCOL.networks}
    entries = {m.name: dataclasses.replace(m.feature, network=networks[m.feature.network.name]) for m in FEATURES}
    metrics = (dataclasses.replace(m, feature=entries.get(m.name)) for m in PROTOCOL.metrics[:8])
    return dataclasses.replace(PROTOCOL, metrics=tuple(metrics))


def stored(network: Network, taps: Mapping[str, Tensor]) -> Network:
    """Return a network of one small layer that gives the next rows of stored features for each batch."""
    pairs, place = len(next(iter(taps.values()))), itertools.count()
    rows = iter(lambda: next(place) % pairs, None)

    def forward(module: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        mine = list(itertools.islice(rows, len(pixels)))
        return {tap: values[mine[0] : mine[-1] + 1] for tap, values in taps.items()}

    build = functools.partial(nn.Conv2d, 3, 3, 1)
    return dataclasses.replace(network, taps=tuple(taps), build=build, forward=forward, unused=(), companion=None)


def report(name: str, suite: float, loop: float) -> None:
    """Print one ratio."""
    print(f"{name:<32} suite {suite:.3f} s  loop {loop:.3f} s  loop / suite {loop / suite:.1f}", flush=True)


def pixels(*wanted: int) -> Protocol:
    """The protocol with some of its two pixel metrics only."""
    return dataclasses.replace(PROTOCOL, metrics=tuple(PROTOCOL.metrics[place] for place in wanted))


def pixel_loop(shown: Tensor, truth: Tensor, *wanted: int) -> None:
    """Pixel metrics of the notebooks from the pictures on, with their intervals."""
    first = transforms.Resize((256, 256), antialias=False)
    shown, truth = (first(side.float() / 255) for side in (shown, truth))
    for place in wanted:
        value = (notebook_pixcorr, notebook_ssim)[place](shown, truth)
        notebook_bootstrap(np.full(len(truth), value))


# -- Memory and precision ----------------------------------------------------------------------------------------------


def memory_part(given: argparse.Namespace, folder: Path) -> None:
    """Print the peak of memory of 982 pairs at 425 px under every metric of AlexNet and of pixels, with a cache.

    AlexNet's second layer holds 31 times the features of all other networks together; CLIP has the largest weights,
    1.2 GB, and is alone in memory when they are read.
    """
    shown, truth = pictures(982, 425)
    before = peak_gb()
    wanted = tuple(m for m in PROTOCOL.metrics if m.name in ("pixcorr", "ssim", "alex2", "alex5"))
    started = time.monotonic()
    protocol, cache = dataclasses.replace(PROTOCOL, metrics=wanted), {}
    for what in ("truth not yet cached", "truth cached"):
        score(shown, truth, protocol, folder, given.device, features=cache, batch=given.batch)
        print(f"982 pairs at 425 px, {what}: {peak_gb():.2f} GB at the peak so far, {before:.2f} GB before the suite, "
              f"{time.monotonic() - started:.0f} s since", flush=True)  # fmt: skip


def precision_part(given: argparse.Namespace, folder: Path) -> None:
    """Print how far each reduced precision moves a score."""
    shown, truth = pictures(given.pairs, 425)
    wanted = dataclasses.replace(PROTOCOL, metrics=FEATURES if given.device == "cuda" else FEATURES[:2])
    exact = score(shown, truth, wanted, folder, given.device, batch=given.batch)
    for precision in ("bfloat16", "float16"):
        reduced = score(shown, truth, wanted, folder, given.device, batch=given.batch, precision=precision)
        moved = {m.name: abs((m.value or 0) - (reduced[m.name].value or 0)) for m in exact.metrics}
        print(f"{precision} on {given.device}: " + "  ".join(f"{name} {value:.1e}" for name, value in moved.items()))


PARTS = {"forward": forward_part, "rest": rest_part, "memory": memory_part, "precision": precision_part}


def main() -> None:
    """Run the parts that were asked for."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pairs", type=int, default=64)
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--batch", type=int, default=16)
    cli.add_argument("--threads", type=int, default=torch.get_num_threads())
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where others use the machine")
    cli.add_argument("--part", nargs="+", choices=PARTS, default=["forward", "rest"])
    given = cli.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        if set(given.part) - {"rest"}:
            write_weights(Path(folder))
        for part in given.part:
            PARTS[part](given, Path(folder))


if __name__ == "__main__":
    main()
