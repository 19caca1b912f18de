"""NSD's ROI atlases: which a subject has, their volumes and the names of their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.data import roi
from bench.data.nsd import layout, volumes
from bench.data.source_files import SourceFiles
from bench.errors import BadDataError, CorruptFileError, MissingDataError, UnknownNameError


def names_of(files: SourceFiles, subject: int, space: str) -> list[str]:
    """Return the atlases in a subject's ROI folder; the files of single hemispheres belong to the same atlases.

    Raises:
        MissingDataError: If there is no such folder, or no volume in it.
    """
    folder = f"{layout.functional_folder(subject, space)}/roi"
    names = {name.removesuffix(".nii.gz") for name in files.names(folder) if name.endswith(".nii.gz")}
    if not names:
        raise MissingDataError(f"no ROI volumes in {files.where(folder)}")
    # Hidden files are half-written ones, or what some file systems leave beside every file.
    return sorted(name for name in names if not name.startswith(("lh.", "rh.", ".")))


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
    for path, table in zip(own, tables, strict=True):
        if table != tables[0]:
            raise BadDataError(f"{path} names the labels of {atlas} unlike the files of subjects before it")
    if tables:
        return tables[0]
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
        if int(fields[0]) > 0:
            table[fields[1].strip()] = int(fields[0])
    return table


def select(
    files: SourceFiles, subject: int, space: str, voxelset: str, names: Mapping[str, Mapping[str, int]]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the voxels of a voxel set and the shape of their volume.

    Args:
        files: The dataset's files.
        subject: From 1.
        space: Functional space.
        voxelset: ROI expression.
        names: Label names by atlas.

    Returns:
        `(V, 3)` int32 x, y, z in canonical order (z fastest), and `(X, Y, Z)`.

    Raises:
        BadDataError: If it selects no voxel, or volumes differ in shape.
        UnknownNameError: If the subject has no such atlas, or the atlas no such label.
    """
    allowed = [*names_of(files, subject, space), "brainmask"]
    labels = {}
    for atlas in roi.parse(voxelset).atlases:
        if atlas not in allowed:
            raise UnknownNameError("atlas", atlas, allowed, f"voxel set {voxelset!r} of {layout.subject_name(subject)}")
        labels[atlas] = volumes.read_labels(files.local(layout.roi_volume(subject, space, atlas)))
    shapes = {atlas: volume.shape for atlas, volume in labels.items()}
    if len(set(shapes.values())) > 1:
        raise BadDataError(f"the ROI volumes of {layout.subject_name(subject)} differ in shape: {shapes}")
    chosen = roi.mask(voxelset, labels, names)
    if not chosen.any():
        raise BadDataError(
            f"voxel set {voxelset!r} selects no voxel of {layout.subject_name(subject)}: "
            + "; ".join(f"{atlas} has labels {np.unique(volume[volume > 0])}" for atlas, volume in labels.items())
        )
    return np.argwhere(chosen).astype(np.int32), chosen.shape


def read_columns(
    files: SourceFiles, subject: int, space: str, coordinates: np.ndarray, box: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return for each of the subject's atlases the labels `(V,)` int16 of some voxels.

    Raises:
        BadDataError: If an atlas has another shape than `box`.
    """
    found = {}
    for atlas in names_of(files, subject, space):
        path = files.local(layout.roi_volume(subject, space, atlas))
        volume = volumes.read_labels(path)
        if volume.shape != box:
            raise BadDataError(f"{path} has shape {volume.shape}, the voxel set's volumes have {box}")
        found[atlas] = volume[tuple(coordinates.T)]
    return found
