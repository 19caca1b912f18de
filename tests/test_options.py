"""Options from plain mappings: types, ranges, nesting, and messages that name the nearest key; errors that travel."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from bench.core import errors, options
from bench.core.errors import OptionError, UnknownNameError


@dataclass(frozen=True)
class Inner:
    depth: int = 2
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    width: int
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    kind: Literal["mlp", "conv"] = "mlp"
    hidden: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    by_name: dict[str, Inner] = field(default_factory=dict)
    rows: tuple[Inner, ...] = ()
    layers: tuple[Inner, ...] = field(default=(), metadata={"each": "layer"})
    spare: Inner | None = None

    def __post_init__(self) -> None:
        if self.width == 13:
            raise ValueError("width 13 is unlucky")


def test_defaults_are_filled_in():
    assert options.build(Outer, {"width": 3}, "here") == Outer(3)


def test_lists_become_tuples_and_mappings_become_dataclasses():
    built = options.build(
        Outer,
        {"width": 1, "hidden": [8, 9], "inner": {"rates": [1, 2.5]}, "by_name": {"a": {"depth": 4}}},
        "here",
    )
    assert built.hidden == (8, 9)
    assert built.inner == Inner(2, (1.0, 2.5))
    assert built.by_name == {"a": Inner(4)}


def test_a_built_dataclass_is_a_value():
    inner = Inner(7)
    assert options.build(Outer, {"width": 1, "inner": inner}, "here").inner == inner


def test_a_number_that_yaml_reads_as_text_is_a_number():
    assert options.build(Outer, {"width": 1, "dropout": "1e-1"}, "here").dropout == 0.1


def test_a_yaml_file_is_a_mapping(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &base {b: 1, c: é}\nd: {<<: *base, b: 2}\n", encoding="utf-8")
    assert options.read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1, "c": "é"}, "d": {"b": 2, "c": "é"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "x.yaml is not YAML: "),
        (b"a: \xff", "x.yaml is not YAML: "),
        (b"a: 1\nb: {c: 1, c: 2}\n", "key 'c' stands there twice"),
        (b"- 1\n", "x.yaml holds list, a mapping is needed"),
        (b"", "x.yaml holds NoneType, a mapping is needed"),
    ],
)
def test_what_is_no_mapping_in_a_yaml_file(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(OptionError, match=message):
        options.read_yaml(tmp_path / "x.yaml")


def test_unknown_key_offers_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown option 'droput' in encoder 'x'\. Did you mean 'dropout'\?"):
        options.build(Outer, {"width": 1, "droput": 0.1}, "encoder 'x'")


def test_unknown_key_without_a_near_one_lists_all():
    with pytest.raises(UnknownNameError) as caught:
        options.build(Inner, {"zzz": 1}, "here")
    assert str(caught.value) == "unknown option 'zzz' in here. Allowed: depth, rates."


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"inner": {"depht": 1}}, "here: inner"),
        ({"by_name": {"a": {"depht": 1}}}, "here: by_name.a"),
        ({"rows": [{}, {"depht": 1}]}, "here: rows.1"),
        ({"layers": [{}, {"depht": 1}]}, "here: layer 1"),
        ({"layers": [{"name": "last", "depht": 1}]}, "here: layer 'last'"),
        ({"spare": {"depht": 1}}, "here: spare"),
        ({"inner": {"depth": "deep"}, "spare": {"depht": 1}}, "here: spare"),
    ],
)
def test_an_unknown_key_further_in_is_named_with_its_place(values, where):
    with pytest.raises(UnknownNameError) as caught:
        options.build(Outer, {"width": 1, **values}, "here")
    unknown = next(key for key in ("name", "depht") if f"'{key}'" in str(caught.value))
    hint = " Did you mean 'depth'?" if unknown == "depht" else ""
    assert str(caught.value) == f"unknown option {unknown!r} in {where}.{hint} Allowed: depth, rates."


def test_a_key_that_is_no_text_is_unknown():
    with pytest.raises(UnknownNameError, match="unknown option '3'"):
        options.build(Inner, {3: 1}, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"here: width: Field required"),
        ({"width": "three"}, r"here: width: Input should be a valid integer.*'three'"),
        ({"width": 1.5}, r"here: width: .*1\.5"),
        ({"width": 1, "dropout": 1.0}, r"here: dropout: Input should be less than 1 \(got 1\.0\)"),
        ({"width": 1, "kind": "mpl"}, r"here: kind: Input should be 'mlp' or 'conv' \(got 'mpl'\)"),
        ({"width": 1, "hidden": [1, "x"]}, r"here: hidden\.1: .*'x'"),
        ({"width": 1, "inner": {"depth": "deep"}}, r"here: inner\.depth: .*'deep'"),
        ({"width": 1, "inner": 3}, r"here: inner: a mapping of depth, rates is needed, got 3"),
        ({"width": 1, "by_name": [3]}, r"here: by_name is a mapping from names, got \[3\]"),
        ({"width": 1, "rows": {"depth": 1}}, r"here: rows is a list of mappings, got {'depth': 1}"),
        ({"width": 1, "layers": [{}, 3]}, r"here: layer 1: a mapping of depth, rates is needed, got 3"),
        ({"width": 1, "layers": [{"depth": "deep"}]}, r"here: layer 0: depth: .*'deep'"),
        ({"width": 1, "hidden": 3}, r"here: hidden: Input should be a valid tuple \(got 3\)"),
        ({"width": 13}, r"here: value: .*width 13 is unlucky"),
    ],
)
def test_wrong_values_say_where_and_what(values, message):
    with pytest.raises(OptionError, match=message):
        options.build(Outer, values, "here")


@pytest.mark.parametrize("values", ["depth", ["depth"], None, 3])
def test_what_is_no_mapping_is_refused_as_such(values):
    with pytest.raises(OptionError, match="here: a mapping of depth, rates is needed, got"):
        options.build(Inner, values, "here")


def test_errors_survive_the_way_back_from_a_worker():
    error = UnknownNameError("encoder", "rigde", ["knn", "ridge"], "recipe 'a'")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is UnknownNameError
    assert (
        str(back) == str(error) == ("unknown encoder 'rigde' in recipe 'a'. Did you mean 'ridge'? Allowed: knn, ridge.")
    )


def test_every_error_is_one_that_the_command_line_prints():
    classes = [
        thing for thing in vars(errors).values() if isinstance(thing, type) and thing.__module__ == "bench.core.errors"
    ]
    assert len(classes) >= 7
    assert all(issubclass(cls, errors.ReconbenchError) for cls in classes)
    assert str(UnknownNameError("stage", "x", [])) == "unknown stage 'x'. Allowed: none."
