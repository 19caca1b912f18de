"""Fetches one published file: whole, checked, or not at all; what a broken connection left is continued."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".part"
"""What is appended to the name of a file that is not whole yet."""
TIMEOUT_S = 60.0
_CHUNK = 1 << 20

Advance = Callable[[int], None]
"""Is told of so many more bytes."""


class DownloadError(ValueError):
    """A file that could not be fetched whole, or is not the one that was published."""


def download(url: str, path: Path, sha256: str = "", advance: Advance | None = None) -> None:
    """Fetch a file to a path, under which it is seen only once it is whole and checked.

    Args:
        url: `http`, `https` or `file` address.
        path: Where it goes; what is fetched lies beside it with the suffix `.part` until then.
        sha256: Of the file, or the start of it; empty where it is not known.
        advance: Is told of every so many bytes, those of an earlier attempt included.

    Raises:
        DownloadError: If the server refuses, the connection breaks, another process is at it, or the digest differs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + PART)
    with aside.open("ab") as part:
        _lock(part, aside)
        # Without a digest nothing would tell a file from the halves of two: such a download starts anew.
        if not sha256:
            _empty(part)
        try:
            _transfer(url, part, advance or (lambda _: None))
        except (OSError, http.client.HTTPException) as error:
            if part.tell() == 0 or not sha256:
                aside.unlink()
            raise DownloadError(f"{url} could not be fetched: {error}") from error
        part.flush()
        _check(url, aside, sha256)
        aside.replace(path)


def _lock(part: BinaryIO, aside: Path) -> None:
    """Hold the part for this process: two writers would mix their bytes."""
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DownloadError(f"another process is downloading {aside}") from None


def _empty(part: BinaryIO) -> None:
    part.truncate(0)
    part.seek(0)  # truncating alone leaves the position, from which the next request would continue


def _transfer(url: str, part: BinaryIO, advance: Advance) -> None:
    """Append what is missing of a file.

    Raises:
        OSError: If the server refuses or fewer bytes come than were announced.
    """
    done = part.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # 416: there is nothing beyond what is here already. Whether it is the file, its digest says.
        if done and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        raise
    with response:
        if done and response.status != http.client.PARTIAL_CONTENT:  # the server starts from the beginning
            _empty(part)
            done = 0
        advance(done)
        announced = response.headers.get("Content-Length")
        received = 0
        while chunk := response.read(_CHUNK):
            part.write(chunk)
            received += len(chunk)
            advance(len(chunk))
    if announced is not None and received != int(announced):
        raise OSError(f"the connection broke after {received} of {announced} bytes; run the same command again")


def _check(url: str, aside: Path, sha256: str) -> None:
    """Compare the digest of what came; what is another file is not kept.

    Raises:
        DownloadError: If it differs.
    """
    with aside.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        aside.unlink()
        raise DownloadError(f"{url} did not give the published file: its sha256 is {found}, published is {sha256}")
