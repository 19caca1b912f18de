"""Folders on a disk and in S3: one set of tests over both."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.core import storage
from bench.core.errors import CorruptFileError, MissingDataError, OptionError
from bench.core.storage import Folder


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> Folder:
    if request.param == "local":
        return Folder.at(tmp_path / "things")
    bucket = request.getfixturevalue("s3_bucket")
    return Folder.at(f"s3://{bucket}/things")


@pytest.fixture
def local(tmp_path) -> Folder:
    return Folder.at(tmp_path / "things")


def test_bytes_round_trip(folder):
    folder.write_bytes("a/b.bin", b"\x00\x01")
    assert folder.read_bytes("a/b.bin") == b"\x00\x01"
    assert folder.size("a/b.bin") == 2
    assert folder.sha256("a/b.bin") == hashlib.sha256(b"\x00\x01").hexdigest()
    folder.write_bytes("a/b.bin", b"new")
    assert folder.read_bytes("a/b.bin") == b"new"


def test_a_subfolder_is_a_folder(folder):
    (folder / "a").write_bytes("x", b"1")
    assert folder.read_bytes("a/x") == b"1"
    assert (folder / "a").name == "a"
    assert str(folder / "a") == f"{folder}/a"


def test_existence(folder):
    assert not folder.exists()
    assert not folder.exists("a/x")
    folder.write_bytes("a/x", b"")
    assert folder.exists()
    assert folder.exists("a")
    assert folder.exists("a/x")
    assert not folder.exists("a/y")


def test_listing_is_sorted(folder):
    assert folder.names() == []
    assert list(folder.files()) == []
    for name in ("b", "a/2", "a/1", "c/d/e"):
        folder.write_bytes(name, b"x")
    assert folder.names() == ["a", "b", "c"]
    assert list(folder.files()) == ["a/1", "a/2", "b", "c/d/e"]
    assert list((folder / "c").files()) == ["d/e"]


def test_json_is_strict_sorted_and_ends_with_a_newline(folder):
    folder.write_json("a.json", {"b": (1, 2), "a": 0.5})
    assert folder.read_bytes("a.json") == b'{\n  "a": 0.5,\n  "b": [\n    1,\n    2\n  ]\n}\n'
    assert folder.read_json("a.json") == {"a": 0.5, "b": [1, 2]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("b.json", {"a": float("nan")})
    assert not folder.exists("b.json")


def test_tables_round_trip_and_say_their_checksum(folder):
    table = pa.table({"a": pa.array([1, 2, 3], pa.int8()), "b": ["x", "y", None]})
    size, sha256 = folder.write_table("t.parquet", table, row_group_size=2)
    content = folder.read_bytes("t.parquet")
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert folder.read_table("t.parquet").equals(table)
    assert folder.read_table("t.parquet", columns=["b"]).column_names == ["b"]
    meta = pq.read_metadata(pa.BufferReader(content))
    assert meta.num_row_groups == 2
    assert meta.row_group(0).column(0).compression == "UNCOMPRESSED"


def test_a_table_in_a_hive_folder_has_its_own_columns_only(folder):
    folder.write_table("subject=1/part-0.parquet", pa.table({"a": [1]}))
    assert folder.read_table("subject=1/part-0.parquet").column_names == ["a"]


def test_missing_files_are_named(folder):
    for read in (folder.read_bytes, folder.size, folder.read_json, folder.read_table, folder.sha256):
        with pytest.raises(MissingDataError, match=f"no file {folder}/nothing.json"):
            read("nothing.json")


def test_corrupt_files_are_named(folder):
    folder.write_bytes("a.json", b'{"a": ')
    folder.write_bytes("b.json", b"\xff\xfe\xff")
    folder.write_bytes("t.parquet", b"PAR1 and no more")
    for name in ("a.json", "b.json"):
        with pytest.raises(CorruptFileError, match=f"{folder}/{name} is not JSON: "):
            folder.read_json(name)
    with pytest.raises(CorruptFileError, match=f"{folder}/t.parquet cannot be read as Parquet: "):
        folder.read_table("t.parquet")


def test_upload_and_download(folder, tmp_path):
    here = tmp_path / "here"
    (here / "deep").mkdir(parents=True)
    (here / "one").write_bytes(b"1")
    (here / "deep" / "two").write_bytes(b"22")
    (folder / "state").upload(here)
    assert list(folder.files()) == ["state/deep/two", "state/one"]
    (folder / "state").download(tmp_path / "there")
    assert (tmp_path / "there" / "deep" / "two").read_bytes() == b"22"
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["deep", "one"]


def test_files_larger_than_a_chunk_are_copied_piece_by_piece(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_CHUNK", 1 << 16)
    content = {"large": os.urandom((3 << 16) + 5), "empty": b"", "volume.nii.gz": gzip.compress(b"betas" * 100)}
    (tmp_path / "here").mkdir()
    for name, value in content.items():
        (tmp_path / "here" / name).write_bytes(value)
    with monkeypatch.context() as patch:
        # No file is read or written as a whole.
        for whole in ("read_buffer", "read_bytes", "write_bytes"):
            patch.delattr(Folder, whole)
        folder.upload(tmp_path / "here")
        folder.download(tmp_path / "there")
    assert {name: folder.read_bytes(name) for name in folder.files()} == content
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == content


def test_a_copy_that_fails_leaves_nothing_under_the_name(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "state").write_bytes(b"whole")
    folder.write_bytes("state", b"whole")

    def half(source, destination, *, destination_filesystem, **rest):
        with destination_filesystem.open_output_stream(destination) as stream:
            stream.write(b"wh")
        raise OSError("cannot read on")

    monkeypatch.setattr(storage.pafs, "copy_files", half)
    for copy in (lambda: (folder / "new").upload(tmp_path / "here"), lambda: folder.download(tmp_path / "there")):
        with pytest.raises(OSError, match="cannot read on"):
            copy()
    assert list(folder.files()) == ["state"]
    assert not list((tmp_path / "there").iterdir())


def test_delete(folder):
    (folder / "a").write_bytes("b/c", b"x")
    folder.write_bytes("kept", b"x")
    (folder / "a").delete()
    (folder / "a").delete()
    assert list(folder.files()) == ["kept"]


def test_large_files_are_read_in_chunks(folder, monkeypatch):
    monkeypatch.setattr(storage, "_CHUNK", 7)
    content = os.urandom(100)
    folder.write_bytes("x", content)
    assert folder.sha256("x") == hashlib.sha256(content).hexdigest()


def test_a_folder_travels_by_its_address(folder):
    folder.write_bytes("x", b"1")
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder
    assert again.read_bytes("x") == b"1"


def test_a_crash_before_the_rename_leaves_the_old_file(local, monkeypatch):
    local.write_bytes("record.json", b"old")

    def crash(self, target):
        assert self.read_bytes() == b"new", "the content is written aside first"
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        local.write_bytes("record.json", b"new")
    assert local.read_bytes("record.json") == b"old"
    assert [p.name for p in Path(local.path).iterdir()] == ["record.json"]


def test_a_crash_while_writing_leaves_nothing_under_the_name(local, monkeypatch):
    write = Path.write_bytes

    def half(self, content):
        write(self, content[: len(content) // 2])
        raise OSError("killed")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="killed"):
        local.write_bytes("record.json", b"0123456789")
    assert not local.exists("record.json")


def test_what_a_killed_process_left_is_not_listed(local, monkeypatch, tmp_path):
    """A process that is killed cannot even clean up; its half-written file must not look like a file."""
    local.write_bytes("state/whole", b"whole")
    monkeypatch.setattr(Path, "replace", lambda self, target: None)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    local.write_bytes("state/half", b"half")
    monkeypatch.undo()
    assert len(list((Path(local.path) / "state").iterdir())) == 2
    assert (local / "state").names() == ["whole"]
    assert list(local.files()) == ["state/whole"]
    (local / "state").download(tmp_path / "copy")
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["whole"]


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder.at("a/../b") == Folder.at(tmp_path / "b")
    assert Folder.at("a").is_local
    assert Folder.at("s3://bucket/a/").uri == "s3://bucket/a"
    assert Folder.at("s3://bucket/a").path == "bucket/a"
    assert not Folder.at("s3://bucket/a").is_local
    with pytest.raises(OptionError, match=r"cannot open 'gs://b/a': folders are local paths or s3:// addresses"):
        Folder.at("gs://b/a")


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "elsewhere"))
    assert storage.home() == tmp_path / "elsewhere"
    monkeypatch.delenv("RECONBENCH_HOME")
    monkeypatch.chdir(tmp_path)
    assert storage.home() == tmp_path / ".reconbench"


def test_the_s3_endpoint_comes_from_the_environment(s3_bucket, monkeypatch):
    """The variable of S3 alone wins over that of all AWS services, as in AWS's own tools."""
    folder = Folder.at(f"s3://{s3_bucket}/endpoint")
    folder.write_bytes("x", b"1")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    assert folder.read_bytes("x") == b"1"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert folder.read_bytes("x") == b"1"


def test_a_bucket_that_is_not_there(s3_bucket):
    with pytest.raises(MissingDataError, match="no file s3://no-such-bucket/a/x"):
        Folder.at("s3://no-such-bucket/a").read_bytes("x")


def test_json_is_what_json_says(local):
    local.write_json("a.json", {"x": [1, None, "é"]})
    assert json.loads(Path(local.path, "a.json").read_text()) == {"x": [1, None, "é"]}


def test_a_gz_file_is_stored_as_it_is(folder):
    content = gzip.compress(b"betas" * 100)
    folder.write_bytes("volume.nii.gz", content)
    assert folder.size("volume.nii.gz") == len(content)
    assert folder.read_bytes("volume.nii.gz") == content
    assert folder.sha256("volume.nii.gz") == hashlib.sha256(content).hexdigest()
