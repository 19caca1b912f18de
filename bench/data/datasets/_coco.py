"""COCO's captions, which NSD and BOLD5000 take for the pictures they have from it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from bench.core.errors import CorruptFileError


def read_captions(path: Path) -> dict[int, tuple[str, ...]]:
    """Return the captions of each COCO image id, in the order of their annotation ids.

    A process parses a file (90 MB for COCO's training captions) once, until it changes.

    Raises:
        CorruptFileError: If it is not a COCO captions file.
    """
    return _parsed_captions(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _parsed_captions(path: Path, changed: int) -> dict[int, tuple[str, ...]]:
    """Parse a COCO captions file that was last changed at `changed` nanoseconds."""
    try:
        annotations = json.loads(path.read_bytes())["annotations"]
        found: dict[int, list[str]] = {}
        # COCO's files are in no particular order; here the order is part of what is stored.
        for entry in sorted(annotations, key=lambda entry: entry["id"]):
            found.setdefault(entry["image_id"], []).append(entry["caption"].strip())
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a COCO captions file: {error!r}") from None
    return {image: tuple(captions) for image, captions in found.items()}
