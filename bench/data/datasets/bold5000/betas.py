"""BOLD5000's betas in their two forms: volumes with ROI masks, and ROI arrays without coordinates.

Both hold percent signal change. Volumes are NIfTI, float32 on axes (x, y, z, image), one file a session, NaN outside
the brain. ROI arrays are `(trials of all sessions, voxels)`, one file an ROI and hemisphere (MinD-Vis, Chen et al.
2023); which voxels they took is not published, so their coordinates are the columns' numbers.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.core.errors import BadDataError, MissingDataError
from bench.data.datasets.bold5000 import layout
from bench.data.sources import nifti, npy
from bench.data.sources.files import SourceFiles
from bench.data.sources.ranges import RangeFile

LABELS = {"LH": 1, "RH": 2}
"""Label numbers of every ROI's atlas: its voxels in the left and in the right hemisphere."""


class Betas(abc.ABC):
    """One form of the betas.

    Attributes:
        files: The dataset's files.
        betas: Beta version.
    """

    def __init__(self, files: SourceFiles, betas: str) -> None:
        self.files, self.betas = files, betas

    @abc.abstractmethod
    def sessions(self, subject: int) -> list[int]:
        """Return the sessions that have betas, sorted."""

    @abc.abstractmethod
    def file(self, subject: int, session: int) -> str:
        """Return the key of a session's betas, for messages too."""

    @abc.abstractmethod
    def maps(self, subject: int) -> Mapping[str, np.ndarray]:
        """Return for each ROI its label numbers, `(X, Y, Z)` or `(V,)`, and for `brainmask` where there is one.

        Raises:
            MissingDataError: If the subject has no ROI.
            BadDataError: If ROIs do not fit together.
        """

    @abc.abstractmethod
    def needed(self, subject: int, session: int, rows: slice, coordinates: np.ndarray) -> int:
        """Return how many bytes `read` reads."""

    @abc.abstractmethod
    def read(self, subject: int, session: int, rows: slice, coordinates: np.ndarray) -> np.ndarray:
        """Return the betas of some voxels, `(trials, V)` float32 in percent signal change.

        Args:
            subject: From 1.
            session: From 1.
            rows: The session's trials among all of the subject.
            coordinates: `(V, n)`.

        Raises:
            BadDataError: If they do not match the maps or the design's trials.
            CorruptFileError: If a file is damaged.
        """


class Volumes(Betas):
    """Volumes of a session each, and masks."""

    def sessions(self, subject: int) -> list[int]:
        """Return the sessions that have a file."""
        numbers = range(1, layout.SESSIONS[subject] + 1)
        return [n for n in numbers if self.files.exists(self.file(subject, n))]

    def file(self, subject: int, session: int) -> str:
        """Return the key of a session's volume."""
        return layout.session_betas(subject, self.betas, session)

    def masks(self, subject: int) -> dict[tuple[str, str], str]:
        """Return the keys of a subject's masks by ROI and hemisphere.

        Raises:
            MissingDataError: If there is none.
        """
        for folder in layout.mask_folders(subject):
            found = {layout.mask_of(name): f"{folder}/{name}" for name in self.files.names(folder)}
            masks = {roi: key for roi, key in sorted(found.items(), key=lambda item: item[1]) if roi is not None}
            if masks:
                return masks
        raise MissingDataError(
            f"{self.files.root} has no ROI masks of CSI{subject} in {' or '.join(layout.mask_folders(subject))}: "
            "they are not in release 2.0 but in OpenNeuro ds001499"
        )

    def maps(self, subject: int) -> Mapping[str, np.ndarray]:
        """Return the ROIs' labels: 1 left, 2 right; a voxel of both masks is the left's."""
        result: dict[str, np.ndarray] = {}
        masks = self.masks(subject)
        # Right first, so that the left overwrites it: the order in which NSD's own volumes are filled.
        for (roi, hemisphere), key in sorted(masks.items(), key=lambda item: item[0][1], reverse=True):
            mask = _read_mask(self.files.local(key))
            labels = result.setdefault(roi, np.zeros(mask.shape, np.int16))
            self._fits(mask, labels, key)
            labels[mask] = LABELS[hemisphere]
        # Beside the ROIs, so that an expression can leave out voxels outside the brain, whose betas are NaN.
        if self.files.exists(key := layout.brain_mask(subject)):
            result["brainmask"] = _read_mask(self.files.local(key)).astype(np.int16)
        shapes = {roi: labels.shape for roi, labels in result.items()}
        if len(set(shapes.values())) > 1:
            raise BadDataError(f"the masks of CSI{subject} in {self.files.root} differ in shape: {shapes}")
        return result

    def _fits(self, mask: np.ndarray, labels: np.ndarray, key: str) -> None:
        if mask.shape != labels.shape:
            raise BadDataError(f"{self.files.where(key)} has shape {mask.shape}, the other hemisphere's {labels.shape}")

    def needed(self, subject: int, session: int, rows: slice, coordinates: np.ndarray) -> int:
        """Return the size of the session's file: compressed, it can only be read from its start to its end."""
        del rows, coordinates
        return self.files.size(self.file(subject, session))

    def read(self, subject: int, session: int, rows: slice, coordinates: np.ndarray) -> np.ndarray:
        """Return the betas of some voxels; no more than one trial's volume is ever in memory."""
        key = self.file(subject, session)
        box = _read_mask(self.files.local(next(iter(self.masks(subject).values())))).shape
        with self.files.open(key) as file:
            return _read_volumes(file, coordinates, box, rows.stop - rows.start)


