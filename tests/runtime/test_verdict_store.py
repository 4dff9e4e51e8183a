"""runtime.verdict_store: what was stored comes back, the newest answer of each frame, filtered and in order."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import CLASSES, answer, failed, make_run, write_store

from runtime import FailedFrame, Prediction
from runtime.errors import StoreError
from runtime.verdict_store import ORDERS, Query, Site, VerdictStore, VerdictWriter

ODD_NAMES = ['/lot/<b>"x"</b>.png', "/lot/a\nb.png", "/lot/it's.png", "/lot/ü#2", "/lot/100%_a.png", "/lot/\udcff.png"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.db"


def sources(store: VerdictStore, **query: Any) -> list[str]:
    found = store.entries(Query(**query))
    assert store.count(Query(**query)) == len(found)
    return [entry.source for entry in found]


def test_an_answer_comes_back_to_the_bit(path: Path) -> None:
    given = answer("/lot/a.png", warnings=("odd",), tiles=4, novelty=0.1 + 0.2)
    with VerdictStore(write_store(path, [given])) as store:
        (entry,) = store.entries(Query())
        found = store.result(entry.id)
    assert isinstance(found, Prediction)
    assert found.to_row(features=True) == given.to_row(features=True)
    assert found.path == "/lot/a.png"
    assert found.regions == given.regions
    assert found.defect_map().tobytes() == given.defect_map().tobytes()


def test_an_entry_says_what_a_list_shows(path: Path) -> None:
    site = Site("L7", "W1", "12", 1e6, -2e6, 300.0)
    with VerdictWriter(path, make_run()) as writer:
        writer.add(answer("/lot/a.png"), site)
    with VerdictStore(path) as store:
        (entry,) = store.entries(Query())
    assert entry.site == site
    assert (entry.verdict, entry.label, entry.is_defect, entry.confidence) == ("bridge", "bridge", True, 0.7)
    assert (entry.run, entry.path, entry.frame_size, entry.error) == (0, "/lot/a.png", (90, 120), None)
    largest = max(answer("/lot/a.png").regions, key=lambda region: region.area)
    assert entry.size_nm == max(largest.width * 2.0, largest.height * 3.0)


def test_a_failed_frame_is_listed_with_its_reason(path: Path) -> None:
    with VerdictStore(write_store(path, [failed("/lot/b.png")])) as store:
        (entry,) = store.entries(Query())
        result = store.result(entry.id)
        assert (store.facts(entry.id), store.regions(entry.id)) == ({}, [])
        assert store.verdicts() == {"not read": 1}
    assert (entry.path, entry.verdict, entry.size_nm, entry.error) == ("/lot/b.png", None, None, "is empty")
    assert isinstance(result, FailedFrame)
    assert result.to_dict() == failed("/lot/b.png").to_dict()


def test_the_run_tells_what_judged(path: Path) -> None:
    runs = make_run(), make_run(when="2026-11-30T00:00:00Z", recipe_sha256="ef" * 32)
    write_store(path, [answer("/a.png")], runs[0])
    with VerdictStore(path) as store:
        assert store.runs() == runs[:1]
        write_store(path, [answer("/b.png")], runs[1])  # while it is open
        assert store.runs() == runs
        assert [entry.run for entry in store.entries(Query())] == [0, 1]


def test_of_a_frame_judged_again_the_newest_answer_is_listed(path: Path) -> None:
    write_store(path, [answer("/a.png"), answer("/b.png"), failed("/c.png")])
    with VerdictStore(path) as store:
        before, counter = {entry.source: entry for entry in store.entries(Query())}, store.change_counter()
        write_store(path, [answer("/a.png", (0.8, 0.1, 0.1)), answer("/c.png")])
        assert store.change_counter() > counter
        after = {entry.source: entry for entry in store.entries(Query())}
        assert {name: entry.verdict for name, entry in after.items()} == {
            "/a.png": "good",
            "/b.png": "bridge",
            "/c.png": "bridge",
        }
        assert after["/b.png"] == before["/b.png"]
        old = store.entry(before["/a.png"].id)
        assert old == before["/a.png"]
        assert after["/a.png"].id > before["/c.png"].id


def test_one_file_in_two_lots_or_of_two_defects_is_two_frames(path: Path) -> None:
    sites = [Site(), Site("L1", "W1", "1"), Site("L1", "W1", "2"), Site("L2", "W1", "1"), Site("L1", "W2", "1")]
    for _ in range(2):
        with VerdictWriter(path, make_run()) as writer:
            for site in sites:
                writer.add(answer("/a.png"), site)
    with VerdictStore(path) as store:
        assert [entry.site for entry in store.entries(Query())] == sites
        assert store.lots() == ("L1", "L2")
        assert len(store.ids_by_path()["/a.png"]) == len(sites)


def test_a_frame_that_came_from_no_file_is_known_by_its_source(path: Path) -> None:
    write_store(path, [answer("frame[0]", path=None), answer("frame[1]", path=None), answer("frame[0]", path=None)])
    with VerdictStore(path) as store:
        assert sources(store) == ["frame[0]", "frame[1]"]
        assert {entry.path for entry in store.entries(Query())} == {None}
        assert store.ids_by_path() == {}


def test_a_relative_path_becomes_absolute(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VerdictStore(write_store(path, [answer("lot/a.tif#2"), failed("lot/b.png")])) as store:
        found = [(entry.source, entry.path) for entry in store.entries(Query())]
    assert found == [("lot/a.tif#2", f"{tmp_path}/lot/a.tif#2"), ("lot/b.png", f"{tmp_path}/lot/b.png")]


def test_odd_names_come_back_as_they_were(path: Path) -> None:
    lot = '<script>alert("1")</script>'
    with VerdictWriter(path, make_run()) as writer:
        for name in ODD_NAMES:
            writer.add(answer(name), Site(lot, "'; DROP TABLE answers; --", "\n"))
    with VerdictStore(path) as store:
        assert {entry.path for entry in store.entries(Query())} == set(ODD_NAMES)
        assert store.count(Query(lots=(lot,))) == len(ODD_NAMES)
        assert sources(store, text="%_A") == ["/lot/100%_a.png"]
        assert sources(store, text='"x"<') == ['/lot/<b>"x"</b>.png']
        assert sources(store, text="\udcff") == ["/lot/\\udcff.png"]
        assert set(store.ids_by_path()) == set(ODD_NAMES)


FRAMES = [
    answer("/a.png", (0.6, 0.3, 0.1), novelty=0.5, is_defect=False),
    answer("/b.png", (0.1, 0.8, 0.1), novelty=0.1),
    answer("/c.png", (0.1, 0.45, 0.45), novelty=0.9, verdict="cannot decide", pixel_size_nm=None),
    answer("/d.png", (0.2, 0.05, 0.75), novelty=0.3, verdict="unknown", pixel_size_nm=(20.0, 30.0)),
    failed("/e.png"),
    answer("/F.png", (0.05, 0.5, 0.45), novelty=0.2),
]
IN_ORDER = {
    "newest": "FedcbA",
    "least sure": "cdFabE",
    "most unlike": "cadFbE",
    "confidence": "cFadbE",
    "novelty": "bFdacE",
    "size": "bFdACE",
    "source": "FabcdE",
}


@pytest.fixture
def filled(path: Path) -> VerdictStore:
    return VerdictStore(write_store(path, FRAMES))


def letters(found: list[str]) -> str:
    return "".join(name[1].lower() for name in found)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order(filled: VerdictStore, order: str) -> None:
    expected = IN_ORDER[order].lower()
    if order == "source":
        assert letters(sources(filled, order=order)) == "fabcde"
        assert letters(sources(filled, order=order, descending=True)) == "edcbaf"
        return
    assert letters(sources(filled, order=order)) == expected
    backwards = letters(sources(filled, order=order, descending=True))
    last = {"newest": 0, "size": 3}.get(order, 1)  # those without the number stay last
    assert sorted(backwards[len(backwards) - last :]) == sorted(expected[len(expected) - last :])
    assert backwards[: len(backwards) - last] == expected[: len(expected) - last][::-1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"verdicts": ("bridge",)}, "fb"),
        ({"verdicts": ("unknown", "cannot decide")}, "cd"),
        ({"verdicts": ("not read",)}, "e"),
        ({"verdicts": ("not read", "good")}, "ae"),
        ({"verdicts": ("' OR 1=1 --",)}, ""),
        ({"labels": ("hole",)}, "d"),
        ({"labels": ("bridge",), "verdicts": ("cannot decide",)}, "c"),
        ({"min_confidence": 0.5, "max_confidence": 0.75}, "fad"),
        ({"min_novelty": 0.3, "max_novelty": 0.5}, "ad"),
        ({"min_size_nm": 0}, "fbd"),
        ({"lots": ("L1",)}, ""),
        ({"text": "F.P"}, "f"),
        ({"ids": ()}, ""),
        ({"ids": (2, 3, 99)}, "bc"),
        ({"without": (1, 2)}, "fcde"),
        ({"text": ".png", "min_novelty": 0.6}, "c"),
    ],
    ids=str,
)
def test_every_filter(filled: VerdictStore, query: dict[str, Any], expected: str) -> None:
    assert letters(sources(filled, **query)) == expected


def test_pages_of_a_list_join_to_the_list(filled: VerdictStore) -> None:
    for order in ORDERS:
        whole = filled.entries(Query(order=order))
        parts = [filled.entries(Query(order=order), offset, 2) for offset in (0, 2, 4, 6)]
        assert [entry for part in parts for entry in part] == whole


def test_the_queue_of_the_least_sure_begins_with_rejects_and_small_margins(filled: VerdictStore) -> None:
    found = filled.entries(Query(order="least sure"))
    assert [entry.verdict for entry in found] == ["cannot decide", "unknown", "bridge", "good", "bridge", None]


def test_counts_of_verdicts(filled: VerdictStore) -> None:
    assert filled.verdicts() == {"bridge": 2, "not read": 1, "cannot decide": 1, "good": 1, "unknown": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "random"},
        {"order": "source; DROP TABLE answers"},
        {"min_novelty": float("nan")},
        {"max_size_nm": "1"},
        {"ids": ("1",)},
        {"without": (True,)},
        {"ids": (-1,)},
        {"verdicts": (1,)},
        {"text": b"a"},
    ],
    ids=str,
)
def test_a_query_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|lie"):
        Query(**changes)


def test_places_beyond_a_list_are_refused(filled: VerdictStore) -> None:
    for offset, limit in ((-1, 1), (0, 1001), (0, -1)):
        with pytest.raises(ValueError, match="must"):
            filled.entries(Query(), offset, limit)
    assert filled.entry(99) is None
    assert filled.result(99) is None
    assert filled.facts(99) == {}
    with pytest.raises(ValueError, match="whole number"):
        filled.entry("1 OR 1")  # type: ignore[arg-type]


def test_facts_and_regions_are_those_of_the_answer(filled: VerdictStore) -> None:
    given = FRAMES[1]
    assert isinstance(given, Prediction)
    (entry,) = filled.entries(Query(text="b.png"))
    facts = filled.facts(entry.id)
    assert facts["reason"] == given.reason
    assert facts["probabilities"] == dict(given.probabilities)
    assert (facts["pixel_threshold"], facts["checksum"]) == (given.pixel_threshold, 7)
    told = given.to_dict()["regions"]
    assert [region["x"] for region in filled.regions(entry.id)] == [region["x"] for region in told]
    assert filled.regions(entry.id)[0]["width_nm"] == given.regions[0].width_nm
    assert filled.regions(entry.id)[0].keys() == told[0].keys()


def test_features_of_listed_frames(filled: VerdictStore) -> None:
    ids, rows = filled.features()
    assert ids.tolist() == [1, 2, 3, 4, 6]
    assert rows.dtype == np.float32
    assert rows.tolist() == [np.linspace(-1, 1, 8, dtype=np.float32).tolist()] * 5
    assert filled.features([2, 5, 77])[0].tolist() == [2]


def test_features_of_two_encoders_are_not_mixed(path: Path) -> None:
    write_store(path, [answer("/a.png")])
    other = make_run(encoder_id="99" * 32)
    write_store(path, [answer("/b.png", features=np.ones(3, np.float32))], other)
    with VerdictStore(path) as store:
        ids, rows = store.features()
        assert (ids.tolist(), rows.tolist()) == ([2], [[1.0, 1.0, 1.0]])
        ids, rows = store.features(encoder_id=make_run().encoder_id)
        assert (ids.tolist(), rows.shape) == ([1], (1, 8))
        assert store.features(encoder_id="none")[0].size == 0


def test_scores_decide_again(filled: VerdictStore) -> None:
    scores = filled.scores(0)
    assert scores.ids.tolist() == [1, 2, 3, 4, 6]
    assert scores.verdicts == ("good", "bridge", "cannot decide", "unknown", "bridge")
    assert scores.probabilities.tolist() == [list(one.probabilities.values()) for one in FRAMES if one.ok]
    assert scores.novelty.tolist() == [0.5, 0.1, 0.9, 0.3, 0.2]
    with pytest.raises(IndexError):
        filled.scores(1)


def test_an_empty_store_has_nothing(path: Path) -> None:
    with VerdictWriter(path, make_run()):
        pass
    with VerdictStore(path) as store:
        assert (store.runs(), store.lots(), store.verdicts(), store.change_counter()) == ((), (), {}, 0)
        assert store.entries(Query()) == []
        assert store.features()[1].size == 0


def test_many_threads_read_one_store(path: Path) -> None:
    write_store(path, [answer(f"/{number:03}.png") for number in range(60)])
    with VerdictStore(path) as store, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: (store.entry(number), store.result(number)), range(1, 61)))
    assert [entry.source for entry, _ in found if entry] == [f"/{number:03}.png" for number in range(60)]
    assert all(isinstance(result, Prediction) and entry and result.source == entry.source for entry, result in found)


def test_a_closed_store_says_so(filled: VerdictStore) -> None:
    filled.close()
    with pytest.raises(StoreError):
        filled.count(Query())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_in_a_closed_folder_is_read(path: Path) -> None:
    write_store(path, [answer("/a.png")])
    path.parent.chmod(0o500)
    try:
        with VerdictStore(path) as store:
            assert sources(store) == ["/a.png"]
    finally:
        path.parent.chmod(0o700)


def test_the_classes_of_an_answer_are_those_of_the_run(path: Path) -> None:
    with VerdictWriter(path, make_run(classes=CLASSES[:2])) as writer, pytest.raises(ValueError, match="not those"):
        writer.add(answer("/a.png"))
