"""benchmarks.speed.timing: the order of runs, and statistics against their definitions."""

from __future__ import annotations

import pytest

from benchmarks.speed import timing
from benchmarks.speed.timing import alternate, per_second, percentiles_ms, ratio, slope


def test_runs_alternate_after_one_warm_up_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE_S", 0.0)
    calls: list[str] = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_percentiles_are_samples_by_nearest_rank() -> None:
    seconds = [value / 1e3 for value in range(200, 0, -1)]
    assert percentiles_ms(seconds) == pytest.approx(
        {"p50": 100, "p90": 180, "p95": 190, "p99": 198, "max": 200, "n": 200}
    )
    few = percentiles_ms([0.003, 0.001, 0.002])
    assert few == pytest.approx({"p50": 2, "p90": 3, "p95": 3, "p99": 3, "max": 3, "n": 3})
    assert percentiles_ms([0.004])["p50"] == pytest.approx(4)


def test_percentiles_need_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentiles_ms([])


def test_a_ratio_is_taken_pair_by_pair() -> None:
    # A machine that slows down tenfold in the last round changes no ratio; a ratio of medians or means would be off.
    assert ratio([2.0, 4.0, 40.0], [1.0, 2.0, 20.0]) == 2
    assert ratio([2.0, 9.0, 20.0], [1.0, 3.0, 20.0]) == 2
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ratio([1.0], [1.0, 2.0])


def test_slope_is_least_squares() -> None:
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope([0, 1, 2], [0, 0, 3]) == pytest.approx(1.5)
    assert slope([0, 1, 2], [4, 4, 4]) == pytest.approx(0, abs=1e-12)
    assert slope([1], [5]) == 0
    assert slope([2, 2], [5, 9]) == 0


def test_frames_per_second_come_from_the_median_round() -> None:
    assert per_second(8, [1.0, 2.0, 400.0]) == 4
