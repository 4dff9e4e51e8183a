"""runtime.verdict_lines: the JSON lines of `predict` are listed like a store, without maps; other lines are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stores import answer, failed, write_store

from runtime.errors import StoreError
from runtime.verdict_store import ORDERS, Query, VerdictStore

ROUNDED = {"novelty": 0.25, "map_score": 0.5, "peak": 0.75}
"""Numbers that survive the six digits of JSON lines."""
RESULTS = [
    answer("/lot/a.png", (0.6, 0.3, 0.1), is_defect=False, **ROUNDED),
    failed("/lot/b.png"),
    answer("/lot/c.png", (0.25, 0.5, 0.25), warnings=("odd",), **ROUNDED),
    answer("/lot/d.png", (0.125, 0.375, 0.5), verdict="unknown", pixel_size_nm=None, **ROUNDED),
]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "verdicts.jsonl", [result.to_dict() for result in RESULTS])


def test_lines_are_listed_as_the_same_answers_of_a_store(path: Path, tmp_path: Path) -> None:
    stored = write_store(tmp_path / "v.sqlite", RESULTS)
    with VerdictStore.of_any(path) as lines, VerdictStore.of_any(stored) as store:
        for order in ORDERS:
            assert lines.entries(Query(order=order)) == store.entries(Query(order=order))
        assert lines.verdicts() == store.verdicts()
        assert lines.ids_by_path() == store.ids_by_path()
        assert lines.scores(0).probabilities.tolist() == store.scores(0).probabilities.tolist()
        assert (lines.where, lines.runs()[0].classes) == (str(path), store.runs()[0].classes)


def test_lines_hold_no_maps_and_no_features(path: Path) -> None:
    with VerdictStore.from_json_lines(path) as store:
        assert store.result(1) is None
        failure = store.result(2)
        assert failure is not None
        assert failure.to_dict() == {"source": "/lot/b.png", "error": "is empty"}
        assert store.features()[0].size == 0
        assert store.facts(3)["reason"] == "bridge 0.500"
        assert store.facts(3)["warnings"] == ["odd"]


def test_regions_are_those_of_the_line(path: Path) -> None:
    with VerdictStore.from_json_lines(path) as store:
        boxes = [{name: region[name] for name in ("x", "y", "width", "height", "area")} for region in store.regions(3)]
        assert boxes == [
            {name: region[name] for name in ("x", "y", "width", "height", "area")}
            for region in RESULTS[2].to_dict()["regions"]
        ]
        assert store.regions(3)[0]["width_nm"] == boxes[0]["width"] * 2.0
        assert store.regions(4)[0]["width_nm"] is None


def test_of_a_frame_with_two_lines_the_last_one_counts(tmp_path: Path) -> None:
    lines = [answer("/a.png").to_dict(), answer("/a.png", (0.9, 0.05, 0.05), is_defect=False).to_dict()]
    with VerdictStore.from_json_lines(write_lines(tmp_path / "v.jsonl", lines)) as store:
        assert [entry.verdict for entry in store.entries(Query())] == ["good"]


def test_a_relative_source_is_a_path_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_lines(tmp_path / "v.jsonl", [{"source": "frames/a.png", "error": "is empty"}])
    with VerdictStore.from_json_lines(path) as store:
        assert [entry.path for entry in store.entries(Query())] == [f"{tmp_path}/frames/a.png"]
        assert store.runs()[0].classes == ()


def test_no_lines_are_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text("")
    with VerdictStore.of_any(tmp_path / "v.jsonl") as store:
        assert store.count(Query()) == 0
        assert store.runs() == ()


def test_an_empty_file_of_another_name_is_no_store(tmp_path: Path) -> None:
    for name in ("v.db", "v"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(StoreError, match="is empty: it holds no verdicts"):
            VerdictStore.of_any(tmp_path / name)


def test_several_threads_read_lines(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with VerdictStore.from_json_lines(path) as store, ThreadPoolExecutor(4) as pool:
        assert all(entry is not None for entry in pool.map(store.entry, [1, 2, 3, 4] * 5))


def changed(**changes: Any) -> dict[str, Any]:
    line = answer("/a.png").to_dict()
    raw = {**line["raw"], **changes.pop("raw", {})}
    return {**line, "raw": raw, **changes}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("text", "must be an object"),
        ({}, "source is missing"),
        ({"source": "", "error": "x"}, "source must not be empty"),
        ({"source": "a.png", "error": 5}, "error must be a string"),
        (changed(verdict=None), "verdict must be a string"),
        (changed(confidence=2), r"confidence must lie in \[0, 1\]"),
        (changed(score="1"), "score must be a finite number"),
        (changed(frame_size=[0, 5]), "frame_size must be two whole numbers"),
        (changed(pixel_size_nm=[1]), "pixel_size_nm must be 2 finite numbers"),
        (changed(regions=[{"x": 1}]), r"regions\[0\].centroid is missing"),
        (changed(regions="none"), "regions must be a list"),
        (changed(regions=[{"x": 1, "y": 1, "width": 0}]), r"regions\[0\].width must lie in \[1, "),
        (changed(raw={"probabilities": {"good": 1.0}}), "of at least two classes, the label among them"),
        (changed(raw={"probabilities": {"good": 0.5, "hole": 0.5}}), "the label among them"),
        (changed(raw={"probabilities": {"bridge": "x", "hole": 0.5}}), "bridge must be a finite number"),
        (changed(label="new"), "the label among them"),
        ({"source": "a", "defect_id": 1}, "is the side file of a lot"),
    ],
    ids=str,
)
def test_a_line_of_another_kind_is_refused(tmp_path: Path, line: Any, said: str) -> None:
    path = write_lines(tmp_path / "v.jsonl", [RESULTS[0].to_dict(), line])
    with pytest.raises(StoreError, match=said):
        VerdictStore.of_any(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}\n", "line 1 is no line of"),
        (b'{"source": "a.png"', "line 1, the last one, is cut off"),
        (b'{"source": "a.png", "error": "x"}\n{"source": "b', "line 2, the last one, is cut off"),
        (b"no JSON\n", "line 1 is no JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
        (b'{"source": "\\udcff.png", "error": "x"}\n', "half a surrogate pair"),
        (b"\xff\xfe\n", "line 1 is no JSON"),
        (b" " * ((1 << 24) + 5) + b"\n", "line 1 is longer than"),
    ],
    ids=["empty", "cut", "second", "words", "deep", "surrogate", "bytes", "long"],
)
def test_damaged_lines_name_the_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "v.jsonl").write_bytes(content)
    with pytest.raises(StoreError, match=said):
        VerdictStore.from_json_lines(tmp_path / "v.jsonl")


def test_lines_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        VerdictStore.of_any(tmp_path / "absent.jsonl")
    with pytest.raises(StoreError, match="cannot be"):
        VerdictStore.of_any(tmp_path)
