"""Weights are found in the order that is documented, listed, and fetched only when that is asked for."""

import dataclasses
import fcntl
import hashlib
import re
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import models

from bench.core import console
from bench.scoring import weights_list
from eval.networks import _weights as weights
from eval.networks._download import DownloadError
from eval.networks._state_file import WrongWeightsError
from eval.networks._weights import MissingWeightsError
from eval.networks.clip_vit_l14 import CLIP_VIT_L14
from eval.networks.lpips_alex import LPIPS_ALEX
from eval.networks.scene.network import SCENE
from eval.networks.torchvision import ALEXNET, SWAV_RESNET50, VIT_H_14

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


class Publisher(ThreadingHTTPServer):
    """Serves one file as it is told to: whole, cut short, not at all; notes what it was asked."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.cut, self.status, self.resumes, self.asked = content, None, 200, True, []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.server
        asked = self.headers.get("Range")
        given.asked.append((self.path, asked))
        if given.status != 200:
            self.send_error(given.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and given.resumes else 0
        if start >= len(given.content):
            self.send_error(416)
            return
        body = given.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: given.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def publisher():
    """A server on this machine whose file is a state dict of AlexNet's size in name only."""
    server = Publisher(bytes(range(256)) * 5000)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def command(*argv):
    return console.guard(weights_list.run, argv)


def published(network, server, sha256=None):
    """The network with its file on the local server, under a name that says its digest as torchvision's do."""
    digest = sha256 or hashlib.sha256(server.content).hexdigest()[:8]
    return dataclasses.replace(network, url=server.url(f"{network.name}-{digest}.pth"))


def test_places_are_searched_in_order(folders):
    given, home, cache = folders
    published = cache / "alexnet-owt-7be5be79.pth"
    for path in (published, home / "alexnet.pth", given / "alexnet.pth"):
        path.write_bytes(path.name.encode() + str(path.parent).encode())
        assert weights.locate(ALEXNET, given) == path
    assert weights.locate(ALEXNET, None) == home / "alexnet.pth"
    assert weights.digest(ALEXNET, None) == hashlib.sha256((home / "alexnet.pth").read_bytes()).hexdigest()
    (home / "alexnet.pth").unlink()
    assert weights.locate(ALEXNET, None) == published
    assert weights.locate(ALEXNET, "untrained") is None


def test_the_published_name_counts_in_torchs_cache_only(folders):
    given, home, cache = folders
    for place in (given, home):
        (place / "alexnet-owt-7be5be79.pth").write_bytes(b"x")
    (cache / "alexnet.pth").write_bytes(b"x")
    with pytest.raises(MissingWeightsError, match=r"alexnet\.pth, which does not exist"):
        weights.locate(ALEXNET, given)


def test_what_is_missing_is_said_with_every_place(folders):
    given, home, cache = folders
    with pytest.raises(MissingWeightsError) as error:
        weights.locate(VIT_H_14, given)
    for part in (given / "vit_h_14.pth", home / "vit_h_14.pth", cache / "vit_h_14_swag-80465313.pth", "SWAG_E2E_V1"):
        assert str(part) in str(error.value)


def test_nothing_is_downloaded_unasked(folders, publisher):
    network = published(ALEXNET, publisher)
    with pytest.raises(MissingWeightsError):
        weights.locate(network, None)
    with pytest.raises(MissingWeightsError):
        weights.digest(network, folders[0])
    assert weights.locate(network, "untrained") is None
    weights.inventory(folders[0])
    assert publisher.asked == []


def test_downloads_go_to_the_given_folder_or_home_once(folders, publisher):
    given, home, _ = folders
    network, told = published(ALEXNET, publisher), []
    assert weights.fetch(network, advance=told.append) == home / "alexnet.pth" == weights.locate(network, None)
    assert weights.fetch(published(VIT_H_14, publisher), given / "new") == given / "new" / "vit_h_14.pth"
    for path in (home / "alexnet.pth", given / "new" / "vit_h_14.pth"):
        assert path.read_bytes() == publisher.content
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert sum(told) == len(publisher.content)
    weights.fetch(network)
    assert len(publisher.asked) == 2  # what is here is not fetched again
    assert not (folders[2] / "alexnet.pth").exists()


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_is_never_seen_and_continues(folders, publisher, resumes):
    network, home = published(ALEXNET, publisher), folders[1]
    publisher.cut, publisher.resumes = 700_000, resumes
    with pytest.raises(DownloadError, match="broke after 700000 of 1280000 bytes; run the same command again"):
        weights.fetch(network)
    assert [path.name for path in home.iterdir()] == ["alexnet.pth.part"]
    with pytest.raises(MissingWeightsError):
        weights.locate(network, None)
    publisher.cut = None
    assert weights.fetch(network).read_bytes() == publisher.content
    assert [asked for _, asked in publisher.asked] == [None, "bytes=700000-"]
    assert [path.name for path in home.iterdir()] == ["alexnet.pth"]


