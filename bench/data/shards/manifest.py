"""The shard contract: one Parquet file a session, tables beside them, and a manifest that seals the set.

Layout under `<data>/<dataset>/` (local path or `s3://`):

    <betas>.<space>.<voxelset>@<digest>/
        subject=1/session=1/part-0.parquet      one row a trial: trial, stimulus, repeat, betas
        voxels/subject-1.parquet                one row a voxel: x, y, z (or vertex), ncsnr, a label column an atlas
        manifest.json                           written last: its presence means the set is whole
    stimuli@<digest>/
        part-0.parquet ...  manifest.json       one row a stimulus
    targets/<generator>.<target>@<digest>/
        part-0.parquet ...  manifest.json       one row a stimulus: stimulus, value

Betas keep the source's own dtype and values (`<i2` times `scale` for NSD volumes): shards are lossless, z-scoring
happens at read time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import xxhash

from bench.core import options
from bench.core.errors import CorruptFileError, MissingDataError
from bench.core.storage import Folder

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """One data file of a set, as the manifest seals it.

    Attributes:
        path: Its path in the set.
        rows: Rows of its table.
        size: Its bytes.
        sha256: Of its content: what the file is, for content addresses and for `prepare --verify`.
        subject, session: 0 where they do not apply.
        xxh3: XXH3-64 of its content in 16 hex digits, or "" where none was taken. Every read of betas is compared with
            it: damage is what reading must find, and this finds it at a thirtieth of what sha256 costs.
    """

    path: str
    rows: int
    size: int
    sha256: str
    subject: int = 0
    session: int = 0
    xxh3: str = ""

    @classmethod
    def of(cls, path: str, content: bytes | pa.Buffer, rows: int, subject: int = 0, session: int = 0) -> FileEntry:
        """Return the entry of a file's content; only the files of sessions are read often enough for an xxh3."""
        xxh3 = xxhash.xxh3_64_hexdigest(content) if session else ""
        return cls(path, rows, len(content), hashlib.sha256(content).hexdigest(), subject, session, xxh3)

    def check(self, folder: Folder, content: pa.Buffer, quick: bool = False) -> None:
        """Compare a file's content with this entry.

        Args:
            folder: Where the file lies, for messages.
            content: What was read.
            quick: Compare the xxh3 rather than the sha256 where the entry has one.

        Raises:
            CorruptFileError: If size or checksum differ; the message names the file.
        """
        if len(content) != self.size:
            raise CorruptFileError(f"{folder}/{self.path}: {len(content)} bytes, its manifest says {self.size}")
        if quick and self.xxh3:
            if (found := xxhash.xxh3_64_hexdigest(content)) != self.xxh3:
                raise CorruptFileError(f"{folder}/{self.path}: xxh3 {found}, its manifest says {self.xxh3}")
            return
        came = hashlib.sha256(content).hexdigest()
        if came != self.sha256:
            raise CorruptFileError(
                f"{folder}/{self.path}: sha256 {came[:16]}..., its manifest says {self.sha256[:16]}..."
            )


@dataclass(frozen=True)
class Manifest:
    """What a set of shards is and which files make it up.

    Attributes:
        kind: `trials`, `stimuli` or `targets`.
        dataset: Name of the dataset.
        digest: Content address of `source`: the configuration that made the set.
        source: Everything that decided the content (reader and its version, beta version, space, voxel set, digests of
            the source's own tables; for targets generator, version, weights digest, options and stimuli digest).
        dtype: NumPy dtype of the binary column (`betas` or `value`), or "" where there is none.
        scale: Factor from stored numbers to the unit (1/300 for NSD volumes), 1 where it does not apply.
        unit: For trial shards, what betas times the scale are in: percent signal change, or the source's own unit.
        shape: Shape of one value, for targets.
        voxels: For trial shards, the number of voxels of each subject.
        left_out: For trial shards, how many more the voxel set selects of each subject that has any without valid data.
        stimuli: For trial shards and targets, the name of the stimuli folder they refer to.
        files: The sealed files, sorted by path.
        bytes_read: Bytes read from the source to make the set.
        schema_version: Version of this layout.
    """

    kind: str
    dataset: str
    digest: str
    source: dict[str, Any]
    files: tuple[FileEntry, ...]
    dtype: str = ""
    scale: float = 1.0
    unit: str = ""
    shape: tuple[int, ...] = ()
    voxels: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    stimuli: str = ""
    bytes_read: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def content_digest(self) -> str:
        """Digest of all data files' checksums: two sets with equal content have equal content digests."""
        total = hashlib.sha256()
        for entry in self.files:
            total.update(f"{entry.path}\0{entry.sha256}\n".encode())
        return total.hexdigest()[:16]

    @property
    def subjects(self) -> list[int]:
        """Subjects with at least one session in the set."""
        return sorted({entry.subject for entry in self.files if entry.subject})

    def sessions(self, subject: int) -> list[FileEntry]:
        """Return the session files of a subject in order.

        Raises:
            MissingDataError: If the set has none.
        """
        entries = [entry for entry in self.files if entry.subject == subject and entry.session]
        if not entries:
            raise MissingDataError(
                f"shards {self.digest} hold no session of subject {subject}; they hold {self.subjects}"
            )
        return sorted(entries, key=lambda entry: entry.session)

    def entry(self, path: str) -> FileEntry:
        """Return the entry of a file.

        Raises:
            MissingDataError: If the manifest has no such file.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise MissingDataError(f"shards {self.digest}: the manifest has no file {path!r}")

    def write(self, folder: Folder) -> None:
        """Seal the set: write the manifest last."""
        folder.write_json(MANIFEST, self)


def read_manifest(folder: Folder) -> Manifest:
    """Return the manifest of a set of shards.

    Raises:
        MissingDataError: If there is none: the set is not there or was never finished.
        CorruptFileError: If it is no manifest, or of another schema version.
    """
    if not folder.exists(MANIFEST):
        raise MissingDataError(f"no {MANIFEST} in {folder}: not a finished set of shards")
    content = folder.read_json(MANIFEST)
    if not isinstance(content, dict) or not isinstance(content.get("files"), list):
        raise CorruptFileError(f"{folder}/{MANIFEST} is not a manifest: a mapping with a list of files is needed")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CorruptFileError(
            f"{folder}/{MANIFEST} has schema version {content.get('schema_version')}, this is {SCHEMA_VERSION}: remove "
            "the manifest and run the stage that wrote it again, which keeps files that are whole"
        )
    return options.build(Manifest, content, f"{folder}/{MANIFEST}")


def read_checked(folder: Folder, entry: FileEntry, quick: bool = False) -> pa.Buffer:
    """Return a file's content after comparing it with its manifest entry.

    Args:
        folder: Where the set lies.
        entry: The file's entry.
        quick: See `FileEntry.check`.

    Raises:
        MissingDataError: If the file is not there.
        CorruptFileError: If size or checksum differ.
    """
    content = folder.read_buffer(entry.path)
    entry.check(folder, content, quick)
    return content


def session_path(subject: int, session: int) -> str:
    """Return the path of a session's file in its set; both hive partitions are plain integers."""
    return f"subject={subject}/session={session}/part-0.parquet"


def voxels_path(subject: int) -> str:
    """Return the path of a subject's voxel table in its set."""
    return f"voxels/subject-{subject}.parquet"
