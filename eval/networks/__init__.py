"""Frozen feature networks, one file each: how to build it, which layers are tapped, which weights it needs."""
