"""The networks of the tiny guided model: a UNet with two conditions, a text encoder, an image tokeniser.

The UNet is tiny-diffusion's with cross-attention at 8 x 8. Text and image tokens have keys and values of their own
there (decoupled cross-attention, Ye et al. 2023: IP-Adapter); the two readings are mixed as Versatile Diffusion mixes
its two flows (Xu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.generators._networks.scene_latents import LATENT_SHAPE, UNET

WIDTH = 64
TEXT_SHAPE = (32, WIDTH)
"""The simulator's longest caption has 28 words; two more mark begin and end."""
TOKENS_SHAPE = (8, WIDTH)
BEGIN, END, UNKNOWN = "<begin>", "<end>", "<unknown>"


def new_unet() -> Any:  # noqa: ANN401 - diffusers is imported only when a network is built
    """Return an untrained `UNet2DConditionModel` over latents, its attention replaced by `MixedAttention`."""
    from diffusers import UNet2DConditionModel

    return with_mixed_attention(
        UNet2DConditionModel(
            **UNET,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=WIDTH,
        )
    )


def with_mixed_attention(unet: Any) -> Any:  # noqa: ANN401 - a UNet2DConditionModel
    """Return the UNet with a `MixedAttention` in every attention layer; those across conditions get own weights."""
    layers = {name: module for name, module in unet.named_modules() if hasattr(module, "set_processor")}
    unet.set_attn_processor(
        {
            f"{name}.processor": MixedAttention(layer.is_cross_attention, layer.inner_dim)
            for name, layer in layers.items()
        }
    )
    return unet


class MixedAttention(nn.Module):
    """An attention processor that reads text and image tokens separately and mixes what it read.

    With an `image_share` of 0 nothing of the image tokens passes, with 1 nothing of the text.
    """

    def __init__(self, across: bool, width: int) -> None:
        """Make the image tokens' own key and value maps where the layer attends across conditions.

        Args:
            across: Whether the layer attends to conditions; else it is plain self-attention.
            width: Channels of the layer.
        """
        super().__init__()
        self.to_k_tokens = nn.Linear(WIDTH, width, bias=False) if across else None
        self.to_v_tokens = nn.Linear(WIDTH, width, bias=False) if across else None

    # Not `forward`: diffusers looks at the signature of `__call__` to see which arguments a processor takes.
    def __call__(
        self,
        attn: Any,  # noqa: ANN401 - diffusers' Attention, which calls its processor with itself
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_share: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what the layer adds to `hidden_states` `(B, P, C)`.

        Args:
            attn: The layer, with its own maps.
            hidden_states: Positions of the picture.
            encoder_hidden_states: Text and image tokens one after the other `(B, 32 + 8, 64)`, None for
                self-attention.
            attention_mask: Never given here; part of the interface.
            image_share: Share of the image tokens against the text, `(B, 1, 1)` in [0, 1].
        """
        query = attn.to_q(hidden_states)
        # Self-attention looks at the picture alone; no condition reaches it.
        if self.to_k_tokens is None or self.to_v_tokens is None:
            mixed = _attend(query, attn.to_k(hidden_states), attn.to_v(hidden_states), attn.heads)
        else:
            assert encoder_hidden_states is not None and image_share is not None
            text, tokens = encoder_hidden_states.split([TEXT_SHAPE[0], TOKENS_SHAPE[0]], dim=1)
            read = _attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
            seen = _attend(query, self.to_k_tokens(tokens), self.to_v_tokens(tokens), attn.heads)
            mixed = (1 - image_share) * read + image_share * seen
        return attn.to_out[0](mixed)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Return softmax attention of `(B, P, C)` queries over `(B, T, C)` keys and values, in `heads` parts."""
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def new_text_encoder(words: int) -> Any:  # noqa: ANN401 - see new_unet
    """Return an untrained two-layer `CLIPTextModel` for a vocabulary of `words`, the last of which ends a text."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_SHAPE[0],
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    )


def new_words(texts: Iterable[str]) -> Any:  # noqa: ANN401 - a tokenizers.Tokenizer
    """Return a tokenizer of the words of some texts: 32 numbers a text, begin ... end, padded with ends as CLIP's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    split = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("removed"), pre_tokenizers.WhitespaceSplit()])
    # Sorted, so that a word's number does not depend on the order of the texts.
    known = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, *known, BEGIN, END])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), split
    marks = [(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])]
    words.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=marks)
    words.enable_truncation(TEXT_SHAPE[0])
    words.enable_padding(length=TEXT_SHAPE[0], pad_id=vocabulary[END], pad_token=END)
    return words


class ImageTokeniser(nn.Module):
    """Eight tokens of a picture's latent: two convolutions to 8 x 8 patches, then IP-Adapter-Plus's resampler."""

    def __init__(self) -> None:
        """Build the untrained network."""
        super().__init__()
        from diffusers.models.embeddings import IPAdapterPlusImageProjection

        self.patches = nn.Sequential(
            nn.Conv2d(LATENT_SHAPE[0], WIDTH, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
        # The resampler reads patches as a set; without places it could not tell left from right.
        self.places = nn.Parameter(0.02 * torch.randn(1, LATENT_SHAPE[1] ** 2 // 4, WIDTH))
        self.resampler = IPAdapterPlusImageProjection(
            embed_dims=WIDTH,
            output_dims=WIDTH,
            hidden_dims=WIDTH,
            depth=2,
            dim_head=16,
            heads=4,
            num_queries=TOKENS_SHAPE[0],
            ffn_ratio=2,
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the tokens `(B, 8, 64)` of latents `(B, 4, 16, 16)`."""
        return self.resampler(self.patches(latents).flatten(2).transpose(1, 2) + self.places)