def test_a_part_that_is_whole_is_only_checked(folders, publisher):
    network = published(ALEXNET, publisher)
    (folders[1] / "alexnet.pth.part").write_bytes(publisher.content)
    assert weights.fetch(network).read_bytes() == publisher.content


def test_without_a_digest_halves_are_not_joined(folders, publisher):
    network = dataclasses.replace(SWAV_RESNET50, url=publisher.url("swav.pth.tar"))
    assert network.published_digest == ""
    publisher.cut = 700_000
    with pytest.raises(DownloadError, match="broke after 700000"):
        weights.fetch(network)
    assert list(folders[1].iterdir()) == []
    (folders[1] / "swav_resnet50.pth.part").write_bytes(b"half of another file")
    publisher.cut = None
    assert weights.fetch(network).read_bytes() == publisher.content


@pytest.mark.parametrize("status", [500, 404])
def test_a_server_that_refuses_is_named(folders, publisher, status):
    publisher.status = status
    network = published(ALEXNET, publisher)
    with pytest.raises(DownloadError, match=rf"{re.escape(network.url)} could not be fetched: HTTP Error {status}"):
        weights.fetch(network)
    assert list(folders[1].iterdir()) == []


def test_no_server_is_named(folders, publisher):
    network = dataclasses.replace(ALEXNET, url="http://127.0.0.1:9/alexnet.pth")  # nothing listens there
    with pytest.raises(DownloadError, match=r"alexnet\.pth could not be fetched"):
        weights.fetch(network)
    assert list(folders[1].iterdir()) == []


def test_another_file_than_the_published_one_is_not_kept(folders, publisher):
    network = published(ALEXNET, publisher, sha256="7be5be79")
    with pytest.raises(
        DownloadError, match=r"did not give the published file: its sha256 is .*, published is 7be5be79"
    ):
        weights.fetch(network)
    assert list(folders[1].iterdir()) == []
    with pytest.raises(MissingWeightsError, match=r"scene\.safetensors cannot be downloaded"):
        weights.fetch(dataclasses.replace(SCENE, shipped=None))


