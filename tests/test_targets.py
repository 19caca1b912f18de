"""Target shards: complete, checked, never made twice, resumed where they broke off."""

import dataclasses
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench import targets as stage
from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, UnknownNameError
from bench.core.storage import Folder
from bench.data.shards.columns import from_column
from bench.data.shards.manifest import FileEntry, Manifest, read_manifest
from bench.data.shards.stimuli import stimuli_table
from bench.data.shards.targets import read_targets, targets_table, write_targets
from bench.data.simulate.scenes.captions import captions
from bench.data.simulate.scenes.drawing import draw
from bench.data.simulate.scenes.sampling import sample_scene, stimulus_seed
from bench.generators.base import Stimuli
from bench.generators.choice import GeneratorChoice
from bench.generators.encoding import EncodingJob, PartMaker, TargetPart, checked_values, stimuli_of

NUMBERS = list(range(40))


def png(array):
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG")
    return sink.getvalue()


def write_stimuli(folder, parts=((0, 25), (25, 40))):
    """A stimuli set of procedural scenes in two files."""
    entries = []
    for index, (first, stop) in enumerate(parts):
        scenes = [sample_scene(stimulus_seed(n, 0)) for n in NUMBERS[first:stop]]
        table = stimuli_table(
            NUMBERS[first:stop],
            [png(draw(scene, 64)) for scene in scenes],
            [captions(scene) for scene in scenes],
            "simulator",
            [None] * len(scenes),
            [False] * len(scenes),
            [None] * len(scenes),
        )
        size, sha256 = folder.write_table(f"part-{index}.parquet", table)
        entries.append(FileEntry(f"part-{index}.parquet", len(scenes), size, sha256))
    manifest = Manifest("stimuli", "simulated", "0123456789abcdef", {"reader": "test"}, tuple(entries))
    manifest.write(folder)
    return folder


@pytest.fixture
def stimuli(tmp_path):
    return write_stimuli(Folder.at(tmp_path / "simulated" / "stimuli@0123456789abcdef"))


@pytest.fixture
def out(tmp_path):
    return Folder.at(tmp_path / "simulated")


@pytest.fixture
def in_process(monkeypatch):
    """The encoding actor's work without Ray: two tests here run the real pool."""

    def encoded(units, job):
        maker = PartMaker(job, list(units))
        for index in range(len(units)):
            yield {key: value[0] for key, value in maker({"part": np.array([index])}).items()}

    monkeypatch.setattr(stage, "_encoded", encoded)
    monkeypatch.setattr(stage.cluster, "connect", lambda: None)


def make(stimuli, out, **options):
    return stage.targets(stimuli, out, "tiny-diffusion", options, ["latent"])["latent"]


def by_hand(stimuli):
    """The latents of every stimulus by one plain loop."""
    generator = GeneratorChoice("tiny-diffusion").load(torch.device("cpu"))
    values = []
    for entry in read_manifest(stimuli).files:
        for content in stimuli.read_table(entry.path)["image"].to_pylist():
            image = torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)[None]
            values.append(generator.encode(Stimuli(image, [[]], [None]), ["latent"], [0])["latent"][0].numpy())
    return np.stack(values)


def test_targets_of_every_stimulus(ray_session, stimuli, out, monkeypatch):
    monkeypatch.setattr(stage, "PART_ROWS", 10)
    counted = []
    folders = stage.targets(stimuli, out, "tiny-diffusion", {}, advance=lambda units, note="": counted.append(units))
    assert list(folders) == ["latent"] and sum(counted) == 5
    numbers, values = read_targets(folders["latent"])
    assert numbers.tolist() == NUMBERS and values.dtype == np.float32
    np.testing.assert_allclose(values, by_hand(stimuli), rtol=1e-4, atol=1e-4)
    manifest = read_manifest(folders["latent"])
    assert folders["latent"].uri == f"{out}/targets/tiny-diffusion.latent@{manifest.digest}"
    assert manifest.kind == "targets" and manifest.shape == (4, 16, 16) and manifest.dtype == "<f4"
    assert manifest.stimuli == stimuli.name and [entry.rows for entry in manifest.files] == [10, 10, 5, 10, 5]
    assert manifest.source["stimuli"] == read_manifest(stimuli).content_digest
    assert set(manifest.source) == {"generator", "version", "weights_digest", "options", "stimuli", "target"}


def test_what_is_there_is_never_made_again(in_process, stimuli, out, monkeypatch):
    first = make(stimuli, out)
    before = {name: first.sha256(name) for name in first.files()}
    monkeypatch.setattr(stage, "_encoded", lambda *_: pytest.fail("encoded again"))
    assert make(stimuli, out, strength=0.9, steps=3) == first
    assert {name: first.sha256(name) for name in first.files()} == before


def test_a_broken_run_continues(in_process, stimuli, out, monkeypatch):
    monkeypatch.setattr(stage, "PART_ROWS", 10)
    folder = make(stimuli, out)
    whole = {name: folder.sha256(name) for name in folder.files()}
    kept = "part-00001.parquet"
    numbers = folder.read_table(kept)["stimulus"].to_numpy()
    write_targets(folder, kept, numbers, np.full((len(numbers), 4, 16, 16), 7, np.float32))
    folder.filesystem.delete_file(f"{folder.path}/manifest.json")
    folder.filesystem.delete_file(f"{folder.path}/part-00002.parquet")
    folder.write_bytes("part-00003.parquet", b"half a file")
    with pytest.raises(MissingDataError, match="not a finished set"):
        read_targets(folder)
    assert make(stimuli, out) == folder
    again = {name: folder.sha256(name) for name in folder.files()}
    # The readable part was kept (here a marked one), the missing and the unreadable were made as before.
    assert {name for name in whole if again[name] != whole[name]} == {kept, "manifest.json"}
    assert (read_targets(folder)[1][10:20] == 7).all()


def test_other_stimuli_are_another_set(in_process, tmp_path, stimuli, out):
    other = write_stimuli(Folder.at(tmp_path / "other"), parts=((0, 30),))
    assert make(stimuli, out) != make(other, out)


def test_a_corrupt_stimuli_file_stops_the_stage(ray_session, stimuli, out, capsys):
    content = bytearray(stimuli.read_bytes("part-1.parquet"))
    content[100] ^= 1
    stimuli.write_bytes("part-1.parquet", bytes(content))
    with pytest.raises(CorruptFileError, match=r"part-1.parquet: sha256 .* its manifest says"):
        make(stimuli, out)
    assert not any(name.endswith("manifest.json") for name in (out / "targets").files())
    capsys.readouterr()
    assert stage.main(["--stimuli", str(stimuli)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "part-1.parquet: sha256" in last


def test_command_line(in_process, stimuli, out, capsys):
    arguments = ["--stimuli", str(stimuli), "--generator", "tiny-diffusion", "--targets", "latent", "--set", "steps=5"]
    assert stage.main(arguments) == 0
    folder = make(stimuli, out)
    assert str(folder) in capsys.readouterr().err
    assert stage.main([*arguments, "--set", "strenght=1"]) == 2
    assert "unknown option 'strenght'" in capsys.readouterr().err
    assert stage.main(["--stimuli", str(folder)]) == 2
    assert "is a set of targets, not of stimuli" in capsys.readouterr().err


def test_unknown_target(stimuli, out):
    with pytest.raises(UnknownNameError, match=r"unknown target 'latents'.*Did you mean 'latent'"):
        stage.targets(stimuli, out, "tiny-diffusion", {}, ["latents"])


def test_pictures_that_cannot_be_right(stimuli):
    table = stimuli.read_table("part-0.parquet")
    assert stimuli_of(table.slice(0, 3)).images.shape == (3, 3, 64, 64)
    broken = stimuli_table([7], [b"no picture"], [[]], "x", [None], [False], [None])
    with pytest.raises(CorruptFileError, match="the image of stimulus 7 cannot be read as a picture"):
        stimuli_of(broken)
    pair = [png(np.zeros((64, 64, 3), np.uint8)), png(np.zeros((32, 64, 3), np.uint8))]
    with pytest.raises(BadDataError, match="differ in size"):
        stimuli_of(stimuli_table([1, 2], pair, [[], []], "x", [None, None], [False, False], [None, None]))


def test_values_are_held_against_the_declaration():
    chosen = GeneratorChoice("tiny-diffusion")
    with pytest.raises(BadDataError, match=r"declares target 'latent' as \(4, 16, 16\) float32, but made \(4, 8, 8\)"):
        checked_values(torch.zeros(2, 4, 8, 8), chosen, "latent", 2)
    with pytest.raises(BadDataError, match="NaN"):
        checked_values(torch.full((2, 4, 16, 16), float("nan")), chosen, "latent", 2)


def test_a_part_is_the_plain_encoding_of_its_rows(stimuli, out):
    """The actor's own work, without Ray."""
    entry = read_manifest(stimuli).files[1]
    folder = out / "part"
    maker = PartMaker(
        EncodingJob(GeneratorChoice("tiny-diffusion"), stimuli, {"latent": folder}),
        [TargetPart(entry, 3, 5, "p.parquet")],
    )
    row = maker({"part": np.array([0])})
    assert row["rows"] == [5] and row["sha256:latent"] == [folder.sha256("p.parquet")]
    table = pq.read_table(f"{folder.path}/p.parquet")
    assert table["stimulus"].to_pylist() == NUMBERS[28:33]
    values = from_column(table["value"], np.dtype("<f4"), (4, 16, 16))
    np.testing.assert_allclose(values, by_hand(stimuli)[28:33], rtol=1e-4, atol=1e-4)


def test_read_targets_orders_and_checks(tmp_path):
    folder, values = Folder.at(tmp_path), np.arange(12, dtype=np.float16).reshape(4, 3)

    def seal(entries, **changes):
        manifest = Manifest("targets", "d", "0" * 16, {}, tuple(entries), dtype="<f2", shape=(3,))
        dataclasses.replace(manifest, **changes).write(folder)

    entries = [
        write_targets(folder, "a.parquet", np.array([9, 4]), values[:2]),
        write_targets(folder, "b.parquet", np.array([7, 1]), values[2:]),
    ]
    seal(entries)
    numbers, found = read_targets(folder)
    assert numbers.tolist() == [1, 4, 7, 9] and numbers.dtype == np.int32
    assert np.array_equal(found, values[[3, 1, 2, 0]]) and found.dtype == np.float16
    seal([entries[0], write_targets(folder, "b.parquet", np.array([9, 1]), values[2:])])
    with pytest.raises(BadDataError, match="stimulus 9 more than once"):
        read_targets(folder)
    seal(entries, kind="stimuli")
    with pytest.raises(BadDataError, match="set of stimuli, not of targets"):
        read_targets(folder)
    seal(entries)
    with pytest.raises(CorruptFileError, match=r"b.parquet"):
        read_targets(folder)
    seal([])
    assert read_targets(folder)[1].shape == (0, 3)
    assert json.loads((tmp_path / "manifest.json").read_text())["kind"] == "targets"
    assert targets_table(np.array([1]), values[:1]).schema.field("value").type.byte_width == 6
