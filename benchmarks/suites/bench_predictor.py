"""Three calls of the Predictor, to compare two commits.

`sem-clip benchmark` measures one tree in depth. This suite adds what pytest-benchmark gives: saved runs, a comparison
with an earlier run, and a failed test where a call became slower.

    pytest benchmarks/suites --benchmark-only --benchmark-autosave
    pytest benchmarks/suites --benchmark-only --benchmark-compare --benchmark-compare-fail=median:10%

Run the first line before a change and the second one after it, on an idle machine.
"""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from runtime import Predictor


def bench_one_frame(benchmark: BenchmarkFixture, predictor: Predictor, frames: list[str]) -> None:
    """From a PNG file to its Prediction."""
    assert benchmark(predictor, frames[0]).source == frames[0]


def bench_stream(benchmark: BenchmarkFixture, predictor: Predictor, frames: list[str]) -> None:
    """16 PNG files through `stream`."""
    assert all(result.ok for result in benchmark(lambda: list(predictor.stream(frames))))


def bench_stream_without_engine(benchmark: BenchmarkFixture, bundle: Path, frames: list[str]) -> None:
    """The same files through the fake engine, which takes no time: the host's side alone."""
    with Predictor(bundle, backend="fake") as fake:
        assert all(result.ok for result in benchmark(lambda: list(fake.stream(frames))))
