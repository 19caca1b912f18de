"""Ridge against himalaya and scikit-learn: same data, alphas, criterion and threads, one process a measurement.

python tests/perf/ridge.py [--rows 1500] [--rounds 3] [--threads 2] [--only loo-head sklearn-loo]

Shapes are Brain-Diffuser's (8,859 rows, 15,724 voxels, 91,168 targets) scaled to `--rows`. Each round runs every side
once, so that what else the machine does falls on all of them; the best round of a side counts. CPU seconds stand beside
wall seconds: on a machine that others use too they are the steadier of the two. The bound is what the matrix products
of our own algorithm take at the rate measured by each of our processes just before the fit, plus the eigendecomposition
measured alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from encoders.base import Batch, Head, Runs, Runtime
from encoders.ridge import Ridge, RidgeOptions
from encoders.ridge.penalties import folds_by_stimulus
from encoders.ridge.quadratic_forms import panel_width

ROWS, VOXELS, TARGETS = 8859, 15724, 91168
ALPHAS = tuple(float(f"{alpha:.3g}") for alpha in np.logspace(0, 6, 13))
FOLDS, UNSEEN, BATCH, BLOCK = 5, 300, 2048, 8192
SIDES = {
    "loo-head": "ridge, leave-one-out, one alpha",
    "sklearn-loo": "scikit-learn RidgeCV, leave-one-out, one alpha",
    "loo-target": "ridge, leave-one-out, an alpha a target",
    "sklearn-loo-target": "scikit-learn RidgeCV, leave-one-out, an alpha a target",
    "kfold-target": "ridge, 5 folds, an alpha a target",
    "himalaya-target": "himalaya KernelRidgeCV, 5 folds, an alpha a target",
    "kfold-head": "ridge, 5 folds, one alpha",
    "himalaya-head": "himalaya KernelRidgeCV, 5 folds, one alpha",
    "gcv-target": "ridge, generalised cross-validation, an alpha a target",
}


@dataclass(frozen=True)
class Taken:
    """Wall seconds, and CPU seconds of all threads."""

    wall: float
    cpu: float


class Clock:
    """Measures from its construction on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> Taken:
        """Return what has passed."""
        return Taken(time.monotonic() - self._wall, time.process_time() - self._cpu)


@dataclass(frozen=True)
class Trials:
    """A subject in memory; implements `encoders.base.SubjectData`."""

    voxels: torch.Tensor
    targets: torch.Tensor
    subject: int = 1
    coordinates: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int32))

    @property
    def n_voxels(self) -> int:
        return self.voxels.shape[1]

    def n_trials(self, role: str) -> int:
        return len(self.voxels) if role == "train" else 0

    def columns(self, roi: str) -> np.ndarray:
        raise ValueError(f"random voxels have no ROI {roi!r}")

    def batches(self, role: str, seed: int, size: int | None = None, runs: Runs | None = None) -> Iterator[Batch]:
        for start in range(0, self.n_trials(role), size or BATCH):
            rows = slice(start, start + (size or BATCH))
            wanted = {"z": (0, self.targets.shape[1])} if runs is None else runs
            targets = {name: self.targets[rows, a:b] for name, (a, b) in wanted.items()}
            voxels = self.voxels[rows]
            yield Batch(1, voxels, targets, torch.arange(start, start + len(voxels)))


