"""What is measured: metrics, networks, protocols and statistics; `eval.suite.score` is the call."""
