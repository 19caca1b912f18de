"""The scene network: a small convolutional network for procedural 64-pixel scenes, trained and shipped with us."""

from eval.networks.scene.network import SCENE

__all__ = ["SCENE"]