def test_two_processes_do_not_write_one_file(folders, publisher):
    with (folders[1] / "alexnet.pth.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"another process is downloading .*alexnet\.pth\.part"):
            weights.fetch(published(ALEXNET, publisher))
    assert publisher.asked == []


def test_addresses_and_digests_are_the_publishers():
    """torchvision's own table of weights, and the one in CLIP's package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import clip.clip
    tables = {
        "alexnet": models.AlexNet_Weights.IMAGENET1K_V1,
        "alexnet_pooled": models.AlexNet_Weights.IMAGENET1K_V1,
        "lpips_alex": models.AlexNet_Weights.IMAGENET1K_V1,
        "inception_v3": models.Inception_V3_Weights.IMAGENET1K_V1,
        "efficientnet_b1_v1": models.EfficientNet_B1_Weights.IMAGENET1K_V1,
        "efficientnet_b1_v2": models.EfficientNet_B1_Weights.IMAGENET1K_V2,
        "efficientnet_v2_s": models.EfficientNet_V2_S_Weights.IMAGENET1K_V1,
        "vit_h_14": models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1,
    }
    by_name = {network.name: network for network in weights.networks()}
    for name, table in tables.items():
        assert by_name[name].url == table.url
        assert re.fullmatch("[0-9a-f]{8}", by_name[name].published_digest)
    for name in ("clip_vit_l14", "clip_vit_l14_hidden"):
        assert by_name[name].url == clip.clip._MODELS["ViT-L/14"]
        assert by_name[name].published_digest == by_name[name].url.split("/")[-2]
        assert weights.places(by_name[name])[-1] == Path("~/.cache/clip/ViT-L-14.pt").expanduser()
    assert weights.places(by_name["swav_resnet50"])[-1].name == "swav_800ep_pretrain.pth.tar"
    assert all(network.terms for network in by_name.values())


class Tower(torch.nn.Module):
    """Stands for CLIP: a tower of vision beside one of text."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = torch.nn.Linear(3, 4), torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_the_published_torchscript_archive_is_read_and_no_other(folders):
    path, model = folders[1] / "clip_vit_l14.pt", Tower().half()
    torch.jit.script(model).save(str(path))
    small = dataclasses.replace(
        CLIP_VIT_L14, build=lambda: torch.nn.Linear(3, 4), sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    loaded = weights.load(small, None, torch.device("cpu"))
    torch.testing.assert_close(loaded.weight, model.visual.weight.float())
    assert loaded.weight.dtype == torch.float32
    with pytest.raises(
        WrongWeightsError, match=r"clip_vit_l14\.pt is a TorchScript archive.*save the plain state dict"
    ):
        weights.load(CLIP_VIT_L14, None, torch.device("cpu"))


def test_a_changed_file_has_another_digest(folders):
    path = folders[1] / "alexnet.pth"
    path.write_bytes(b"a")
    first = weights.digest(ALEXNET, None)
    path.write_bytes(b"bb")
    assert weights.digest(ALEXNET, None) == hashlib.sha256(b"bb").hexdigest() != first


def test_the_command_shows_terms_before_it_downloads(folders, publisher, monkeypatch, capsys):
    networks = [published(network, publisher) for network in (ALEXNET, LPIPS_ALEX, VIT_H_14)]
    monkeypatch.setattr(weights, "networks", lambda: networks)
    publisher.status = 500
    assert command("--download") == 2
    shown = capsys.readouterr()
    assert "alexnet.pth: BSD-3-Clause" in shown.out
    assert "vit_h_14.pth: CC BY-NC 4.0" in shown.out
    assert "error: http://127.0.0.1" in " ".join(shown.err.split())
    publisher.status = 200
    assert command("--download", "alexnet", "lpips_alex") == 0  # one file serves both
    assert len(publisher.asked) == 2  # the refused one, and this
    assert (
        f"{folders[1]}/alexnet.pth  sha256 {hashlib.sha256(publisher.content).hexdigest()}" in capsys.readouterr().out
    )
    assert command("--download", "alexnett") == 2
    assert "unknown network 'alexnett'. Did you mean 'alexnet'?" in " ".join(capsys.readouterr().err.split())


def test_the_command_lists_the_networks_of_a_protocol(folders, capsys):
    assert command("--protocol", "cs292f") == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\S+)", said, re.MULTILINE) == ["efficientnet_v2_s", "lpips_alex"]
    assert "terms: BSD-3-Clause" in said


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
    assert all(entry.url.startswith("https://") for name, entry in entries.items() if name != "scene")
    assert len(weights.inventory()) == len(entries)
    assert weights.places(SCENE, given) == (SCENE.shipped,)


def test_a_companion_is_never_random_and_part_of_the_digest(folders):
    heads = LPIPS_ALEX.companion()
    digest = hashlib.sha256(heads.read_bytes()).hexdigest()
    assert weights.digest(LPIPS_ALEX, "untrained") == f"untrained:0+{digest}"
    (folders[1] / "alexnet.pth").write_bytes(b"a")
    assert weights.digest(LPIPS_ALEX, None) == f"{hashlib.sha256(b'a').hexdigest()}+{digest}"
    module = weights.load(LPIPS_ALEX, "untrained", torch.device("cpu"))
    published = torch.load(heads, map_location="cpu", weights_only=True)
    for name, value in published.items():
        assert torch.equal(module.state_dict()[name], value)
    gone = type(LPIPS_ALEX)(**{**vars(LPIPS_ALEX), "companion": lambda: folders[0] / "heads.pth"})
    with pytest.raises(MissingWeightsError, match=r"heads.pth, which this installation lacks.*come with torchmetrics"):
        weights.load(gone, "untrained", torch.device("cpu"))
