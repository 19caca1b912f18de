"""The epoch loop of encoders trained by gradient descent: seeded, resumable, early-stopped.

All randomness of an epoch (order of trials, dropout) follows from the fit's seed and the number of the epoch alone, so
a fit that is stopped after any epoch and continued from its checkpoint gives the parameters of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from encoders._descent.target_scaling import scale_targets
from encoders._shared.checks import check_numbers, check_positive, check_words
from encoders._shared.correlation import validation_correlation
from encoders._shared.state import below, save_tensors
from encoders.base import Batch, Block, Head, Runtime, SubjectData

PROGRESS = "progress.safetensors"


@dataclass(frozen=True)
class TrainingOptions:
    """Options that every encoder trained by gradient descent shares.

    Attributes:
        epochs: Most passes over the training trials.
        batch_size: Trials a step and worker.
        learning_rate: Step size at the start.
        weight_decay: Decoupled with "adamw", added to the gradient with "adam".
        optimiser: "adam" or "adamw".
        schedule: "constant", or "cosine" from `learning_rate` to 0 over `epochs`.
        patience: Stop after this many epochs without a better validation correlation; 0 never stops early. The best
            epoch is kept either way; without validation trials the last one is.
        cosine_loss: Weight of one minus the cosine similarity of prediction and target, added to the squared error.
    """

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    optimiser: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "constant"
    patience: int = 10
    cosine_loss: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_positive(self, ("epochs", "batch_size", "learning_rate"))
        check_numbers(self, ("weight_decay", "patience", "cosine_loss"), lambda number: number >= 0, "at least 0")
        check_words(self)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from a seed inside the block and leave the process's own state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Trainer:
    """Trains one network on standardised targets.

    The network's `forward(voxels, subject)` returns `{head: (B, D)}`. With several data-parallel workers each sees its
    own trials and gradients are averaged after every step; workers must hold the same number of trials.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Mapping[int, SubjectData],
        heads: Sequence[Head],
        options: TrainingOptions,
        runtime: Runtime,
    ) -> None:
        """Prepare a fit.

        Args:
            network: What to train; moved to the runtime's device.
            data: The subjects.
            heads: What to predict.
            options: The schedule.
            runtime: Device, seed, reports and checkpoints.
        """
        self.network = network.to(runtime.device)
        self.data = data
        self.heads = list(heads)
        self.options = options
        self.runtime = runtime
        self.scaling = scale_targets(data, heads, runtime)
        kind = torch.optim.AdamW if options.optimiser == "adamw" else torch.optim.Adam
        self._optimiser: torch.optim.Optimizer = kind(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        self._done = 0
        self._best_epoch = -1
        # NaN until the first score, since any correlation, -1 too, beats no score.
        self._best_score = math.nan
        self._best: dict[str, torch.Tensor] = {}

    def run(self) -> None:
        """Train, continuing from the checkpoint where there is one, and leave the best epoch in the network.

        Raises:
            ValueError: If the loss stops being finite, or the checkpoint belongs to another fit.
        """
        self._resume()
        while self._done < self.options.epochs and not self._exhausted():
            epoch = self._done
            loss = self._train_epoch(epoch)
            score = self._validate()
            # Without a score the latest epoch counts as the best.
            if math.isnan(score) or math.isnan(self._best_score) or score > self._best_score:
                self._best_epoch, self._best_score = epoch, score
                self._best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
            self._done += 1
            self._checkpoint()
            self.runtime.report(epoch, {"validation_correlation": score, "train_loss": loss})
        # The best epoch, not the last: patience means that the last ones were worse.
        self.network.load_state_dict(self._best)
        self.network.eval()

    def _exhausted(self) -> bool:
        """Return whether patience has run out."""
        return 0 < self.options.patience <= self._done - 1 - self._best_epoch

    def _train_epoch(self, epoch: int) -> float:
        """Take one step a batch and return the mean loss a trial."""
        self.network.train()
        rate = self.options.learning_rate
        if self.options.schedule == "cosine":
            # From the epoch's number, not from a scheduler object: a resumed fit needs no state of it.
            rate *= (1 + math.cos(math.pi * epoch / self.options.epochs)) / 2
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        # Summed on the device: reading the loss at each step would wait for the GPU each time.
        total, trials = torch.zeros((), dtype=torch.float64, device=self.runtime.device), 0
        # Workers share the order of subjects, not the dropout masks.
        order_seed = (self.runtime.seed * 1_000_003 + epoch) % (1 << 31)
        with seeded(order_seed * 4096 + self.runtime.rank, self.runtime.device):
            for batch in self._batches(order_seed):
                total += self._step(batch) * batch.voxels.shape[0]
                trials += batch.voxels.shape[0]
        loss = float(self.runtime.reduce(total / max(trials, 1)))
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}; learning_rate {rate:g} is too large for these data")
        return loss

    def _batches(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of all subjects once, subjects mixed in a seeded order."""
        size = self.options.batch_size
        streams = {subject: trials.batches("train", seed, size) for subject, trials in self.data.items()}
        # As many turns as a subject has batches: every subject's epoch ends with the whole epoch.
        turns = [
            subject for subject, trials in self.data.items() for _ in range(math.ceil(trials.n_trials("train") / size))
        ]
        for turn in torch.randperm(len(turns), generator=torch.Generator().manual_seed(seed)).tolist():
            batch = next(streams[turns[turn]], None)
            if batch is not None:
                yield batch

    def _step(self, batch: Batch) -> torch.Tensor:
        """Take one optimiser step and return the detached loss."""
        device = self.runtime.device
        with self._autocast():
            predictions = self.network(batch.voxels.to(device), batch.subject)
        losses = []
        for head in self.heads:
            target = self.scaling.standardise(head.name, batch.targets[head.name].to(device))
            # The loss in float32: squares of bfloat16 errors have two digits.
            predicted = predictions[head.name].float()
            loss = functional.mse_loss(predicted, target)
            if self.options.cosine_loss:
                loss = loss + self.options.cosine_loss * (1 - functional.cosine_similarity(predicted, target).mean())
            losses.append(loss)
        # The mean over heads, so that more heads are no larger step.
        total = torch.stack(losses).mean()
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        # A subject's own layers have no gradient on steps of another subject, on no worker: all follow one order.
        if self.runtime.world_size > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.copy_(self.runtime.reduce(parameter.grad))
        self._optimiser.step()
        return total.detach().double()

    def _autocast(self) -> torch.autocast:
        """Return the context of forward passes."""
        enabled = self.runtime.precision == "bf16"
        return torch.autocast(self.runtime.device.type, dtype=torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def _validate(self) -> float:
        """Return the mean per-target correlation over the validation trials, NaN where there are none."""
        self.network.eval()

        def predict(voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
            with self._autocast():
                predictions = self.network(voxels.to(self.runtime.device), subject)
            # In standardised units: correlations do not see the scale.
            yield {head.name: Block(0, predictions[head.name].float()) for head in self.heads}

        score = validation_correlation(predict, self.data, self.heads, self.options.batch_size)
        return float(self.runtime.reduce(torch.tensor(score, device=self.runtime.device)))

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with to be continued."""
        return {
            "options": asdict(self.options),
            "heads": [[head.name, *head.shape] for head in self.heads],
            "subjects": [[subject, trials.n_voxels, trials.n_trials("train")] for subject, trials in self.data.items()],
            "seed": self.runtime.seed,
            "parameters": {name: list(value.shape) for name, value in self.network.state_dict().items()},
        }

    def _checkpoint(self) -> None:
        """Replace the checkpoint by the state after the epoch just done."""
        if self.runtime.checkpoint_dir is None or self.runtime.rank != 0:
            return
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": value for name, value in state.items()}
        # `repr`: JSON has no NaN, and a float must come back to the last digit.
        progress = {"done": self._done, "best_epoch": self._best_epoch, "best_score": repr(self._best_score)}
        path = self.runtime.checkpoint_dir / PROGRESS
        aside = path.with_suffix(".partial")
        metadata = {"identity": json.dumps(self._identity(), sort_keys=True), "progress": json.dumps(progress)}
        save_tensors(tensors, aside, metadata)
        # Renaming is atomic: a fit killed while writing finds the previous epoch's file.
        aside.replace(path)

    def _resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        if self.runtime.checkpoint_dir is None or not (self.runtime.checkpoint_dir / PROGRESS).is_file():
            return
        metadata, tensors = _read_checkpoint(self.runtime.checkpoint_dir / PROGRESS)
        # Both as JSON gives them back, which knows no tuples.
        theirs, own = json.loads(metadata["identity"]), json.loads(json.dumps(self._identity()))
        other = [f"{name} {theirs.get(name)} there, {own[name]} here" for name in own if theirs.get(name) != own[name]]
        if other:
            path = self.runtime.checkpoint_dir / PROGRESS
            raise ValueError(f"{path} was left by another fit: {'; '.join(other)}")
        progress = json.loads(metadata["progress"])
        self._done, self._best_epoch = progress["done"], progress["best_epoch"]
        self._best_score = float(progress["best_score"])
        self._best = below(tensors, "best/")
        self.network.load_state_dict(below(tensors, "network/"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in below(tensors, "optimiser/").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
        # The groups hold options, which the identity has compared; only moments and step counts are restored.
        self._optimiser.load_state_dict({"state": state, "param_groups": self._optimiser.state_dict()["param_groups"]})


def _read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the metadata and tensors of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
