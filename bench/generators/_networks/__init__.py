"""Networks that several generators are built from."""
