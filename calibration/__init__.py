"""Data folders, metrics, and operating points: the thresholds that turn scores into verdicts. No torch.

The readers of data folders live here because every package above this one needs them: export teaches on data folders,
and benchmarks measures on them. runtime, below, reads single frames only.
"""
