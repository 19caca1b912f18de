"""The inside of `score`: what becomes a row, its audit, its division, and the record it leaves."""
