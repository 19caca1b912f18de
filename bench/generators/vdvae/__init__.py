"""OpenAI's very deep VAE for ImageNet-64 (Child 2021), as Brain-Diffuser uses it (Ozcelik & VanRullen 2023).

Its target is the first 31 of 75 groups of latents, 91,168 numbers; its pictures, 64 x 64, are Brain-Diffuser's first
guess of layout and colours. What the published scripts do and this package does too:

- a picture is resized to 64 x 64 by PIL (bilinear, both sides whatever the aspect), and normalised by one mean and one
  deviation for all colours: (v - 115.92961967) / 69.37404 of grey levels 0 to 255;
- targets are posterior *samples*, one a picture, not means, here from a seed for each stimulus;
- the other 44 groups are drawn from the prior at temperature 1, each given all that is coarser;
- a picture is a *sample* of the pixels' mixtures of logistics (not their mean), cut to integers, not rounded;
- everything is computed in float32, with the weights' exponential moving average
  (`imagenet64-iter-1600000-model-ema.th`, 125,005,860 parameters, a plain state dict).

Brain-Diffuser then enlarges the picture to 512 x 512 (PIL bicubic): the node that takes the picture does that.
A checkpoint was loaded right if `python -m bench.generators.vdvae.rate FOLDER` says about 3.5 bits per dimension for
ImageNet's validation pictures; the paper has 3.52.
"""

from bench.generators.vdvae.model import Vdvae, VdvaeOptions

__all__ = ["Vdvae", "VdvaeOptions"]
