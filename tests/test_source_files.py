"""Files of a bucket against the same files on disk: ranges, retries, the chunk index, and the NSD reader on top."""

import io
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from fault_proxy import FAULTS, Plan, fault_proxy
from hypothesis import given, settings
from hypothesis import strategies as st
from nsd_copy import BOX, SPACE, write_copy, write_pictures

from bench.core.errors import CorruptFileError, MissingDataError, OptionError, UnreachableError
from bench.core.storage import Folder
from bench.data import terms
from bench.data.datasets.nsd import layout, volumes
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions
from bench.data.sources import hdf5_chunks, retries
from bench.data.sources.files import SourceFiles
from bench.data.sources.ranges import BLOCK, RangeFile
from bench.prepare import dry_run, main, prepare


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    made = write_copy(tmp_path_factory.mktemp("nsd"), {1: (1, 2)})
    reader = Nsd(NsdOptions(root=str(made.root)))
    shown = np.unique(np.concatenate([reader.trials(1, session).stimulus for session in (1, 2)]))
    write_pictures(made, shown)
    return made


@pytest.fixture(autouse=True)
def quick_and_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def bucket(copy, s3_bucket, s3_server):
    """The copy in a bucket; the name is the bucket's."""
    Folder.at(f"s3://{s3_bucket}/nsd").upload(copy.root)
    return s3_bucket


def opened(path: Path) -> RangeFile:
    return RangeFile(pafs.LocalFileSystem().open_input_file(str(path)), path.stat().st_size, str(path))


def reader_of(root: str) -> Nsd:
    reader = Nsd(NsdOptions(root=root))
    terms.accept(reader)
    return reader


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000), st.lists(st.tuples(st.integers(0, 2100), st.integers(0, 700)), max_size=8))
def test_reads_are_those_of_a_file_in_memory(content, steps):
    file = RangeFile(pa.PythonFile(io.BytesIO(content), mode="r"), len(content), "memory")
    reference = io.BytesIO(content)
    for position, size in steps:
        assert file.seek(position) == reference.seek(position)
        assert file.read(size) == reference.read(size)
        assert file.tell() == reference.tell()
    assert file.seek(0, io.SEEK_END) == len(content)


def test_large_and_small_reads_and_what_is_counted(tmp_path):
    content = np.random.default_rng(0).bytes(3 * BLOCK + 17)
    (tmp_path / "file").write_bytes(content)
    file = opened(tmp_path / "file")
    assert file.read(10) == content[:10] and file.read(20) == content[10:30]
    assert (file.requests, file.bytes_read) == (1, BLOCK)  # one block served both
    file.seek(BLOCK - 5)
    assert file.read(10) == content[BLOCK - 5 : BLOCK + 5]
    assert (file.requests, file.bytes_read) == (2, 2 * BLOCK)
    file.seek(3)
    assert file.read(2 * BLOCK) == content[3 : 2 * BLOCK + 3]
    assert (file.requests, file.bytes_read) == (3, 4 * BLOCK)
    wanted = [(i * 1000, 100 + i) for i in range(100)]
    assert list(file.ranges(wanted)) == [content[offset : offset + size] for offset, size in wanted]
    assert list(file.ranges([])) == []
    with pytest.raises(EOFError, match="were asked for"):
        file.range(len(content) - 1, 2)


class Flaky:
    """A file whose first reads fail in a planned way."""

    def __init__(self, content: bytes, faults: list[object]) -> None:
        self.content, self.faults = content, faults

    def read_at(self, size: int, offset: int) -> bytes:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        return self.content[offset : offset + (size if fault is None else fault)]


def test_a_range_is_tried_again_until_it_is_whole():
    flaky = Flaky(b"0123456789", [OSError("500"), 3, 0, OSError("stalled")])
    file = RangeFile(flaky, 10, "flaky")
    assert file.range(2, 6) == b"234567"
    assert (file.requests, file.bytes_read) == (1, 6)


def test_a_server_that_never_answers_is_named():
    file = RangeFile(Flaky(b"0123456789", [OSError("slow down")] * 100), 10, "s3://bucket/file")
    with pytest.raises(UnreachableError, match=r"s3://bucket/file failed 8 times, at last with: slow down"):
        file.range(0, 4)


