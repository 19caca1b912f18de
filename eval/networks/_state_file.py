"""Reads a network's state dict from a file of whatever form it was published in; nothing but tensors is unpickled."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from eval.networks.base import Network


class WrongWeightsError(ValueError):
    """A weights file that is not a state dict, or one of another network."""


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path, network: Network) -> dict[str, Tensor]:
    """Return all entries of a weights file.

    Args:
        path: `.safetensors`, a plain `torch.save`d state dict, a training checkpoint that holds one under
            `state_dict`, or the TorchScript archive that CLIP is published as.
        network: Whose weights these are.

    Raises:
        WrongWeightsError: If it is none of these.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    if _is_torchscript(path):
        return _published_archive(path, network)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise WrongWeightsError(f"{path} is not a state dict saved with torch.save: {error}") from error
    # Training checkpoints keep the state dict under a key of its own.
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WrongWeightsError(f"{path} must hold a state dict (names to tensors), got {type(content).__name__}")
    return dict(content)


def own_entries(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's own entries, without their prefix and without what no tap needs."""
    if network.prefix and any(name.startswith(network.prefix) for name in state):
        state = {
            name.removeprefix(network.prefix): value for name, value in state.items() if name.startswith(network.prefix)
        }
    ignored = (*(f"{name}." for name in network.unused), *network.foreign)
    return {name: value for name, value in state.items() if not name.startswith(ignored)}


def check_entries(path: Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that a state dict has exactly the entries of a module.

    Raises:
        WrongWeightsError: If entries are missing, unknown or of another shape; names the first of each.
    """
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


def _is_torchscript(path: Path) -> bool:
    """Say whether a file is an archive of code and tensors, as `torch.jit.save` writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _published_archive(path: Path, network: Network) -> dict[str, Tensor]:
    """Return the state of a TorchScript archive, which holds code: only the published file itself is opened.

    Raises:
        WrongWeightsError: If it is another file than the published one.
    """
    found = sha256_of(path)
    if len(network.sha256) != len(found) or found != network.sha256:
        known = f"; the published one has {network.sha256}" if network.sha256 else ""
        raise WrongWeightsError(
            f"{path} is a TorchScript archive with sha256 {found}{known}. Such archives hold code: save the plain "
            "state dict instead, torch.save(model.state_dict(), ...)"
        )
    with warnings.catch_warnings():  # torch has marked TorchScript as outdated; CLIP is published as nothing else
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
