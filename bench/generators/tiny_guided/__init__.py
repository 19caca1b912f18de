"""The embedded default's conditioned generator: a tiny latent diffusion model that caption and image tokens guide.

It has tiny-diffusion's VAE and noise schedule. The weights beside this file (5.3 MB, float16 safetensors: UNet 2.46 M
parameters, text encoder 0.07 M, image tokeniser 0.12 M) were made by

    OMP_NUM_THREADS=1 python -m bench.generators.tiny_guided.train

in 35 minutes on a busy machine (1,400 batches of 32 of 12,000 scenes), from designs that no simulated dataset uses. On
96 scenes of another design, drawn from noise with guidance 2 in 10 steps (two-way identification by the scene network,
chance is 50 %; PixCorr):

    condition                  middle layer   high layer   embedding   PixCorr
    true text                        88 %         93 %        87 %       .46
    another scene's text             48 %         49 %        49 %       .00
    true image tokens                94 %         94 %        89 %       .56
    another scene's tokens           50 %         50 %        50 %       .02
    both, mixing .4                  93 %         95 %        88 %       .54

On one core a picture takes about 5 ms to encode into text and tokens, and 40 ms to draw in five guided steps.
"""

from bench.generators.tiny_guided.model import TinyGuided, TinyGuidedOptions

__all__ = ["TinyGuided", "TinyGuidedOptions"]
