"""The networks of the tiny latent diffusion model, in diffusers format: a VAE and a UNet.

Sizes are chosen for a CPU: one decoded picture costs about 7 ms of one core, one UNet step about 2 ms.
"""

from __future__ import annotations

from typing import Any

from bench.generators._networks.scene_latents import LATENT_SHAPE, PICTURE_SIZE, UNET


def new_vae() -> Any:  # noqa: ANN401 - diffusers is imported only when a network is built
    """Return an untrained `AutoencoderKL`: factor 4 in each direction, one residual block a level, no attention."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_SHAPE[0],
        norm_num_groups=8,
        sample_size=PICTURE_SIZE,
        # Training folds the latent's mean and deviation into the VAE, so nothing is left to scale.
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def new_unet() -> Any:  # noqa: ANN401 - see new_vae
    """Return an untrained `UNet2DModel` over latents, with attention at 8 x 8."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        **UNET,
        # Attention at 8 x 8: at 16 x 16 it would cost sixteen times as much.
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )
