"""The simulated NSD: procedural scenes, voxel responses with a known truth, and files in NSD's own layout."""
