"""The embedded default's generator: a tiny latent diffusion model of the simulator's scenes, weights included.

The weights beside this file (6.0 MB, float16 safetensors: VAE 0.41 M parameters, UNet 2.6 M) were made by

    OMP_NUM_THREADS=1 python -m bench.generators.tiny_diffusion.train

on one core of a shared machine: 17 minutes for the VAE (3,200 batches of 16 scenes, none twice), 38 for the UNet (3,000
batches of 64 latents of 16,000 scenes). The scenes belong to designs that no simulated dataset uses. On 256 scenes of
another design:

    PixCorr of decoded posterior means (VAE round trip)               .991
    PixCorr of img2img from true latents, default options             .930
    mean squared error of the UNet's clean estimate, default steps    .071 (of the noised latent, rescaled: .74)

On one core a picture takes about 4 ms to encode, and about 20 ms to render with the default five denoising steps.
"""

from bench.generators.tiny_diffusion.model import TinyDiffusion, TinyDiffusionOptions

__all__ = ["TinyDiffusion", "TinyDiffusionOptions"]
