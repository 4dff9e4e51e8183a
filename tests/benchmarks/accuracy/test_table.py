"""The table of an accuracy measurement: means, missing figures, and the lines below it."""

from __future__ import annotations

import pytest

from benchmarks.accuracy.table import COLUMNS, METRICS, summarize

FIGURES = {"accuracy": 0.5, "verdict_accuracy": 0.25, "precision": 0.4, "recall": 0.6, "f1": 0.5, "iauroc": 0.75}
TOLD = {"supervision": "class labels and masks", "draws_map": True, "unavailable": None}
ROW = {"method": "fp32", "shots": 1, "test_frames": 9, **TOLD, **FIGURES}
NO_MASKS = {"pauroc": None, "f1_max": None}


def test_columns_are_the_metrics_and_the_defect_scores_iauroc() -> None:
    titles = [*METRICS.values()]
    titles.insert(titles.index("iAUROC") + 1, "iAUROC (score)")
    assert list(COLUMNS.values()) == titles


def test_pixel_metrics_of_a_set_without_masks_read_no_masks() -> None:
    row = {**ROW, **NO_MASKS}
    table = summarize([{**row, "seed": 0}, {**row, "seed": 1, "accuracy": 0.7}], [1])
    assert (
        "| fp32 | class labels and masks | 1 | 2 | 9-9 | 60.0 ± 10.0 | 25.0 ± 0.0 | 40.0 ± 0.0 | 60.0 ± 0.0 "
        "| 50.0 ± 0.0 | 75.0 ± 0.0 | - | no masks | no masks |" in table
    )


def test_iauroc_by_other_frame_scores_is_listed_below_the_table() -> None:
    row = {**ROW, **NO_MASKS, "iauroc_score": 0.9, "iauroc_peak": 0.7, "iauroc_class": None}
    row |= {"overkill": 0.1, "underkill": 0.2, "pixel_f1": None}
    lines = summarize([{**row, "seed": 0}, {**row, "seed": 1, "iauroc_peak": 0.8}], [1]).splitlines()
    assert "| 75.0 ± 0.0 | 90.0 ± 0.0 | no masks | no masks |" in lines[2], "that of the defect score is a column, too"
    assert lines[-1] == (
        "fp32, K = 1: iAUROC 90.0 ± 0.0 by the defect score, 75.0 ± 5.0 by the map's maximum, - by 1 - P(good); "
        "at the thresholds as taught: overkill 10.0 ± 0.0, underkill 20.0 ± 0.0, pixel F1 no masks"
    )
    assert "by the map" not in summarize([{**ROW, **NO_MASKS, "method": "patch_memory", "seed": 0}], [1])


def test_a_baseline_without_a_map_has_a_dash_where_a_set_without_masks_reads_no_masks() -> None:
    told = {"supervision": "class labels", "draws_map": False}
    table = summarize([{**ROW, **NO_MASKS, **told, "method": "class_mean", "iauroc": None, "seed": 0}], [1])
    assert "| class_mean | class labels | 1 | 1 | 9-9 | 50.0 | 25.0 | 40.0 | 60.0 | 50.0 | - | - | - | - |" in table, (
        "one seed spreads over none"
    )
    table = summarize([{**ROW, **NO_MASKS, "method": "patch_memory", "seed": 0}], [1])
    assert "| 75.0 | - | no masks | no masks |" in table


def test_every_cell_of_an_unavailable_row_names_what_it_lacks() -> None:
    told = {"supervision": "good frames", "unavailable": "needs text", **dict.fromkeys(METRICS)}
    table = summarize([{**ROW, **told, "method": "winclip", "seed": 0}], [1])
    assert table.splitlines()[-1] == "| winclip | good frames | 1 | 1 | 9-9 |" + " needs text |" * len(COLUMNS)


@pytest.mark.parametrize(
    ("key", "what"), [("labels_equal", "all frames"), ("labels_equal_kept", "the 80% most confident frames")]
)
def test_label_agreement_of_another_precision_is_listed_below_the_table(key: str, what: str) -> None:
    rows = [{**ROW, **NO_MASKS, "method": "int8", "seed": seed, key: value} for seed, value in enumerate((1.0, 0.5))]
    assert summarize(rows, [1]).splitlines()[-1] == (
        f"int8: same label as fp32 on 75.0 % of {what} (worst cell 50.0 %)"
    )
