"""The spaces NSD's betas come in, behind one shape: volumes of a subject, and the surfaces of its two hemispheres.

A space knows where its atlases, noise ceilings and betas lie and reads them at chosen places: voxels (x, y, z) of a
volume, or vertices numbered through both hemispheres, left first. The other experiments of the dataset (NSD-synthetic,
NSD-imagery) keep their betas in the same spaces under other names.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.core.errors import MissingDataError
from bench.data.datasets.nsd import layout, surfaces, volumes
from bench.data.sources import nifti
from bench.data.sources.files import SourceFiles

HEMISPHERES = ("lh", "rh")


@dataclass(frozen=True)
class BetasFiles:
    """The files of one session's betas.

    Attributes:
        kind: `hdf5`, `nifti` or `mgh`.
        keys: One file, or one a hemisphere.
    """

    kind: str
    keys: tuple[str, ...]


class Space(abc.ABC):
    """Where a subject's betas lie."""

    dtype: str
    """NumPy type of the betas as stored."""

    scale: float
    """Factor from stored betas to percent signal change."""

    def __init__(self, files: SourceFiles, space: str, betas: str) -> None:
        """Remember where the files are; `betas` is the name of the betas' folder."""
        self.files, self.space, self.betas = files, space, betas

    def folder(self, subject: int) -> str:
        """Return the folder of a subject's betas."""
        return layout.betas_folder(subject, self.space, self.betas)

    @abc.abstractmethod
    def atlases(self, subject: int) -> list[str]:
        """Return the atlases a subject has.

        Raises:
            MissingDataError: If there are none.
        """

    @abc.abstractmethod
    def labels(self, subject: int, atlas: str) -> np.ndarray:
        """Return an atlas as int16: -1 not cortex, 0 unlabelled, 1...N; `(X, Y, Z)` or `(V,)`."""

    @abc.abstractmethod
    def labels_key(self, subject: int, atlas: str) -> str:
        """Return the key of an atlas, for messages."""

    @abc.abstractmethod
    def ncsnr(self, subject: int) -> np.ndarray | None:
        """Return the published noise-ceiling SNR, shaped like the labels; None where the copy has no map."""

    @abc.abstractmethod
    def find(self, subject: int, stem: str) -> BetasFiles | None:
        """Return the files of betas, `betas_session01` or what another experiment calls them, or None."""

    @abc.abstractmethod
    def candidates(self, subject: int, stem: str) -> list[str]:
        """Return the keys any of which would do, for messages."""

    @abc.abstractmethod
    def needed(self, betas: BetasFiles, voxels: int, trials: int) -> int:
        """Return the bytes that reading some voxels takes at least."""

    @abc.abstractmethod
    def read(
        self, subject: int, betas: BetasFiles, coordinates: np.ndarray, atlas: str, trials: int
    ) -> tuple[np.ndarray, int]:
        """Return betas `(trials, V)` as stored and the bytes read.

        Args:
            subject: From 1.
            betas: The files.
            coordinates: `(V, 3)` or `(V, 1)` int32.
            atlas: One that the coordinates came from: its shape is the betas'.
            trials: Trials the design names.

        Raises:
            BadDataError: If the betas' shape is not the atlas's, or their trials not the design's.
            CorruptFileError: If a file is damaged.
        """

    def valid(self, subject: int, sessions: Iterable[tuple[BetasFiles, int]], atlas: str) -> np.ndarray | None:
        """Return which places have valid data in all of some sessions, shaped like the labels; None where all count.

        Args:
            subject: From 1.
            sessions: The files of each and the trials the design names.
            atlas: Any of the subject's: its shape is the betas'.

        Raises:
            BadDataError: If the betas' shape is not the atlas's, or their trials not the design's.
            CorruptFileError: If a file is damaged.
        """
        # Nothing in int16 betas tells a place without data from one whose betas are 0.
        return None

    def where(self, betas: BetasFiles) -> str:
        """Return the address of the files, for messages."""
        return ", ".join(self.files.where(key) for key in betas.keys)


