"""A pytest-benchmark suite: `pytest benchmarks/suites --benchmark-only [--bundle FOLDER] [--backend NAME]`."""
