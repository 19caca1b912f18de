"""Dataset readers, one file a dataset; `bench.core.registry` finds them by file name."""
