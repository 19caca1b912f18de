"""NSD's ROI atlases: which a subject has, their volumes and the names of their labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.core.errors import BadDataError, CorruptFileError, UnknownNameError
from bench.data import roi
from bench.data.datasets.base import VoxelTable
from bench.data.datasets.nsd import layout
from bench.data.datasets.nsd.spaces import Space
from bench.data.sources.files import SourceFiles

logger = logging.getLogger(__name__)


def read_names(files: SourceFiles, subjects: Sequence[int], atlas: str) -> dict[str, int]:
    """Return an atlas's labels by name.

    They come from the subjects' .ctab files, else fsaverage's, else the templates', else from `roi.BUILT_IN`.

    Raises:
        CorruptFileError: If a file is not a table of labels.
        BadDataError: If subjects disagree.
    """
    keys = [layout.label_names(subject, atlas) for subject in subjects]
    own = [files.local(key) for key in keys if files.exists(key)]
    tables = [read_ctab(path) for path in own]
    # One name must mean one number in the shards of all subjects.
    for path, table in zip(own, tables, strict=True):
        if table != tables[0]:
            raise BadDataError(f"{path} names the labels of {atlas} unlike the files of subjects before it")
    if tables:
        return tables[0]
    # Atlases drawn on fsaverage or on a template keep their names there, not with the subjects.
    for key in (layout.label_names(None, atlas), layout.template_names(atlas)):
        if files.exists(key):
            return read_ctab(files.local(key))
    return dict(roi.BUILT_IN.get(atlas, {}))


def read_ctab(path: Path) -> dict[str, int]:
    """Return the labels above 0 of a `.mgz.ctab` file: lines of a number, blanks or tabs, and a name.

    Raises:
        CorruptFileError: If a line is something else.
    """
    table = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(None, 1)
        if not fields:
            continue
        if len(fields) != 2 or not fields[0].isdecimal():
            raise CorruptFileError(f"{path}: {line!r} is not a label number and a name")
        # 0 is "unknown" in FreeSurfer's tables, not a label.
        if int(fields[0]) > 0:
            table[fields[1].strip()] = int(fields[0])
    return table


def select(
    space: Space, subject: int, voxelset: str, names: Mapping[str, Mapping[str, int]]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the voxels (or vertices) of a voxel set and the shape of the maps they come from.

    Args:
        space: Where the subject's atlases lie.
        subject: From 1.
        voxelset: ROI expression.
        names: Label names by atlas.

    Returns:
        `(V, 3)` int32 x, y, z in canonical order (z fastest) and `(X, Y, Z)`, or `(V, 1)` vertices and their number.

    Raises:
        BadDataError: If it selects no voxel, or maps differ in shape.
        UnknownNameError: If the subject has no such atlas, or the atlas no such label.
    """
    # brainmask lies beside the ROI folder and not in it, but makes a voxel set too.
    allowed = [*space.atlases(subject), "brainmask"]
    labels = {}
    for atlas in roi.parse(voxelset).atlases:
        if atlas not in allowed:
            raise UnknownNameError("atlas", atlas, allowed, f"voxel set {voxelset!r} of {layout.subject_name(subject)}")
        labels[atlas] = space.labels(subject, atlas)
    # Told here, by name: NumPy would only say that shapes do not broadcast.
    shapes = {atlas: values.shape for atlas, values in labels.items()}
    if len(set(shapes.values())) > 1:
        raise BadDataError(f"the ROI volumes of {layout.subject_name(subject)} differ in shape: {shapes}")
    chosen = roi.mask(voxelset, labels, names)
    if not chosen.any():
        raise BadDataError(
            f"voxel set {voxelset!r} selects no voxel of {layout.subject_name(subject)}: "
            + "; ".join(f"{atlas} has labels {np.unique(values[values > 0])}" for atlas, values in labels.items())
        )
    return np.argwhere(chosen).astype(np.int32), chosen.shape


def read_table(space: Space, subject: int, voxelset: str, names: Mapping[str, Mapping[str, int]]) -> VoxelTable:
    """Return the voxels of a voxel set with ncsnr and the labels of all the subject's atlases.

    Raises:
        BadDataError: If the voxel set selects none, or a map has another shape than the voxel set's.
        UnknownNameError: If the subject has no such atlas, or the atlas no such label.
    """
    coordinates, shape = select(space, subject, voxelset, names)
    places = tuple(coordinates.T)

    def taken(values: np.ndarray, what: str) -> np.ndarray:
        if values.shape != shape:
            raise BadDataError(f"{what} has shape {values.shape}, the voxel set's maps have {shape}")
        taken: np.ndarray = values[places]
        return taken

    ncsnr = space.ncsnr(subject)
    where = f"ncsnr of {layout.subject_name(subject)} in {space.files.where(space.folder(subject))}"
    # Unknown is NaN and not 0, which would say that there is nothing but noise.
    if ncsnr is None:
        logger.warning("no %s: the noise ceiling of subject %d is not known", where, subject)
        ncsnr = np.full(shape, np.nan, np.float32)
    labels = {
        atlas: taken(space.labels(subject, atlas), space.files.where(space.labels_key(subject, atlas)))
        for atlas in space.atlases(subject)
    }
    return VoxelTable(coordinates, taken(ncsnr, where).astype(np.float32), labels)
