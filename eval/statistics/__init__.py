"""Uncertainty, comparisons, ranks and noise ceilings."""
