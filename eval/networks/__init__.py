"""Frozen feature networks, a family a file: how to build them, which layers are tapped, which weights they need."""
