"""Latency, throughput, memory: the sections of `sem-clip benchmark`, and what they share."""
