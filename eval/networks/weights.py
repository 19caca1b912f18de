"""From a network's description to a module with weights: a folder of state dicts, or an explicit "untrained"."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import pkgutil
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eval.networks
from eval.networks.base import Network

UNTRAINED = "untrained"
"""The literal that asks for random weights; nothing else ever gives them."""
UNTRAINED_SEED = 0
SHIPPED = Path(__file__).parent / "weights"


class MissingWeightsError(FileNotFoundError):
    """Weights that are not on this machine; the message says what to fetch and where to put it."""


class WrongWeightsError(ValueError):
    """A weights file that is not a state dict, or one of another network."""


@dataclass(frozen=True)
class WeightsEntry:
    """One weights file and whether it is here.

    Attributes:
        name: The network.
        file: Its name in a weights folder.
        path: Where it was found; None where it is missing.
        sha256: Of what was found.
        source: Where it comes from, for people.
        url: Where it can be downloaded; empty where that needs a step by hand, which `source` names.
    """

    name: str
    file: str
    path: Path | None
    sha256: str | None
    source: str
    url: str


def places(network: Network, folder: Path | str | None = None) -> tuple[Path, ...]:
    """Return where a network's weights may lie, in the order of the search.

    The given folder; `$RECONBENCH_HOME/weights` (`.reconbench/weights` where that is not set); torch's cache under the
    published file's own name (`$TORCH_HOME/hub/checkpoints`), where torchvision puts what it downloads.
    """
    if network.shipped:
        return (SHIPPED / network.weights_file,)
    given = (Path(folder) / network.weights_file,) if folder is not None else ()
    home = _home() / network.weights_file
    if not network.url:
        return (*given, home)
    return (*given, home, Path(torch.hub.get_dir()) / "checkpoints" / network.url.rpartition("/")[2])


def locate(network: Network, weights: Path | str | None, *, download: bool = False) -> Path | None:
    """Find the weights file of a network.

    Args:
        network: Which network.
        weights: A folder that holds files by the names of `Network.weights_file` and is searched first; "untrained";
            or None for the usual places only.
        download: Fetch what is in none of the places, into the given folder or `$RECONBENCH_HOME/weights`. Nothing is
            ever fetched without this.

    Returns:
        The file, or None for random weights.

    Raises:
        MissingWeightsError: If the file is in none of the places and is not to be, or cannot be, downloaded.
        WrongWeightsError: If a download is not the published file.
    """
    if weights == UNTRAINED:
        return None
    searched = places(network, weights)
    for path in searched:
        if path.is_file():
            return path
    if not download:
        raise MissingWeightsError(_missing(network, searched, weights is not None))
    return fetch(network, searched[0])


def fetch(network: Network, path: Path) -> Path:
    """Download the published weights of a network to a path.

    Published files of torchvision carry the start of their sha256 in their name; it is checked.

    Raises:
        MissingWeightsError: If there is nothing that can be downloaded as it is.
        WrongWeightsError: If what came is not the published file; it is not kept.
    """
    if not network.url:
        raise MissingWeightsError(f"{network.weights_file} cannot be downloaded as it is: it is {network.source}")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = re.search(r"-([0-9a-f]{8})\.pth$", network.url)
    try:
        torch.hub.download_url_to_file(network.url, str(path), prefix.group(1) if prefix else None, progress=False)
    except RuntimeError as error:
        raise WrongWeightsError(f"{network.url} did not give the published file: {error}") from error
    return path


def inventory(folder: Path | str | None = None) -> list[WeightsEntry]:
    """Return one entry for each network of `eval.networks`, by name, found or not.

    Args:
        folder: Searched before the usual places.
    """
    entries = []
    for network in networks():
        path = next((path for path in places(network, folder) if path.is_file()), None)
        sha256 = _sha256(path) if path else None
        entries.append(WeightsEntry(network.name, network.weights_file, path, sha256, network.source, network.url))
    return entries


def networks() -> list[Network]:
    """Return all networks of this folder by name: a new network is a new file and no other edit."""
    modules = (importlib.import_module(f"eval.networks.{m.name}") for m in pkgutil.iter_modules(eval.networks.__path__))
    return [module.NETWORK for module in modules if hasattr(module, "NETWORK")]


def digest(network: Network, weights: Path | str | None) -> str:
    """Return the sha256 of the weights file, or "untrained:<seed>"; "+" and that of a companion where there is one.

    Raises:
        MissingWeightsError: If the file is not there.
    """
    path = locate(network, weights)
    own = _sha256(path) if path else f"{UNTRAINED}:{UNTRAINED_SEED}"
    return f"{own}+{_sha256(_companion(network))}" if network.companion else own


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
        if network.companion:  # what comes with a dependency is never random
            module.load_state_dict(_read(_companion(network)), strict=False)
    else:
        extra = _read(_companion(network)) if network.companion else {}
        state = _own_entries(network, _read(path)) | extra
        _check_entries(path, module.state_dict(), state)
        module.load_state_dict(state, strict=False)
    return module


def _home() -> Path:
    return Path(os.environ.get("RECONBENCH_HOME", ".reconbench")).expanduser() / "weights"


def _missing(network: Network, searched: Sequence[Path], folder_given: bool) -> str:
    """Say what is missing, where it was sought and what to do."""
    if folder_given:
        needed = f"{searched[0]}, which does not exist. It is the plain state dict of {network.source}; save it there"
    else:
        needed = f"{network.weights_file} ({network.source}): pass weights=FOLDER that holds it"
    elsewhere = ", ".join(str(path) for path in searched[folder_given:])
    random = f"weights={UNTRAINED!r} for random weights, which marks the result"
    return f"{network.name} needs {needed}, or {random}. Nor is there {elsewhere}"


def _companion(network: Network) -> Path:
    assert network.companion is not None
    path = network.companion()
    if not path.is_file():
        raise MissingWeightsError(f"{network.name} needs {path}, which this installation lacks: {network.source}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
