"""Simulated brains: where voxels lie, what they respond to, and their noise."""
