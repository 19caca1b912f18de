"""The embedded default's generator: a tiny latent diffusion model of the simulator's scenes, weights included."""

from bench.generators.tiny_diffusion.model import Options, TinyDiffusion

__all__ = ["Options", "TinyDiffusion"]
