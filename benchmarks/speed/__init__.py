"""Speed, latency and memory of a bundle: what `sem-clip benchmark` measures."""

SECTIONS = ("latency", "throughput", "split", "host", "memory", "growth", "roofline")
"""Sections of a report, in their order."""
