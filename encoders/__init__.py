"""What is trained: one file an architecture, all behind the contract in `encoders.base`."""
