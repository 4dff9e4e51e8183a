"""benchmarks.accuracy: the table it prints."""

from __future__ import annotations

from benchmarks.accuracy import summarize


def test_table_says_where_there_are_no_masks() -> None:
    row = {"shots": 1, "test_frames": 9, "accuracy": 0.5, "f1": 0.5, "iauroc": 0.75, "pauroc": None, "f1_max": None}
    table = summarize([{**row, "seed": 0}, {**row, "seed": 1, "accuracy": 0.7}], [1])
    assert "| 1 | 2 | 9-9 | 60.0 ± 10.0 | 50.0 ± 0.0 | 75.0 ± 0.0 | no masks | no masks |" in table
