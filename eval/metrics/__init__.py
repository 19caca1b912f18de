"""Metrics, one file a family: a pure function on tensors and a `torchmetrics.Metric` class that agrees with it."""
