"""Procedural scenes: what is in them, how they look, what is said about them."""
