"""From a network's description to a module with weights: a folder of state dicts, or an explicit "untrained"."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import eval.networks
from eval._listing import objects
from eval.networks._download import Advance, download
from eval.networks._state_file import check_entries, own_entries, read_state, sha256_of
from eval.networks.base import Network

UNTRAINED = "untrained"
"""The literal that asks for random weights; nothing else ever gives them."""
UNTRAINED_SEED = 0


class MissingWeightsError(FileNotFoundError):
    """Weights that are not on this machine; the message says what to fetch and where to put it."""


@dataclass(frozen=True)
class WeightsEntry:
    """One weights file and whether it is here.

    Attributes:
        name: The network.
        file: Its name in a weights folder.
        path: Where it was found; None where it is missing.
        sha256: Of what was found.
        source: Where it comes from, for people.
        url: Where it can be downloaded; empty where it is part of the package.
        terms: Licence of the weights.
    """

    name: str
    file: str
    path: Path | None
    sha256: str | None
    source: str
    url: str
    terms: str


def places(network: Network, folder: Path | str | None = None) -> tuple[Path, ...]:
    """Return where a network's weights may lie, in the order of the search.

    The given folder; `$RECONBENCH_HOME/weights` (`.reconbench/weights` where that is not set); the cache into which the
    usual tools download it, under the published file's own name: torch's (`$TORCH_HOME/hub/checkpoints`), or CLIP's.
    """
    if network.shipped:
        return (network.shipped,)
    given = (Path(folder) / network.weights_file,) if folder is not None else ()
    usual = home() / network.weights_file
    if not network.url:
        return (*given, usual)
    return (*given, usual, network.cache() / network.url.rpartition("/")[2])


def locate(network: Network, weights: Path | str | None) -> Path | None:
    """Find the weights file of a network. Nothing is ever downloaded here; see `fetch`.

    Args:
        network: Which network.
        weights: A folder that holds files by the names of `Network.weights_file` and is searched first; "untrained";
            or None for the usual places only.

    Returns:
        The file, or None for random weights.

    Raises:
        MissingWeightsError: If the file is in none of the places.
    """
    if weights == UNTRAINED:
        return None
    searched = places(network, weights)
    for path in searched:
        if path.is_file():
            return path
    raise MissingWeightsError(_missing(network, searched, weights is not None))


def fetch(network: Network, folder: Path | str | None = None, advance: Advance | None = None) -> Path:
    """Download the published weights of a network, unless they are here.

    Args:
        network: Which network.
        folder: Where they go; None for `$RECONBENCH_HOME/weights`.
        advance: Is told of bytes as they come.

    Returns:
        The file: the one that was there, or the one that was fetched and whose digest was checked where it is known.

    Raises:
        MissingWeightsError: If nothing is published that can be downloaded.
        DownloadError: If it could not be fetched, or what came is not the published file; that is not kept.
    """
    searched = places(network, folder)
    for path in searched:
        if path.is_file():
            return path
    if not network.url:
        raise MissingWeightsError(f"{network.weights_file} cannot be downloaded: it is {network.source}")
    download(network.url, searched[0], network.published_digest, advance)
    return searched[0]


def inventory(folder: Path | str | None = None) -> list[WeightsEntry]:
    """Return one entry for each network of `eval.networks`, by name, found or not.

    Args:
        folder: Searched before the usual places.
    """
    entries = []
    for network in networks():
        path = next((path for path in places(network, folder) if path.is_file()), None)
        sha256 = _sha256(path) if path else None
        source = network.source, network.url, network.terms
        entries.append(WeightsEntry(network.name, network.weights_file, path, sha256, *source))
    return entries


def networks() -> list[Network]:
    """Return all networks of this folder by name: a new network is a new file and no other edit."""
    return list(objects(eval.networks, Network).values())


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
    module = _outline(network)
    state = _checked_state(network, path, module) if path else None
    module = module.to_empty(device=device).eval().requires_grad_(False)
    if state is not None:
        module.load_state_dict(state, strict=False)
        return module
    _initialise(module, network)
    if network.companion:  # what comes with a dependency is never random
        module.load_state_dict(read_state(_companion(network), network), strict=False)
    return module


def verify(network: Network, weights: Path | str | None) -> None:
    """Check that a network's weights are on this machine and are its own, without keeping them.

    Raises:
        MissingWeightsError: If the weights are not there.
        WrongWeightsError: If the file is not a state dict of this network.
    """
    path = locate(network, weights)
    if path:
        _checked_state(network, path, _outline(network))


def _outline(network: Network) -> nn.Module:
    """Return the network without memory, and without the parts that no tap needs."""
    with torch.device("meta"):  # nor default initialisation, which takes longer than everything else
        module = network.build()
    for name in network.unused:
        module.set_submodule(name, nn.Identity())
    return module


def _checked_state(network: Network, path: Path, outline: nn.Module) -> dict[str, Tensor]:
    """Return what a weights file and the network's companion hold for a network."""
    extra = read_state(_companion(network), network) if network.companion else {}
    state = own_entries(network, read_state(path, network)) | extra
    check_entries(path, outline.state_dict(), state)
    return state


def home() -> Path:
    """Return the folder of weights that is searched by default: `$RECONBENCH_HOME/weights`."""
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
    """Return the sha256 of a file, read again only after it changed: ViT-H/14 alone has 2.5 GB."""
    state = path.stat()
    return _sha256_then(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_then(path: Path, size: int, changed_ns: int) -> str:
    """Return the sha256 of a file that had a size and a time of change."""
    return sha256_of(path)


def _initialise(module: nn.Module, network: Network) -> None:
    """Fill with seeded normal weights of variance 2 / fan-in (He et al. 2015), zero biases, neutral normalisation."""
    # A seed of its own for each network: two of one architecture must not be the same network twice.
    generator = torch.Generator().manual_seed(UNTRAINED_SEED + zlib.crc32(network.name.encode()))
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.LayerNorm | nn.BatchNorm2d) or name.endswith("bias"):
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            # Drawn on the CPU: the same numbers on every device. There in place, which spares a third of the time.
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            drawn = parameter if parameter.device.type == "cpu" else torch.empty(parameter.shape)
            drawn.normal_(0, (2 / max(fan_in, 1)) ** 0.5, generator=generator)
            if drawn is not parameter:
                parameter.copy_(drawn)
    # Neutral statistics: means of zero, variances and spreads of one.
    for name, buffer in module.named_buffers():
        buffer.fill_(1 if name.endswith(("running_var", "spread")) else 0)
