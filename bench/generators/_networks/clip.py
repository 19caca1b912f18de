"""What goes into CLIP's towers and comes out of them: token numbers of texts, means over captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.generators._networks.published import TEXT_TOKENS


def token_ids(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:  # noqa: ANN401 - transformers is imported late
    """Return the token numbers `(N, 77)` of texts: padded with the end mark, long ones cut."""
    ids: torch.Tensor = tokenizer(
        list(texts), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def mean_over_captions(
    states_of: Callable[[list[str]], torch.Tensor], captions: Sequence[Sequence[str]]
) -> torch.Tensor:
    """Return for each stimulus the mean of its captions' states, `(B, tokens, width)`.

    Args:
        states_of: Gives the states `(N, tokens, width)` of N texts.
        captions: Each stimulus's own, at least one, however many.
    """
    states = states_of([text for texts in captions for text in texts])
    return torch.stack([part.mean(0) for part in states.split([len(texts) for texts in captions])])
