"""`leaderboard.html`: one self-contained file, made from `leaderboard.json` and the gallery and nothing else.

The page asks the network for nothing, and its content security policy forbids it to. Data lie in it as JSON with every
character escaped that could end their element; the script turns them into text nodes only.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping
from typing import Any

from bench.core.identity import canonical_json

# One script in this order: what runs at once when it is read (image.js, main.js) comes after what it uses.
_SCRIPTS = (
    "dom.js", "details.js", "table.js", "pairs.js", "plots.js", "gallery.js", "papers.js", "image.js", "main.js",
)  # fmt: skip
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def html(board: Mapping[str, Any], gallery: Mapping[str, Any] | None = None) -> str:
    """Return the page.

    Args:
        board: Content of `leaderboard.json`.
        gallery: Content of `gallery.json`; without it the page has no pictures.
    """
    style, script = _part("page.css"), "".join(_part(name) for name in _SCRIPTS)
    values = {
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "board": _embedded(board),
        "gallery": _embedded(gallery or {"items": []}),
    }
    # One pass: what the data say is never looked at for places again.
    return _PLACE.sub(lambda match: values[match[1]], _part("page.html"))


def _part(name: str) -> str:
    """Return a file of the page."""
    return (importlib.resources.files("bench.board") / "page" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Return the hash by which the content security policy knows an inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _embedded(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand inside a script element whatever its strings hold."""
    text = canonical_json(data)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
