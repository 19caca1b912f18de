"""Versatile Diffusion's dual guidance: every attention block of the image UNet beside its twin of the text UNet.

The image-denoising UNet exists once; only its attention blocks exist twice, one trained with pictures as the condition,
one with captions. A dual-guided step runs both on the same states and adds their residuals in a given ratio (Xu et al.
2023, section 3.4; `mixed_run_dc` in the authors' code). diffusers has such a block, but its UNet now calls it with an
argument that it does not take; this is the same arithmetic, independent of the deprecated pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.generators._networks.published import TEXT_TOKENS
from bench.generators._weights.frozen import load_state

VISION_TOKENS = 257


class DualAttention(nn.Module):
    """Two attention blocks on the same states, their residuals added: `x + (1 - mixing) * dV(x) + mixing * dT(x)`."""

    def __init__(self, vision: nn.Module, text: nn.Module, mixing: float) -> None:
        """Hold both blocks.

        Args:
            vision: `Transformer2DModel` of the image UNet.
            text: Its twin of the text UNet.
            mixing: Share of the text block, 0 to 1; a block whose share is 0 is not computed.
        """
        super().__init__()
        self.vision, self.text, self.mixing = vision, text, mixing

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Return the mixed states.

        The signature is that of the block it stands for; nothing here is ever masked.

        Args:
            hidden_states: `(B, C, H, W)`.
            encoder_hidden_states: `(B, 257 + 77, 768)`, the picture's tokens before the caption's.
            cross_attention_kwargs: Ignored, as are the masks and `return_dict`.
            attention_mask: See above.
            encoder_attention_mask: See above.
            return_dict: See above.

        Returns:
            `(B, C, H, W)` in a tuple of one.
        """
        vision, text = encoder_hidden_states.split((VISION_TOKENS, TEXT_TOKENS), dim=1)
        mixed = hidden_states
        for block, tokens, share in ((self.vision, vision, 1 - self.mixing), (self.text, text, self.mixing)):
            if share > 0:
                states = block(hidden_states, encoder_hidden_states=tokens, return_dict=False)[0]
                mixed = mixed + share * (states - hidden_states)
        return (mixed,)


def attention_blocks(unet: nn.Module) -> dict[str, Any]:
    """Return the attention blocks of a `UNet2DConditionModel` by name; the text UNet's bear the same names."""
    from diffusers import Transformer2DModel

    return {name: module for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)}


def twins(unet: nn.Module) -> dict[str, nn.Module]:
    """Return new, untrained attention blocks of the same shapes as a UNet's, by name."""
    made = {}
    for name, block in attention_blocks(unet).items():
        # Not `from_config`: it takes some of these for defaults that a newer release may have changed, and drops them.
        settings = {key: value for key, value in block.config.items() if not key.startswith("_")}
        made[name] = type(block)(**settings)
    return made


def load_twins(blocks: Mapping[str, nn.Module], state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Fill attention blocks from the state dict of a text UNet, whose other layers denoise captions and are not needed.

    Args:
        blocks: What `twins` returned.
        state: The text UNet's tensors by name.
        path: Where they come from, for messages.

    Raises:
        CorruptFileError: If a block's tensors are missing or have other shapes.
    """
    for name, block in blocks.items():
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        load_state(block, own, path)


def make_dual(unet: nn.Module, texts: Mapping[str, nn.Module], mixing: float) -> None:
    """Replace the attention blocks of an image UNet by `DualAttention` over them and their twins, in place."""
    for name, vision in attention_blocks(unet).items():
        parent, _, index = name.rpartition(".")
        blocks = unet.get_submodule(parent)
        if not isinstance(blocks, nn.ModuleList):
            raise TypeError(f"{name} of the image UNet lies in {type(blocks).__name__}, a ModuleList is needed")
        blocks[int(index)] = DualAttention(vision, texts[name], mixing)
