"""The report of a lot: what it counts, and that no text of a lot becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import make_recipe
from lots import CODES, make_case

from runtime.fab.codes import Codes
from runtime.fab.drift import Change, Drift
from runtime.fab.lot_tally import Tally, WaferFacts
from runtime.fab.report import MOST_WAFERS, Facts, report_html
from runtime.fab.report_svg import COLOURS, OTHERS, PLAIN, colours

HOSTILE = "</td></title><script>alert('x')</script><img src=x onerror=\"alert(1)\">\n\x1b[2J\u202e&amp;"
CLASSES = ("good", "bridge", "hole")


class Page(HTMLParser):
    """The tags and texts of a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.fixture
def codes(tmp_path: Path) -> Codes:
    (tmp_path / "codes.toml").write_text(CODES)
    return Codes.load(tmp_path / "codes.toml", CLASSES)


def record(verdict: str, code: int | None, **changes: Any) -> dict[str, Any]:
    image = {"image": "s.tif#1", "type": "1", "verdict": verdict, "label": verdict, "score": 0.5, "novelty": 0.1}
    return {
        "wafer": "W",
        "defect_id": 1,
        "verdict": verdict,
        "code": code,
        "x_nm": 1e6,
        "y_nm": -2e6,
        "images": [image],
        **changes,
    }


def tally_of(*records: tuple[int, dict[str, Any], int | None], wafers: int = 1, name: str = "W") -> Tally:
    tally = Tally([WaferFacts(f"{name}{i}", "1", 3e8) for i in range(wafers)], CLASSES)
    for wafer, line, manual in records:
        tally.add(wafer, line, manual)
    return tally


def page(tally: Tally, codes: Codes, drift: Drift | None = None, **changes: Any) -> Page:
    facts = {"lot": "L7", "about": [("device", None)], "class_names": {12: "Bridge"}, "image_types": (), **changes}
    return Page(report_html(Facts(**facts), tally, codes, drift or Drift(why_not="no reason")))


def test_the_pareto_has_counts_codes_and_cumulative_shares(codes: Codes) -> None:
    lines = [record("hole", 13)] * 5 + [record("good", 0)] * 3 + [record("unknown", 98)] * 2
    found = page(tally_of(*((0, line, None) for line in lines)), codes)
    assert ["hole", "13", "5", "50.0%", "50.0%"] in found.rows
    assert ["good", "0", "3", "30.0%", "80.0%"] in found.rows
    assert ["unknown", "98", "2", "20.0%", "100.0%"] in found.rows
    assert ["rejected in all", "2", "20.0%"] in found.rows
    assert ["unknown", "2", "20.0%"] in found.rows


def test_shares_are_of_the_judged_defects(codes: Codes) -> None:
    lines = [record("hole", 13), record("not read", None, images=[{"image": "a", "type": None, "error": "gone"}])]
    lines += [record("no image", None, images=[])] * 2
    found = page(tally_of(*((0, line, None) for line in lines)), codes)
    assert ["hole", "13", "1", "100.0%", "100.0%"] in found.rows
    assert (
        "4 defects, 1 of them judged, 1 not read, 2 without an image to judge. Shares are of the judged." in found.texts
    )
    assert any("W, defect 1: a: gone" in text for text in found.texts)


def test_agreement_counts_codes_and_names_both_sides(codes: Codes) -> None:
    pairs = [(record("bridge", 12), 12)] * 3 + [
        (record("hole", 13), 12),
        (record("good", 0), 0),
        (record("good", 0), -1),
    ]
    found = page(tally_of(*((0, line, manual) for line, manual in pairs)), codes)
    assert ["12 Bridge", "bridge", "12", "3"] in found.rows
    assert ["12 Bridge", "hole", "13", "1"] in found.rows
    assert any("4 judged defects have a manual class" in text and "3 of them" in text for text in found.texts)
    assert ["12 bridge", "4", "3", "3", "75.0%", "100.0%"] in found.rows
    assert ["13 hole", "0", "1", "0", "-", "0.0%"] in found.rows
    without = page(tally_of((0, record("good", 0), None)), codes)
    assert not any("Agreement" in text for text in without.texts)


def test_each_wafer_is_drawn_with_a_dot_where_a_defect_lies(codes: Codes) -> None:
    tally = tally_of((0, record("hole", 13), None), (1, record("good", 0, x_nm=None), None), wafers=2)
    html = report_html(Facts("L", [], {}, ()), tally, codes, Drift(why_not="x"))
    maps = html[html.index('class="maps"') :]
    assert maps.count("<svg") == 1
    svg = ElementTree.fromstring(maps[maps.index("<svg") : maps.index("</svg>") + 6])
    (dots,) = svg.findall("path")
    assert dots.get("stroke") == COLOURS[0]
    # 112 px stand for 150 mm: 1 mm right of the middle and 2 mm below it, to a place of 1.12 px.
    assert dots.get("d") == "M121.1 121.1h0"
    assert "no places known" in maps


