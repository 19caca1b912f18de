"""The render stage: every picture once, the same however it was made, nothing half-done looking whole."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from bench import render as stage
from bench.core.errors import (
    BadDataError,
    CorruptFileError,
    MissingDataError,
    OptionError,
    OtherConfigurationError,
    UnknownNameError,
)
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.data.shards.columns import to_column
from bench.data.shards.pictures import SEAL, part_name, read_images, seal, write_images, write_part
from bench.generators.choice import GeneratorChoice
from bench.rendering import jobs
from bench.rendering.jobs import RenderJob, render

COUNT = 21
STEPS = {"steps": 4, "strength": 0.5}


def keys_of(count=COUNT):
    return pa.table(
        {
            "subject": pa.array([1] * count, pa.int32()),
            "stimulus": pa.array(range(count), pa.int32()),
            "repeat": pa.array([-1] * count, pa.int8()),
            "sample": pa.array([0] * count, pa.int8()),
        }
    )


def job_at(folder, count=COUNT, **changes):
    rng = np.random.default_rng(0)
    job = RenderJob(
        generator="tiny-diffusion",
        options=STEPS,
        keys=keys_of(count),
        inputs={"latent": rng.standard_normal((count, 4, 16, 16)).astype(np.float32)},
        seeds=np.array([picture_seed(n) for n in range(count)]),
        out=folder,
        identity={"images": 1, "source": "test"},
    )
    return dataclasses.replace(job, **changes)


@pytest.fixture(scope="module")
def expected():
    """The pictures of `job_at` by one bare loop, one picture at a time."""
    torch.set_num_threads(1)
    generator, job = GeneratorChoice("tiny-diffusion", STEPS).load(torch.device("cpu")), job_at(Folder("unused"))
    return np.concatenate(
        [
            generator.render({"latent": torch.from_numpy(job.inputs["latent"][i : i + 1])}, [int(job.seeds[i])]).numpy()
            for i in range(COUNT)
        ]
    )


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def serve_running(ray_session, port):
    """Serve, started once for the tests that render; `render` finds and uses it."""
    from bench.rendering.serving import running

    with running(port):
        yield


def same(pictures, expected):
    return pictures.shape == expected.shape and np.abs(pictures.astype(int) - expected.astype(int)).max() <= 1


def never(*_, **__):
    pytest.fail("something was rendered again")


def test_pictures_once_and_the_same_as_a_bare_loop(serve_running, tmp_path, expected, monkeypatch):
    """Two jobs, one of them half done; then a rerun that must not even join Ray."""
    fresh, half = job_at(Folder.at(tmp_path / "fresh")), job_at(Folder.at(tmp_path / "half"))
    marked = np.full((5, 3, 64, 64), 9, np.uint8)
    half.out.write_json("identity.json", half.identity)
    write_part(half.out, 8, half.keys.slice(8, 5), half.seeds[8:13], marked)
    half.out.write_bytes(part_name(0), b"half a file")
    counted = []
    render([fresh, half], batch_size=8, advance=lambda units=1, note="": counted.append((units, note)))
    assert sum(units for units, _ in counted) == 2 * COUNT and (5, "already there") in counted
    keys, pictures = read_images(fresh.out)
    assert keys.drop_columns(["seed"]).equals(fresh.keys) and keys["seed"].to_pylist() == fresh.seeds.tolist()
    assert same(pictures, expected)
    continued = read_images(half.out)[1]
    assert (continued[8:13] == 9).all() and same(
        np.delete(continued, range(8, 13), 0), np.delete(expected, range(8, 13), 0)
    )
    record = fresh.out.read_json(SEAL)
    assert record["rows"] == record["rendered"] == COUNT and record["identity"] == fresh.identity
    assert [entry["rows"] for entry in record["files"]] == [8, 8, 5] and record["images_per_s"] > 0
    assert half.out.read_json(SEAL)["rendered"] == COUNT - 5
    before = {name: fresh.out.sha256(name) for name in fresh.out.files()}
    monkeypatch.setattr(stage.cluster, "connect", never)
    render([fresh, half], batch_size=3)
    assert {name: fresh.out.sha256(name) for name in fresh.out.files()} == before


def test_a_killed_replica_changes_nothing(serve_running, tmp_path, expected):
    """Every part found on the way is counted; the only replica dies after the first."""
    from bench.rendering.client import run_plans
    from bench.rendering.serving import Scale, deployed

    job, chosen, killed = job_at(Folder.at(tmp_path)), GeneratorChoice("tiny-diffusion", STEPS), []
    with deployed(chosen, Scale(replicas=1)) as handle:
        first = handle.describe.remote().result()["pid"]

        def advance(units=1, note=""):
            if not killed:
                os.kill(first, signal.SIGKILL)
                killed.append(first)

        plan = jobs._planned(job, chosen, 2, None)
        run_plans(handle, [plan], Scale(replicas=1), 2, advance)
        assert killed and handle.describe.remote().result()["pid"] != first
    assert same(read_images(job.out)[1], expected)


def npz(**arrays):
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def post(port, body):
    """Status and body of one request."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_single_pictures_over_http(serve_running, port, expected):
    """Twelve requests at once, gathered by the route, give the pictures of the batch route; bad ones are told why."""
    from bench.rendering.serving import Scale, deployed

    job, answers = job_at(Folder("unused")), {}
    latents, seeds = job.inputs["latent"], job.seeds
    with deployed(GeneratorChoice("tiny-diffusion", STEPS), Scale(replicas=1), http_batch=4):
        wait_for_route(port)
        threads = [
            threading.Thread(target=lambda i=i: answers.update({i: post(port, npz(latent=latents[i], seed=seeds[i]))}))
            for i in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bad = {
            "not an .npz": post(port, b"no archive"),
            "'seed'": post(port, npz(latent=latents[0])),
            "must be (1, 4, 16, 16)": post(port, npz(latent=latents[0, :2], seed=1)),
            "unknown input 'latnt'": post(port, npz(latnt=latents[0], seed=1)),
            "starts from one of latent, image": post(
                port, npz(latent=latents[0], image=np.zeros((3, 64, 64), np.uint8), seed=1)
            ),
        }
        assert post(port, npz(image=expected[0], seed=3))[0] == 200
    assert all(status == 200 for status, _ in answers.values())
    pictures = [np.asarray(Image.open(io.BytesIO(answers[i][1]))).transpose(2, 0, 1) for i in range(12)]
    assert same(np.stack(pictures), expected[:12])
    for message, (status, body) in bad.items():
        assert status == 400 and message in body.decode(), (message, status, body)


def wait_for_route(port):
    """A proxy learns of a new route a moment after it is deployed; until then it answers 404."""
    for _ in range(200):
        with contextlib.suppress(urllib.error.URLError):
            if post(port, b"")[0] == 400:
                return
        time.sleep(0.1)
    raise AssertionError("the HTTP route never came up")


def test_command_line(serve_running, tmp_path, expected, capsys):
    job, predictions = job_at(Folder("unused")), Folder.at(tmp_path / "predictions" / "0123456789abcdef")
    table = job.keys.append_column("value", to_column(job.inputs["latent"]))
    predictions.write_table("head=z.parquet", table)
    predictions.write_json("identity.json", {"heads": {"z": {"shape": [4, 16, 16], "dtype": "float32"}}})
    out = Folder.at(tmp_path / "images")
    common = ["--predictions", str(predictions), "--out", str(out), "--set", "steps=4", "--batch-size", "16"]
    assert stage.main([*common, "--inputs", "latent=z", "--replicas", "1"]) == 0
    assert same(read_images(out)[1], expected) and str(out) in capsys.readouterr().err
    for arguments, message in (
        ([*common, "--inputs", "latent=y"], "have heads ['z'], not 'y'"),
        ([*common, "--inputs", "latnt=z"], "unknown input 'latnt'"),
        ([*common, "--inputs", "latent"], "INPUT=HEAD, got 'latent'"),
        ([*common, "--inputs", "latent=z", "--seed", "1"], "pictures of another configuration (they differ in seed)"),
        ([*common, "--inputs", "latent=z", "--generator", "tiny"], "unknown generator 'tiny'"),
        (["--out", str(out)], "needs --predictions, --inputs and --out"),
    ):
        assert stage.main(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_other_pictures_is_refused(tmp_path):
    job = job_at(Folder.at(tmp_path / "a"))
    job.out.write_json("identity.json", {"images": 1, "source": "another"})
    with pytest.raises(OtherConfigurationError, match=r"another configuration \(they differ in source\)"):
        render([job])
    other = job_at(Folder.at(tmp_path / "b"))
    other.out.write_json("identity.json", other.identity)
    write_part(other.out, 0, other.keys.slice(1, 2), other.seeds[1:3], np.zeros((2, 3, 64, 64), np.uint8))
    with pytest.raises(OtherConfigurationError, match="holds other pictures than those asked for"):
        render([other])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seeds": np.zeros(3, np.int64)}, BadDataError, "21 pictures need as many seeds"),
        ({"seeds": np.full(COUNT, -1)}, BadDataError, "integers from 0"),
        ({"inputs": {}}, BadDataError, "no input is given"),
        ({"inputs": {"latent": np.zeros((COUNT, 4, 8, 8), np.float32)}}, BadDataError, "got (21, 4, 8, 8) float32"),
        ({"inputs": {"latent": np.zeros((COUNT, 4, 16, 16), int)}}, BadDataError, "of floats"),
        ({"inputs": {"image": np.zeros((COUNT, 3, 64, 64), np.float32)}}, BadDataError, "uint8, got"),
        ({"inputs": {"latents": np.zeros(1)}}, UnknownNameError, "Did you mean 'latent'"),
        ({"generator": "tiny-difusion"}, UnknownNameError, "Did you mean 'tiny-diffusion'"),
        ({"options": {"step": 3}}, UnknownNameError, "Did you mean 'steps'"),
        ({"options": {"strength": 1.5}}, OptionError, "strength: Input should be less than or equal to 1"),
        ({"keys": keys_of().drop_columns(["sample"])}, BadDataError, "keys lack ['sample']"),
    ],
)
def test_bad_jobs_leave_nothing(tmp_path, changes, error, message):
    with pytest.raises(error) as caught:
        render([job_at(Folder.at(tmp_path / "out"), **changes)])
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_nan_latents_name_the_row(tmp_path):
    latents = job_at(Folder("unused")).inputs["latent"].copy()
    latents[4, 0, 0, 0] = np.nan
    with pytest.raises(BadDataError, match="NaN or infinite values, first in row 4"):
        render([job_at(Folder.at(tmp_path), inputs={"latent": latents})])


