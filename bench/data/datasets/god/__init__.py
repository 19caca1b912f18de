"""Generic Object Decoding: five people saw 1,200 training and 50 test images (Horikawa & Kamitani 2017)."""

from bench.data.datasets.god.dataset import God, GodOptions

__all__ = ["God", "GodOptions"]
