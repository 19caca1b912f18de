"""Content addresses: byte-stable, blind to order and container type, and sensitive to everything else."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core import identity
from bench.core.identity import canonical_json, digest, plain, source_digest

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...] = ()


def test_canonical_json_is_byte_stable():
    description = {"b": [1, 2.5, None, True], "a": {"ü": "x\n"}, "c": Point(1.0, ("p",))}
    assert canonical_json(description) == ('{"a":{"\\u00fc":"x\\n"},"b":[1,2.5,null,true],"c":{"tags":["p"],"x":1.0}}')


def test_digests_of_today_are_the_digests_of_tomorrow():
    """A digest names files on other machines: these may never change."""
    assert digest({}) == "44136fa355b3678a"
    assert (
        digest({"alpha": 1e4, "heads": ["z", "c"]})
        == hashlib.sha256(b'{"alpha":10000.0,"heads":["z","c"]}').hexdigest()[:16]
    )
    assert digest(Point(0.1)) == hashlib.sha256(b'{"tags":[],"x":0.1}').hexdigest()[:16]


def test_indented_json_holds_the_same():
    description = {"b": (1, 2), "a": Point(2.0)}
    text = canonical_json(description, indent=2)
    assert json.loads(text) == json.loads(canonical_json(description))
    assert text.splitlines()[1].startswith('  "a": {')


@given(values)
@settings(max_examples=60, deadline=None)
def test_json_data_describes_itself(value):
    assert json.loads(canonical_json(value)) == plain(value)
    assert digest(value) == digest(json.loads(canonical_json(value)))


@given(st.dictionaries(st.text(), values, min_size=2, max_size=5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_order_of_keys_changes_nothing(mapping, random):
    keys = list(mapping)
    random.shuffle(keys)
    assert digest(OrderedDict((key, mapping[key]) for key in keys)) == digest(mapping)


@given(values, values)
@settings(max_examples=60, deadline=None)
def test_different_descriptions_have_different_digests(one, other):
    same = canonical_json(one) == canonical_json(other)
    assert (digest(one) == digest(other)) == same


def test_order_of_a_list_is_part_of_it():
    assert digest([1, 2]) != digest([2, 1])


def test_tuples_are_lists_and_dataclasses_are_mappings():
    assert digest((1, (2, "a"))) == digest([1, [2, "a"]])
    assert digest(Point(1.0, ("a",))) == digest({"x": 1.0, "tags": ["a"]})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_refused(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"alpha": number})


@pytest.mark.parametrize("value", [np.int64(3), np.zeros(2), Path("x"), b"bytes", {1, 2}, Point])
def test_what_has_no_single_json_form_is_refused(value):
    with pytest.raises(TypeError, match="a description cannot hold"):
        plain({"a": [value]})


def test_two_keys_that_read_the_same_are_refused():
    assert digest({1: "a"}) == digest({"1": "a"})
    with pytest.raises(TypeError, match=r"two keys that read the same: \[1, '1'\]"):
        plain({1: "a", "1": "b"})


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A package of two files in a tree of its own, with `identity.py` where the real one lies."""
    package = tmp_path / "bench"
    (package / "recipes").mkdir(parents=True)
    (package / "core").mkdir()
    shutil.copy(identity.__file__, package / "core" / "identity.py")
    (package / "recipes" / "a.yaml").write_text("name: a\n")
    monkeypatch.setattr(identity, "__file__", str(package / "core" / "identity.py"))
    return package


def test_source_digest_follows_content_names_and_nothing_else(copied):
    before = source_digest(["bench"])
    assert len(before) == 64
    (copied / "notes.txt").write_text("not source")
    (copied / "__pycache__").mkdir()
    (copied / "__pycache__" / "x.py").write_text("compiled")
    assert source_digest(["bench"]) == before
    (copied / "recipes" / "a.yaml").write_text("name: b\n")
    changed = source_digest(["bench"])
    assert changed != before
    (copied / "recipes" / "a.yaml").rename(copied / "recipes" / "b.yaml")
    assert source_digest(["bench"]) not in {before, changed}


def test_source_digest_of_this_checkout_covers_all_three_packages():
    parts = {package: source_digest([package]) for package in ("bench", "encoders", "eval")}
    assert len(set(parts.values())) == 3
    assert source_digest() not in parts.values()
