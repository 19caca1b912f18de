"""Blocks of targets on disk, so that a wide head never is in memory whole."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


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
        weakref.finalize(blocks, shutil.rmtree, blocks.directory, ignore_errors=True)
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
        save_file({"cross": values.detach().cpu().contiguous()}, path)

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
