"""Frozen generative models, one file each; `bench.core.registry` finds them by file name."""