class VolumeSpace(Space):
    """`func1pt8mm` and `func1mm`: int16 volumes, percent signal change times 300."""

    dtype = volumes.DTYPE.str
    scale = volumes.SCALE

    def __init__(self, files: SourceFiles, space: str, betas: str, kinds: tuple[str, ...]) -> None:
        """Remember where the files are and which kinds of betas files may be read, best first."""
        super().__init__(files, space, betas)
        self.kinds = kinds

    def atlases(self, subject: int) -> list[str]:
        """Return the atlases of the ROI folder, and the brain mask where there is one."""
        folder = f"{layout.functional_folder(subject, self.space)}/roi"
        names = {name.removesuffix(".nii.gz") for name in self.files.names(folder) if name.endswith(".nii.gz")}
        if not names:
            raise MissingDataError(f"no ROI volumes in {self.files.where(folder)}")
        # The files of single hemispheres belong to the same atlases; hidden ones are half-written, or what some file
        # systems leave beside every file.
        return sorted(name for name in names if not name.startswith(("lh.", "rh.", ".")))

    def labels(self, subject: int, atlas: str) -> np.ndarray:
        """Return an atlas `(X, Y, Z)`; `brainmask` lies beside the ROI folder."""
        return volumes.read_labels(self.files.local(self.labels_key(subject, atlas)))

    def labels_key(self, subject: int, atlas: str) -> str:
        """Return the key of a volume."""
        return layout.roi_volume(subject, self.space, atlas)

    def ncsnr(self, subject: int) -> np.ndarray | None:
        """Return `ncsnr.nii.gz`."""
        key = f"{self.folder(subject)}/ncsnr.nii.gz"
        return nifti.read_volume(self.files.local(key)) if self.files.exists(key) else None

    def find(self, subject: int, stem: str) -> BetasFiles | None:
        """Return the file of the first kind that is there."""
        for kind, key in zip(self.kinds, self.candidates(subject, stem), strict=True):
            if self.files.exists(key):
                return BetasFiles(kind, (key,))
        return None

    def candidates(self, subject: int, stem: str) -> list[str]:
        """Return one key a kind."""
        return [f"{self.folder(subject)}/{stem}.{layout.SUFFIXES[kind]}" for kind in self.kinds]

    def needed(self, betas: BetasFiles, voxels: int, trials: int) -> int:
        """Return the masked voxels' bytes of HDF5, all bytes of NIfTI."""
        if betas.kind == "hdf5":
            return voxels * trials * volumes.DTYPE.itemsize
        return self.files.size(betas.keys[0])

    def read(
        self, subject: int, betas: BetasFiles, coordinates: np.ndarray, atlas: str, trials: int
    ) -> tuple[np.ndarray, int]:
        """Read masked voxels, see `volumes.read_hdf5` and `volumes.read_nifti`."""
        box = nifti.shape_of(self.files.local(self.labels_key(subject, atlas)))
        read = volumes.read_hdf5 if betas.kind == "hdf5" else volumes.read_nifti
        return read(self.files.path_or_file(betas.keys[0]), coordinates, box, trials)


