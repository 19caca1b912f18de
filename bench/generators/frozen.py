"""From files to frozen networks: state dicts whose every name and shape is checked, or seeded random weights.

Only safetensors, JSON and text are read, and tensors of plain PyTorch files with `torch.load(weights_only=True)`:
nothing else is ever unpickled.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from bench.errors import CorruptFileError
from bench.generators.base import WeightsSize

UNTRAINED_SEED = 0
"""Seed of every random weight: the same random network on every machine."""
Precision = Literal["auto", "float32", "float16", "bfloat16"]


@contextlib.contextmanager
def seeded(seed: int = UNTRAINED_SEED) -> Iterator[None]:
    """Draw what is drawn inside (the first values of untrained networks) from a seed; the state outside is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def module_size(modules: Sequence[torch.nn.Module]) -> WeightsSize:
    """Return the size of networks, which may lie on the meta device: that of untrained weights."""
    parameters = [p for module in modules for p in module.parameters()]
    return WeightsSize(sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters))


def read_state(path: Path) -> Mapping[str, object]:
    """Return what a weights file holds: a state dict, possibly nested, of tensors on the CPU.

    Raises:
        CorruptFileError: If it is not such a file, or holds anything but tensors and plain containers.
    """
    if path.suffix != ".safetensors":
        return _torch_file(path, "cpu")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is not a safetensors file: {error}") from None


def load_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Fill a network from the state dict of a file, every name and shape as published.

    Raises:
        CorruptFileError: If names or shapes are those of another network; the message counts and names them.
    """
    expected = module.state_dict()
    found = {
        "missing": [name for name in expected if name not in state],
        "unknown": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    refuse_differences(path, found)
    module.load_state_dict(dict(state))


def refuse_differences(path: Path, found: Mapping[str, Sequence[str]]) -> None:
    """Say in one line by which entries a file differs from the network it should fill.

    Args:
        path: The file, or the folder of a model.
        found: Names of entries by what is wrong with them ("missing").

    Raises:
        CorruptFileError: If any is named.
    """
    problems = [f"{len(names)} {what} ({', '.join(names[:2])} ...)" for what, names in found.items() if names]
    if problems:
        raise CorruptFileError(f"{path} holds the weights of another network: {'; '.join(problems)}")


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of a network: half precision on a GPU, single on a CPU, unless one is asked for."""
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    chosen: torch.dtype = getattr(torch, precision)
    return chosen


def tensors_in(path: Path) -> list[torch.Tensor]:
    """Return the tensors of a plain PyTorch file, nested or not, on the meta device: sizes without values.

    Raises:
        CorruptFileError: If it is not such a file.
    """
    return _flat(_torch_file(path, "meta"))


def _torch_file(path: Path, device: str) -> Mapping[str, object]:
    """Return the mapping of a plain PyTorch file; only tensors and plain containers are unpickled."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{path} is not a file of tensors saved with torch.save: {error}") from None
    if not isinstance(content, Mapping):
        raise CorruptFileError(f"{path} must hold a mapping from names to tensors, got {type(content).__name__}")
    return content


def _flat(state: Mapping[str, object]) -> list[torch.Tensor]:
    """Return all tensors of a state dict, nested or not."""
    found: list[torch.Tensor] = []
    for value in state.values():
        found += _flat(value) if isinstance(value, Mapping) else [value] if isinstance(value, torch.Tensor) else []
    return found
