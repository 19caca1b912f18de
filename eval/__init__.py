"""What is measured: metrics, protocols and statistics as pure functions and torchmetrics classes."""