class SurfaceSpace(Space):
    """`fsaverage` (float32 MGH, percent signal change) and `nativesurface` (int16 HDF5, times 300)."""

    SUFFIX: ClassVar[Mapping[str, str]] = {"fsaverage": "mgh", "nativesurface": "hdf5"}

    def __init__(self, files: SourceFiles, space: str, betas: str) -> None:
        """Remember where the files are; what the betas are stored as follows from the space."""
        super().__init__(files, space, betas)
        self.dtype, self.scale = ("<f4", 1.0) if space == "fsaverage" else (volumes.DTYPE.str, volumes.SCALE)
        # Floats say where there are no valid data; native surfaces, like volumes, hold 0 there.
        self.marks_missing = space == "fsaverage"

    def _label_folder(self, subject: int) -> str:
        return layout.label_folder(None if self.space == "fsaverage" else subject)

    def atlases(self, subject: int) -> list[str]:
        """Return the atlases that both hemispheres have."""
        folder = self._label_folder(subject)
        names = self.files.names(folder)
        sides = [
            {name.removeprefix(f"{side}.").removesuffix(".mgz") for name in names if name.startswith(f"{side}.")}
            for side in HEMISPHERES
        ]
        both = sorted(atlas for atlas in sides[0] & sides[1] if f"lh.{atlas}.mgz" in names)
        if not both:
            raise MissingDataError(f"no ROI surfaces (lh.*.mgz and rh.*.mgz) in {self.files.where(folder)}")
        return both

    def _side(self, subject: int, atlas: str, side: str) -> np.ndarray:
        return surfaces.read_labels(self.files.local(f"{self._label_folder(subject)}/{side}.{atlas}.mgz"))

    def labels(self, subject: int, atlas: str) -> np.ndarray:
        """Return an atlas `(V,)`, the left hemisphere's vertices first."""
        return np.concatenate([self._side(subject, atlas, side) for side in HEMISPHERES])

    def labels_key(self, subject: int, atlas: str) -> str:
        """Return the keys of both hemispheres' maps in one."""
        return f"{self._label_folder(subject)}/{{lh,rh}}.{atlas}.mgz"

    def ncsnr(self, subject: int) -> np.ndarray | None:
        """Return `lh.ncsnr.mgh` and `rh.ncsnr.mgh` as one."""
        keys = [f"{self.folder(subject)}/{side}.ncsnr.mgh" for side in HEMISPHERES]
        if not all(self.files.exists(key) for key in keys):
            return None
        return np.concatenate([surfaces.read_map(self.files.local(key)) for key in keys])

    def find(self, subject: int, stem: str) -> BetasFiles | None:
        """Return the files of both hemispheres, or None if one is missing."""
        keys = tuple(self.candidates(subject, stem))
        return BetasFiles(self.SUFFIX[self.space], keys) if all(self.files.exists(key) for key in keys) else None

    def candidates(self, subject: int, stem: str) -> list[str]:
        """Return one key a hemisphere."""
        return [f"{self.folder(subject)}/{side}.{stem}.{self.SUFFIX[self.space]}" for side in HEMISPHERES]

    def needed(self, betas: BetasFiles, voxels: int, trials: int) -> int:
        """Return the masked vertices' bytes of HDF5, all bytes of MGH: its vertices of one trial lie together."""
        if betas.kind == "hdf5":
            return voxels * trials * volumes.DTYPE.itemsize
        return sum(self.files.size(key) for key in betas.keys)

    def read(
        self, subject: int, betas: BetasFiles, coordinates: np.ndarray, atlas: str, trials: int
    ) -> tuple[np.ndarray, int]:
        """Read chosen vertices of each hemisphere and put them back into the order asked for.

        Raises:
            BadDataError: Also if a vertex is NaN: those without valid data are not to be asked for, see `valid`.
        """
        read = surfaces.read_hdf5 if betas.kind == "hdf5" else surfaces.read_mgh
        vertices = coordinates[:, 0]
        result = np.empty((trials, len(vertices)), dtype=self.dtype)
        start = bytes_read = 0
        for side, key in zip(HEMISPHERES, betas.keys, strict=True):
            count = len(self._side(subject, atlas, side))
            mine = (vertices >= start) & (vertices < start + count)
            values, read_here = read(self.files.open(key), vertices[mine] - start, count, trials)
            if self.marks_missing:
                surfaces.check_finite(values, vertices[mine] - start, self.files.where(key))
            result[:, mine] = values
            start, bytes_read = start + count, bytes_read + read_here
        return result, bytes_read

    def valid(self, subject: int, sessions: Iterable[tuple[BetasFiles, int]], atlas: str) -> np.ndarray | None:
        """Return which vertices `(V,)` are not NaN, the left hemisphere's first: one trial of each session is read."""
        if not self.marks_missing:
            return None
        counts = [len(self._side(subject, atlas, side)) for side in HEMISPHERES]
        valid = [np.ones(count, dtype=bool) for count in counts]
        # A conjunction: no order of sessions, and no share of them among workers, can change it.
        for betas, trials in sessions:
            for side, key, count in zip(valid, betas.keys, counts, strict=True):
                with self.files.open(key) as file:
                    side &= surfaces.read_valid(file, count, trials)
        return np.concatenate(valid)


def space_of(files: SourceFiles, space: str, betas: str, kinds: tuple[str, ...]) -> Space:
    """Return the space of a name in `layout.SPACES`."""
    if space in SurfaceSpace.SUFFIX:
        return SurfaceSpace(files, space, betas)
    return VolumeSpace(files, space, betas, kinds)
