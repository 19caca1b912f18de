"""From a network's description to a module with weights: a folder of state dicts, or an explicit "untrained"."""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eval.networks.base import Network

UNTRAINED = "untrained"
"""The literal that asks for random weights; nothing else ever gives them."""
UNTRAINED_SEED = 0
SHIPPED = Path(__file__).parent / "weights"


class MissingWeightsError(FileNotFoundError):
    """Weights that are not on this machine; the message says what to fetch and where to put it."""


class WrongWeightsError(ValueError):
    """A weights file that is not a state dict, or one of another network."""


def locate(network: Network, weights: Path | str | None) -> Path | None:
    """Find the weights file of a network.

    Args:
        network: Which network.
        weights: A folder that holds files by the names of `Network.weights_file`; "untrained"; or None where only
            shipped weights are needed.

    Returns:
        The file, or None for random weights.

    Raises:
        MissingWeightsError: If the file is not there.
    """
    if weights == UNTRAINED:
        return None
    if network.shipped:
        path = SHIPPED / network.weights_file
    elif weights is None:
        raise MissingWeightsError(
            f"{network.name} needs {network.weights_file} ({network.source}): pass weights=FOLDER that holds it, "
            f"or weights={UNTRAINED!r} for random weights, which marks the result"
        )
    else:
        path = Path(weights) / network.weights_file
    if not path.is_file():
        raise MissingWeightsError(
            f"{network.name} needs {path}, which does not exist. It is the plain state dict of {network.source}; save "
            f"it there with torch.save, or ask for random weights with weights={UNTRAINED!r}, which marks the result"
        )
    return path


def digest(network: Network, weights: Path | str | None) -> str:
    """Return the sha256 of the weights file, or "untrained:<seed>".

    Raises:
        MissingWeightsError: If the file is not there.
    """
    path = locate(network, weights)
    if path is None:
        return f"{UNTRAINED}:{UNTRAINED_SEED}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(network: Network, weights: Path | str | None, device: torch.device) -> nn.Module:
    """Build a network on `device`, without the parts that no tap needs, ready for inference in float32.

    Raises:
        MissingWeightsError: If the weights are not there.
        WrongWeightsError: If the file is not a state dict of this network.
    """
    path = locate(network, weights)
    with torch.device("meta"):  # no memory and no default initialisation, which takes longer than everything else
        module = network.build()
    for name in network.unused:
        module.set_submodule(name, nn.Identity())
    module = module.to_empty(device=device).eval().requires_grad_(False)
    if path is None:
        _initialise(module, network)
    else:
        state = _own_entries(network, _read(path))
        _check_entries(path, module.state_dict(), state)
        module.load_state_dict(state, strict=False)
    return module


def _read(path: Path) -> dict[str, Tensor]:
    # Neither branch unpickles anything but tensors.
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise WrongWeightsError(f"{path} is not a state dict saved with torch.save: {error}") from error
    # Training checkpoints keep the state dict under a key of its own.
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WrongWeightsError(f"{path} must hold a state dict (names to tensors), got {type(content).__name__}")
    return dict(content)


def _own_entries(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the network's own entries, without their prefix."""
    if network.prefix and any(name.startswith(network.prefix) for name in state):
        state = {
            name.removeprefix(network.prefix): value for name, value in state.items() if name.startswith(network.prefix)
        }
    ignored = (*(f"{name}." for name in network.unused), *network.foreign)
    return {name: value for name, value in state.items() if not name.startswith(ignored)}


def _check_entries(path: Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    # Files written before torch 0.4.1 lack the batch counter, which inference never reads.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    found = [f"{len(names)} {problem} ({', '.join(names[:2])} ...)" for problem, names in problems.items() if names]
    if found:
        raise WrongWeightsError(f"{path} holds the weights of another network: {'; '.join(found)}")


def _initialise(module: nn.Module, network: Network) -> None:
    """Fill with seeded normal weights of variance 2 / fan-in (He et al. 2015), zero biases, neutral normalisation."""
    # A seed of its own for each network: two of one architecture must not be the same network twice.
    generator = torch.Generator().manual_seed(UNTRAINED_SEED + zlib.crc32(network.name.encode()))
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.LayerNorm | nn.BatchNorm2d) or name.endswith("bias"):
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            # Drawn on the CPU: the same numbers on every device.
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            values = torch.empty(parameter.shape).normal_(0, (2 / max(fan_in, 1)) ** 0.5, generator=generator)
            parameter.copy_(values)
    # Neutral statistics: means of zero, variances and spreads of one.
    for name, buffer in module.named_buffers():
        buffer.fill_(1 if name.endswith(("running_var", "spread")) else 0)