def test_pauses_double_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 4.0)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    file = RangeFile(Flaky(b"01", [OSError("no")] * 5), 2, "file")
    assert file.range(0, 2) == b"01"
    for pause, longest in zip(waited, [4, 8, 10, 10, 10], strict=True):
        assert longest / 2 <= pause <= longest


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    """A file of NSD's chunking, deep enough for three levels of index, and its numbers."""
    path = tmp_path_factory.mktemp("chunks") / "betas.hdf5"
    box, trials = (37, 31, 29), 4
    rng = np.random.default_rng(1)
    values = rng.integers(-32768, 32768, (trials, *box[::-1])).astype("<i2")
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("betas", data=values, chunks=(trials, 1, 1, 1))
    return path, box, trials, values


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_voxels_of_a_bucket_are_those_of_the_file(chunked, data):
    path, box, trials, values = chunked
    count = data.draw(st.sampled_from([1, 2, 3, 50, 700]))
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    coordinates = np.stack([rng.integers(0, n, count) for n in box], axis=1).astype(np.int32)  # repeats are legal
    betas, read = volumes.read_hdf5(opened(path), coordinates, box, trials)
    x, y, z = coordinates.T
    assert betas.dtype == np.dtype("<i2") and betas.flags.c_contiguous
    assert np.array_equal(betas, values[:, z, y, x])
    assert read >= len(np.unique(coordinates, axis=0)) * trials * 2


def test_every_chunk_is_found_where_hdf5_says(chunked):
    path, box, _, _ = chunked
    file = opened(path)
    with h5py.File(path) as reference:
        dataset = reference["betas"]
        index = hdf5_chunks.index_of(dataset, file)
        assert index is not None
        rng = np.random.default_rng(2)
        wanted = np.unique(rng.integers(0, np.prod(box), 300))
        offsets = hdf5_chunks.locate(file, index, wanted)
        places = np.stack(np.unravel_index(wanted, box[::-1]), axis=1)
        for place, offset in zip(places, offsets, strict=True):
            assert dataset.id.get_chunk_info_by_coord((0, *place.tolist())).byte_offset == offset


@pytest.mark.parametrize(
    "kind", ["sparse", "compressed", "contiguous", "latest", "userblock", "attributes", "no voxel"]
)
def test_other_layouts_read_the_same(tmp_path, kind):
    box, trials = (5, 4, 3), 6
    rng = np.random.default_rng(3)
    values = rng.integers(-300, 300, (trials, *box[::-1])).astype("<i2")
    path = tmp_path / "betas.hdf5"
    creation = {
        "compressed": {"chunks": (trials, 1, 1, 1), "compression": "gzip"},
        "contiguous": {},
    }.get(kind, {"chunks": (trials, 1, 1, 1)})
    options = {"latest": {"libver": "latest"}, "userblock": {"userblock_size": 1024}}.get(kind, {})
    with h5py.File(path, "w", **options) as file:
        dataset = file.create_dataset("betas", values.shape, "<i2", **creation)
        if kind == "sparse":
            values[:, 1:] = 0
            dataset[:, 0] = values[:, 0]
        else:
            dataset[:] = values
        for number in range(40 if kind == "attributes" else 0):
            dataset.attrs[f"attribute {number}"] = "x" * 200
    coordinates = np.argwhere(np.ones(box, bool)).astype(np.int32)[:: -1 if kind != "no voxel" else 1]
    coordinates = coordinates[:0] if kind == "no voxel" else coordinates
    betas, _ = volumes.read_hdf5(opened(path), coordinates, box, trials)
    x, y, z = coordinates.T
    assert np.array_equal(betas, values[:, z, y, x])


def test_a_damaged_index_is_an_error_and_never_numbers(chunked, tmp_path):
    path, box, trials, _ = chunked
    content = bytearray(path.read_bytes())
    coordinates = np.argwhere(np.ones(box, bool)).astype(np.int32)
    nodes = [at for at in range(0, len(content) - 4, 4) if content[at : at + 5] == b"TREE\x01"]
    assert len(nodes) > 100
    content[nodes[len(nodes) // 2]] = 0
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"damaged\.hdf5.*node of the chunk index is damaged"):
        volumes.read_hdf5(opened(damaged), coordinates, box, trials)
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CorruptFileError, match=r"cut\.hdf5 cannot be read as HDF5"):
        volumes.read_hdf5(opened(cut), coordinates, box, trials)


def test_a_bucket_gives_what_the_folder_gives(copy, bucket):
    there, here = reader_of(f"s3://{bucket}/nsd"), Nsd(NsdOptions(root=str(copy.root)))
    assert there.remote and not here.remote
    assert there.sessions() == here.sessions()
    assert there.source() == here.source() and there.stimuli_source() == here.stimuli_source()
    voxels = here.voxels(1)
    for files in ("hdf5", "nifti"):
        remote = Nsd(NsdOptions(root=f"s3://{bucket}/nsd", files=files)).read_session(1, 2, voxels)
        assert np.array_equal(remote.betas, here.read_session(1, 2, voxels).betas)
        assert remote.bytes_read > 0
    numbers = np.unique(here.trials(1, 1).stimulus)[:5].tolist()
    for a, b in zip(there.stimuli(numbers), here.stimuli(numbers), strict=True):
        assert np.array_equal(a.image, b.image) and a.captions == b.captions


