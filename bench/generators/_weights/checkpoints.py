"""Where the files of a published model are found: a folder given, `$RECONBENCH_HOME/weights`, the Hub's cache, the Hub.

A generator names its `Checkpoint`s; nothing is fetched without the option `download`, nothing is random without the
option `untrained`. What is found is read by `bench.generators._weights.frozen`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.core.storage import Folder, home
from bench.generators._weights.frozen import UNTRAINED_SEED, pretrained, tensors_in
from bench.generators.base import MissingWeightsError, WeightsSize, safetensors_size

_LOG = logging.getLogger(__name__)
_PLACE = {"stage": "place"}  # where files lie decides no result: their digest does


@dataclass(frozen=True)
class Checkpoint:
    """The files of one published model.

    Attributes:
        name: Its folder below `$RECONBENCH_HOME/weights`, or below the folder that the option `weights` names.
        files: What is used of it: names or glob patterns relative to the folder. Alternatives stand in one entry, the
            published one first: `unet/model.safetensors|unet/model.bin`.
        licence: Its licence, by its usual name.
        terms: What the licence asks of those who use it, in a sentence.
        repository: Hub repository; empty for files published elsewhere.
        revision: Branch, tag or commit of the repository.
        url: Address below which the files lie, where there is no repository.
    """

    name: str
    files: tuple[str, ...]
    licence: str
    terms: str
    repository: str = ""
    revision: str = "main"
    url: str = ""

    @property
    def source(self) -> str:
        """Where it is published, for people."""
        return f"{self.repository} (revision {self.revision}) on the Hugging Face Hub" if self.repository else self.url


@dataclass(frozen=True)
class CheckpointOptions:
    """What every generator with published weights can be told about them; its `Options` extend this.

    Attributes:
        weights: A folder laid out as `$RECONBENCH_HOME/weights` (a folder a checkpoint), searched first.
        download: Fetch what is nowhere on this machine into `$RECONBENCH_HOME/weights`.
        untrained: Seeded random weights at full size, which marks the result; no file is looked for.
    """

    weights: str | None = field(default=None, metadata=_PLACE)
    download: bool = field(default=False, metadata=_PLACE)
    untrained: bool = False

    def __post_init__(self) -> None:
        # Silently ignoring a folder of weights would give noise where a picture was expected.
        if self.untrained and (self.weights is not None or self.download):
            raise ValueError("untrained asks for random weights: neither weights nor download goes with it")


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this machine.

    Attributes:
        checkpoint: Which.
        folder: Where it lies.
        files: The names that are used of it, relative to the folder, sorted.
    """

    checkpoint: Checkpoint
    folder: Path
    files: tuple[str, ...]

    def network(self, kind: Any, part: str, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401 - a library's
        """Return the frozen network of a diffusers or transformers class from a folder of the checkpoint.

        Raises:
            CorruptFileError: If the folder cannot be read, or holds the weights of another network.
        """
        return pretrained(kind, self.folder / part, self.safetensors(f"{part}/"), dtype, device)

    def safetensors(self, part: str) -> bool:
        """Say whether the weights of a part (a folder, or the start of a file's name) are a safetensors file."""
        return any(name.startswith(part) and name.endswith(".safetensors") for name in self.files)

    def tensors(self) -> list[Path]:
        """Return the paths of the files that hold weights."""
        kinds = {".safetensors", ".bin", ".pth", ".th", ".pt"}
        return [self.folder / name for name in self.files if Path(name).suffix in kinds]


def find(checkpoint: Checkpoint, options: CheckpointOptions) -> LocalCheckpoint:
    """Return where a checkpoint lies; a folder that lacks a file is passed over and named in the error.

    Raises:
        MissingWeightsError: If it is whole in no place and is not to be, or cannot be, downloaded.
    """
    searched = []
    for folder in _places(checkpoint, options.weights):
        files, lacks = _files_in(checkpoint, folder)
        if not lacks:
            return LocalCheckpoint(checkpoint, folder, files)
        searched.append((folder, lacks))
    if not options.download:
        raise MissingWeightsError(_missing(checkpoint, searched, options))
    folder = home() / "weights" / checkpoint.name
    # The terms before the bytes: whoever downloads has seen what binds them.
    _LOG.warning("%s comes from %s. %s", checkpoint.name, checkpoint.source, _terms(checkpoint))
    _download(checkpoint, folder)
    files, lacks = _files_in(checkpoint, folder)
    if lacks:
        raise MissingWeightsError(f"{checkpoint.source} has no file {lacks[0]}, which {checkpoint.name} needs")
    return LocalCheckpoint(checkpoint, folder, files)


def weights_digest(checkpoints: Sequence[Checkpoint], options: CheckpointOptions) -> str:
    """Return the sha256 over the names and contents of all files used, or `untrained:<seed>`.

    Raises:
        MissingWeightsError: If a checkpoint is not there.
    """
    # The seed decides random weights, so it stands in their digest's place.
    if options.untrained:
        return f"untrained:{UNTRAINED_SEED}"
    total = hashlib.sha256()
    for checkpoint in checkpoints:
        found = find(checkpoint, options)
        for name in found.files:
            # Names too: two files that changed places would be another model of the same bytes.
            total.update(f"{checkpoint.name}/{name}".encode() + b"\0" + bytes.fromhex(_sha256(found.folder / name)))
    return total.hexdigest()


def weights_size(checkpoints: Sequence[Checkpoint], options: CheckpointOptions) -> WeightsSize:
    """Return the size of the weight files of checkpoints that are there, from their headers alone.

    Raises:
        MissingWeightsError: If a checkpoint is not there.
        CorruptFileError: If a plain PyTorch file is none.
    """
    paths = [path for checkpoint in checkpoints for path in find(checkpoint, options).tensors()]
    size = safetensors_size([path for path in paths if path.suffix == ".safetensors"])
    for path in paths:
        if path.suffix != ".safetensors":
            numbers = sum(tensor.numel() for tensor in tensors_in(path))
            size = WeightsSize(size.parameters + numbers, size.bytes + path.stat().st_size)
    return size


def _places(checkpoint: Checkpoint, weights: str | None) -> list[Path]:
    """Return the folders to search, in order; the Hub's cache only where it knows the repository.

    Raises:
        MissingWeightsError: If `weights` names no folder: a misspelt one must not mean another.
    """
    if weights is not None and not Path(weights).expanduser().is_dir():
        raise MissingWeightsError(
            f"option weights: there is no folder {weights} in which to look for {checkpoint.name}"
        )
    # What the user named comes first, so that it is never passed over for an older copy elsewhere.
    places = [Path(weights).expanduser() / checkpoint.name] if weights is not None else []
    places.append(home() / "weights" / checkpoint.name)
    if not checkpoint.repository:
        return places
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        places.append(
            Path(snapshot_download(checkpoint.repository, revision=checkpoint.revision, local_files_only=True))
        )
    except LocalEntryNotFoundError as error:
        # A snapshot that holds only some files of the repository may hold all that are needed.
        if partial := getattr(error, "snapshot_path", None):
            places.append(Path(partial))
    return places


def _files_in(checkpoint: Checkpoint, folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """Return the files of a checkpoint in a folder, by name, and the entries that nothing there matches."""
    files: set[str] = set()
    lacks = []
    for entry in checkpoint.files:
        matches = (sorted(path for path in folder.glob(each) if path.is_file()) for each in entry.split("|"))
        # Alternatives of an entry are in order of preference: safetensors and PyTorch files of one part hold the same.
        first = next((paths for paths in matches if paths), None)
        if first is None:
            lacks.append(entry.split("|")[0])
        else:
            files.update(path.relative_to(folder).as_posix() for path in first)
    return tuple(sorted(files)), lacks


def _missing(checkpoint: Checkpoint, searched: Sequence[tuple[Path, Sequence[str]]], options: CheckpointOptions) -> str:
    """Say what is missing, where it was sought, and what to do."""
    places = "; ".join(
        f"{folder} lacks {', '.join(lacks)}" if folder.is_dir() else f"there is no {folder}"
        for folder, lacks in searched
    )
    cached = not checkpoint.repository or len(searched) > 1 + (options.weights is not None)
    cache = "" if cached else "; nor is it in the Hub's cache"
    put = home() / "weights" / checkpoint.name
    return (
        f"the weights {checkpoint.name} are not on this machine: {places}{cache}. Put "
        f"{', '.join(entry.split('|')[0] for entry in checkpoint.files)} of {checkpoint.source} into {put}, set the "
        f"option weights to a folder that holds {checkpoint.name}/, or set download: true. {_terms(checkpoint)}"
    )


def _terms(checkpoint: Checkpoint) -> str:
    return f"Licence: {checkpoint.licence}. {checkpoint.terms}"


def _download(checkpoint: Checkpoint, folder: Path) -> None:
    """Fetch the published files into a folder; what an interrupted download left is completed.

    Raises:
        MissingWeightsError: If the source cannot be reached or refuses.
    """
    wanted = [entry.split("|")[0] for entry in checkpoint.files]
    try:
        if checkpoint.repository:
            from huggingface_hub import snapshot_download

            place, revision = checkpoint.repository, checkpoint.revision
            snapshot_download(place, revision=revision, allow_patterns=wanted, local_dir=folder)
            return
        for name in wanted:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # Writes aside and renames: a file under its name is whole.
            torch.hub.download_url_to_file(f"{checkpoint.url}/{name}", str(folder / name), progress=False)
    except OSError as error:
        raise MissingWeightsError(f"{checkpoint.name} cannot be downloaded from {checkpoint.source}: {error}") from None


def _sha256(path: Path) -> str:
    """Return a file's sha256, hashed once for a path, size and time of change: weights are gigabytes."""
    real = path.resolve()
    stat = real.stat()
    key = hashlib.sha256(f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}".encode()).hexdigest()
    known = Folder.at(home() / "hashes")
    if known.exists(key):
        return known.read_bytes(key).decode()
    with real.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known.write_bytes(key, sha256.encode())
    return sha256
