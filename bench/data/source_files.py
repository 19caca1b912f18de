"""A dataset's own files below one root: a local copy, or a bucket from which only what is needed is fetched.

Small files (designs, masks, tables) are fetched whole, once, into a cache. Large ones are opened as `RangeFile`: every
read is a request for a byte range, tried again with a growing pause when the server answers with an error, stops
talking, or sends less than was asked for. A range that came whole is used, any other is not: faults cost time, never
bytes of the result.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from bench.errors import MissingDataError, OptionError, UnreachableError
from bench.storage import Folder, home

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ATTEMPTS = 8
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
REQUESTS_IN_FLIGHT = 16
"""Range requests one file has open at once: the latency of S3 (tens of milliseconds) hides behind the others."""
BLOCK = 1 << 18
"""Bytes of a block that small reads are served from: HDF5 headers are read in pieces of a few bytes."""
BLOCKS_KEPT = 16


@dataclass(frozen=True)
class FoundFile:
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
        if "://" in root and not root.startswith("s3://"):
            raise OptionError(f"cannot read from {root!r}: a root is a local folder or an s3:// address")
        self.root = root.rstrip("/")
        self.signed = signed
        self._listed: dict[str, dict[str, FoundFile]] = {}

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
        return self._found(key) is not None

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
        opened = _patiently(lambda: self._filesystem().open_input_file(path), f"opening {address}")
        return RangeFile(opened, size, address)

    def path_or_file(self, key: str) -> Path | RangeFile:
        """Return what a reader of large files takes: the path of a local file, or an open file of a bucket."""
        return self.open(key) if self.remote else self.local(key)

    def _info(self, key: str) -> FoundFile:
        info = self._found(key)
        if info is None:
            raise MissingDataError(f"no file {self.where(key)}")
        return info

    def _found(self, key: str) -> FoundFile | None:
        folder, _, name = key.rpartition("/")
        if self.remote:
            # One listing answers for all files of a folder: asking for each would be a request a session and kind.
            return self._listing(folder).get(name)
        info = pafs.LocalFileSystem().get_file_info(self.where(key))
        return _found_file(info) if info.type == pafs.FileType.File else None

    def _listing(self, folder: str) -> dict[str, FoundFile]:
        """Return the files of a folder by name; a bucket's folder is listed once, a local one every time."""
        if folder in self._listed:
            return self._listed[folder]
        infos = self._infos(folder)
        found = {info.base_name: _found_file(info) for info in infos if info.type == pafs.FileType.File}
        if self.remote:
            self._listed[folder] = found
        return found

    def _infos(self, folder: str) -> list[pafs.FileInfo]:
        """Return what lies directly in a folder."""
        path = f"{self.root.removeprefix('s3://')}/{folder}".rstrip("/")
        selector = pafs.FileSelector(path, allow_not_found=True)
        return _patiently(lambda: self._filesystem().get_file_info(selector), f"listing {self.root}/{folder}")

    def _filesystem(self) -> pafs.FileSystem:
        if not self.remote:
            return pafs.LocalFileSystem()
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        bucket = self.root.removeprefix("s3://").partition("/")[0]
        return _client(bucket, endpoint, self.signed, os.getpid())


def _found_file(info: pafs.FileInfo) -> FoundFile:
    return FoundFile(int(info.size), int(info.mtime_ns or 0))


@functools.cache
def _client(bucket: str, endpoint: str | None, signed: bool, process: int) -> pafs.S3FileSystem:
    """Return this process's client of a bucket, in the region where the bucket lies."""
    if endpoint is not None:
        scheme, _, host = endpoint.partition("://")
        return pafs.S3FileSystem(anonymous=not signed, endpoint_override=host, scheme=scheme, region="us-east-1")
    region = _patiently(lambda: pafs.resolve_s3_region(bucket), f"finding the region of bucket {bucket}")
    return pafs.S3FileSystem(anonymous=not signed, region=region)


def _patiently(request: Callable[[], Result], what: str) -> Result:
    """Return what a request gives, trying again after pauses that double.

    Raises:
        UnreachableError: If it fails `ATTEMPTS` times.
        MissingDataError: If there is no such file: that is an answer, not a fault.
    """
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except FileNotFoundError as error:
            raise MissingDataError(f"{what}: {error}") from None
        except (OSError, pa.ArrowException) as error:
            if attempt == ATTEMPTS:
                raise UnreachableError(f"{what} failed {ATTEMPTS} times, at last with: {error}") from None
            logger.warning("%s failed (%d of %d): %s", what, attempt, ATTEMPTS, error)
        # Clients that were throttled together must not come back together.
        time.sleep(pause * (0.5 + random.random() / 2))
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise AssertionError("unreachable")


class RangeFile(io.RawIOBase):
    """A file of a bucket, open for reading; it counts what crossed the network.

    Attributes:
        bytes_read: Bytes of all ranges that came whole.
        requests: Number of those ranges.
    """

    def __init__(self, file: pa.NativeFile, size: int, address: str) -> None:
        super().__init__()
        self._file, self._size, self._address = file, size, address
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.bytes_read = 0
        self.requests = 0

    def __str__(self) -> str:
        return self._address

    def range(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`.

        Raises:
            EOFError: If the file ends before.
            UnreachableError: If they do not come.
        """
        if offset < 0 or offset + size > self._size:
            raise EOFError(f"{self} has {self._size} bytes; {size} from {offset} were asked for")
        content = _patiently(lambda: self._whole(offset, size), f"reading {size} bytes at {offset} of {self}")
        self.bytes_read += size
        self.requests += 1
        return content

    def _whole(self, offset: int, size: int) -> bytes:
        content = bytes(self._file.read_at(size, offset))
        if len(content) != size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Yield the content of (offset, size) ranges in their order, several requests in flight at once."""
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            queue, waiting = iter(wanted), []
            # Twice the threads: a slow first range must not leave them idle, and finished ones must not pile up.
            for item in islice(queue, 2 * REQUESTS_IN_FLIGHT):
                waiting.append(pool.submit(self.range, *item))
            while waiting:
                yield waiting.pop(0).result()
                waiting.extend(pool.submit(self.range, *item) for item in islice(queue, 1))

    def _block(self, number: int) -> bytes:
        """Return a block; the last few used are kept."""
        if number not in self._blocks:
            offset = number * BLOCK
            self._blocks[number] = self.range(offset, min(BLOCK, self._size - offset))
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that any position can be read."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer from the position on; fewer bytes come only at the end of the file."""
        size = max(0, min(len(buffer), self._size - self._position))
        if size >= BLOCK:
            # A large read is one request of its own: cutting it into blocks would only add round trips.
            buffer[:size] = self.range(self._position, size)
        else:
            buffer[:size] = self._from_blocks(self._position, size)
        self._position += size
        return size

    def _from_blocks(self, offset: int, size: int) -> bytes:
        first, last = offset // BLOCK, (offset + max(size, 1) - 1) // BLOCK
        content = b"".join(self._block(number) for number in range(first, last + 1)) if size else b""
        return content[offset - first * BLOCK :][:size]

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._file.close()
        super().close()
