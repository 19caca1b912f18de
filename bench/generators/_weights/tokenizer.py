"""CLIP's tokenizer: from a checkpoint's files, or from the vocabulary that ships with the package `clip-anytorch`.

Untrained networks need no downloaded file, and so no downloaded vocabulary either.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import CorruptFileError, MissingDataError
from bench.generators._weights.frozen import read_json

PIECES = 49408
"""Entries of CLIP's vocabulary."""
MARKS = ("<|startoftext|>", "<|endoftext|>")


def tokenizer_from(folder: Path) -> Any:  # noqa: ANN401 - a transformers tokenizer
    """Return CLIP's tokenizer from `vocab.json` and `merges.txt`.

    Raises:
        CorruptFileError: If the files are no vocabulary, or merges lead out of it.
    """
    from transformers import CLIPTokenizer

    vocabulary = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    merges = [line.split() for line in lines if line.strip()]
    # The tokenizer's own error for these has no type to catch and names no file.
    outside = [" ".join(pair) for pair in merges if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()]
    if absent := [mark for mark in MARKS if mark not in vocabulary]:
        raise CorruptFileError(f"{folder / 'vocab.json'} is no vocabulary of CLIP: it lacks {absent[0]}")
    if outside:
        raise CorruptFileError(f"{folder / 'merges.txt'}: {outside[0]!r} is no pair of pieces of vocab.json")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=MARKS[1], model_max_length=77)


def clip_tokenizer() -> Any:  # noqa: ANN401 - a transformers tokenizer
    """Return CLIP's own tokenizer, made from its 48,894 merges.

    Raises:
        MissingDataError: If the package that ships them lacks the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), clip_merges())
        return tokenizer_from(Path(folder))


def write_tokenizer(folder: Path, merges: Sequence[str]) -> None:
    """Write `vocab.json` and `merges.txt` of a CLIP tokenizer: bytes, bytes that end a word, merges, two marks.

    Args:
        folder: Where.
        merges: Pairs of pieces, most frequent first ("t h").
    """
    letters = _byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    pieces += MARKS
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _byte_letters() -> list[str]:
    """Return a printable letter for each byte in the order of CLIP's vocabulary (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]


def clip_merges() -> list[str]:
    """Return the 48,894 merges of CLIP's vocabulary, which its own package ships.

    Raises:
        MissingDataError: If the package lacks the file.
    """
    spec = importlib.util.find_spec("clip")  # not imported: that loads the whole package for one file
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0] if folders else "clip") / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        raise MissingDataError(f"untrained weights need {path}, a file of the package clip-anytorch")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : PIECES - 2 * 256 - 2 + 1]
