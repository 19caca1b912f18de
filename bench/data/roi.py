"""ROI expressions: which voxels a voxel set or a head takes, from the labels of atlases.

    nsdgeneral                                  every voxel with a label (> 0) in the atlas
    streams:early | prf-visualrois:hV4          union
    nsdgeneral & streams:5                      intersection, labels by number
    (prf-visualrois:V1 | floc-faces) & Kastner2015:"LO1"

Both `|` and `&` group from the left, `&` before `|`. Labels are numbers from 1: -1 (not cortex) and 0 (no label) are
never taken, not even by an atlas alone. A label that an atlas splits (`V1` into `V1v` and `V1d`, `FFA` into `FFA-1`
and `FFA-2`) stands for all its parts. A name is a name first: `HCP_MMP1:4` is the area called 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.errors import OptionError, UnknownNameError

LabelNames = Mapping[str, int]
Tokens = Sequence[re.Match[str]]

_TOKEN = re.compile(
    r"""\s*(?:(?P<operator>[|&()])|(?P<atlas>[\w.+-]+)(?::(?:"(?P<quoted>[^"]*)"|(?P<label>[\w.+-]+)))?)"""
)
_PART = re.compile(r"[vd]|-\d+")


def _numbered(names: str, start: int = 1) -> dict[str, int]:
    return {name: number for number, name in enumerate(names.split(), start)}


BUILT_IN: Mapping[str, LabelNames] = {
    "nsdgeneral": _numbered("nsdgeneral"),
    "prf-visualrois": _numbered("V1v V1d V2v V2d V3v V3d hV4"),
    "prf-eccrois": _numbered("ecc0pt5 ecc1 ecc2 ecc4 ecc4+"),
    "floc-faces": _numbered("OFA FFA-1 FFA-2 mTL-faces aTL-faces"),
    "floc-words": _numbered("OWFA VWFA-1 VWFA-2 mfs-words mTL-words"),
    "floc-places": _numbered("OPA PPA RSC"),
    "floc-bodies": _numbered("EBA FBA-1 FBA-2 mTL-bodies"),
    "streams": _numbered("early midventral midlateral midparietal ventral lateral parietal"),
    "Kastner2015": _numbered(
        "V1v V1d V2v V2d V3v V3d hV4 VO1 VO2 PHC1 PHC2 TO2 TO1 LO2 LO1 V3b V3a IPS0 IPS1 IPS2 IPS3 IPS4 IPS5 SPL1 FEF"
    ),
}
"""Label names of NSD's atlases, for copies without their .ctab files; a .ctab file wins."""


@dataclass(frozen=True)
class Node:
    """A parsed expression: an atlas with an optional label, or `|` or `&` of two expressions."""

    operator: str
    atlas: str = ""
    label: str | None = None
    children: tuple[Node, ...] = ()

    def __str__(self) -> str:
        """The expression with all brackets written."""
        if self.children:
            return f"({self.children[0]} {self.operator} {self.children[1]})"
        if self.label is None:
            return self.atlas
        return f"{self.atlas}:{self.label}" if re.fullmatch(r"[\w.+-]+", self.label) else f'{self.atlas}:"{self.label}"'

    @property
    def atlases(self) -> tuple[str, ...]:
        """The atlases the expression names, sorted."""
        if not self.children:
            return (self.atlas,)
        return tuple(sorted({atlas for child in self.children for atlas in child.atlases}))


Parsed = tuple[Node, Tokens]
"""A tree, and the tokens behind it that are not parsed yet."""


def parse(expression: str) -> Node:
    """Return an expression's tree.

    Raises:
        OptionError: If it is not an expression; the message points at the place.
    """
    tokens, position = [], 0
    text = expression.rstrip()
    # Token by token: the first place where none begins is the one the message points at.
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _malformed(expression, f"unexpected {text[position:].lstrip()[:1]!r}")
        tokens.append(match)
        position = match.end()
    # What is left behind a whole expression (`V1 V2`) is as wrong as a part that is missing.
    node, rest = _union(tokens, expression)
    if rest:
        raise _malformed(expression, f"unexpected {rest[0].group().strip()!r}")
    return node


def _malformed(expression: str, what: str) -> OptionError:
    return OptionError(f"ROI expression {expression!r}: {what}; write for example 'streams:early | prf-visualrois:hV4'")


