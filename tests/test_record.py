"""The record: what is written is what is read, and nothing half, damaged or contradictory passes for a score."""

import dataclasses
import json
import subprocess

import numpy as np
import pyarrow as pa
import pytest
from board_records import COLUMNS, draw, link, protocol, scored

from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, OptionError
from bench.core.identity import plain
from bench.core.storage import Folder
from bench.records import generate, parts, provenance
from bench.records.parts import Event, Failure, Finding, LatentScore, MetricValue
from bench.records.provenance import commit, environment
from bench.records.record import Record, read_records, read_samples, validate, write_record
from bench.records.schemas import schema


@pytest.fixture
def made():
    return scored(
        "ridge",
        draw(0.6),
        latents=(LatentScore(1, "z", "validation correlation", 0.4, 0.8, 0.5), LatentScore(2, "z", "test", 0.1)),
        leakage=(Finding("overlap", "3 test images were trained on", {"stimuli": [1, 2, 3]}),),
        configurations_tried=4,
        commit="0123abc-dirty",
        ray={"preserve_order": True},
    )


def home_of(runs, record):
    return Folder.at(runs) / "scores" / record.id


def failed(record):
    error = Failure("BadDataError", "the mask has no voxels", "prepare")
    return dataclasses.replace(record, status="failed", error=error, metrics={}, per_subject={}, samples=None)


def test_written_record_reads_back_equal(tmp_path, made):
    record, samples = made
    events = [Event("2026-11-21T10:00:00Z", "retry", "render", 2, {"reason": "node lost"})]
    written = write_record(home_of(tmp_path, record), record, samples, events)
    (found,) = read_records(Folder.at(tmp_path))
    assert found == written
    assert found.samples.rows == 40
    assert read_samples(Folder.at(tmp_path), found).equals(samples)
    line = (tmp_path / "scores" / record.id / "events.jsonl").read_text()
    assert json.loads(line) == plain(events[0])
    assert line.endswith("}\n")


def test_failed_record_has_no_samples(tmp_path, made):
    record = failed(made[0])
    write_record(home_of(tmp_path, record), record)
    (found,) = read_records(Folder.at(tmp_path))
    assert (found.status, found.error.stage) == ("failed", "prepare")
    assert read_samples(Folder.at(tmp_path), found) is None


def test_folder_without_record_is_still_at_work(tmp_path, made):
    record, samples = made
    home_of(tmp_path, record).write_table("samples.parquet", samples)
    assert read_records(Folder.at(tmp_path)) == []
    assert read_records(Folder.at(tmp_path / "nothing here")) == []


def test_the_schema_that_ships_is_the_one_of_the_classes():
    written = "run `python -m bench.records.generate`"
    assert json.loads(generate.FILE.read_text()) == generate.record_schema() == schema("record"), written


def test_fields_of_dataclasses_and_schema_are_the_same():
    rules = schema("record")
    named = {name: getattr(parts, name) for name in rules["$defs"]}
    assert {"Chain", "Column", "Costs", "Failure", "Finding", "Link", "MetricValue", "SampleFile"} <= named.keys()
    for cls, found in ((Record, rules), *((cls, rules["$defs"][name]) for name, cls in named.items())):
        fields = {f.name for f in dataclasses.fields(cls)}
        assert fields == set(found["properties"]) == set(found["required"]), cls
        assert found["additionalProperties"] is False, cls


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), "2.0.0", "'1.1.0' was expected"),
        (("surprise",), 1, "'surprise' was unexpected"),
        (("kind",), "winner", "'winner' is not one of"),
        (("control",), "oracle", "control"),
        (("division",), "open", "division_reasons"),
        (("status",), "failed", "samples"),
        (("commit",), "main", "commit"),
        (("created",), "yesterday", "created"),
        (("metrics", "ssim", "value"), None, "ssim"),
        (("metrics", "ssim", "status"), "not computed: needs samples", "ssim"),
        (("metrics", "ssim", "status"), "skipped", "ssim"),
        (("metrics", "ssim", "higher_is_better"), False, "direction of metric 'ssim'"),
        (("dataset", "subjects"), [1, 3], "metrics for subjects"),
        (("dataset", "subjects"), [], "subjects"),
        (("configurations_tried",), 0, "configurations_tried"),
        (("id",), "f" * 16, "is not the score of its identity chain"),
        (("samples",), None, "samples"),
        (("samples", "sha256"), "0" * 63, "sha256"),
        (("identity", "score", "id"), "not hex", "identity.score.id"),
        (("identity", "score", "surprise"), 1, "'surprise' was unexpected"),
        (("dataset", "subjects"), [1, 1], "non-unique"),
        (("dataset", "subjects"), [0, 1], "minimum of 1"),
        (("dataset", "test_stimuli"), "20", "'20' is not of type 'integer'"),
        (("protocol", "metrics"), [], "protocol.metrics"),
        (("per_subject", "01"), {}, "'01' does not match"),
        (("metrics", ""), {}, "metrics"),
        (("metrics", "ssim", "interval"), [0.1], "interval"),
        (("metrics", "ssim", "interval"), [0.1, 0.2, 0.3], "interval"),
        (("metrics", "ssim", "standard_error"), -0.1, "standard_error"),
        (("metrics", "ssim", "n"), 0, "ssim"),
        (("costs", "cpu_seconds", "fit"), -1, "minimum of 0"),
        (("leakage", 0, "excludes"), "yes", "'yes' is not of type 'boolean'"),
        (("latents", 0, "subject"), 0, "latents"),
        (("packages", "torch"), "", "packages"),
    ],
)
def test_schema_rejects(made, path, value, message):
    data = json.loads(json.dumps(plain(made[0])))
    validate(data, "record.json")
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(CorruptFileError, match=message) as caught:
        validate(data, "record.json")
    assert str(caught.value).startswith("record.json: ")


