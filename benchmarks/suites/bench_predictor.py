"""The Predictor's calls, for comparing two commits: `pytest benchmarks/suites --benchmark-only --benchmark-compare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from runtime import Predictor
from runtime.frames import prepare, read_frame
from runtime.maps import find_regions, frame_score, upsample


@pytest.mark.parametrize("batch", [1, 8])
def bench_engine(benchmark: BenchmarkFixture, predictor: Predictor, frames: list[str], batch: int) -> None:
    """One engine run on prepared frames."""
    encoder, recipe = predictor.manifest.encoder, predictor.recipe
    pixels = np.stack([prepare(read_frame(p), encoder, recipe.frame, p) for p in frames[:batch]])
    outputs = benchmark(predictor.backend.run, pixels, recipe)
    assert outputs.probabilities.shape == (batch, len(recipe.classes))


def bench_one_frame(benchmark: BenchmarkFixture, predictor: Predictor, frames: list[str]) -> None:
    """A PNG file to its Prediction."""
    assert benchmark(predictor, frames[0]).source == frames[0]


def bench_stream(benchmark: BenchmarkFixture, predictor: Predictor, frames: list[str]) -> None:
    """16 PNG files through `stream`."""
    assert all(result.ok for result in benchmark(lambda: list(predictor.stream(frames))))


def bench_stream_without_engine(benchmark: BenchmarkFixture, bundle: Path, frames: list[str]) -> None:
    """The same past an engine that costs nothing: the host's side alone."""
    with Predictor(bundle, backend="fake") as fake:
        assert all(result.ok for result in benchmark(lambda: list(fake.stream(frames))))


def bench_read_frame(benchmark: BenchmarkFixture, frames: list[str]) -> None:
    """Decode one PNG file."""
    assert benchmark(read_frame, frames[0]).dtype == np.uint8


def bench_upsample_and_score(benchmark: BenchmarkFixture) -> None:
    """A 15 x 15 map to 240 x 240 and its frame score, as for every frame."""
    patch_map = np.random.default_rng(0).random((15, 15), dtype=np.float32)
    score = benchmark(lambda: frame_score(upsample(patch_map, (240, 240), (240, 240), 4.0)))
    assert 0 <= score <= 1


def bench_regions(benchmark: BenchmarkFixture) -> None:
    """Regions of a 480 x 480 map."""
    full = upsample(np.random.default_rng(0).random((15, 15), dtype=np.float32), (480, 480), (240, 240), 4.0)
    assert benchmark(find_regions, full > 0.6, full)
