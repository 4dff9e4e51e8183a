"""pytest-benchmark suites: `pytest benchmarks/suites --benchmark-only [--bundle FOLDER]`."""
