"""Dataset readers, one file a dataset; `bench.registry` finds them by file name."""