def _read_mask(path: Path) -> np.ndarray:
    """Return which voxels a mask holds (everything above 0), `(X, Y, Z)` booleans.

    Raises:
        CorruptFileError: If it is not gzipped NIfTI, truncated or damaged.
        BadDataError: If it is not a volume of three axes, or holds NaN.
    """
    values = nifti.read_volume(path, "mask")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise BadDataError(f"{path}: {int(np.isnan(values).sum())} voxels of the mask are NaN")
    inside: np.ndarray = values > 0
    return inside


def _read_volumes(file: RangeFile, coordinates: np.ndarray, box: tuple[int, ...], trials: int) -> np.ndarray:
    """Return the betas of some voxels of a session, `(trials, V)` float32; arguments are those of `nifti.read_trials`.

    Raises:
        CorruptFileError: If it is not NIfTI, truncated or damaged.
        BadDataError: If its type, shape or scaling are not BOLD5000's.
    """

    def check(dtype: np.dtype, shape: tuple[int, ...]) -> None:
        if dtype.kind != "f" or dtype.itemsize != 4:
            raise BadDataError(f"{file} holds betas of {dtype}; BOLD5000's volumes are float32 percent signal change")
        if shape != (expected := (*box, trials)):
            hint = ": the axes are in another order" if sorted(shape) == sorted(expected) else ""
            raise BadDataError(f"{file} holds betas {shape}, masks and design need {expected} (x, y, z, images){hint}")

    return nifti.read_voxels(file, coordinates, box, trials, check, "BOLD5000's betas")


class RoiArrays(Betas):
    """Arrays of an ROI and hemisphere each, over all sessions."""

    def __init__(self, files: SourceFiles, betas: str) -> None:
        super().__init__(files, betas)
        self._headers: dict[str, npy.ArrayHeader] = {}

    def sessions(self, subject: int) -> list[int]:
        """Return all sessions where the subject has arrays: each of them holds all trials."""
        # The first array stands for all: `arrays` names any other that is missing.
        return list(range(1, layout.SESSIONS[subject] + 1)) if self.files.exists(self.file(subject, 1)) else []

    def file(self, subject: int, session: int) -> str:
        """Return the key of the subject's first array, for messages."""
        del session
        return layout.roi_array(subject, self.betas, layout.HEMISPHERES[0], layout.ROIS[0])

    def arrays(self, subject: int) -> dict[tuple[str, str], tuple[str, npy.ArrayHeader]]:
        """Return the keys and headers of a subject's arrays, ROI by ROI, left before right (as MinD-Vis joins them).

        Raises:
            MissingDataError: If one is missing.
            BadDataError: If one does not hold the subject's trials.
        """
        trials = layout.IMAGES_PER_RUN * sum(layout.runs(subject, n + 1) for n in range(layout.SESSIONS[subject]))
        found = {}
        for roi in layout.ROIS:
            for hemisphere in layout.HEMISPHERES:
                key = layout.roi_array(subject, self.betas, hemisphere, roi)
                # A header is a request of its own in a bucket, and every session asks for all ten.
                if key not in self._headers:
                    self._headers[key] = npy.header_of(self.files, key)
                header = self._headers[key]
                if len(header.shape) != 2 or header.shape[0] != trials or header.dtype.kind != "f":
                    raise BadDataError(
                        f"{self.files.where(key)} holds {header.shape} {header.dtype}; ({trials}, voxels) floating "
                        f"numbers are needed, one row a trial of CSI{subject}"
                    )
                found[roi, hemisphere] = key, header
        return found

    def maps(self, subject: int) -> Mapping[str, np.ndarray]:
        """Return the ROIs' labels of all arrays' columns: 1 left, 2 right, 0 in the columns of other ROIs."""
        arrays = self.arrays(subject)
        columns = sum(header.shape[1] for _, header in arrays.values())
        result = {roi: np.zeros(columns, np.int16) for roi in layout.ROIS}
        start = 0
        for (roi, hemisphere), (_, header) in arrays.items():
            result[roi][start : start + header.shape[1]] = LABELS[hemisphere]
            start += header.shape[1]
        return result

    def _parts(self, subject: int, columns: np.ndarray) -> list[tuple[str, npy.ArrayHeader, np.ndarray, int]]:
        """Return the arrays that hold some columns: key, header, which of the columns, the array's first column."""
        parts, start = [], 0
        for key, header in self.arrays(subject).values():
            inside = np.flatnonzero((columns >= start) & (columns < start + header.shape[1]))
            if len(inside):
                parts.append((key, header, inside, start))
            start += header.shape[1]
        return parts

    def needed(self, subject: int, session: int, rows: slice, coordinates: np.ndarray) -> int:
        """Return the bytes of the session's rows in the arrays that hold the voxels."""
        del session
        parts = self._parts(subject, coordinates[:, 0])
        return sum((rows.stop - rows.start) * header.row_bytes for _, header, _, _ in parts)

    def read(self, subject: int, session: int, rows: slice, coordinates: np.ndarray) -> np.ndarray:
        """Return the betas of some columns: a byte range of each array that holds any of them."""
        del session
        columns = coordinates[:, 0]
        result = np.empty((rows.stop - rows.start, len(columns)), dtype="<f4")
        for key, header, inside, start in self._parts(subject, columns):
            values = npy.read_rows(self.files, key, header, rows)
            result[:, inside] = values[:, columns[inside] - start]
        return result
