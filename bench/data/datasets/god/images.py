"""The 1,250 images of Generic Object Decoding: their ids, numbers, labels and pictures.

An image is an ImageNet file, `n01518878_14910`. The responses hold it as the number 1518878.014910, whose fraction is
the image's number in six digits: printed in any other way its trailing zeros vanish (1518878.01491), and the image with
them. Stimuli 0 to 1199 are the training images, 1200 to 1249 the test images, each sorted by synset and image.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError
from bench.data.sources import npy
from bench.data.sources.files import SourceFiles
from bench.data.sources.pictures import decode

TRAINING, TEST = 1200, 50
TRAINING_SYNSETS, TRAINING_PER_SYNSET = 150, 8
NPZ_FOLDERS = ("", "npz/", "Kamitani/npz/")
"""Where MinD-Vis' files may lie below the root."""
PICTURE_FOLDERS = ("images/image_training", "images/image_test")
"""Where the makers' own code expects the pictures, which they send on request."""
PICTURE_ARCHIVES = ("images_500.npz", "images_256.npz", "images_112.npz")
LABELS = ("imagenet_training_label.csv", "imagenet_testing_label.csv")


@dataclass(frozen=True)
class Images:
    """The images' names by stimulus number.

    Attributes:
        names: `n01518878_10042`...: 1,200 training images, then 50 test images, each part sorted.
    """

    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of the names."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Return the stimulus numbers of images, `(N,)` int64."""
        number_of = {name: number for number, name in enumerate(self.names)}
        return np.array([number_of[name] for name in names], dtype=np.int64)

    def imagined(self, names: Sequence[str], where: str) -> np.ndarray:
        """Return the numbers of the test images of imagined objects, `(N,)` int64.

        Subjects imagined a category, not a picture: only the synset counts.

        Raises:
            BadDataError: If a synset is not one of the test images'.
        """
        number_of = {synset_of(name): number for number, name in enumerate(self.names) if number >= TRAINING}
        if unknown := sorted({synset_of(name) for name in names} - set(number_of)):
            raise BadDataError(f"{where}: imagined {unknown[0]} is not one of the {TEST} test categories")
        return np.array([number_of[synset_of(name)] for name in names], dtype=np.int64)


def name_of(stimulus_id: float, where: str) -> str:
    """Return an image's name by its id in the responses: 1518878.01491 is `n01518878_14910`.

    Raises:
        BadDataError: If it is no id.
    """
    if not np.isfinite(stimulus_id) or not 0 < stimulus_id < 1e8:
        raise BadDataError(f"{where}: {stimulus_id} is not a stimulus_id such as 1518878.014910")
    synset, _, image = f"{stimulus_id:.6f}".partition(".")
    return f"n{int(synset):08d}_{int(image)}"


def synset_of(name: str) -> str:
    """Return an image's synset, which is its label: `n01518878`."""
    return name.partition("_")[0]


def _sorted(names: Sequence[str]) -> list[str]:
    """Return image names by synset and image number."""
    # As numbers: as text `_10` would come before `_9`.
    return sorted(names, key=lambda name: (synset_of(name), int(name.partition("_")[2])))


def images_of(training: Sequence[str], test: Sequence[str], where: str) -> Images:
    """Return the numbering of the images that some rows show, after counting them.

    Args:
        training: The image of each training row.
        test: The image of each test row.
        where: The file, for messages.

    Raises:
        BadDataError: If they are not 150 x 8 training images and 50 test images of other categories.
    """
    synsets = Counter(synset_of(name) for name in set(training))
    if len(set(training)) != TRAINING or set(synsets.values()) != {TRAINING_PER_SYNSET}:
        raise BadDataError(
            f"{where} has {len(set(training))} training images of {len(synsets)} categories; "
            f"GOD has {TRAINING_SYNSETS} x {TRAINING_PER_SYNSET}"
        )
    tested = {synset_of(name) for name in test}
    if len(set(test)) != TEST or len(tested) != TEST:
        raise BadDataError(
            f"{where} has {len(set(test))} test images of {len(tested)} categories; GOD has {TEST} x 1. "
            "Ids must be printed with six decimals"
        )
    # GOD tests on unseen categories: a common one is a sign of wrong ids.
    if common := sorted(tested & set(synsets)):
        raise BadDataError(f"{where}: {common[0]} is a category of training and of test images; GOD has none")
    return Images((*_sorted(list(set(training))), *_sorted(list(set(test)))))


def npz_folder(files: SourceFiles, name: str) -> str | None:
    """Return the folder below the root that holds a file of MinD-Vis', with its slash; None where none does."""
    return next((folder for folder in NPZ_FOLDERS if files.exists(folder + name)), None)


