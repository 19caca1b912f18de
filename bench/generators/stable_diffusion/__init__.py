"""Stable Diffusion v1.4 and v1.5 (Rombach et al. 2022): img2img from a predicted latent and a predicted text."""

from bench.generators.stable_diffusion.model import StableDiffusion, StableDiffusionOptions

__all__ = ["StableDiffusion", "StableDiffusionOptions"]