def test_numbers_that_make_no_sense(tmp_path):
    with pytest.raises(OptionError, match="at least 1, got 0"):
        render([], batch_size=0)
    with pytest.raises(OptionError, match="at least 1"):
        render([], replicas=0)


def test_batches_cover_exactly_what_is_missing():
    rng = np.random.default_rng(3)
    for size in (1, 3, 7, 100):
        missing = rng.random(50) < 0.6
        batches = jobs._batches(missing, size)
        covered = [row for batch in batches for row in range(batch.first, batch.stop)]
        assert covered == np.flatnonzero(missing).tolist()
        assert all(1 <= batch.stop - batch.first <= size for batch in batches)
    assert jobs._batches(np.zeros(5, bool), 2) == ()


def test_written_and_read_images(tmp_path):
    rng, folder = np.random.default_rng(1), Folder.at(tmp_path)
    pictures = rng.integers(0, 256, (4, 3, 10, 12), dtype=np.uint8)
    with pytest.raises(MissingDataError, match="rendering was not finished"):
        read_images(folder)
    write_images(folder, keys_of(4), np.zeros(4, np.int64), pictures, {"control": "x"})
    assert np.array_equal(read_images(folder)[1], pictures)
    write_images(folder, keys_of(4), np.zeros(4, np.int64), pictures * 0, {"control": "x"})
    assert np.array_equal(read_images(folder)[1], pictures), "finished pictures were written again"
    with pytest.raises(OtherConfigurationError, match="they differ in control"):
        write_images(folder, keys_of(4), np.zeros(4, np.int64), pictures, {"control": "y"})
    with pytest.raises(BadDataError, match="4 keys need"):
        write_images(folder, keys_of(4), np.zeros(4, np.int64), pictures[:3], {"control": "x"})


def test_changed_pictures_are_noticed(tmp_path):
    folder, pictures = Folder.at(tmp_path), np.zeros((2, 3, 8, 8), np.uint8)
    write_images(folder, keys_of(2), np.zeros(2, np.int64), pictures, {})
    name = part_name(0)
    table = folder.read_table(name)
    forged = table.set_column(table.column_names.index("sha256"), "sha256", pa.array(["0" * 64] * 2))
    size, sha256 = folder.write_table(name, forged)
    with pytest.raises(CorruptFileError, match="its manifest says"):
        read_images(folder)
    entry = json.loads((tmp_path / SEAL).read_text())["files"][0] | {"size": size, "sha256": sha256}
    from bench.data.shards.manifest import FileEntry

    seal(folder, {}, [FileEntry(**entry)], {})
    with pytest.raises(CorruptFileError, match="does not have the checksum"):
        read_images(folder)
