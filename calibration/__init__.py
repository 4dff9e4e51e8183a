"""Data folders, and operating points: where to put the numbers that turn scores into verdicts. No torch."""
