"""Accuracy by the paper's protocol, of the method and of others: `python -m benchmarks.accuracy`."""
