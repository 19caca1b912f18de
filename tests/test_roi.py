"""ROI expressions against masks written out by hand, and what a user may mistype."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core.errors import OptionError, UnknownNameError
from bench.data import roi

RNG = np.random.default_rng(5)
LABELS = {
    "nsdgeneral": RNG.integers(-1, 2, 400).astype(np.int16),
    "streams": RNG.integers(-1, 8, 400).astype(np.int16),
    "prf-visualrois": RNG.integers(-1, 8, 400).astype(np.int16),
    "floc-faces": RNG.integers(-1, 6, 400).astype(np.int16),
}
S, V, G, F = (LABELS[name] for name in ("streams", "prf-visualrois", "nsdgeneral", "floc-faces"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("nsdgeneral", G > 0),
        ("streams:early | prf-visualrois:hV4", (S == 1) | (V == 7)),
        ("streams:early&nsdgeneral", (S == 1) & (G > 0)),
        ("streams:1", S == 1),
        ("streams:ventral | streams:lateral & nsdgeneral", (S == 5) | ((S == 6) & (G > 0))),
        ("(streams:ventral | streams:lateral) & nsdgeneral", ((S == 5) | (S == 6)) & (G > 0)),
        ('((streams:"early"))', S == 1),
        ("prf-visualrois:V1", (V == 1) | (V == 2)),
        ("prf-visualrois:V1v", V == 1),
        ("floc-faces:FFA", (F == 2) | (F == 3)),
        ("streams & prf-visualrois & nsdgeneral", (S > 0) & (V > 0) & (G > 0)),
    ],
)
def test_expressions(expression, expected):
    found = roi.columns(expression, LABELS, {})
    assert found.dtype == np.int64
    assert found.tolist() == np.flatnonzero(expected).tolist()
    assert np.array_equal(roi.mask(expression, LABELS, {}), expected)


def test_given_names_win_over_built_in_ones():
    assert np.array_equal(roi.mask("streams:early", LABELS, {"streams": {"early": 3}}), S == 3)
    assert np.array_equal(roi.mask("streams:4", LABELS, {"streams": {"4": 2}}), S == 2)  # a name is a name first


def test_volumes_flatten_with_z_fastest():
    volume = np.zeros((3, 4, 5), np.int16)
    volume[1, 2, 3] = volume[0, 0, 1] = 1
    assert roi.columns("nsdgeneral", {"nsdgeneral": volume}, {}).tolist() == [1, 1 * 20 + 2 * 5 + 3]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "an atlas is missing at the end"),
        ("streams |", "an atlas is missing at the end"),
        ("| streams", r"missing before '\|'"),
        ("(streams", "closing bracket"),
        ("streams)", r"unexpected '\)'"),
        ("streams nsdgeneral", "unexpected 'nsdgeneral'"),
        ("streams:", "unexpected ':'"),
        ("__import__('os')", 'unexpected "\'"'),
        ("streams == 1", "unexpected '='"),
    ],
)
def test_malformed_expressions(expression, message):
    with pytest.raises(OptionError, match=message):
        roi.mask(expression, LABELS, {})


def test_unknown_names_offer_the_nearest():
    with pytest.raises(UnknownNameError, match=r"atlas 'stream'.*Did you mean 'streams'"):
        roi.mask("stream:early", LABELS, {})
    with pytest.raises(UnknownNameError, match=r"label of streams 'ventrl'.*Did you mean 'ventral'"):
        roi.mask("streams:ventrl", LABELS, {})
    for label in ("0", "-1"):
        with pytest.raises(UnknownNameError, match="label of streams"):
            roi.mask(f"streams:{label}", LABELS, {})


def test_unlabelled_is_never_taken_by_name():
    with pytest.raises(UnknownNameError):
        roi.mask("streams:Unknown", LABELS, {"streams": {"Unknown": 0, "early": 1}})


def test_canonical_and_slug():
    assert roi.canonical(" ( streams:early|nsdgeneral ) ") == "streams:early | nsdgeneral"
    assert roi.canonical("a & (b | c)") != roi.canonical("a & b | c")
    assert roi.slug("streams:early | prf-visualrois:hV4") == "streams-early-or-prf-visualrois-hV4"
    assert roi.slug('Kastner2015:"TO2 (MST)" & (nsdgeneral)').isascii()
    assert not set(roi.slug('a:"x/../y" | b')) & set("/ \"'|&()")


def trees():
    atoms = st.sampled_from(["nsdgeneral", "streams:early", "streams:6", "prf-visualrois:V2", "floc-faces:OFA"])
    return st.recursive(atoms, lambda inner: st.tuples(inner, st.sampled_from("|&"), inner), max_leaves=8)


def spelled(tree) -> str:
    return tree if isinstance(tree, str) else f"({spelled(tree[0])}{tree[1]}{spelled(tree[2])})"


ATOMS = {
    "nsdgeneral": G > 0,
    "streams:early": S == 1,
    "streams:6": S == 6,
    "prf-visualrois:V2": (V == 3) | (V == 4),
    "floc-faces:OFA": F == 1,
}


def evaluated(tree) -> np.ndarray:
    if isinstance(tree, str):
        return ATOMS[tree]
    left, right = evaluated(tree[0]), evaluated(tree[2])
    return np.logical_or(left, right) if tree[1] == "|" else np.logical_and(left, right)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_any_tree_and_its_canonical_spelling(tree):
    expression = spelled(tree)
    assert np.array_equal(roi.mask(expression, LABELS, {}), evaluated(tree))
    assert np.array_equal(roi.mask(roi.canonical(expression), LABELS, {}), evaluated(tree))
    assert roi.canonical(roi.canonical(expression)) == roi.canonical(expression)


def test_built_in_labels_count_from_one_without_gaps():
    for atlas, names in roi.BUILT_IN.items():
        assert sorted(names.values()) == list(range(1, len(names) + 1)), atlas
    for a, b in itertools.pairwise(sorted(roi.BUILT_IN)):
        assert a != b
    assert roi.BUILT_IN["Kastner2015"]["FEF"] == 25
    assert roi.BUILT_IN["streams"]["parietal"] == 7
