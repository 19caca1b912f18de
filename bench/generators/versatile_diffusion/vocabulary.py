"""CLIP's tokenizer without a checkpoint: its vocabulary ships with the package `clip-anytorch`.

Untrained networks need no downloaded file, and so no downloaded vocabulary either.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.errors import MissingDataError

TOKENS = 49408
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_CONFIG = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}


def clip_tokenizer() -> Any:  # noqa: ANN401 - transformers is imported late
    """Return CLIP's tokenizer, with the published 49,408 tokens."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder))
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def write_vocabulary(folder: Path) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` as published with CLIP ViT-L/14.

    The tokens are the bytes, the bytes at the end of a word, the merged pieces in order, and two marks.
    """
    merges, letters = _merges(), _letters()
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        *_MARKS,
    ]
    vocabulary = json.dumps({piece: number for number, piece in enumerate(pieces)}, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")


def _merges() -> list[str]:
    """Return the merges that make CLIP's tokens, most frequent first ("t h").

    Raises:
        MissingDataError: If the package lacks the file.
    """
    spec = importlib.util.find_spec("clip")  # not imported: that loads the whole package for one file
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0] if folders else "clip") / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        raise MissingDataError(f"untrained weights need {path}, a file of the package clip-anytorch")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 1 + TOKENS - 2 * 256 - len(_MARKS)]


def _letters() -> list[str]:
    """Return a printable letter for each byte, in the order of CLIP's vocabulary (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]