@pytest.mark.parametrize("field", sorted(f.name for f in dataclasses.fields(Record)))
def test_every_field_is_required(made, field):
    data = dict(plain(made[0]))
    del data[field]
    with pytest.raises(CorruptFileError, match=field):
        validate(data, "record.json")


def test_metric_that_was_not_computed_has_no_column(tmp_path):
    record, samples = scored("ridge", draw(0.6))
    missing = MetricValue(None, 0, None, None, True, "not computed: needs samples")
    record = dataclasses.replace(
        record,
        metrics=dict(record.metrics) | {"ssim": missing},
        per_subject={s: dict(m) | {"ssim": missing} for s, m in record.per_subject.items()},
    )
    with pytest.raises(BadDataError, match="ssim"):
        write_record(home_of(tmp_path, record), record, samples)
    assert write_record(home_of(tmp_path, record), record, samples.drop_columns(["ssim"])).metrics["ssim"] == missing


def test_metrics_of_another_protocol_are_refused(tmp_path, made):
    record, samples = made
    record = dataclasses.replace(record, protocol=protocol(COLUMNS[:-1]))
    with pytest.raises(CorruptFileError, match=r"protocol scenes-1 has \['high', 'low', 'pixcorr', 'ssim'\]"):
        write_record(home_of(tmp_path, record), record, samples.drop_columns(["distance"]))


def _with(samples, name, values):
    return samples.set_column(samples.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: _with(t, "ssim", np.full(40, np.nan)), "metric 'ssim' has NaN"),
        (lambda t: _with(t, "ssim", [None] + [0.5] * 39), "metric 'ssim' has NaN, infinite or missing"),
        (lambda t: _with(t, "ssim", np.zeros(40, np.float32)), r"columns \['ssim'\]"),
        (lambda t: t.drop_columns(["seed"]), r"columns \['seed'\]"),
        (lambda t: t.append_column("extra", pa.array([1.0] * 40)), r"columns \['extra'\]"),
        (lambda t: t.slice(0, 20), r"subjects \[1\]"),
        (lambda t: _with(t, "stimulus", [0] * 40), "stands there twice"),
    ],
)
def test_samples_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, made, change, message):
    record, samples = made
    with pytest.raises(BadDataError, match=message):
        write_record(home_of(tmp_path, record), record, change(samples))
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused_on_write_and_on_read(tmp_path, made):
    record, samples = made
    metrics = dict(record.metrics) | {"ssim": MetricValue(float("nan"), 40, 0.1, (0.0, 1.0), True)}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(home_of(tmp_path, record), dataclasses.replace(record, metrics=metrics), samples)
    assert list(tmp_path.iterdir()) == []
    write_record(home_of(tmp_path, record), record, samples)
    path = tmp_path / "scores" / record.id / "record.json"
    path.write_text(path.read_text().replace('"configurations_tried": 4', '"configurations_tried": NaN'))
    with pytest.raises(CorruptFileError, match=r"record\.json holds NaN"):
        read_records(Folder.at(tmp_path))


def test_damaged_files_are_named(tmp_path, made):
    record, samples = made
    runs, folder = Folder.at(tmp_path), tmp_path / "scores" / record.id
    written = write_record(home_of(tmp_path, record), record, samples)
    content = (folder / "samples.parquet").read_bytes()
    (folder / "samples.parquet").write_bytes(content[:-1])
    with pytest.raises(CorruptFileError, match=rf"{record.id}/samples\.parquet is not the file"):
        read_samples(runs, written)
    (folder / "samples.parquet").unlink()
    with pytest.raises(MissingDataError, match=rf"{record.id}/samples\.parquet"):
        read_samples(runs, written)
    folder.rename(folder.parent / "elsewhere")
    with pytest.raises(CorruptFileError, match=rf"elsewhere/record\.json: holds record {record.id}"):
        read_records(runs)
    (folder.parent / "elsewhere" / "record.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"elsewhere/record\.json is not JSON"):
        read_records(runs)


def test_environment_names_versions_but_no_host():
    found = environment()
    assert found["packages"]["numpy"] == np.__version__
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 1 << 28
    assert set(found["hardware"]) == {"processor", "cores", "memory_bytes", "gpus"}
    assert "/" not in "".join(found["packages"].values())


def test_commit_comes_from_the_job_then_from_the_image(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"commit": "abcdef0-dirty"}}))
    monkeypatch.setenv("RECONBENCH_COMMIT", "1234567")
    assert commit() == "abcdef0-dirty"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {}}))
    assert commit() == "1234567"
    monkeypatch.setenv("RECONBENCH_COMMIT", "main; rm")
    with pytest.raises(OptionError, match="'main; rm' is not a commit"):
        commit()


def test_commit_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("RECONBENCH_COMMIT", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bench" / "records" / "provenance.py"))
    assert commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    assert commit() is None  # no commit yet
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], cwd=tmp_path, check=True)
    clean = commit()
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert commit() == f"{clean}-dirty"


def test_link_is_the_digest_of_its_description():
    assert link(a=1) == link(a=1)
    assert link(a=1).id != link(a=2).id
