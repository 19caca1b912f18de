"""THINGS-fMRI: three people saw 8,740 pictures of 720 concepts in 12 sessions (Hebart et al. 2023)."""

from bench.data.datasets.things.dataset import Things, ThingsOptions

__all__ = ["Things", "ThingsOptions"]
