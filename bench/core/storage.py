"""Folders on a local disk or in S3, through one code path.

Everything the stages write goes through `Folder`, so that a half-written file is never seen under its name: locally
files are written aside and renamed, on S3 an object appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from bench.core.errors import CorruptFileError, MissingDataError, OptionError
from bench.core.identity import canonical_json

_CHUNK = 1 << 22
_ASIDE = ".part"


@functools.cache
def _s3(endpoint: str | None, region: str | None, process: int) -> pafs.S3FileSystem:
    """Return the S3 client of this process; credentials come from the environment as for every AWS tool."""
    if endpoint is None:
        return pafs.S3FileSystem(region=region)
    scheme, _, host = endpoint.partition("://")
    return pafs.S3FileSystem(endpoint_override=host, scheme=scheme, region=region or "us-east-1")


@dataclass(frozen=True)
class Folder:
    """A folder, by its address: a local path or `s3://bucket/prefix`. Cheap to pickle, opens its client when used."""

    uri: str

    @classmethod
    def at(cls, address: str | Path) -> Folder:
        """Return the folder at a path or URI; local paths become absolute.

        Raises:
            OptionError: If the URI has a scheme other than `s3`.
        """
        text = str(address)
        if text.startswith("s3://"):
            return cls(text.rstrip("/"))
        if "://" in text:
            raise OptionError(f"cannot open {text!r}: folders are local paths or s3:// addresses")
        return cls(str(Path(text).expanduser().resolve()))

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's disk."""
        return not self.uri.startswith("s3://")

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow filesystem the folder lies on."""
        if self.is_local:
            return pafs.LocalFileSystem()
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return _s3(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"), region, os.getpid())

    @property
    def path(self) -> str:
        """The folder's path on its filesystem."""
        return self.uri.removeprefix("s3://")

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return posixpath.basename(self.path)

    def __truediv__(self, part: str) -> Folder:
        return Folder(f"{self.uri}/{part}")

    def __str__(self) -> str:
        return self.uri

    def _file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str = "") -> bool:
        """Say whether a file (or the folder itself) is there."""
        target = self._file(name) if name else self.path
        return bool(self.filesystem.get_file_info(target).type != pafs.FileType.NotFound)

    def size(self, name: str) -> int:
        """Return a file's bytes.

        Raises:
            MissingDataError: If it is not there.
        """
        info = self.filesystem.get_file_info(self._file(name))
        if info.type != pafs.FileType.File:
            raise MissingDataError(f"no file {self.uri}/{name}")
        return int(info.size)

    def read_bytes(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            MissingDataError: If it is not there.
        """
        return self.read_buffer(name).to_pybytes()

    def read_buffer(self, name: str) -> pa.Buffer:
        """Return a file's content in memory of Arrow's pool, which keeps what was used before for the next file.

        Raises:
            MissingDataError: If it is not there.
        """
        try:
            # A file rather than a stream: its size is known, so the bytes are read into their place at once.
            with self.filesystem.open_input_file(self._file(name)) as file:
                return file.read_buffer()
        except FileNotFoundError:
            raise MissingDataError(f"no file {self.uri}/{name}") from None

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file so that it is seen whole or not at all."""
        target = self._file(name)
        if not self.is_local:
            with self.filesystem.open_output_stream(target, compression=None) as stream:
                stream.write(content)
            return
        with _aside(target) as aside:
            aside.write_bytes(content)

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - whatever the file holds
        """Return a JSON file's content.

        Raises:
            MissingDataError: If it is not there.
            CorruptFileError: If it is not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:  # of JSON, or of UTF-8
            raise CorruptFileError(f"{self.uri}/{name} is not JSON: {error}") from None

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 - any description
        """Write strict, sorted, indented JSON with a trailing newline."""
        self.write_bytes(name, (canonical_json(value, indent=2) + "\n").encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return a Parquet file as a table.

        Raises:
            MissingDataError: If it is not there.
            CorruptFileError: If it cannot be read as Parquet.
        """
        if not self.exists(name):
            raise MissingDataError(f"no file {self.uri}/{name}")
        try:
            return pq.read_table(self._file(name), columns=columns, filesystem=self.filesystem, partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptFileError(f"{self.uri}/{name} cannot be read as Parquet: {error}") from None

    def write_table(self, name: str, table: pa.Table, row_group_size: int | None = None) -> tuple[int, str]:
        """Write a table as uncompressed Parquet; return the file's bytes and sha256."""
        content = parquet(table, row_group_size)
        self.write_bytes(name, content)
        return content.size, hashlib.sha256(content).hexdigest()

    def names(self) -> list[str]:
        """Return the sorted names of what lies directly in the folder; empty where there is no folder.

        What a killed process left half-written is not listed, here and in `files`.
        """
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        found = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(name for name in found if not name.endswith(_ASIDE))

    def files(self) -> Iterator[str]:
        """Yield the sorted paths, relative to the folder, of all files in it and below."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=True)
        infos = self.filesystem.get_file_info(selector)
        found = (i.path[len(self.path) + 1 :] for i in infos if i.type == pafs.FileType.File)
        yield from sorted(name for name in found if not name.endswith(_ASIDE))

    def sha256(self, name: str) -> str:
        """Return the sha256 of a file.

        Raises:
            MissingDataError: If it is not there.
        """
        total = hashlib.sha256()
        try:
            with self.filesystem.open_input_stream(self._file(name), compression=None) as stream:
                while chunk := stream.read(_CHUNK):
                    total.update(chunk)
        except FileNotFoundError:
            raise MissingDataError(f"no file {self.uri}/{name}") from None
        return total.hexdigest()

    def upload(self, directory: Path) -> None:
        """Write all files of a local directory into the folder."""
        _copy(Folder.at(directory), self)

    def download(self, directory: Path) -> None:
        """Copy all files of the folder into a local directory."""
        _copy(self, Folder.at(directory))

    def delete(self) -> None:
        """Remove the folder and all in it; nothing happens where there is none."""
        if self.exists():
            self.filesystem.delete_dir(self.path)


@contextlib.contextmanager
def _aside(target: str) -> Iterator[Path]:
    """Give the path of a hidden file beside a local one, which takes its place when it was written without an error."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    aside = Path(f"{target}.{uuid.uuid4().hex}{_ASIDE}")
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _object(filesystem: pafs.FileSystem, target: str) -> Iterator[str]:
    """Give the path of a bucket's object, which is removed when writing it ends with an error."""
    try:
        yield target
    except BaseException:
        # Arrow closes what it was writing to when it cannot read on, and to close an upload is to complete it.
        if filesystem.get_file_info(target).type != pafs.FileType.NotFound:
            filesystem.delete_file(target)
        raise


def _copy(source: Folder, target: Folder) -> None:
    """Copy all files of a folder into another, a few megabytes at a time; each is seen whole or not at all."""
    for name in source.files():
        to = f"{target.path}/{name}"
        with _aside(to) if target.is_local else _object(target.filesystem, to) as path:
            pafs.copy_files(
                f"{source.path}/{name}",
                str(path),
                source_filesystem=source.filesystem,
                destination_filesystem=target.filesystem,
                chunk_size=_CHUNK,
            )


def parquet(table: pa.Table, row_group_size: int | None = None) -> pa.Buffer:
    """Return a table as the content of an uncompressed Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, row_group_size=row_group_size)
    return sink.getvalue()


def home() -> Path:
    """Return where data, weights and runs lie by default: `$RECONBENCH_HOME`, else `./.reconbench`."""
    return Path(os.environ.get("RECONBENCH_HOME", ".reconbench")).expanduser().resolve()
