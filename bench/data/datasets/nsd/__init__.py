"""The Natural Scenes Dataset, real or simulated: volumes of single-trial betas (Allen et al. 2022)."""

from bench.data.datasets.nsd.dataset import Nsd, NsdOptions

__all__ = ["Nsd", "NsdOptions"]
