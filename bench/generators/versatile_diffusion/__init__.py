"""Versatile Diffusion (Xu et al. 2023), dual-guided, as Brain-Diffuser and Neural-Recon use it.

Targets, null conditions, the mixing of the two guidances, the noise level of the first guess and the sampler follow the
scripts of Ozcelik & VanRullen 2023. From diffusers come `UNet2DConditionModel`, `Transformer2DModel`, `AutoencoderKL`
and `DDIMScheduler`, from transformers CLIP. diffusers' own pipeline is not used: it is deprecated, and at 0.42 its dual
attention block fails inside the UNet; tests mend that one call and compare with it for as long as it exists.

Differences from Brain-Diffuser:

- It loads `vd-four-flow-v1-0-fp16-deprecated.pth`, the authors' single file in half precision; this loads the same
  training in the repository's diffusers layout, where the same tensors have other names. Of the four flows only
  picture-to-picture and caption-to-picture are needed, and CLIP and the VAE lie beside them.
- UNet and VAE compute in half precision on a GPU as there, but latents between steps are float32.
- The noise of a picture comes from its own seed, there from one stream over all pictures.
- Decoded pixels are rounded, there cut to whole levels. Before CLIP's preprocessing theirs pass through floats: 63 of
  the 256 levels lose one there; that is not repeated here.
"""

from bench.generators.versatile_diffusion.model import VersatileDiffusion, VersatileDiffusionOptions

__all__ = ["VersatileDiffusion", "VersatileDiffusionOptions"]
