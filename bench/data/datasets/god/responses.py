"""GOD's responses in two forms: the makers' bdpy HDF5 files, and the arrays of MinD-Vis (Chen et al. 2023).

bdpy keeps voxels and labels in one table, `/dataset` `(samples, columns)`, and says in `/metadata` which columns are
what: one row a key, 1 where a column belongs to it, NaN where the key says nothing. Older files spell the two `dataSet`
and `metaData`. MinD-Vis' `sbj_k.npz` has training rows, test rows and masks, but neither imagery nor coordinates.
"""

from __future__ import annotations

import abc
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.errors import BadDataError
from bench.data.datasets.god import images
from bench.data.datasets.god.bdata import BData, read_bdata
from bench.data.sources import npy
from bench.data.sources.files import SourceFiles

logger = logging.getLogger(__name__)

SUBJECTS = (1, 2, 3, 4, 5)
TRAIN, TEST, IMAGERY = 1, 2, 3
"""Values of `DataType`."""
COUNTS = {TRAIN: (images.TRAINING, 1), TEST: (images.TEST, 35), IMAGERY: (images.TEST, 10)}
"""For each type how many images (or categories) there are, and how often each was shown (or imagined)."""
GRID_TOLERANCE = 0.01


@dataclass(frozen=True)
class RowLabels:
    """What the rows of a subject's file are.

    Attributes:
        kind: `(T,)` `DataType` of each row.
        names: The image of each row, `n01518878_10042`; "" for imagery without one.
    """

    kind: np.ndarray
    names: tuple[str, ...]

    def rows(self, *kinds: int) -> np.ndarray:
        """Return the rows of some types, in the order of the file."""
        return np.flatnonzero(np.isin(self.kind, kinds))


@dataclass(frozen=True)
class Voxels:
    """The voxels of a subject, in canonical order.

    Attributes:
        coordinates: `(N, 3)` steps of the grid, or `(N, 1)` column numbers; int32.
        columns: `(N,)` where each voxel lies in the file's table.
        labels: For each ROI `(N,)` int16, 1 inside.
    """

    coordinates: np.ndarray
    columns: np.ndarray
    labels: Mapping[str, np.ndarray]

    def columns_at(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the columns of the voxels at some coordinates `(V, n)`."""
        column_at = {tuple(at): column for at, column in zip(self.coordinates.tolist(), self.columns, strict=True)}
        return np.array([column_at[tuple(at)] for at in coordinates.tolist()], dtype=np.int64)


class Responses(abc.ABC):
    """One form of the responses."""

    def __init__(self, files: SourceFiles) -> None:
        self.files = files

    @abc.abstractmethod
    def file(self, subject: int) -> str:
        """Return the key of a subject's file."""

    def present(self, subject: int) -> bool:
        """Say whether a subject has a file."""
        return self.files.exists(self.file(subject))

    @abc.abstractmethod
    def shown(self, subject: int) -> RowLabels:
        """Return what the rows of a subject's file are.

        Raises:
            CorruptFileError: If the file is damaged.
            BadDataError: If types, images or showings are not GOD's.
        """

    @abc.abstractmethod
    def voxels(self, subject: int) -> Voxels:
        """Return the voxels of a subject with its ROIs.

        Raises:
            CorruptFileError: If the file is damaged.
            BadDataError: If ROIs or coordinates cannot be right.
        """

    @abc.abstractmethod
    def read(self, subject: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the responses of some rows and columns, `(T, V)` float32.

        Raises:
            CorruptFileError: If the file is damaged.
        """


def check_rows(shown: RowLabels, kinds: Sequence[int], where: str) -> None:
    """Compare the number of rows of some types, and of each image among them, with GOD's.

    Raises:
        BadDataError: If they differ, or a type of any row is none of the three.
    """
    if unknown := sorted(set(shown.kind.tolist()) - set(COUNTS)):
        raise BadDataError(f"{where}: DataType {unknown[0]} is none of 1 (training), 2 (test), 3 (imagery)")
    for kind in kinds:
        distinct, times = COUNTS[kind]
        names = [shown.names[row] for row in shown.rows(kind)]
        # Imagery is of a category: which picture of it a file names does not matter.
        counts = Counter(images.synset_of(name) if kind == IMAGERY else name for name in names)
        if len(counts) != distinct or set(counts.values()) != {times}:
            raise BadDataError(
                f"{where} has {len(names)} rows of DataType {kind} with {len(counts)} images, shown "
                f"{sorted(set(counts.values()))} times; GOD has {distinct}, each {times} times"
            )


class Bdpy(Responses):
    """`Subject1.h5` to `Subject5.h5`."""

    def __init__(self, files: SourceFiles) -> None:
        super().__init__(files)
        self._tables: dict[int, BData] = {}

    def file(self, subject: int) -> str:
        """Return the key of a subject's file."""
        return f"Subject{subject}.h5"

    def _bdata(self, subject: int) -> BData:
        if subject not in self._tables:
            self._tables[subject] = read_bdata(self.files.local(self.file(subject)))
        return self._tables[subject]

    def shown(self, subject: int) -> RowLabels:
        """Return types and images by the columns `DataType` and `stimulus_id`."""
        bdata = self._bdata(subject)
        kind, ids = bdata.label("DataType"), bdata.label("stimulus_id")
        if not np.all(np.isfinite(kind)) or np.any(kind != np.round(kind)):
            raise BadDataError(f"{bdata.path}: DataType must be whole numbers")
        # Imagery may go without an id: whoever reads perception only must not stumble over that.
        ids_of_images = np.where((kind == IMAGERY) & ~np.isfinite(ids), -1, ids).tolist()
        names = tuple("" if value == -1 else images.name_of(value, str(bdata.path)) for value in ids_of_images)
        shown = RowLabels(kind.astype(np.int64), names)
        check_rows(shown, (TRAIN, TEST), str(bdata.path))
        return shown

    def voxels(self, subject: int) -> Voxels:
        """Return the voxel columns, sorted by their place in the brain where the file says it."""
        bdata = self._bdata(subject)
        columns = bdata.columns("VoxelData")
        labels = {}
        for key in bdata.keys:
            if key.startswith("ROI_"):
                inside = bdata.columns(key)
                if not np.all(np.isin(inside, columns)):
                    raise BadDataError(f"{bdata.path}: {key} has columns that are no voxels (VoxelData)")
                labels[key] = np.isin(columns, inside).astype(np.int16)
        if not labels:
            raise BadDataError(f"{bdata.path} has no ROI; its metadata has {', '.join(bdata.keys)}")
        coordinates = _grid(bdata, columns)
        if coordinates is None:
            logger.warning("%s has no voxel grid: voxels are known by their columns only", bdata.path)
            coordinates = columns[:, None]
        order = np.lexsort(coordinates.T[::-1])
        labels = {key: values[order] for key, values in labels.items()}
        return Voxels(coordinates[order].astype(np.int32), columns[order], labels)

    def read(self, subject: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return responses from the table."""
        return self._bdata(subject).read(rows, columns)


def _grid(bdata: BData, columns: np.ndarray) -> np.ndarray | None:
    """Return the voxels' places as steps of a grid `(N, 3)`, or None where the file has no axis-parallel one.

    `voxel_i`, `voxel_j`, `voxel_k` are voxel indices; `voxel_x`, `voxel_y`, `voxel_z` are millimetres, from which steps
    are counted from the smallest on.
    """
    for axes in (("voxel_i", "voxel_j", "voxel_k"), ("voxel_x", "voxel_y", "voxel_z")):
        if all(axis in bdata.keys for axis in axes):
            places = np.stack([bdata.values[bdata.keys.index(axis), columns] for axis in axes], axis=1)
            steps = None if not np.all(np.isfinite(places)) else _steps(places, whole=axes[0] == "voxel_i")
            if steps is not None and len(np.unique(steps, axis=0)) == len(steps):
                return steps
    return None


def _steps(places: np.ndarray, whole: bool) -> np.ndarray | None:
    """Return places `(N, 3)` as whole steps; None where they are not on a grid."""
    if not whole:
        gaps = [np.diff(np.unique(np.round(axis, 3))) for axis in places.T]
        size = min((gap.min() for gap in gaps if len(gap)), default=1.0)
        places = (places - places.min(axis=0)) / size
    steps = np.rint(places)
    return steps.astype(np.int64) if np.all(np.abs(places - steps) <= GRID_TOLERANCE) else None


class Npz(Responses):
    """`sbj_1.npz` to `sbj_5.npz`: `arr_0` training rows, `arr_1` test rows, `arr_2` their means over an image."""

    def file(self, subject: int) -> str:
        """Return the key of a subject's file."""
        name = f"sbj_{subject}.npz"
        return (images.npz_folder(self.files, name) or "") + name

    def shown(self, subject: int) -> RowLabels:
        """Return images by the rows of the label files that `arr_3` and `arr_4` point at."""
        path, names = self.files.local(self.file(subject)), []
        for array, labels, count in (
            ("arr_3", images.LABELS[0], images.TRAINING),
            ("arr_4", images.LABELS[1], images.TEST),
        ):
            listed, index = images.read_csv(self.files, labels), npy.read_member(path, array)
            if len(listed) != count:
                raise BadDataError(f"{labels} in {self.files.root} has {len(listed)} images, GOD has {count}")
            if index.ndim != 1 or index.dtype.kind not in "iu" or np.any((index < 0) | (index >= count)):
                raise BadDataError(f"{path}: {array} is {index.shape} {index.dtype}, not one of {count} images a row")
            names += [listed[i] for i in index.tolist()]
        test = len(names) - COUNTS[TEST][0] * COUNTS[TEST][1]
        shown = RowLabels(np.where(np.arange(len(names)) < test, TRAIN, TEST), tuple(names))
        check_rows(shown, (TRAIN, TEST), str(path))
        return shown

    def voxels(self, subject: int) -> Voxels:
        """Return the columns of the arrays; masks `VC`, `V1`... are named `ROI_VC`, `ROI_V1`... as in bdpy's files."""
        path = self.files.local(self.file(subject))
        shape = npy.member_header(path, "arr_0").shape
        labels = {}
        for name in npy.member_names(path):
            if name.startswith("arr_"):
                continue
            mask = npy.read_member(path, name)
            if mask.dtype != np.bool_ or mask.shape != shape[1:]:
                raise BadDataError(f"{path}: mask {name} is {mask.shape} {mask.dtype}; {shape[1:]} booleans are needed")
            labels[f"ROI_{name}"] = mask.astype(np.int16)
        if not labels or len(shape) != 2:
            raise BadDataError(f"{path} has {len(labels)} masks and arr_0 of shape {shape}; (1200, voxels) is needed")
        columns = np.arange(shape[1])
        return Voxels(columns[:, None].astype(np.int32), columns, labels)

    def read(self, subject: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return responses after comparing the means of the test rows with those that the file has."""
        path = self.files.local(self.file(subject))
        train, test, means = (npy.read_member(path, name) for name in ("arr_0", "arr_1", "arr_2"))
        for name, values, count in (
            ("arr_0", train, images.TRAINING),
            ("arr_1", test, COUNTS[TEST][0] * COUNTS[TEST][1]),
            ("arr_2", means, images.TEST),
        ):
            if values.shape != (count, train.shape[-1]) or values.dtype.kind != "f":
                raise BadDataError(f"{path}: {name} is {values.shape} {values.dtype}, not ({count}, voxels) floats")
        index = npy.read_member(path, "arr_4")
        own = np.stack([test[index == image].mean(axis=0) for image in range(images.TEST)])
        # Rows whose image is mistaken show here and nowhere else. Means of float32 differ in their last digits.
        if not np.allclose(own, means, rtol=1e-3, atol=1e-3 * float(np.std(test)), equal_nan=True):
            raise BadDataError(f"{path}: arr_2 is not the mean of arr_1 over the rows of each image in arr_4")
        return np.concatenate([train, test])[np.ix_(rows, columns)].astype("<f4")