def planted(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(rows + UNSEEN, V)` voxels and `(rows + UNSEEN, D)` targets of one float32 linear model.

    Voxels have a power-law spectrum, as betas do; targets are mixtures of few causes under noise of different sizes.
    They have unit variance, so that one alpha for all means the same to every side.
    """
    torch.manual_seed(0)
    total, causes = rows + UNSEEN, 60
    n_voxels, targets = round(rows * VOXELS / ROWS), round(rows * TARGETS / ROWS)
    latent = torch.randn(total, causes) * torch.arange(1, causes + 1) ** -0.5
    voxels = latent @ torch.randn(causes, n_voxels) / causes**0.5 + torch.randn(total, n_voxels)
    signal = latent @ torch.randn(causes, targets)
    noise = torch.logspace(-1, 1, targets)[torch.randperm(targets)] * signal.std()
    values = signal + noise * torch.randn(total, targets)
    return voxels, values / values[:rows].std(0)


def fitted(side: str, voxels: torch.Tensor, targets: torch.Tensor) -> tuple[Taken, np.ndarray, Callable[[], object]]:
    """Fit one side.

    Returns:
        What the fit took, `(D,)` chosen alphas, and what predicts `UNSEEN` rows as `(UNSEEN, D)`.
    """
    if side.startswith("himalaya"):
        return himalaya(voxels, targets, side.endswith("target"))
    if side.startswith("sklearn"):
        return scikit_learn(voxels, targets, side.endswith("target"))
    return ours(side, voxels, targets)


def ours(side: str, voxels: torch.Tensor, targets: torch.Tensor) -> tuple[Taken, np.ndarray, Callable[[], object]]:
    """Fit `encoders.ridge.encoder` in float32; its state is on disk afterwards."""
    method, scope = side.split("-")
    chosen = {"head": "global", "target": "per-target"}[scope]
    options = RidgeOptions(select=method, scope=chosen, alphas=ALPHAS, folds=FOLDS, block=BLOCK, precision="float32")
    rows, ridge = len(voxels) - UNSEEN, Ridge(options)
    clock = Clock()
    ridge.fit({1: Trials(voxels[:rows], targets[:rows])}, [Head("z", (targets.shape[1],))], Runtime())
    seconds = clock.read()
    predicted = lambda: torch.cat([b["z"].values for b in ridge.predict(voxels[rows:], 1, 0)], dim=1)  # noqa: E731
    return seconds, ridge.alphas("z", 1).numpy(), predicted


def himalaya(
    voxels: torch.Tensor, targets: torch.Tensor, local: bool
) -> tuple[Taken, np.ndarray, Callable[[], object]]:
    """Fit himalaya's kernel ridge with its torch backend, float32, our folds and squared error as its score."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.scoring import l2_neg_loss
    from sklearn.model_selection import PredefinedSplit

    set_backend("torch")
    rows = len(voxels) - UNSEEN
    number = np.zeros(rows, dtype=int)
    for place, fold in enumerate(folds_by_stimulus(torch.arange(rows), FOLDS, 0)):
        number[fold.numpy()] = place
    # Batches of targets and alphas that were its fastest here.
    parameters = {
        "score_func": l2_neg_loss,
        "local_alpha": local,
        "n_targets_batch": BLOCK,
        "n_targets_batch_refit": BLOCK,
        "n_alphas_batch": 1,
    }
    peer = KernelRidgeCV(
        ALPHAS, kernel="linear", fit_intercept=True, cv=PredefinedSplit(number), solver_params=parameters, warn=False
    )
    clock = Clock()
    peer.fit(voxels[:rows], targets[:rows])
    seconds = clock.read()
    return seconds, np.asarray(peer.best_alphas_), lambda: peer.predict(voxels[rows:])


def scikit_learn(
    voxels: torch.Tensor, targets: torch.Tensor, local: bool
) -> tuple[Taken, np.ndarray, Callable[[], object]]:
    """Fit scikit-learn's leave-one-out ridge, in the float32 it is given."""
    from sklearn.linear_model import RidgeCV

    rows, count = len(voxels) - UNSEEN, targets.shape[1]
    peer = RidgeCV(ALPHAS, alpha_per_target=local)
    clock = Clock()
    peer.fit(voxels[:rows].numpy(), targets[:rows].numpy())
    seconds = clock.read()
    return seconds, np.broadcast_to(peer.alpha_, (count,)), lambda: peer.predict(voxels[rows:].numpy())


def bound(side: str, rows: int) -> dict[str, float]:
    """Return what the matrix products of our algorithm must take: GFLOP, GFLOP/s as measured, and seconds of eigh.

    Dual form: Gram, basis and cross-products; then for each alpha the weighted rows G and the triangle of G'G; then for
    one alpha a target its Cholesky factor and a triangle's product with the coordinates, for one alpha a head one
    product of the coordinates with themselves. A triangle is made of panels, as in `encoders.ridge.quadratic_forms`.
    """
    n, v, d = rows, round(rows * VOXELS / ROWS), round(rows * TARGETS / ROWS)
    products = 2 * n * n * v * 2 + 2 * n * n * d
    width = panel_width(n)
    triangle = sum(min(width, n - start) * (n - start) for start in range(0, n, width))
    each = 2 * n * triangle + (4 * n**3 / FOLDS if side.startswith("kfold") else 0)
    if side.endswith("target") and not side.startswith("gcv"):
        products += len(ALPHAS) * (each + n**3 / 3 + 2 * triangle * d)
    elif not side.startswith("gcv"):
        products += len(ALPHAS) * each + 2 * n * n * d
    left, right = torch.randn(n, n), torch.randn(n, BLOCK)
    product = fastest(lambda: left @ right, 5)
    gram = left @ left.T
    eigh = fastest(lambda: torch.linalg.eigh(gram), 2)
    share = products / (2 * n * n * BLOCK)
    return {
        "gflop_s": 2 * n * n * BLOCK / product.wall / 1e9,
        "eigh": eigh.wall,
        "bound": share * product.wall + eigh.wall,
        "bound_cpu": share * product.cpu + eigh.cpu,
    }


def fastest(work: Callable[[], object], times: int) -> Taken:
    """Return the least that some work took, in wall and in CPU seconds."""
    takes = []
    for _ in range(times):
        clock = Clock()
        work()
        takes.append(clock.read())
    return Taken(min(take.wall for take in takes), min(take.cpu for take in takes))


def measure(side: str, rows: int, threads: int) -> dict[str, object]:
    """Measure one side in this process."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # the peers' own advice
    voxels, targets = planted(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    needed = bound(side, rows) if side.split("-")[0] in ("loo", "kfold", "gcv") else {}
    taken, alphas, predict = fitted(side, voxels, targets)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    true = targets[rows:]
    error = (torch.as_tensor(np.asarray(predict())) - true).square().mean(0) / true.var(0, unbiased=False)
    exponents = np.round(np.log10(alphas), 2)
    return {
        **needed,
        "wall": taken.wall,
        "cpu": taken.cpu,
        "peak_mb": peak / 1024,
        "r2": float((1 - error).mean()),
        "alphas": [float(part) for part in np.quantile(exponents, [0, 0.25, 0.5, 0.75, 1])],
    }


def spawned(side: str, given: argparse.Namespace) -> dict[str, float]:
    """Return what a new process measured of one side."""
    command = [sys.executable, __file__, "--side", side, "--rows", str(given.rows), "--threads", str(given.threads)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{side} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def report(best: Mapping[str, dict[str, float]]) -> None:
    """Print a table and the ratios that matter."""
    for side, row in best.items():
        took = f"{row['wall']:7.2f} s wall {row['cpu']:7.2f} s CPU"
        line = f"{SIDES[side]:56s} {took} {row['peak_mb']:6.0f} MB  R2 {row['r2']:.4f}"
        if "bound" in row:
            ratios = row["wall"] / row["bound"], row["cpu"] / row["bound_cpu"]
            line += f"  / bound {ratios[0]:.2f} wall {ratios[1]:.2f} CPU (eigh {row['eigh']:.2f} s)"
        print(f"{line}  log10 alpha {row['alphas']}")
    pairs = (
        ("loo-head", "sklearn-loo"),
        ("loo-target", "sklearn-loo-target"),
        ("kfold-target", "himalaya-target"),
        ("kfold-head", "himalaya-head"),
    )
    for mine, peer in pairs:
        if mine in best and peer in best:
            wall, cpu = (best[peer][clock] / best[mine][clock] for clock in ("wall", "cpu"))
            print(f"{SIDES[peer]} / ours: {wall:.2f} wall, {cpu:.2f} CPU")
    if {"gcv-target", "loo-target"} <= set(best):
        change = best["gcv-target"]["r2"] - best["loo-target"]["r2"]
        print(f"R2 of generalised cross-validation - leave-one-out: {change:+.5f}")


def main() -> None:
    """Measure every side in turn, several rounds, and print the best of each."""
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--rows", type=int, default=1500)
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--side", choices=list(SIDES), help="measure one side in this process and print it as JSON")
    cli.add_argument("--only", nargs="*", default=list(SIDES), help="sides to measure")
    given = cli.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.rows, given.threads)))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(given.rounds):
        for side in given.only:
            row = spawned(side, given)
            held = best.get(side, row)
            row |= {clock: min(row[clock], held[clock]) for clock in ("wall", "cpu")}
            best[side] = row
            print(json.dumps({"side": side, **row}), file=sys.stderr, flush=True)
    report(best)


if __name__ == "__main__":
    main()
