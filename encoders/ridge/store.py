"""What a ridge regression keeps on disk: cross-products of a wide head, and factorisations that are being compared."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from encoders._shared.state import save_tensors
from encoders.ridge.gram import Factorisation


@dataclass(frozen=True)
class StoredBlock:
    """A stored run of targets with what turns it into predictions.

    Attributes:
        start: First target.
        cross: `(r, width)` cross-products, each target's with the factorisation it uses.
        alpha: `(width,)`.
        mean: `(width,)` of the targets.
        candidate: `(width,)` int64, the factorisation each target uses.
    """

    start: int
    cross: torch.Tensor
    alpha: torch.Tensor
    mean: torch.Tensor
    candidate: torch.Tensor

    def times(self, rows: Sequence[torch.Tensor], eigenvalues: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `(N, width)`: rows of a target's factorisation times its block.

        Args:
            rows: For each factorisation `(N, r)`.
            eigenvalues: For each factorisation `(r,)`.
        """
        if len(rows) == 1:
            return _apply(rows[0], eigenvalues[0], self.cross, self.alpha)
        values = self.cross.new_zeros(rows[0].shape[0], self.cross.shape[1])
        for number in (int(n) for n in self.candidate.unique()):
            mine = self.candidate == number
            values[:, mine] = _apply(rows[number], eigenvalues[number], self.cross[:, mine], self.alpha[mine])
        return values


def _apply(rows: torch.Tensor, eigenvalues: torch.Tensor, cross: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return `rows @ diag(1 / (s + alpha_t)) @ cross` for every target t.

    Args:
        rows: `(N, r)`.
        eigenvalues: `(r,)`.
        cross: `(r, width)`.
        alpha: `(width,)`.
    """
    # One alpha scales the few rows instead of the wide block.
    if bool((alpha == alpha[0]).all()):
        return (rows / (eigenvalues + alpha[0])) @ cross
    return rows @ (cross / (eigenvalues[:, None] + alpha))


class TargetBlocks:
    """A folder of safetensors files, one for each subject, head and run of targets. Files are never changed."""

    def __init__(self, directory: Path) -> None:
        """Use a folder.

        Args:
            directory: An existing folder, empty or written by `copy_to`.
        """
        self.directory = directory

    @classmethod
    def temporary(cls) -> TargetBlocks:
        """Return an empty store in the system's temporary folder (`TMPDIR`) that is deleted with the object."""
        blocks = cls(Path(tempfile.mkdtemp(prefix="target-blocks-")))
        _delete_with(blocks, blocks.directory)
        return blocks

    def put(self, subject: int, head: int, start: int, values: torch.Tensor) -> None:
        """Write one block.

        Args:
            subject: Whose.
            head: Number of the head in the fit.
            start: First target.
            values: `(r, width)`.
        """
        path = self.directory / f"block-{subject}-{head}-{start:09d}.safetensors"
        save_tensors({"cross": values}, path)

    def blocks(self, subject: int, head: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the first target and the `(r, width)` values of each block, in order.

        Raises:
            FileNotFoundError: If there is none.
        """
        paths = sorted(self.directory.glob(f"block-{subject}-{head}-*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{self.directory} holds no target blocks of subject {subject}, head {head}")
        for path in paths:
            yield int(path.stem.rsplit("-", 1)[1]), load_file(path)["cross"]

    def copy_to(self, directory: Path) -> None:
        """Put every block into another folder, as a hard link where the file system allows it."""
        for path in sorted(self.directory.glob("block-*.safetensors")):
            # A link costs nothing where Brain-Diffuser's heads would copy ten gigabytes.
            try:
                os.link(path, directory / path.name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, directory / path.name)


class Candidates:
    """Factorisations waiting on disk until every candidate has been compared, so that each is made once.

    At NSD's size one is 1.7 GB in float64; only one is in memory at a time.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ridge-candidates-"))
        _delete_with(self, self._folder)

    def put(self, number: int, factor: Factorisation) -> None:
        """Store the factorisation of a candidate."""
        save_tensors(factor.tensors(), self._path(number))

    def get(self, number: int, device: torch.device) -> Factorisation:
        """Return the factorisation of a candidate on a device."""
        named = load_file(self._path(number))
        return Factorisation.from_tensors({name: tensor.to(device) for name, tensor in named.items()})

    def keep_only(self, numbers: Sequence[int]) -> None:
        """Delete the candidates that no target prefers."""
        kept = {self._path(number) for number in numbers}
        for path in self._folder.glob("*.safetensors"):
            if path not in kept:
                path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"


def _delete_with(owner: object, folder: Path) -> None:
    """Delete a temporary folder when its owner is collected or the process ends."""
    # Not in `__del__`, which an interpreter that shuts down may call too late to delete anything.
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
