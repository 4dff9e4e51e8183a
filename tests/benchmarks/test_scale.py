"""The rates of `python -m benchmarks.scale`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import scale


def test_the_rate_begins_with_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(scale.time, "perf_counter", lambda: now[0])

    def blocks() -> Iterator[int]:
        for seconds, count in ((6.0, 50), (2.0, 40), (2.0, 10)):
            now[0] += seconds
            yield count

    assert scale.rates(blocks(), 100.0) == {"rate": 50 / 4, "whole": 100 / 10}


def test_one_block_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [2.0]
    monkeypatch.setattr(scale.time, "perf_counter", lambda: now[0])
    assert scale.rates([7], 0.0) == {"rate": 0.0, "whole": 3.5}


def test_results_are_counted_in_blocks() -> None:
    assert list(scale._blocks("abcdefg", 3)) == [3, 3, 1]
    assert list(scale._blocks("abcdef", 3)) == [3, 3]
