"""Weights are found in the order that is documented, listed, and fetched only when that is asked for."""

import hashlib
from pathlib import Path

import pytest
import torch

from eval.networks import alexnet, clip_vit_l14, lpips_alex, scene, vit_h_14, weights
from eval.networks.weights import MissingWeightsError, WrongWeightsError

NAMES = {
    "alexnet.pth",
    "inception_v3.pth",
    "clip_vit_l14.pt",
    "efficientnet_b1_v1.pth",
    "efficientnet_b1_v2.pth",
    "efficientnet_v2_s.pth",
    "swav_resnet50.pth",
    "vit_h_14.pth",
    "scene.safetensors",
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Given folder, home and torch's cache, all empty."""
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    places = tmp_path / "given", tmp_path / "home" / "weights", tmp_path / "torch" / "hub" / "checkpoints"
    for place in places:
        place.mkdir(parents=True)
    return places


@pytest.fixture
def downloads(monkeypatch):
    """What torch was asked to download: address, file, start of the sha256. Its answer is the address as bytes."""
    asked = []

    def download(url, destination, hash_prefix=None, progress=True):
        asked.append((url, destination, hash_prefix))
        Path(destination).write_text(url)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def test_places_are_searched_in_order(folders):
    given, home, cache = folders
    published = cache / "alexnet-owt-7be5be79.pth"
    for path in (published, home / "alexnet.pth", given / "alexnet.pth"):
        path.write_bytes(path.name.encode() + str(path.parent).encode())
        assert weights.locate(alexnet.NETWORK, given) == path
    assert weights.locate(alexnet.NETWORK, None) == home / "alexnet.pth"
    assert weights.digest(alexnet.NETWORK, None) == hashlib.sha256((home / "alexnet.pth").read_bytes()).hexdigest()
    (home / "alexnet.pth").unlink()
    assert weights.locate(alexnet.NETWORK, None) == published
    assert weights.locate(alexnet.NETWORK, "untrained") is None


def test_the_published_name_counts_in_torchs_cache_only(folders):
    given, home, cache = folders
    for place in (given, home):
        (place / "alexnet-owt-7be5be79.pth").write_bytes(b"x")
    (cache / "alexnet.pth").write_bytes(b"x")
    with pytest.raises(MissingWeightsError, match=r"alexnet\.pth, which does not exist"):
        weights.locate(alexnet.NETWORK, given)


def test_what_is_missing_is_said_with_every_place(folders):
    given, home, cache = folders
    with pytest.raises(MissingWeightsError) as error:
        weights.locate(vit_h_14.NETWORK, given)
    for part in (given / "vit_h_14.pth", home / "vit_h_14.pth", cache / "vit_h_14_swag-80465313.pth", "SWAG_E2E_V1"):
        assert str(part) in str(error.value)


def test_nothing_is_downloaded_unasked(folders, downloads):
    with pytest.raises(MissingWeightsError):
        weights.locate(alexnet.NETWORK, None)
    with pytest.raises(MissingWeightsError):
        weights.digest(alexnet.NETWORK, folders[0])
    weights.inventory(folders[0])
    assert downloads == []


def test_downloads_go_to_the_given_folder_or_home_and_check_the_hash(folders, downloads):
    given, home, _ = folders
    url = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    assert weights.locate(alexnet.NETWORK, None, download=True) == home / "alexnet.pth"
    assert weights.locate(vit_h_14.NETWORK, given / "new", download=True) == given / "new" / "vit_h_14.pth"
    assert downloads[0] == (url, str(home / "alexnet.pth"), "7be5be79")
    assert downloads[1][2] == "80465313"
    assert (home / "alexnet.pth").read_text() == url
    weights.locate(alexnet.NETWORK, None, download=True)
    weights.locate(alexnet.NETWORK, "untrained", download=True)
    assert len(downloads) == 2  # what is here is not fetched again, and random weights are not fetched at all


def test_a_wrong_or_impossible_download_is_named(folders, monkeypatch):
    def damaged(url, destination, hash_prefix=None, progress=True):
        raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "00")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", damaged)
    with pytest.raises(WrongWeightsError, match=r"alexnet-owt-7be5be79.pth did not give .*invalid hash value"):
        weights.locate(alexnet.NETWORK, None, download=True)
    with pytest.raises(MissingWeightsError, match=r"clip_vit_l14.pt cannot be downloaded as it is.*state_dict\(\)"):
        weights.locate(clip_vit_l14.NETWORK, None, download=True)


def test_torchs_own_check_refuses_a_file_of_another_hash(folders, tmp_path):
    """The real downloader on a file address: nothing stays behind when the hash differs."""
    source = tmp_path / "alexnet-owt-7be5be79.pth"
    source.write_bytes(b"not AlexNet")
    network = type(alexnet.NETWORK)(**{**vars(alexnet.NETWORK), "url": source.as_uri()})
    with pytest.raises(WrongWeightsError, match="invalid hash value"):
        weights.locate(network, None, download=True)
    assert list(folders[1].iterdir()) == []


def test_inventory_lists_every_file(folders):
    given, home, _ = folders
    (given / "alexnet.pth").write_bytes(b"a")
    (home / "vit_h_14.pth").write_bytes(b"b")
    entries = {entry.name: entry for entry in weights.inventory(given)}
    assert {entry.file for entry in entries.values()} == NAMES
    assert entries["alexnet"].path == entries["lpips_alex"].path == given / "alexnet.pth"
    assert entries["vit_h_14"].sha256 == hashlib.sha256(b"b").hexdigest()
    missing = {name for name, entry in entries.items() if entry.path is None}
    assert {entries[name].sha256 for name in missing} == {None}
    assert set(entries) - missing == {"alexnet", "alexnet_pooled", "lpips_alex", "vit_h_14", "scene"}
    assert all(entry.source for entry in entries.values())
    assert all(
        entry.url.startswith("https://") for name, entry in entries.items() if "clip" not in name and name != "scene"
    )
    assert len(weights.inventory()) == len(entries)
    assert weights.places(scene.NETWORK, given) == (weights.SHIPPED / "scene.safetensors",)


def test_a_companion_is_never_random_and_part_of_the_digest(folders):
    heads = lpips_alex.NETWORK.companion()
    digest = hashlib.sha256(heads.read_bytes()).hexdigest()
    assert weights.digest(lpips_alex.NETWORK, "untrained") == f"untrained:0+{digest}"
    (folders[1] / "alexnet.pth").write_bytes(b"a")
    assert weights.digest(lpips_alex.NETWORK, None) == f"{hashlib.sha256(b'a').hexdigest()}+{digest}"
    module = weights.load(lpips_alex.NETWORK, "untrained", torch.device("cpu"))
    published = torch.load(heads, map_location="cpu", weights_only=True)
    for name, value in published.items():
        assert torch.equal(module.state_dict()[name], value)
    gone = type(lpips_alex.NETWORK)(**{**vars(lpips_alex.NETWORK), "companion": lambda: folders[0] / "heads.pth"})
    with pytest.raises(MissingWeightsError, match=r"heads.pth, which this installation lacks.*come with torchmetrics"):
        weights.load(gone, "untrained", torch.device("cpu"))
