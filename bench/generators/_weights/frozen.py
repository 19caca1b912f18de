"""From files to frozen networks: state dicts whose every name and shape is checked, or seeded random weights.

Only safetensors, JSON and text are read, and tensors of plain PyTorch files with `torch.load(weights_only=True)`:
nothing else is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from bench.core.errors import CorruptFileError
from bench.generators.base import WeightsSize

UNTRAINED_SEED = 0
"""Seed of every random weight: the same random network on every machine."""
Precision = Literal["auto", "float32", "float16", "bfloat16"]


@contextlib.contextmanager
def seeded(seed: int = UNTRAINED_SEED) -> Iterator[None]:
    """Draw what is drawn inside (the first values of untrained networks) from a seed; the state outside is kept."""
    # CPU alone: weights are drawn there, and naming no GPU keeps CUDA from being started for it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def pretrained(kind: Any, folder: Path, safetensors: bool, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """Return a frozen network of a diffusers or transformers class from its folder, every weight from the file.

    The library's own loader is used because it knows the names that older files have; what it would only warn of (a
    weight that is missing, unknown or of another shape, and would stay random) is refused.

    Args:
        kind: The class.
        folder: `config.json` and the weights.
        safetensors: Whether to read the safetensors file; otherwise a plain PyTorch file, never unpickled beyond
            tensors.
        dtype: Number format.
        device: Where the network goes.

    Raises:
        CorruptFileError: If the folder cannot be read, or holds the weights of another network.
    """
    from diffusers import ModelMixin
    from safetensors import SafetensorError

    choices = {"use_safetensors": safetensors, "local_files_only": True, "ignore_mismatched_sizes": True}
    if issubclass(kind, ModelMixin):
        choices["low_cpu_mem_usage"] = False  # diffusers needs another package for it
    try:
        with quiet():
            module, info = kind.from_pretrained(folder, output_loading_info=True, **choices)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CorruptFileError(f"{folder} cannot be read as a {kind.__name__}: {reason}") from None
    shapes = [f"{name} {tuple(came)} instead of {tuple(own)}" for name, came, own in sorted(info["mismatched_keys"])]
    lists = {"missing": sorted(info["missing_keys"]), "unknown": sorted(info["unexpected_keys"])}
    refuse_differences(folder, {**lists, "of another shape": shapes})
    return frozen(module, dtype, device)


def frozen(module: Any, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401 - any library's network
    """Return a network ready for inference on a device: no dropout, no gradients of its weights."""
    with quiet():  # diffusers tells of parts to keep in float32 even where there are none
        return module.to(device=device, dtype=dtype).eval().requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and reports to themselves: what they warn of is checked here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Put back afterwards: whoever uses the libraries beside this package keeps their own settings.
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()


def module_size(modules: Sequence[torch.nn.Module]) -> WeightsSize:
    """Return the size of networks, which may lie on the meta device: that of untrained weights."""
    # On the meta device a network of billions has shapes and no memory.
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises:
        CorruptFileError: If it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def load_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Fill a network from the state dict of a file, every name and shape as published.

    Raises:
        CorruptFileError: If names or shapes are those of another network; the message counts and names them.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    refuse_other_shapes(path, own, {name: tuple(value.shape) for name, value in state.items()})
    # Only after every name was compared: torch's own message lists hundreds of them.
    module.load_state_dict(dict(state))


def refuse_other_shapes(path: Path, own: Mapping[str, tuple[int, ...]], came: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of a file's tensors with those of the network it should fill.

    Raises:
        CorruptFileError: If any differs.
    """
    differing = [
        f"{name} {came[name]} instead of {own[name]}" for name in own if came.get(name, own[name]) != own[name]
    ]
    lists = {
        "missing": [name for name in own if name not in came],
        "unknown": [name for name in came if name not in own],
    }
    refuse_differences(path, {**lists, "of another shape": differing})


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
        # Most CPUs compute float16 through float32, slower than float32 itself.
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