def read_csv(files: SourceFiles, name: str) -> list[str]:
    """Return the image names of a label file (`1518878.010042,n01518878_10042.JPEG`), row by row.

    Raises:
        MissingDataError: If there is none.
        CorruptFileError: If a row is something else.
        BadDataError: If the two columns of a row are not the same image.
    """
    folder = npz_folder(files, name)
    if folder is None:
        raise MissingDataError(f"{files.root} has no {name} in {', '.join(repr(f) for f in NPZ_FOLDERS)}")
    where, names = files.where(folder + name), []
    try:
        rows = list(csv.reader(files.local(folder + name).read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{where} is not a table of images: {error}") from None
    for row in rows:
        try:
            stimulus_id, image = float(row[0]), Path(row[1].strip()).stem
        except (ValueError, IndexError):
            raise CorruptFileError(f"{where}: {row} is not a stimulus id and an image") from None
        if name_of(stimulus_id, where) != image:
            raise BadDataError(f"{where}: {row[0]} is image {name_of(stimulus_id, where)}, its row says {image}")
        names.append(image)
    return names


class Pictures:
    """The pictures: JPEG files by name, or an archive of arrays that the label files number.

    Args:
        files: The dataset's files.
    """

    def __init__(self, files: SourceFiles) -> None:
        self.files = files

    def archive(self) -> str | None:
        """Return the key of the archive with the largest pictures, None where there is none."""
        found = ((npz_folder(self.files, name), name) for name in PICTURE_ARCHIVES)
        return next((folder + name for folder, name in found if folder is not None), None)

    @property
    def kind(self) -> str:
        """What the pictures come from: `jpeg`, or an archive's name, or `none`."""
        if self.files.names(PICTURE_FOLDERS[0]):
            return "jpeg"
        archive = self.archive()
        return "none" if archive is None else archive.rpartition("/")[2]

    def read(self, images: Images, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pictures `(H, W, 3)` uint8 RGB in the order of the numbers.

        Raises:
            MissingDataError: If there are none, or not all.
            CorruptFileError: If one is damaged.
            BadDataError: If an archive's arrays are no pictures.
        """
        # JPEGs first: the archives hold them resized.
        archive = self.archive()
        if self.kind == "jpeg":
            for number in numbers:
                key = f"{PICTURE_FOLDERS[number >= TRAINING]}/{images.names[number]}.JPEG"
                with self.files.open(key) as file:
                    yield decode(file.range(0, self.files.size(key)), self.files.where(key))
        elif archive is not None:
            yield from self._archived(archive, images, numbers)
        elif len(numbers):
            raise MissingDataError(
                f"{self.files.root} has no pictures: neither {' and '.join(PICTURE_FOLDERS)} (the makers send them on "
                f"request) nor one of {', '.join(PICTURE_ARCHIVES)} (MinD-Vis)"
            )

    def _archived(self, archive: str, images: Images, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pictures of an archive, reading each of its arrays once."""
        path, chosen = self.files.local(archive), np.asarray(numbers, dtype=np.int64)
        found: dict[int, np.ndarray] = {}
        for test, array in ((False, "train_images"), (True, "test_images")):
            own = np.unique(chosen[(chosen >= TRAINING) == test]).tolist()
            if own:
                row_of = {name: row for row, name in enumerate(read_csv(self.files, LABELS[test]))}
                rows = [row_of[images.names[number]] for number in own if images.names[number] in row_of]
                if len(rows) != len(own):
                    raise MissingDataError(f"{LABELS[test]} in {self.files.root} does not name all images shown")
                _check_shape(path, array)
                pictures = npy.read_member_rows(path, array, rows, lambda some: _to_uint8(some, path))
                found |= dict(zip(own, pictures, strict=True))
        for number in numbers:
            yield found[number]


def _check_shape(path: Path, array: str) -> None:
    """Raise if an array of pictures has other axes than `(N, H, W, 3)`."""
    header = npy.member_header(path, array)
    if len(header.shape) != 4 or header.shape[3] != 3 or header.dtype.kind not in "fu":
        raise BadDataError(f"{path}: {array} is {header.shape} {header.dtype}; (N, H, W, 3) from 0 to 1 is needed")


def _to_uint8(values: np.ndarray, path: Path) -> np.ndarray:
    """Return pictures of floats from 0 to 1, or of bytes, as bytes."""
    if values.dtype == np.uint8:
        return values
    if not np.all((values >= -1e-3) & (values <= 1 + 1e-3)):  # also False for NaN; resizing may overshoot a little
        raise BadDataError(f"{path} has pictures from {np.min(values)} to {np.max(values)}; 0 to 1 is needed")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
