"""The shard contract: tables, the manifest that seals a set, and what a file that differs says."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from stream_shards import LABEL_NAMES, SCALE, VOXELS, coordinates, labels, raw, written_for

from bench.core.errors import CorruptFileError, MissingDataError, OptionError, UnknownNameError
from bench.core.storage import Folder
from bench.data.shards import manifest as shards
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import MANIFEST, FileEntry, Manifest, read_checked, read_manifest
from bench.data.shards.stimuli import stimuli_table
from bench.data.shards.trials import trials_table, voxels_table

folder, own = written_for("module"), written_for("function")


def test_the_layout(folder):
    assert list(folder.files()) == [
        MANIFEST,
        "subject=1/session=1/part-0.parquet",
        "subject=1/session=2/part-0.parquet",
        "subject=2/session=1/part-0.parquet",
        "subject=2/session=2/part-0.parquet",
        "voxels/subject-1.parquet",
        "voxels/subject-2.parquet",
    ]


def test_any_parquet_reader_sees_hive_partitions(folder):
    dataset = ds.dataset(folder.path, partitioning="hive", exclude_invalid_files=True, ignore_prefixes=["voxels"])
    table = dataset.to_table(
        filter=(ds.field("subject") == 2) & (ds.field("session") == 1), columns=["subject", "trial"]
    )
    assert table.num_rows == 60
    assert set(table["subject"].to_pylist()) == {2}
    assert dataset.schema.field("session").type == pa.int32()


def test_a_session_holds_its_trials_losslessly(folder):
    data = raw(2)
    rows = data["session"] == 2
    table = folder.read_table(shards.session_path(2, 2))
    assert table.schema.remove_metadata() == pa.schema(
        [("trial", pa.int32()), ("stimulus", pa.int32()), ("repeat", pa.int8()), ("betas", pa.binary(VOXELS[2] * 2))]
    )
    for name in ("trial", "stimulus", "repeat"):
        np.testing.assert_array_equal(table[name].to_numpy(), data[name][rows])
    betas = from_column(table["betas"], np.dtype("<i2"), (VOXELS[2],))
    np.testing.assert_array_equal(betas, data["betas"][rows])


def test_nan_is_kept():
    betas = np.array([[1.0, np.nan]], np.float32)
    one = np.zeros(1, np.int32)
    table = trials_table(one, one, one, betas)
    np.testing.assert_array_equal(from_column(table["betas"], np.dtype("<f4"), (2,)), betas)


def test_the_voxel_table(folder):
    table = folder.read_table(shards.voxels_path(1))
    assert table.column_names == ["x", "y", "z", "ncsnr", "atlas:streams"]
    np.testing.assert_array_equal(np.stack([table[a].to_numpy() for a in "xyz"], axis=1), coordinates(1))
    np.testing.assert_array_equal(table["atlas:streams"].to_numpy(), labels(1)["streams"])
    assert set(table["atlas:streams"].to_pylist()) == set(LABEL_NAMES["streams"].values())


def test_the_voxel_table_of_a_surface():
    table = voxels_table(np.array([[5], [9]]), np.array([0.1, np.nan]), {})
    assert table.column_names == ["vertex", "ncsnr"]
    assert table["vertex"].to_pylist() == [5, 9]
    assert np.isnan(table["ncsnr"].to_numpy()[1])


def test_the_stimuli_table():
    table = stimuli_table(
        [3, 4],
        [b"png", b"gnp"],
        [["a cat", "cat"], []],
        "simulator",
        ["cat", None],
        [True, False],
        ["coco:7", None],
    )
    assert table.to_pylist() == [
        {"stimulus": 3, "image": b"png", "captions": ["a cat", "cat"], "caption_source": "simulator", "label": "cat",
         "shared": True, "origin": "coco:7"},
        {"stimulus": 4, "image": b"gnp", "captions": [], "caption_source": "simulator", "label": None, "shared": False,
         "origin": None},
    ]  # fmt: skip


def test_the_manifest_round_trips(folder):
    manifest = read_manifest(folder)
    assert manifest == dataclasses.replace(manifest, files=tuple(manifest.files))
    assert manifest.scale == SCALE
    assert manifest.subjects == [1, 2]
    assert [entry.session for entry in manifest.sessions(2)] == [1, 2]
    assert manifest.entry("voxels/subject-1.parquet").rows == VOXELS[1]
    for entry in manifest.files:
        content = folder.read_bytes(entry.path)
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert read_checked(folder, entry) == content


def test_content_digest_names_the_data_files_alone(own):
    manifest = read_manifest(own)
    renamed = dataclasses.replace(manifest, digest="other", bytes_read=9, source={})
    assert renamed.content_digest == manifest.content_digest
    first, *rest = manifest.files
    for changed in (dataclasses.replace(first, sha256="0" * 64), dataclasses.replace(first, path="other")):
        assert dataclasses.replace(manifest, files=(changed, *rest)).content_digest != manifest.content_digest
    assert dataclasses.replace(manifest, files=tuple(rest)).content_digest != manifest.content_digest


def test_what_the_manifest_does_not_hold(folder):
    manifest = read_manifest(folder)
    with pytest.raises(MissingDataError, match=r"hold no session of subject 5; they hold \[1, 2\]"):
        manifest.sessions(5)
    with pytest.raises(MissingDataError, match=r"has no file 'subject=5/x'"):
        manifest.entry("subject=5/x")


def test_a_set_without_manifest_is_not_finished(tmp_path):
    folder = Folder.at(tmp_path)
    with pytest.raises(MissingDataError, match=f"no manifest.json in {folder}: not a finished set of shards"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [[], "text", {"schema_version": 1}, {"schema_version": 1, "files": 3}])
def test_a_file_that_is_no_manifest(tmp_path, content):
    folder = Folder.at(tmp_path)
    folder.write_json(MANIFEST, content)
    with pytest.raises(CorruptFileError, match=f"{folder}/manifest.json is not a manifest"):
        read_manifest(folder)


def changed_manifest(folder: Folder, **changes) -> None:
    content = json.loads(folder.read_bytes(MANIFEST))
    folder.write_json(MANIFEST, {**content, **changes})


def test_another_schema_version(own):
    changed_manifest(own, schema_version=1)
    with pytest.raises(CorruptFileError, match=r"manifest.json has schema version 1, this is 3: remove the manifest"):
        read_manifest(own)


def test_an_unknown_key_in_a_manifest(own):
    changed_manifest(own, voxel={})
    with pytest.raises(UnknownNameError, match=r"unknown option 'voxel' in .*manifest.json.*'voxels'"):
        read_manifest(own)


def test_a_wrong_type_in_a_file_entry(own):
    entry = {"path": "a", "rows": "many", "size": 1, "sha256": ""}
    changed_manifest(own, files=[entry])
    with pytest.raises(OptionError, match=r"manifest.json: files\.0\.rows: .*'many'"):
        read_manifest(own)


def test_a_changed_file_is_named(own):
    entry = read_manifest(own).entry(shards.session_path(1, 1))
    content = bytearray(own.read_bytes(entry.path))
    content[100] ^= 1
    own.write_bytes(entry.path, bytes(content))
    with pytest.raises(CorruptFileError, match=r"subject=1/session=1/part-0.parquet: sha256 .*, its manifest says "):
        read_checked(own, entry)


def test_a_truncated_file_is_named(own):
    entry = read_manifest(own).entry(shards.session_path(1, 2))
    own.write_bytes(entry.path, own.read_bytes(entry.path)[:-10])
    with pytest.raises(
        CorruptFileError, match=rf"session=2/part-0.parquet: {entry.size - 10} bytes, its manifest says "
    ):
        read_checked(own, entry)


def test_a_missing_file_is_named(own):
    with pytest.raises(MissingDataError, match=r"no file .*/gone.parquet"):
        read_checked(own, FileEntry("gone.parquet", 1, 1, ""))


def test_a_manifest_of_targets_needs_no_subjects(tmp_path):
    folder = Folder.at(tmp_path)
    manifest = Manifest("targets", "small", "d", {}, (FileEntry("part-0.parquet", 1, 1, "s"),), "<f4", shape=(2, 3))
    manifest.write(folder)
    assert read_manifest(folder) == manifest
    assert manifest.subjects == []
