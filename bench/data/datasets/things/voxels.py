r"""THINGS-fMRI's voxels: places, noise ceilings and ROIs of `sub-01_VoxelMetadata.csv`.

ROIs are 0/1 columns that overlap (IT and the localised areas hold voxels of one another), which one map of label
numbers could not say. So every column is an atlas of its own with the one label of its name, and three more atlases are
the unions of a family's columns: `prf`, `floc` and `glasser`. Names are those of the columns without blanks, line
breaks and a bracketed remark: `LO1 (prf)` is `LO1`, `glasser-p9-\n46v` is `glasser-p9-46v`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.core.errors import BadDataError
from bench.data.datasets.things.tables import batches, check_columns, header_of

PLACE = ("voxel_x", "voxel_y", "voxel_z")
NUMBERS = ("voxel_id", "subject_id", *PLACE, "nc_singletrial", "nc_testset")
OTHERS = (
    *("splithalf_uncorrected", "splithalf_corrected"),
    *("prf-eccentricity", "prf-polarangle", "prf-rsquared", "prf-size"),
)
PRF = ("V1", "V2", "V3", "hV4", "VO1", "VO2", "LO1", "LO2", "TO1", "TO2", "V3b", "V3a")
_LOCALISED = ("EBA", "FFA", "OFA", "STS", "PPA", "RSC", "TOS", "LOC")
FLOC = (*(f"{side}{area}" for area in _LOCALISED for side in "lr"), "IT")
GLASSER_AREAS = 180
SHOWINGS = 12
"""Showings of a test image, over which `nc_testset` is a mean."""


@dataclass(frozen=True)
class Voxels:
    """The voxels of a subject, sorted by their place (x, y, z with z fastest).

    Attributes:
        number: `(N,)` int64 `voxel_id`.
        coordinates: `(N, 3)` int32 voxel indices.
        ncsnr: `(N,)` float32, NaN where there is no noise ceiling.
        names: Names of the ROIs, in the order of the columns.
        inside: `(ROIs, N)` booleans.
    """

    number: np.ndarray
    coordinates: np.ndarray
    ncsnr: np.ndarray
    names: tuple[str, ...]
    inside: np.ndarray

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """For each ROI, and each family of them, `(N,)` int16, 1 inside."""
        own = {name: inside.astype(np.int16) for name, inside in zip(self.names, self.inside, strict=True)}
        return own | {
            family: self.inside[[self.names.index(name) for name in members]].any(axis=0).astype(np.int16)
            for family, members in families(self.names).items()
        }


def families(names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the ROIs of each family."""
    return {"prf": PRF, "floc": FLOC, "glasser": [name for name in names if name.startswith("glasser-")]}


def roi_name(column: str) -> str:
    """Return the name of an ROI by its column."""
    return re.sub(r"\s+", "", re.sub(r"\s*\([^)]*\)$", "", column))


def label_names(path: Path) -> Mapping[str, Mapping[str, int]]:
    """Return for every atlas of a table the names of its labels, by its header alone."""
    names = tuple(_rois(path))
    return {name: {name: 1} for name in (*names, *families(names))}


def _rois(path: Path) -> Mapping[str, str]:
    """Return the column of each ROI, in the order of the columns.

    Raises:
        BadDataError: If the ROIs are not THINGS-fMRI's.
    """
    header = header_of(path)
    check_columns(path, (*NUMBERS, *OTHERS), header)
    columns = [name for name in header if name not in (*NUMBERS, *OTHERS)]
    rois = {roi_name(column): column for column in columns}
    check_columns(path, (*PRF, *FLOC), list(rois))
    glasser = families(list(rois))["glasser"]
    # Two columns that differ in blanks only would fall together: the counts of both must agree.
    if not len(rois) == len(columns) == len(PRF) + len(FLOC) + len(glasser) or len(glasser) != GLASSER_AREAS:
        raise BadDataError(
            f"{path} has {len(columns)} ROIs, {len(glasser)} of them glasser-*; THINGS-fMRI has "
            f"{len(PRF) + len(FLOC) + GLASSER_AREAS}, {GLASSER_AREAS} of them glasser-*"
        )
    if wrong := [name for name in rois if not re.fullmatch(r"[\w.+-]+", name)]:
        raise BadDataError(f"{path}: column {rois[wrong[0]]!r} cannot be named in an ROI expression")
    return rois


def read_voxels(path: Path, subject: int) -> Voxels:
    """Read `sub-0k_VoxelMetadata.csv`: 222 columns, about 200,000 rows, read some at a time.

    Raises:
        CorruptFileError: If it is no such table.
        BadDataError: If numbers, places, noise ceilings or ROIs cannot be right.
    """
    rois = _rois(path)
    # ROIs as floats, since some writers put 1.0 for 1; kept as booleans, 45 MB instead of 360.
    types: dict[str, pa.DataType] = dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(rois.values(), pa.float32())
    numbers, inside = [], []
    for batch in batches(path, types):
        values = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        numbers.append(np.stack(values[: len(NUMBERS)]))
        inside.append(_zeros_and_ones(path, list(rois), np.stack(values[len(NUMBERS) :])))
    if not sum(part.shape[1] for part in numbers):
        raise BadDataError(f"{path} has no voxels")
    table = dict(zip(NUMBERS, np.concatenate(numbers, axis=1), strict=True))
    whole = {name: _whole(path, name, table[name]) for name in NUMBERS[:5]}
    if np.any(whole["subject_id"] != subject):
        raise BadDataError(f"{path} has voxels of another subject than {subject}")
    coordinates = np.stack([whole[axis] for axis in PLACE], axis=1)
    for what, column in (("voxel_id", whole["voxel_id"]), ("place (voxel_x, voxel_y, voxel_z)", coordinates)):
        if len(np.unique(column, axis=0)) != len(column):
            raise BadDataError(f"{path}: two voxels have the same {what}")
    order = np.lexsort(coordinates.T[::-1])
    ncsnr = _ncsnr(path, table["nc_singletrial"], table["nc_testset"]).astype(np.float32)[order]
    all_inside = np.concatenate(inside, axis=1)[:, order]
    return Voxels(whole["voxel_id"][order], coordinates[order].astype(np.int32), ncsnr, tuple(rois), all_inside)


def _zeros_and_ones(path: Path, names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Return 0/1 columns `(ROIs, N)` as booleans."""
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        row, voxel = np.argwhere(wrong)[0]
        raise BadDataError(f"{path}: ROI {names[row]} must be 0 or 1 for every voxel, got {values[row, voxel]}")
    return values == 1


def _whole(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return a column of whole numbers from 0 as int64."""
    if not np.all((values >= 0) & (values < 2**31) & (values == np.floor(values))):  # also False for NaN
        raise BadDataError(f"{path}: {name} must be whole numbers from 0")
    return values.astype(np.int64)


def _ncsnr(path: Path, single: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the noise-ceiling SNR behind noise ceilings of single trials and of means over 12, in percent.

    Both are 100 s^2 / (s^2 + 1 / n) of one signal-to-noise ratio s, with n = 1 and n = 12 (Allen et al. 2022, Hebart
    et al. 2023), so that the second serves where the first is NaN.
    """
    found = np.full(len(single), np.nan)
    for values, showings in ((single, 1), (mean, SHOWINGS)):
        if np.any((values < 0) | (values >= 100)):
            raise BadDataError(
                f"{path}: noise ceilings go from {np.nanmin(values)} to {np.nanmax(values)}; 0 to below 100 is needed"
            )
        # NaN passes both comparisons above and stays NaN.
        found = np.where(np.isnan(found), np.sqrt(values / (100 - values) / showings), found)
    return found
