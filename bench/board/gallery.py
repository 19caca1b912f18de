"""Pictures for the page: what a subject saw beside what was reconstructed, kept apart so that the board stays small.

Beside each picture stand the per-image scores of the shown images, see `bench.board.image_scores`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.errors import BadDataError, CorruptFileError
from bench.records import schemas

SCHEMA = "reconbench/gallery"
SCHEMA_VERSION = "1.1.0"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Item:
    """One test image of one subject.

    Args:
        subject: Subject.
        stimulus: Stimulus id.
        caption: What is to be seen; may be empty.
        truth: The image, as PNG.
        images: Reconstructions as PNG by record id.
    """

    subject: int
    stimulus: int
    caption: str
    truth: bytes
    images: Mapping[str, bytes]


def gallery(items: Sequence[Item]) -> dict[str, Any]:
    """Return `gallery.json`: items by subject and stimulus, pictures as data URIs; scores are not filled in yet.

    The caller picks the images by a fixed rule (the first of the split), never by score: the page says so.

    Raises:
        BadDataError: If a picture is not a PNG.
    """
    entries = [
        {
            "subject": item.subject,
            "stimulus": item.stimulus,
            "caption": item.caption,
            "truth": _uri(item.truth, item),
            "images": {record: _uri(image, item) for record, image in item.images.items()},
            "scores": {},
        }
        for item in sorted(items, key=lambda item: (item.subject, item.stimulus))
    ]
    return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "items": entries}


def validate(value: Any, where: str) -> None:  # noqa: ANN401 - JSON data
    """Check a gallery against its schema.

    Raises:
        CorruptFileError: Naming the place and what is wrong there; an address that is not a picture's data URI is
            refused, because the page must not ask the network for anything.
    """
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, str) and version != SCHEMA_VERSION:
        # Pictures cannot be had from records: only the stage that rendered them writes them anew.
        raise CorruptFileError(
            f"{where} has schema version {version}, this release reads {SCHEMA_VERSION}: write it again with "
            "`reconbench sweep --resume`, or remove the file for a page without pictures"
        )
    schemas.check(value, schemas.schema("gallery"), where)


def _uri(image: bytes, item: Item) -> str:
    """Return a PNG as a data URI."""
    if not image.startswith(_PNG):
        raise BadDataError(f"gallery: subject {item.subject}, stimulus {item.stimulus}: not a PNG")
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
