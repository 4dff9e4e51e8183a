"""Teach recipes and export bundles (PyTorch). The runtime never imports this package."""
