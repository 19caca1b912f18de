"""CLIP's tokenizer: from a checkpoint's files, or from the vocabulary that ships with the package `clip-anytorch`.

Untrained networks need no downloaded file, and so no downloaded vocabulary either.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench.core.errors import CorruptFileError
from bench.generators._weights.frozen import read_json

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
    """Return CLIP's own tokenizer.

    The vocabulary is that of `clip-anytorch`; the tokenizer is transformers', as in the published scripts. CLIP's own
    gives the same numbers, but first mends broken encodings, typographic quotes, ligatures and HTML entities.
    """
    from clip.simple_tokenizer import SimpleTokenizer

    published = SimpleTokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(published.encoder))
        merges = ["#version: 0.2", *(" ".join(pair) for pair in published.bpe_ranks), ""]
        (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
        return tokenizer_from(folder)
