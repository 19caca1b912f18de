"""Where published weights are searched, what is said when they are missing, and how they are read."""

import dataclasses
import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from bench.core import options
from bench.core.errors import CorruptFileError, OptionError
from bench.generators._weights import checkpoints, frozen
from bench.generators._weights.checkpoints import Checkpoint, CheckpointOptions, find, weights_digest, weights_size
from bench.generators.base import MissingWeightsError

MODEL = Checkpoint(
    name="model",
    files=("config.json", "part/*.safetensors|part/weights.bin"),
    licence="MIT",
    terms="Keep the notice.",
    repository="someone/model",
    revision="v2",
)
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """`$RECONBENCH_HOME` and the Hub's cache, both empty; no way to the network."""
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "home"


def put(folder, config=None, tensors=None):
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    save_file(tensors or TENSORS, folder / "part" / "weights.safetensors")
    return folder


def put_in_cache(root, commit="a" * 40):
    """Lay files out as the Hub's client does: a reference, and a snapshot of links to blobs."""
    place = root / "cache" / "models--someone--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "v2").write_text(commit)
    blobs, snapshot = place / "blobs", place / "snapshots" / commit
    put(blobs)
    (snapshot / "part").mkdir(parents=True)
    (snapshot / "config.json").symlink_to(blobs / "config.json")
    (snapshot / "part" / "weights.safetensors").symlink_to(blobs / "part" / "weights.safetensors")
    return snapshot


def test_places_in_order(tmp_path, home):
    cached = put_in_cache(tmp_path)
    (tmp_path / "given").mkdir()
    given = CheckpointOptions(weights=str(tmp_path / "given"))
    assert find(MODEL, given).folder == cached
    at_home = put(home / "weights" / "model")
    assert find(MODEL, given).folder == at_home
    own = put(tmp_path / "given" / "model")
    assert find(MODEL, given).folder == own
    assert find(MODEL, CheckpointOptions()).folder == at_home
    assert find(MODEL, given).files == ("config.json", "part/weights.safetensors")


def test_a_folder_that_lacks_a_file_is_passed_over(tmp_path, home):
    partly = put(tmp_path / "given" / "model")
    (partly / "config.json").unlink()
    given = CheckpointOptions(weights=str(tmp_path / "given"))
    with pytest.raises(MissingWeightsError, match=r"given/model lacks config.json; there is no .*/home/weights/model"):
        find(MODEL, given)
    at_home = put(home / "weights" / "model")
    assert find(MODEL, given).folder == at_home


def test_alternatives_in_order(home):
    folder = put(home / "weights" / "model")
    torch.save(TENSORS, folder / "part" / "weights.bin")
    found = find(MODEL, CheckpointOptions())
    assert found.files == ("config.json", "part/weights.safetensors") and found.safetensors("part/")
    (folder / "part" / "weights.safetensors").unlink()
    found = find(MODEL, CheckpointOptions())
    assert found.files == ("config.json", "part/weights.bin") and not found.safetensors("part/")
    assert [path.name for path in found.tensors()] == ["weights.bin"]


def test_what_is_missing_says_places_files_licence_and_where_to_put_them(tmp_path, home):
    given = CheckpointOptions(weights=str(tmp_path / "given"))
    with pytest.raises(MissingWeightsError, match=r"option weights: there is no folder .*given in which .* for model"):
        find(MODEL, given)
    (tmp_path / "given").mkdir()
    with pytest.raises(MissingWeightsError) as raised:
        find(MODEL, given)
    for part in (
        f"there is no {tmp_path}/given/model",
        f"there is no {home}/weights/model",
        "nor is it in the Hub's cache",
        "Put config.json, part/*.safetensors of someone/model (revision v2)",
        f"into {home}/weights/model",
        "download: true",
        "Licence: MIT. Keep the notice.",
    ):
        assert part in str(raised.value)


