"""A dataset's own files below one root: a local copy, or a bucket from which only what is needed is fetched.

Small files (designs, masks, tables) are fetched whole, once, into a cache. Large ones are opened as `RangeFile`, whose
every read is a request for a byte range. Requests are made again after a growing pause (`bench.data.sources.retries`)
when the server answers with an error, stops talking, or sends less than was asked for.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from bench.core.errors import MissingDataError, OptionError
from bench.core.storage import Folder, home
from bench.data.sources.ranges import RangeFile
from bench.data.sources.retries import patiently

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileStat:
    """A file of a listing: its bytes, and when it was last changed (ns since 1970; 0 where the store does not say)."""

    size: int
    changed: int


class SourceFiles:
    """The files below a root, named by their keys (paths relative to the root)."""

    def __init__(self, root: str, signed: bool = False) -> None:
        """Remember where the files are; nothing is opened.

        Args:
            root: Local folder or `s3://bucket/prefix`.
            signed: Sign requests with the credentials of the environment; public buckets need none.

        Raises:
            OptionError: If the root has a scheme other than `s3`.
        """
        # Named here, or `gs://...` would be taken for a local folder that is empty.
        if "://" in root and not root.startswith("s3://"):
            raise OptionError(f"cannot read from {root!r}: a root is a local folder or an s3:// address")
        self.root = root.rstrip("/")
        self.signed = signed
        self._listed: dict[str, dict[str, FileStat]] = {}

    @property
    def remote(self) -> bool:
        """Whether reading fetches bytes over the network."""
        return self.root.startswith("s3://")

    def where(self, key: str) -> str:
        """Return the address of a file, for messages."""
        return f"{self.root}/{key}"

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files directly in a folder; empty where there is no folder."""
        return sorted(self._listing(folder))

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders directly in a folder; empty where there is none."""
        infos = self._infos(folder)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def exists(self, key: str) -> bool:
        """Say whether there is such a file."""
        return self._stat(key) is not None

    def size(self, key: str) -> int:
        """Return a file's bytes.

        Raises:
            MissingDataError: If there is no such file.
        """
        return self._info(key).size

    def local(self, key: str) -> Path:
        """Return a path to a whole file on this machine; one in a bucket is fetched into the cache, once a version.

        Raises:
            MissingDataError: If there is no such file.
            UnreachableError: If it cannot be fetched.
        """
        info = self._info(key)
        if not self.remote:
            return Path(self.root) / key
        # The version is part of the path, so that a file that changed in the bucket is never taken from the cache.
        version = f"{info.size}-{info.changed}"
        cached = Folder.at(home() / "cache" / self.root.removeprefix("s3://") / version)
        if not cached.exists(key) or cached.size(key) != info.size:
            with self.open(key) as file:
                cached.write_bytes(key, file.read())
            logger.info("fetched %s (%d bytes)", self.where(key), info.size)
        return Path(cached.path) / key

    def open(self, key: str) -> RangeFile:
        """Return a file of a bucket, to be read by ranges.

        Raises:
            MissingDataError: If there is no such file.
            UnreachableError: If it cannot be opened.
        """
        size, address = self.size(key), self.where(key)
        path = address.removeprefix("s3://")
        opened = patiently(lambda: self._filesystem().open_input_file(path), f"opening {address}")
        return RangeFile(opened, size, address)

    def path_or_file(self, key: str) -> Path | RangeFile:
        """Return what a reader of large files takes: the path of a local file, or an open file of a bucket."""
        return self.open(key) if self.remote else self.local(key)

    def _info(self, key: str) -> FileStat:
        info = self._stat(key)
        if info is None:
            raise MissingDataError(f"no file {self.where(key)}")
        return info

    def _stat(self, key: str) -> FileStat | None:
        folder, _, name = key.rpartition("/")
        if self.remote:
            # One listing answers for all files of a folder: asking for each would be a request a session and kind.
            return self._listing(folder).get(name)
        info = pafs.LocalFileSystem().get_file_info(self.where(key))
        return _stat_of(info) if info.type == pafs.FileType.File else None

    def _listing(self, folder: str) -> dict[str, FileStat]:
        """Return the files of a folder by name; a bucket's folder is listed once, a local one every time."""
        if folder in self._listed:
            return self._listed[folder]
        infos = self._infos(folder)
        found = {info.base_name: _stat_of(info) for info in infos if info.type == pafs.FileType.File}
        if self.remote:
            self._listed[folder] = found
        return found

    def _infos(self, folder: str) -> list[pafs.FileInfo]:
        """Return what lies directly in a folder."""
        path = f"{self.root.removeprefix('s3://')}/{folder}".rstrip("/")
        selector = pafs.FileSelector(path, allow_not_found=True)
        return patiently(lambda: self._filesystem().get_file_info(selector), f"listing {self.root}/{folder}")

    def _filesystem(self) -> pafs.FileSystem:
        if not self.remote:
            return pafs.LocalFileSystem()
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        bucket = self.root.removeprefix("s3://").partition("/")[0]
        # By process: a client does not survive a fork.
        return _client(bucket, endpoint, self.signed, os.getpid())


def _stat_of(info: pafs.FileInfo) -> FileStat:
    return FileStat(int(info.size), int(info.mtime_ns or 0))


@functools.cache
def _client(bucket: str, endpoint: str | None, signed: bool, process: int) -> pafs.S3FileSystem:
    """Return this process's client of a bucket, in the region where the bucket lies."""
    if endpoint is not None:
        scheme, _, host = endpoint.partition("://")
        return pafs.S3FileSystem(anonymous=not signed, endpoint_override=host, scheme=scheme, region="us-east-1")
    region = patiently(lambda: pafs.resolve_s3_region(bucket), f"finding the region of bucket {bucket}")
    return pafs.S3FileSystem(anonymous=not signed, region=region)
