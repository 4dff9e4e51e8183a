"""Accuracy after the paper's protocol, and of the methods it is compared with: `python -m benchmarks.accuracy`."""