def test_missing_files_of_a_bucket_are_answers_and_not_tried_again(bucket):
    files = SourceFiles(f"s3://{bucket}/nsd")
    assert not files.exists("nsddata/nothing.txt") and files.names("nsddata/nowhere") == []
    for ask in (files.size, files.local, files.open):
        with pytest.raises(MissingDataError, match=rf"no file s3://{bucket}/nsd/nsddata/nothing\.txt"):
            ask("nsddata/nothing.txt")
    with pytest.raises(OptionError, match="local folder or an s3:// address"):
        SourceFiles("https://example.org/nsd")


def test_a_small_file_is_fetched_once_and_again_when_it_changed(s3_bucket, tmp_path):
    folder = Folder.at(f"s3://{s3_bucket}/root")
    folder.write_bytes("a/masks.txt", b"first")
    files = SourceFiles(f"s3://{s3_bucket}/root")
    path = files.local("a/masks.txt")
    assert path.read_bytes() == b"first" and path.is_relative_to(tmp_path / "home")
    before = path.stat().st_mtime_ns
    assert SourceFiles(f"s3://{s3_bucket}/root").local("a/masks.txt").stat().st_mtime_ns == before
    folder.write_bytes("a/masks.txt", b"another version")
    assert SourceFiles(f"s3://{s3_bucket}/root").local("a/masks.txt").read_bytes() == b"another version"


def test_faults_of_the_server_do_not_change_a_byte(copy, bucket, s3_server, tmp_path, monkeypatch, ray_session):
    """Preparing through a server with every kind of fault ends in the files and manifests of a quiet one."""
    quiet, noisy = Folder.at(tmp_path / "quiet"), Folder.at(tmp_path / "noisy")
    reader = reader_of(f"s3://{bucket}/nsd")
    expected = prepare(reader, quiet)
    plan = Plan(every=4, seed=11)
    with fault_proxy(s3_server, plan) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "other-home"))
        faulty = reader_of(f"s3://{bucket}/nsd")
        for session in (1, 2):
            here = Nsd(NsdOptions(root=str(copy.root))).read_session(1, session, reader.voxels(1))
            assert np.array_equal(faulty.read_session(1, session, reader.voxels(1)).betas, here.betas)
        numbers = np.unique(here.stimulus)[:40].tolist()
        pictures = [stimulus.image for stimulus in faulty.stimuli(numbers)]
        made = prepare(faulty, noisy)
    assert all(plan.served[kind] > 0 for kind in FAULTS), plan.served
    assert len(pictures) == len(numbers)
    assert made.name == expected.name
    for folder in ("nsd/" + made.name, "nsd/" + made.read_json("manifest.json")["stimuli"]):
        for name in (quiet / folder).files():
            assert (noisy / folder).sha256(name) == (quiet / folder).sha256(name), name


def test_terms_are_accepted_once_before_a_byte_is_fetched(bucket, s3_server, tmp_path, monkeypatch, capsys):
    plan = Plan(every=10**9, seed=0)
    with fault_proxy(s3_server, plan) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        command = ["--root", f"s3://{bucket}/nsd", "--data", str(tmp_path / "data"), "--dry-run"]
        assert main(command) == 2
        assert "NSD Terms and Conditions" in capsys.readouterr().err
        before = plan.bytes_sent
        assert before < 3000  # listings, to see that it is no simulated NSD: no file
        assert main([*command, "--accept-terms"]) == 0
        output = capsys.readouterr().err
        assert "NSD Terms and Conditions" in output and f"s3://{bucket}/nsd/nsddata_betas" in output
        assert plan.bytes_sent > before
        assert main(command) == 0  # remembered


def test_changed_terms_are_asked_for_again(bucket, monkeypatch):
    reader = reader_of(f"s3://{bucket}/nsd")
    terms.require(reader)
    reader.__dict__["terms"] = "Other terms."
    with pytest.raises(OptionError, match="Other terms"):
        terms.require(reader)


def test_a_dry_run_of_a_bucket_says_the_same_as_of_the_folder(copy, bucket, tmp_path):
    there = dry_run(reader_of(f"s3://{bucket}/nsd"), Folder.at(tmp_path / "data"))
    here = dry_run(Nsd(NsdOptions(root=str(copy.root))), Folder.at(tmp_path / "data"))
    assert [line.replace(f"s3://{bucket}/nsd", str(copy.root)) for line in there] == here


def test_the_copy_is_of_the_geometry_these_tests_assume(copy):
    folder = layout.betas_folder(1, SPACE, "betas_fithrf_GLMdenoise_RR")
    with h5py.File(copy.root / layout.session_betas(folder, 1, "hdf5")) as file:
        assert file["betas"].shape == (750, *BOX[::-1])
