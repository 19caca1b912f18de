"""The plug-in point: metrics of anybody's own, scored beside a protocol's and never part of its ranking.

A plug-in is a `Plugin` object. It is asked for by name where it lies in this folder (`seed`), or as `module:OBJECT`
from any importable module, so a package of your own needs no change here:

    # my_package/sharpness.py
    from eval.plugins.base import Column, Inputs, Plugin

    def compute(inputs: Inputs) -> dict[str, Tensor]:  # one value a sample and image, (S, N)
        return {"sharpness": torch.stack([laplacian(s) for s in inputs.reconstructions.unbind(1)])}

    SHARPNESS = Plugin("sharpness", version=1, summary="...", columns=(Column("sharpness", "Sharp"),), compute=compute)

    reconbench score ... --metric my_package.sharpness:SHARPNESS
    score(reconstructions, truth, "mindeye2", plugins=["my_package.sharpness:SHARPNESS"])

Its name, version and the digests of the weights it declares are part of the score's identity and of the record.

Shape legend: N images, S samples of an image.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import eval.plugins
from eval import _listing
from eval.networks import _weights as network_weights
from eval.networks._state_file import sha256_of
from eval.networks._weights import MissingWeightsError
from eval.networks.base import Network


@dataclass(frozen=True)
class Column:
    """One number a plug-in gives each image: name and heading, direction, and its value for random pairings."""

    name: str
    label: str
    higher_is_better: bool = True
    chance: float | None = None


@dataclass(frozen=True)
class Inputs:
    """What a plug-in may look at.

    Attributes:
        reconstructions: `(N, S, 3, H, W)`, uint8 or floating point in [0, 1], of the size they came in.
        truth: `(N, 3, H, W)`, likewise.
        weights: Folder of weights that is searched first, or None.
        device: Where to compute.
        batch: Pictures a forward pass.
    """

    reconstructions: Tensor
    truth: Tensor
    weights: Path | str | None
    device: torch.device
    batch: int


@dataclass(frozen=True)
class Model:
    """A folder in the layout of the Hugging Face hub that a plug-in loads.

    Attributes:
        name: Of the folder within a weights folder.
        repository: On the hub; its cache on this machine is searched too.
        files: What must be there; their digests go on the record.
        terms: Licence.
    """

    name: str
    repository: str
    files: tuple[str, ...]
    terms: str


@dataclass(frozen=True)
class Plugin:
    """A metric of somebody's own.

    Attributes:
        name: Of the plug-in.
        version: Raised whenever a value it gives would change.
        summary: What it computes, and after whom.
        columns: The numbers it gives.
        compute: From pictures to `(S, N)` values of every column.
        networks: Feature networks it loads with `eval.networks._weights.load`.
        models: Folders it loads.
    """

    name: str
    version: int
    summary: str
    columns: tuple[Column, ...]
    compute: Callable[[Inputs], Mapping[str, Tensor]] = field(repr=False)
    networks: tuple[Network, ...] = ()
    models: tuple[Model, ...] = ()

    def digests(self, weights: Path | str | None) -> dict[str, str]:
        """Return the sha256 of everything it loads, by the plug-in's and the part's name.

        Raises:
            MissingWeightsError: If something is not on this machine, or random weights were asked of a model.
        """
        found = {f"{self.name}/{each.name}": network_weights.digest(each, weights) for each in self.networks}
        return found | {f"{self.name}/{each.name}": _digest(locate(each, weights), each) for each in self.models}

    def values(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return `(N,)` float64 values of every column: the mean over samples.

        Raises:
            ValueError: If a column is missing, has another shape, or is not finite; names the image.
        """
        given, shape = self.compute(inputs), tuple(inputs.reconstructions.shape[1::-1])
        if set(given) != {column.name for column in self.columns}:
            raise ValueError(f"plug-in {self.name!r} declares {[c.name for c in self.columns]} and gave {list(given)}")
        for name, values in given.items():
            if tuple(values.shape) != shape:
                raise ValueError(f"plug-in {self.name!r} gave {name} of shape {tuple(values.shape)}, (S, N) is {shape}")
            bad = ~values.isfinite().all(0)
            if bad.any():
                raise ValueError(
                    f"plug-in {self.name!r} gave {name} of image {int(bad.nonzero()[0])} that is not finite"
                )
        return {column.name: given[column.name].double().mean(0).cpu() for column in self.columns}


def names() -> list[str]:
    """Return the names of the plug-ins of this folder."""
    return _listing.names(eval.plugins)


def find(reference: str | Plugin) -> Plugin:
    """Return a plug-in by its name in this folder, or as `module:OBJECT`.

    Raises:
        ValueError: If there is no such plug-in or module, or the object is none.
    """
    if isinstance(reference, Plugin):
        return reference
    module, colon, attribute = reference.partition(":")
    if not colon:
        if reference not in names():
            raise ValueError(f"{_listing.unknown('plug-in', reference, names())}; others as module:OBJECT")
        module, attribute = f"eval.plugins.{reference}", "PLUGIN"
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"plug-in {reference!r}: {error}; the module must be installed or on PYTHONPATH") from error
    if not isinstance(found, Plugin):
        raise ValueError(f"plug-in {reference!r}: {attribute} of {module} is {type(found).__name__}, not a Plugin")
    return found


def locate(model: Model, weights: Path | str | None) -> Path:
    """Return the folder of a model: in the given folder, `$RECONBENCH_HOME/weights`, or the hub's cache.

    Raises:
        MissingWeightsError: If it is nowhere, or random weights were asked for.
    """
    if weights == network_weights.UNTRAINED:
        raise MissingWeightsError(f"{model.name} has no untrained form: random weights neither detect nor describe")
    places = [Path(weights) / model.name] if weights is not None else []
    places += [network_weights.home() / model.name]
    places += [cached] if (cached := _cached(model)) else []
    for place in places:
        if all((place / file).is_file() for file in model.files):
            return place
    raise MissingWeightsError(
        f"{model.name} ({model.repository} on the Hugging Face hub; {model.terms}) is missing: put its files "
        f"{', '.join(model.files)} into {places[0]}. Searched: {', '.join(map(str, places))}"
    )


def _cached(model: Model) -> Path | None:
    """Return the model's folder in the hub's cache, without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.repository, model.files[0])
    return Path(found).parent if isinstance(found, str) else None


def _digest(folder: Path, model: Model) -> str:
    """Return one sha256 of the digests of a model's files."""
    total = hashlib.sha256()
    for file in sorted(model.files):
        total.update(f"{file} {sha256_of(folder / file)}\n".encode())
    return total.hexdigest()
