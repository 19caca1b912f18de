"""One file of a bucket as Python's own readers take it: every read is a request for a byte range.

A range that came whole is used, any other is asked for again: faults cost time, never bytes of the result.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from bench.data.sources.retries import patiently

REQUESTS_IN_FLIGHT = 16
"""Range requests one file has open at once: the latency of S3 (tens of milliseconds) hides behind the others."""
BLOCK = 1 << 18
"""Bytes of a block that small reads are served from: HDF5 headers are read in pieces of a few bytes."""
BLOCKS_KEPT = 16


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
        content = patiently(lambda: self._whole(offset, size), f"reading {size} bytes at {offset} of {self}")
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
        # Kept by last use: an HDF5 file is read through its index, which is asked for again and again.
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
