"""Makes the parts of target shards: what an encoding actor does with its share of a stimuli set."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.data.shards.manifest import FileEntry, read_checked
from bench.data.shards.targets import write_targets
from bench.data.sources.pictures import decode
from bench.generators.base import Generator, MissingWeightsError, Stimuli
from bench.generators.choice import GeneratorChoice

ENCODE_BATCH = 32
"""Stimuli encoded at once. Fixed, as are the threads and the parts, so that rounding is the same in every run."""

PART_ERRORS = (BadDataError, CorruptFileError, MissingDataError, MissingWeightsError)
"""What can be wrong with a set of stimuli or a node's weights."""


@dataclass(frozen=True)
class TargetPart:
    """One file of each target's shards, to be made.

    Attributes:
        source: The stimuli file it is made from.
        first: First row within that file.
        rows: Number of rows.
        name: File name of the part.
    """

    source: FileEntry
    first: int
    rows: int
    name: str


@dataclass(frozen=True)
class EncodingJob:
    """What an encoding actor needs to know, whichever part it makes.

    Attributes:
        generator: The generator.
        stimuli: The stimuli set.
        folders: Where each target goes.
    """

    generator: GeneratorChoice
    stimuli: Folder
    folders: Mapping[str, Folder]


class PartMaker:
    """An actor that makes parts; it loads the generator for its first part that is not there yet."""

    def __init__(self, job: EncodingJob, parts: list[TargetPart]) -> None:
        self._job, self._parts = job, parts
        self._generator: Generator | None = None
        self._table: tuple[str, pa.Table] = ("", pa.table({}))
        torch.set_num_threads(1)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Make one part of each target; what the user can mend comes back as text, not buried in Ray's own errors."""
        part = self._parts[int(batch["part"][0])]
        try:
            return {"error": [""], "message": [""], **self._entries(part)}
        except PART_ERRORS as error:
            return {"error": [type(error).__name__], "message": [str(error)], "name": [part.name]}

    def _entries(self, part: TargetPart) -> dict[str, list[Any]]:
        """Return name, rows, sizes and checksums of a part of each target, made or found."""
        found = {name: self._existing(folder, part) for name, folder in self._job.folders.items()}
        done = {name: entry for name, entry in found.items() if entry is not None}
        if todo := [name for name in found if name not in done]:
            done |= self._make(part, todo)
        row: dict[str, list[Any]] = {"name": [part.name], "rows": [part.rows]}
        for name, entry in done.items():
            row |= {f"size:{name}": [entry.size], f"sha256:{name}": [entry.sha256]}
        return row

    def _existing(self, folder: Folder, part: TargetPart) -> FileEntry | None:
        """Return the entry of a part that an earlier run left, or None where it left none that can be read."""
        if not folder.exists(part.name):
            return None
        try:
            rows = folder.read_table(part.name, columns=["stimulus"]).num_rows
        except CorruptFileError:
            return None
        if rows != part.rows:
            return None
        return FileEntry(part.name, rows, folder.size(part.name), folder.sha256(part.name))

    def _make(self, part: TargetPart, names: Sequence[str]) -> dict[str, FileEntry]:
        """Encode a part and write it once for each target."""
        table = self._rows(part)
        stimulus = table["stimulus"].to_numpy()
        values: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for first in range(0, part.rows, ENCODE_BATCH):
            rows = table.slice(first, ENCODE_BATCH)
            seeds = [picture_seed(int(number)) for number in rows["stimulus"].to_pylist()]
            made = self._loaded().encode(stimuli_of(rows), names, seeds)
            for name in names:
                values[name].append(checked_values(made[name], self._job.generator, name, rows.num_rows))
        return {
            name: write_targets(self._job.folders[name], part.name, stimulus, np.concatenate(values[name]))
            for name in names
        }

    def _loaded(self) -> Generator:
        """Return the generator, loaded once, on the actor's GPU where it has one."""
        if self._generator is None:
            device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
            self._generator = self._job.generator.load(device)
        return self._generator

    def _rows(self, part: TargetPart) -> pa.Table:
        """Return a part's stimuli; its file is read and checked once for all its parts on this actor."""
        if self._table[0] != part.source.path:
            content = read_checked(self._job.stimuli, part.source)
            self._table = (part.source.path, pq.read_table(io.BytesIO(content)))
        return self._table[1].slice(part.first, part.rows)


def stimuli_of(table: pa.Table) -> Stimuli:
    """Return rows of a stimuli table with their pictures decoded.

    Raises:
        CorruptFileError: If a picture cannot be decoded.
        BadDataError: If pictures of one batch differ in size.
    """
    pairs = zip(table["stimulus"].to_pylist(), table["image"].to_pylist(), strict=True)
    images = [decode(content, f"the image of stimulus {number}") for number, content in pairs]
    if len(sizes := {image.shape for image in images}) != 1:
        raise BadDataError(f"stimuli of one batch differ in size: {sorted(sizes)}")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Stimuli(pixels, table["captions"].to_pylist(), table["label"].to_pylist())


def checked_values(values: torch.Tensor, chosen: GeneratorChoice, name: str, rows: int) -> np.ndarray:
    """Return a generator's targets as an array after holding them against what it declares.

    Raises:
        BadDataError: If shape or dtype are not the declared ones, or a value is NaN or infinite.
    """
    spec, array = chosen.target(name), values.numpy()
    if array.shape != (rows, *spec.shape) or array.dtype != spec.dtype:
        raise BadDataError(
            f"generator {chosen.name!r} declares target {name!r} as {spec.shape} {spec.dtype}, "
            f"but made {array.shape[1:]} {array.dtype} for {array.shape[0]} of {rows} stimuli"
        )
    if not np.isfinite(array).all():
        raise BadDataError(f"generator {chosen.name!r} made NaN or infinite values for target {name!r}")
    return array
