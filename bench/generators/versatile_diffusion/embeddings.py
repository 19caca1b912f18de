"""The two conditions of Versatile Diffusion: all tokens of CLIP ViT-L/14, of pictures and of captions.

Both are the tokens of the last layer, projected into CLIP's joint space and divided by one norm, that of the token
which stands for the whole: `encode_vision` and `encode_text` of the authors' `lib/model_zoo/clip.py` (Xu et al. 2023).
Computed in float32, as Brain-Diffuser's feature scripts do (Ozcelik & VanRullen 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from bench.generators._diffusion.resizing import resized
from bench.generators._networks.clip import token_ids

PICTURE_SIZE = 512
"""Side to which the published feature script brings a picture before CLIP's own preprocessing."""
GREY = 127
"""The null condition's grey: their zeros in [-1, 1] become 127.5 of 255, of which CLIP's preprocessing kept 127."""
_BATCH = 32


class Embeddings:
    """CLIP's encoders with what precedes and follows them."""

    def __init__(
        self,
        image_encoder: Any,  # noqa: ANN401 - transformers is imported late
        text_encoder: Any,  # noqa: ANN401 - see image_encoder
        tokenizer: Any,  # noqa: ANN401 - see image_encoder
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        """Hold frozen encoders.

        Args:
            image_encoder: `CLIPVisionModelWithProjection`, float32.
            text_encoder: `CLIPTextModelWithProjection`, float32.
            tokenizer: `CLIPTokenizer`.
            mean: Of the pixels that the image encoder was trained with, R, G, B in [0, 1].
            std: Likewise.
            device: Where the encoders lie.
        """
        self._image_encoder, self._text_encoder, self._tokenizer = image_encoder, text_encoder, tokenizer
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self._device = device

    def vision(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens `(B, 257, 768)` float32 on the CPU of pictures `(B, 3, H, W)` uint8."""
        parts = [self._vision(self.pixels(part)) for part in images.split(_BATCH)]
        return torch.cat(parts).cpu()

    def text(self, captions: Sequence[str]) -> torch.Tensor:
        """Return the tokens `(B, 77, 768)` float32 on the CPU of one caption each; long ones are cut."""
        parts = [self._text(list(captions[first : first + _BATCH])) for first in range(0, len(captions), _BATCH)]
        return torch.cat(parts).cpu()

    def null_vision(self) -> torch.Tensor:
        """Return the tokens `(1, 257, 768)` of a grey picture: the published null condition."""
        return self.vision(torch.full((1, 3, PICTURE_SIZE, PICTURE_SIZE), GREY, dtype=torch.uint8))

    def null_text(self) -> torch.Tensor:
        """Return the tokens `(1, 77, 768)` of the empty caption: the published null condition."""
        return self.text([""])

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return `(B, 3, h, h)` normalised pixels of pictures `(B, 3, H, W)` uint8, resized twice as published.

        Brain-Diffuser's script resizes to 512 (bilinear), CLIP's preprocessing to the encoder's size (bicubic); both by
        Pillow, which filters when it shrinks.
        """
        # From the network: checkpoints of the same class may take other sizes.
        side = self._image_encoder.config.image_size
        large = resized(images, PICTURE_SIZE, Image.Resampling.BILINEAR)
        small = resized(large, side, Image.Resampling.BICUBIC)
        return (small.float() / 255 - self._mean) / self._std

    @torch.no_grad()
    def _vision(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self._image_encoder(pixels.to(self._device)).last_hidden_state
        # transformers applies the last norm to the class token alone; the condition needs it on all tokens.
        normed = self._image_encoder.vision_model.post_layernorm(states)
        tokens: torch.Tensor = self._image_encoder.visual_projection(normed)
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def _text(self, captions: list[str]) -> torch.Tensor:
        # No attention mask: CLIP was trained without, and its causal attention never looks at the padding.
        output = self._text_encoder(token_ids(self._tokenizer, captions).to(self._device))
        tokens: torch.Tensor = self._text_encoder.text_projection(output.last_hidden_state)
        return tokens / output.text_embeds.unsqueeze(1).norm(dim=-1, keepdim=True)
