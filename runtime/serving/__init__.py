"""Frames at scale: archives through Ray Data, and model repositories for Triton."""
