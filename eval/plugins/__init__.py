"""Metrics beside the protocols', one file or folder each. See `eval.plugins.base` for how to add one from anywhere."""
