"""The inside of `eval.suite.score`."""