def _union(tokens: Tokens, whole: str) -> Parsed:
    """Parse `a | b | ...`; return the tree and the tokens left."""
    return _chain(tokens, whole, "|", _intersection)


def _intersection(tokens: Tokens, whole: str) -> Parsed:
    """Parse `a & b & ...`, which binds closer than `|`."""
    return _chain(tokens, whole, "&", _term)


def _chain(tokens: Tokens, whole: str, operator: str, part: Callable[[Tokens, str], Parsed]) -> Parsed:
    """Parse parts with one operator between them, grouped from the left."""
    node, tokens = part(tokens, whole)
    while tokens and tokens[0]["operator"] == operator:
        right, tokens = part(tokens[1:], whole)
        node = Node(operator, children=(node, right))
    return node, tokens


def _term(tokens: Tokens, whole: str) -> Parsed:
    """Parse `atlas`, `atlas:label` or an expression in brackets."""
    if not tokens:
        raise _malformed(whole, "an atlas is missing at the end")
    first, rest = tokens[0], tokens[1:]
    if first["atlas"]:
        return Node("", first["atlas"], first["quoted"] if first["quoted"] is not None else first["label"]), rest
    if first["operator"] != "(":
        raise _malformed(whole, f"an atlas is missing before {first['operator']!r}")
    node, rest = _union(rest, whole)
    if not rest or rest[0]["operator"] != ")":
        raise _malformed(whole, "a closing bracket is missing")
    return node, rest[1:]


def mask(expression: str, labels: Mapping[str, np.ndarray], names: Mapping[str, LabelNames]) -> np.ndarray:
    """Return which voxels an expression takes.

    Args:
        expression: See the module.
        labels: For each atlas its label numbers, arrays of one shape: `(V,)` or a volume.
        names: For each atlas its label names; `BUILT_IN` serves atlases that are not in it.

    Returns:
        Booleans of the labels' shape.

    Raises:
        OptionError: If it is not an expression.
        UnknownNameError: If an atlas or label is not known; the nearest is offered.
    """
    # A dataset's own names win over the built-in ones.
    return _evaluate(parse(expression), labels, {**BUILT_IN, **names}, expression)


def columns(expression: str, labels: Mapping[str, np.ndarray], names: Mapping[str, LabelNames]) -> np.ndarray:
    """Return the sorted indices of the voxels an expression takes, `(n,)` int64; arguments and errors as in `mask`."""
    return np.flatnonzero(mask(expression, labels, names)).astype(np.int64)


def _evaluate(node: Node, labels: Mapping[str, np.ndarray], names: Mapping[str, LabelNames], whole: str) -> np.ndarray:
    """Return the voxels of a tree."""
    if node.children:
        left, right = (_evaluate(child, labels, names, whole) for child in node.children)
        return left | right if node.operator == "|" else left & right
    if node.atlas not in labels:
        raise UnknownNameError("atlas", node.atlas, labels, f"ROI expression {whole!r}")
    values = np.asarray(labels[node.atlas])
    if node.label is None:
        # -1 (not cortex) and 0 (no label) count as outside, so an atlas alone is all its labels.
        return values > 0
    return np.isin(values, _numbers(node.atlas, node.label, names.get(node.atlas, {}), whole))


def _numbers(atlas: str, label: str, names: LabelNames, whole: str) -> list[int]:
    """Return the numbers of a label: by name, by the names of its parts, or as a number from 1."""
    positive = {name: number for name, number in names.items() if number > 0}
    # In this order: a name that is a number (HCP_MMP1 has such) must not be taken for a label number.
    if label in positive:
        return [positive[label]]
    parts = [n for name, n in positive.items() if name.startswith(label) and _PART.fullmatch(name[len(label) :])]
    if parts:
        return parts
    if label.isdecimal() and int(label) > 0:
        return [int(label)]
    raise UnknownNameError(f"label of {atlas}", label, positive, f"ROI expression {whole!r}")


def canonical(expression: str) -> str:
    """Return an expression in one spelling: equal for expressions that differ in blanks and needless brackets only.

    Raises:
        OptionError: If it is not an expression.
    """
    text = str(parse(expression))
    # Only the outermost brackets are needless: the tree is written with one pair for each operator.
    return text[1:-1] if text.startswith("(") else text


def slug(expression: str) -> str:
    """Return an expression as part of a folder name: letters, digits, `-`, `_`, `.` and `+` only."""
    text = canonical(expression).replace("|", "-or-").replace("&", "-and-").replace(" ", "")
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
