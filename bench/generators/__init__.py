"""Frozen generative models, one file each; `bench.registry` finds them by file name."""