def test_a_download_is_announced_before_it_starts(home, monkeypatch, caplog):
    asked = []

    def fetch(repository, revision, allow_patterns=None, local_dir=None, local_files_only=False):
        if local_files_only:
            raise __import__("huggingface_hub").errors.LocalEntryNotFoundError("not there")
        asked.append((repository, revision, allow_patterns, local_dir, len(caplog.records)))
        put(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(MissingWeightsError):
        find(MODEL, CheckpointOptions())
    assert not asked
    with caplog.at_level(logging.WARNING):
        found = find(MODEL, CheckpointOptions(download=True))
    assert found.folder == home / "weights" / "model"
    assert asked == [("someone/model", "v2", ["config.json", "part/*.safetensors"], found.folder, 1)]
    assert "someone/model" in caplog.text and "Licence: MIT. Keep the notice." in caplog.text
    assert find(MODEL, CheckpointOptions(download=True)) == found and len(asked) == 1


def test_a_download_that_fails_or_lacks_a_file_is_said(monkeypatch):
    with pytest.raises(MissingWeightsError, match="model cannot be downloaded from someone/model"):
        find(MODEL, CheckpointOptions(download=True))

    def fetch(*_, local_dir=None, **__):
        if local_dir is None:
            raise __import__("huggingface_hub").errors.LocalEntryNotFoundError("not there")
        (put(local_dir) / "config.json").unlink()

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(MissingWeightsError, match=r"has no file config.json, which model needs"):
        find(MODEL, CheckpointOptions(download=True))


def test_files_published_elsewhere_come_from_their_address(tmp_path, home):
    published = put(tmp_path / "site")
    files = ("config.json", "part/weights.safetensors")
    elsewhere = Checkpoint("other", files, "MIT", "Keep the notice.", url=published.as_uri())
    with pytest.raises(MissingWeightsError, match=r"of file:.*site into .*weights/other"):
        find(elsewhere, CheckpointOptions())
    found = find(elsewhere, CheckpointOptions(download=True))
    assert found.folder == home / "weights" / "other" and found.files == files
    gone = dataclasses.replace(elsewhere, name="gone", url=(tmp_path / "nothing").as_uri())
    with pytest.raises(MissingWeightsError, match=r"gone cannot be downloaded from file:"):
        find(gone, CheckpointOptions(download=True))


def test_digest_is_of_names_and_contents_of_the_files_used(tmp_path, home):
    first = put(home / "weights" / "model")
    digest = weights_digest([MODEL], CheckpointOptions())
    assert len(bytes.fromhex(digest)) == 32
    (first / "unused.txt").write_text("not part of it")
    assert weights_digest([MODEL], CheckpointOptions()) == digest
    put(tmp_path / "given" / "model")
    given = CheckpointOptions(weights=str(tmp_path / "given"))
    assert weights_digest([MODEL], given) == digest  # the same files at another place
    renamed = (first / "part" / "weights.safetensors").rename(first / "part" / "other.safetensors")
    assert weights_digest([MODEL], CheckpointOptions()) != digest
    renamed.rename(first / "part" / "weights.safetensors")
    (first / "config.json").write_text('{"a": 1}')
    assert weights_digest([MODEL], CheckpointOptions()) != digest
    assert weights_digest([MODEL, MODEL], given) != digest


def test_a_file_is_hashed_once_until_it_changes(home, monkeypatch):
    put(home / "weights" / "model")
    digest = weights_digest([MODEL], CheckpointOptions())
    kept = sorted((home / "hashes").iterdir())
    assert len(kept) == 2 and all(len(bytes.fromhex(path.read_text())) == 32 for path in kept)

    def refuse(*_):
        raise AssertionError("hashed again")

    monkeypatch.setattr(checkpoints.hashlib, "file_digest", refuse)
    assert weights_digest([MODEL], CheckpointOptions()) == digest
    put_again = home / "weights" / "model" / "config.json"
    put_again.write_text('{"other": true}')
    with pytest.raises(AssertionError, match="hashed again"):
        weights_digest([MODEL], CheckpointOptions())


def test_sizes_from_headers(home):
    folder = put(home / "weights" / "model")
    file = folder / "part" / "weights.safetensors"
    size = weights_size([MODEL], CheckpointOptions())
    assert (size.parameters, size.bytes) == (10, file.stat().st_size)
    file.unlink()
    torch.save({"state": TENSORS, "step": 3}, folder / "part" / "weights.bin")
    size = weights_size([MODEL], CheckpointOptions())
    assert (size.parameters, size.bytes) == (10, (folder / "part" / "weights.bin").stat().st_size)


def test_untrained_is_a_digest_of_its_own_and_goes_with_no_files():
    assert weights_digest([MODEL], CheckpointOptions(untrained=True)) == f"untrained:{frozen.UNTRAINED_SEED}"
    for extra in ({"weights": "folder"}, {"download": True}):
        with pytest.raises(OptionError, match="untrained asks for random weights"):
            options.build(CheckpointOptions, {"untrained": True, **extra}, "options")


def test_seeded_draws_repeat_and_leave_the_state_outside_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with frozen.seeded():
        first = torch.nn.Linear(3, 3).weight
    with frozen.seeded():
        assert torch.equal(first, torch.nn.Linear(3, 3).weight)
    assert torch.equal(torch.rand(3), expected)


def test_state_dicts_are_read_from_either_kind_of_file(tmp_path):
    put(tmp_path / "a")
    read = frozen.read_state(tmp_path / "a" / "part" / "weights.safetensors")
    assert {name: tuple(value.shape) for name, value in read.items()} == {"a": (2, 3), "b": (4,)}
    torch.save({"image": TENSORS}, tmp_path / "nested.bin")
    assert torch.equal(frozen.read_state(tmp_path / "nested.bin")["image"]["a"], TENSORS["a"])


class _Code:
    def __reduce__(self):
        return (eval, ("1",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"nothing", "a.safetensors is not a safetensors file"),
        ("a.bin", b"nothing", "a.bin is not a file of tensors saved with torch.save"),
        ("a.bin", [1, 2], "a.bin must hold a mapping from names to tensors, got list"),
        ("a.bin", {"a": _Code()}, "a.bin is not a file of tensors"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CorruptFileError, match=message):
        frozen.read_state(tmp_path / name)


def test_a_state_dict_fills_only_its_own_network(tmp_path):
    module = torch.nn.Linear(3, 2)
    own = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    frozen.load_state(module, own, tmp_path / "own.bin")
    assert torch.equal(module.weight, own["weight"])
    with pytest.raises(
        CorruptFileError, match=r"x.bin holds .*1 missing \(bias ...\); 1 unknown \(other ...\); 1 of an"
    ):
        frozen.load_state(module, {"weight": torch.ones(3, 3), "other": torch.ones(1)}, tmp_path / "x.bin")


def test_number_formats():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert frozen.dtype_of("auto", cpu) == torch.float32 and frozen.dtype_of("auto", gpu) == torch.float16
    assert frozen.dtype_of("bfloat16", cpu) == torch.bfloat16 and frozen.dtype_of("float32", gpu) == torch.float32
