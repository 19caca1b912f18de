"""Opening what the stages work on: shards, stimuli, targets, test pictures; and what is said where something lacks."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from tiny_system import LATENT, raw_trials

from bench.core.errors import CorruptFileError, MissingDataError, OptionError
from bench.core.storage import Folder
from bench.data import shard_set


def test_the_test_pictures_are_those_marked_as_shared(tiny):
    tables = [pq.read_table(io.BytesIO(tiny.data.stimuli.read_bytes(e.path))) for e in tiny.data.stimuli_manifest.files]
    rows = [row for table in tables for row in table.select(["stimulus", "shared"]).to_pylist()]
    assert tiny.data.shared.tolist() == sorted(row["stimulus"] for row in rows if row["shared"])
    assert 0 < len(tiny.data.shared) < len(rows)


def test_a_stimuli_set_is_not_a_set_of_trials(tiny):
    with pytest.raises(MissingDataError, match="holds stimuli, trial shards are needed"):
        shard_set.open_data(tiny.data.stimuli)


def test_trials_come_by_subject_and_role(tiny):
    for refs, roles in ((tiny.train, ("train", "validation")), (tiny.test, ("test",))):
        for subject, ref in refs.items():
            trials, data = ray.get(ref), raw_trials(tiny.data, subject)
            keep = np.isin(data["role"], roles)
            np.testing.assert_array_equal(trials.stimulus, data["stimulus"][keep])
            np.testing.assert_allclose(trials.z(np.arange(keep.sum())), data["z"][keep], atol=1e-3)


def test_test_pictures_in_common_come_first(tiny):
    seen = {s: set(ray.get(ref).stimulus.tolist()) for s, ref in tiny.test.items()}
    assert shard_set.tested_stimuli(tiny.test) == {s: tuple(sorted(mine)) for s, mine in seen.items()}
    common = sorted(seen[1] & seen[2])
    assert shard_set.tested_stimuli(tiny.test, 3) == {1: tuple(common[:3]), 2: tuple(common[:3])}
    with pytest.raises(MissingDataError, match=f"{len(common) + 1} test pictures were asked for; all subjects saw "):
        shard_set.tested_stimuli(tiny.test, len(common) + 1)
    for limit in (0, -1):
        with pytest.raises(OptionError, match=f"{limit} test pictures were asked for; at least 1"):
            shard_set.tested_stimuli(tiny.test, limit)
    assert shard_set.tested_digest({1: [1, 2]}) != shard_set.tested_digest({1: [2, 1]})


def test_targets_are_found_by_their_content(tiny):
    found = shard_set.find_targets(tiny.data, tiny.digests.targets)
    assert list(found) == [LATENT]
    assert shard_set.target_refs(found)[1] == tiny.digests.targets
    with pytest.raises(MissingDataError, match=f"no target shards {LATENT} with content 0123 in .*run the targets"):
        shard_set.find_targets(tiny.data, {LATENT: "0123"})


def test_a_picture_that_is_not_there_is_named(tiny):
    with pytest.raises(MissingDataError, match=r"holds no picture of stimuli \[888888, 999999\] \(2 in all\)"):
        shard_set.pictures(tiny.data, [999_999, *tiny.stimuli(2), 888_888])


def test_a_changed_stimuli_file_is_refused(tiny, tmp_path):
    copy = tmp_path / tiny.data.stimuli.name
    tiny.data.stimuli.download(copy)
    file = Path(copy, tiny.data.stimuli_manifest.files[0].path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    damaged = dataclasses.replace(tiny.data, stimuli=Folder.at(copy))
    with pytest.raises(CorruptFileError, match=file.name):
        shard_set.pictures(damaged, tiny.stimuli(1))