def test_a_map_stays_small_however_many_defects_there_are(codes: Codes) -> None:
    lines = [record("hole", 13, x_nm=1e6 + number, y_nm=0.0) for number in range(5000)]
    html = report_html(Facts("L", [], {}, ()), tally_of(*((0, line, None) for line in lines)), codes, Drift())
    assert len(html) < 10_000


def test_many_wafers_are_counted_and_not_all_drawn(codes: Codes) -> None:
    wafers = MOST_WAFERS + 3
    tally = tally_of(*((wafer, record("hole", 13), None) for wafer in range(wafers)), wafers=wafers)
    found = page(tally, codes)
    assert sum(tag == "figure" for tag, _ in found.tags) == MOST_WAFERS
    assert "3 more wafers are not drawn." in found.texts


def test_drift_is_said_with_its_numbers(codes: Codes) -> None:
    changes = (Change("novelty", "hole", 0.1, 0.4, 50, 1e-9), Change("rejects", "hole", 0.1, 0.12, 50, 0.4))
    found = page(tally_of(), codes, Drift(changes, ("bridge: 2 frames here",)))
    assert ["hole", "novelty", "0.1", "0.4", "50", "1e-09"] in found.rows
    assert ["hole", "rejects", "10.0%", "12.0%", "50", "0.4"] in found.rows
    assert any("novelty is higher than in calibration" in text for text in found.texts)
    assert any("bridge: 2 frames here" in text for text in found.texts)
    assert "Not tested: no reason." in page(tally_of(), codes).texts
    calm = page(tally_of(), codes, Drift(changes[1:]))
    assert any("None found" in text for text in calm.texts)


def test_of_each_defect_the_first_image_that_was_read_counts_for_drift() -> None:
    images = [
        {"image": "a", "type": "1", "error": "gone"},
        {"image": "b", "type": "1", "verdict": "unknown", "label": "hole", "score": 0.25, "novelty": 0.5},
        {"image": "c", "type": "1", "verdict": "hole", "label": "hole", "score": 0.75, "novelty": 0.125},
    ]
    (group,) = tally_of((0, record("hole", 13, images=images), None)).frames.groups().values()
    assert (group.frames, group.rejected) == (1, 1)
    assert (group.score.tolist(), group.novelty.tolist()) == ([0.25], [0.5])


def test_hostile_texts_stay_texts(codes: Codes) -> None:
    line = record("hole", 13, wafer=HOSTILE, images=[{"image": HOSTILE, "type": HOSTILE, "error": HOSTILE}])
    tally = tally_of((0, line, 12), name=HOSTILE)
    drift = Drift((Change(HOSTILE, HOSTILE, 0.1, 0.4, 50, 1e-9),), (HOSTILE,))
    clean = page(tally_of((0, record("hole", 13, images=[{"image": "a", "type": "b", "error": "c"}]), 12)), codes,
                 Drift((Change("w", "l", 0.1, 0.4, 50, 1e-9),), ("u",)))  # fmt: skip
    found = page(
        tally, codes, drift, lot=HOSTILE, about=[(HOSTILE, HOSTILE)], class_names={12: HOSTILE}, image_types=[HOSTILE]
    )
    assert [tag for tag, _ in found.tags if tag != "tr" and tag != "td"] == [
        tag for tag, _ in clean.tags if tag != "tr" and tag != "td"
    ]
    assert all(
        name in ("style", "class", "role", "aria-label") or not name.startswith("on")
        for _, at in found.tags
        for name in at
    )
    text = "".join(found.texts)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>" in text  # shown, not run


def test_a_long_text_is_cut(codes: Codes) -> None:
    assert len(report_html(Facts("L" * 10**6, [], {}, ()), tally_of(), codes, Drift())) < 20_000


def test_nothing_in_a_report_comes_from_elsewhere(codes: Codes) -> None:
    found = page(tally_of((0, record("hole", 13), None)), codes)
    assert not {"script", "link", "img", "iframe", "a", "form"} & {tag for tag, _ in found.tags}
    assert any("default-src 'none'" in (at.get("content") or "") for tag, at in found.tags if tag == "meta")


def test_colours_are_distinct_and_good_is_pale() -> None:
    names = [f"class {number}" for number in range(12)]
    found = colours(["good", *names], ("good",))
    assert found["good"] == PLAIN
    assert len({found[name] for name in names[:10]}) == 10
    assert {found[name] for name in names[10:]} == {OTHERS}


def test_the_report_of_a_lot_names_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    case = make_case(tmp_path, recipe=make_recipe())
    assert case.run() == 0
    html = (case.out / "lot7.klarf.html").read_text(encoding="utf-8")
    found = Page(html)
    assert "Lot L7" in found.texts
    assert ["inspection tool", "maker model tool-1"] in found.rows
    assert ["step", "step"] in found.rows
    assert sum(tag == "svg" for tag, _ in found.tags) == 4
    assert str(tmp_path) not in html
