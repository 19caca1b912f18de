"""Protocols, one file each: how images become numbers, as named and versioned objects. See `eval.protocols.base`."""
