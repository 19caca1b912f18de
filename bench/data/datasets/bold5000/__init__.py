"""BOLD5000, release 2.0: single-trial betas by GLMsingle while four people saw 4,916 pictures (Chang et al. 2019)."""

from bench.data.datasets.bold5000.dataset import Bold5000, Bold5000Options

__all__ = ["Bold5000", "Bold5000Options"]
