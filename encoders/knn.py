"""Nearest neighbours: predicts from the training trials whose voxel patterns correlate best with the one seen.

A floor of another kind than regressions: it learns nothing but remembers everything, and its predictions are
combinations of targets of real pictures. With k = 1 it is the retrieval of the most similar trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch

from encoders._shared.checks import check_alone, check_fit, check_positive, check_voxels, require_fitted
from encoders._shared.correlation import validation_correlation
from encoders._shared.moments import RunningMoments, require_finite
from encoders._shared.state import below, read_state, write_state
from encoders.base import Block, Encoder, Head, Runtime, SubjectData


@dataclass(frozen=True)
class KnnOptions:
    """Options of `knn`.

    Attributes:
        k: How many training trials are averaged; fewer where there are fewer.
        temperature: Their weights are the softmax of correlation / temperature; small values favour the best one.
        standardise_voxels: Whether to z-score each voxel by the subject's training trials before correlating patterns;
            without it the patterns every picture evokes dominate.
        block: Most targets predicted at once.
    """

    k: int = 20
    temperature: float = 0.1
    standardise_voxels: bool = True
    block: int = 8192

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_positive(self, ("k", "temperature", "block"))


@dataclass(frozen=True)
class _Memory:
    """What is kept of one subject: standardised voxels `(n, V)`, their statistics `(V,)`, targets `(n, D)`."""

    mean: torch.Tensor
    scale: torch.Tensor
    voxels: torch.Tensor
    targets: Mapping[str, torch.Tensor]


class Knn(Encoder):
    """The softmax-weighted mean of the targets of the k most similar training trials of the same subject."""

    version = 1
    Options: ClassVar[type] = KnnOptions

    options: KnnOptions

    def __init__(self, options: KnnOptions) -> None:
        super().__init__(options)
        self._heads: list[Head] = []
        self._memory: dict[int, _Memory] = {}

    def fit(self, data: Mapping[int, SubjectData], heads: Sequence[Head], runtime: Runtime) -> None:
        """Remember the training trials; see `Encoder.fit`."""
        check_alone(self.name(), runtime)
        check_fit(data, heads)
        self._heads = list(heads)
        self._memory = {subject: self._remember(trials) for subject, trials in data.items()}
        runtime.report(0, {"validation_correlation": validation_correlation(self.predict, data, heads)})

    def _remember(self, trials: SubjectData) -> _Memory:
        """Return the memory of one subject's training trials."""
        voxels: list[torch.Tensor] = []
        targets: dict[str, list[torch.Tensor]] = {head.name: [] for head in self._heads}
        moments = RunningMoments()
        for batch in trials.batches("train", seed=-1):
            require_finite(batch.voxels, f"voxels of subject {trials.subject}")
            moments.update(batch.voxels)
            voxels.append(batch.voxels.float().cpu())
            for name, values in targets.items():
                values.append(batch.targets[name].flatten(1).float().cpu())
        # Everything stays on the CPU: the voxels of one subject of NSD take up to 1.9 GB.
        together = torch.cat(voxels)
        mean, scale = torch.zeros(together.shape[1]), torch.ones(together.shape[1])
        if self.options.standardise_voxels:
            mean, scale = moments.mean.float().cpu(), moments.scale.float().cpu()
        kept = {name: torch.cat(values) for name, values in targets.items()}
        return _Memory(mean, scale, (together - mean) / scale, kept)

    def predict(self, voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
        """Yield predictions in blocks of targets; see `Encoder.predict`."""
        check_voxels(voxels, subject, {known: memory.voxels.shape[1] for known, memory in self._memory.items()})
        return self._predict(voxels, subject)

    def _predict(self, voxels: torch.Tensor, subject: int) -> Iterator[Mapping[str, Block]]:
        """Yield the weighted means of the remembered targets."""
        memory = self._memory[subject]
        # With the statistics of the training trials: a test trial must not be scaled by others like it.
        seen = (voxels.float().cpu() - memory.mean) / memory.scale
        for head in self._heads:
            # Similarity is of the voxels a head may use, so that heads with other ROIs have other neighbours.
            weights = self._weights(head.select(seen, subject), head.select(memory.voxels, subject))
            for start in range(0, head.size, self.options.block):
                values = weights @ memory.targets[head.name][:, start : start + self.options.block]
                yield {head.name: Block(start, values.to(voxels.device))}

    def _weights(self, seen: torch.Tensor, remembered: torch.Tensor) -> torch.Tensor:
        """Return `(N, n)` weights of the training trials: k of each row are positive, and they sum to 1."""
        correlation = _unit_rows(seen) @ _unit_rows(remembered).T
        best = correlation.topk(min(self.options.k, correlation.shape[1]), dim=1)
        shares = torch.softmax(best.values / self.options.temperature, dim=1)
        # Dense weights turn the gathering of (N, k, D) targets into one product.
        return torch.zeros_like(correlation).scatter_(1, best.indices, shares)

    def save(self, directory: Path) -> None:
        """Write the remembered trials; see `Encoder.save`."""
        tensors: dict[str, torch.Tensor] = {}
        for subject, memory in require_fitted(self._memory or None, self.name()).items():
            tensors |= {f"{subject}/mean": memory.mean, f"{subject}/scale": memory.scale}
            tensors[f"{subject}/voxels"] = memory.voxels
            tensors |= {f"{subject}/targets/{name}": values for name, values in memory.targets.items()}
        write_state(directory, self.name(), {"subjects": sorted(self._memory)}, self._heads, tensors)

    @classmethod
    def load(cls, options: KnnOptions, directory: Path) -> Self:
        """Return the encoder that was saved; see `Encoder.load`."""
        facts, heads, tensors = read_state(directory, cls.name())
        knn = cls(options)
        knn._heads = heads
        for subject in facts["subjects"]:
            part = below(tensors, f"{subject}/")
            knn._memory[subject] = _Memory(part["mean"], part["scale"], part["voxels"], below(part, "targets/"))
        return knn

    @property
    def n_parameters(self) -> int:
        """Remembered scalars: voxels, their statistics and targets of every training trial."""
        kept = [(each.mean, each.scale, each.voxels, *each.targets.values()) for each in self._memory.values()]
        return sum(part.numel() for parts in kept for part in parts)


def _unit_rows(values: torch.Tensor) -> torch.Tensor:
    """Return centred rows of length 1 (0 where a row does not vary), whose products are correlations."""
    centred = values - values.mean(dim=1, keepdim=True)
    # `normalize` divides by at least 1e-12: a row without variation becomes zeros, not NaN.
    return torch.nn.functional.normalize(centred, dim=1)
