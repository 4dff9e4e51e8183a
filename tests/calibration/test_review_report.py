"""`sem-clip report`: one file that needs nothing else, says what the store says, and is PDF where a browser is."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("jinja2")

from commandline import names_in, posix
from PIL import Image
from review_pages import ODD_NAME, make_store, paint, six_frames
from stores import answer, failed, make_run, write_store

from calibration.corrections import CorrectionLog, default_path
from calibration.review import printing
from runtime import Prediction
from runtime.cli import main
from runtime.verdict_store import Site

Capture = pytest.CaptureFixture[str]
MARKUP = "<b onclick=alert(1)>\"x'&"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, on one line."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


def page_of(store: Path, *words: object, status: int = 0) -> Page:
    out = store.with_suffix(".html")
    assert report(store, "--out", out, "--force", *words) == status
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture
def store(tmp_path: Path, fake_bundle: Path) -> Path:
    """Six frames of two wafers, two of each class, the last under a name that is markup."""
    sites = tuple(
        Site(lot="LOT7", wafer=str(1 + i // 3), defect_id=str(i), x_nm=1e6 * i, y_nm=0.0, wafer_mm=300.0)
        for i in range(6)
    )
    return make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"), sites=sites)


def test_the_file_needs_nothing_else_and_runs_no_script(store: Path) -> None:
    page = page_of(store)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+|http-equiv", "", store.with_suffix(".html").read_text())


def test_it_counts_what_the_store_holds(store: Path) -> None:
    page = page_of(store)
    assert "6 frames judged" in page.text
    assert "100.0% decided (coverage)" in page.text
    for name in ("good", "bridge", "hole"):
        assert f"{name} 2 33.3% 0" in page.text
    assert "LOT7 6 2 0 0.0% 0" in page.text
    assert "lot LOT7, wafer 1: 3 frames" in page.text
    assert "lot LOT7, wafer 2: 3 frames" in page.text


def test_every_picture_is_inside_and_says_what_it_shows(store: Path) -> None:
    pictures = page_of(store).all("img")
    assert len(pictures) == 6
    for picture in pictures:
        kind, content = (picture["src"] or "").split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (64, 64)
        assert re.match("frame .*, verdict (good|bridge|hole)$", picture["alt"] or "", re.DOTALL)


def test_names_with_markup_stay_text(tmp_path: Path) -> None:
    odd = answer(str(tmp_path / ODD_NAME), verdict=MARKUP, reason=MARKUP, label=MARKUP, path=None)
    site = Site(lot=MARKUP, wafer=MARKUP, defect_id=MARKUP, x_nm=0.0, y_nm=0.0, wafer_mm=300.0)
    from runtime.verdict_store import VerdictWriter

    store = tmp_path / "verdicts.db"
    with VerdictWriter(store, make_run(bundle=MARKUP)) as writer:
        writer.add(odd, site)
        writer.add(failed(MARKUP, MARKUP), site, MARKUP)
    page = page_of(store, status=1)
    assert page.all("b") == [{}] * len(page.all("b"))  # those of the page itself, which have no attributes
    assert page.all("img") == []
    assert page.text.count(MARKUP) >= 6


def test_corrections_stand_beside_the_verdicts(store: Path) -> None:
    frames = {path.name: path for path in (store.parent / "frames").iterdir()}
    with CorrectionLog(default_path(store)) as log:
        log.add(str(frames["1.png"]), "bridge", "bridge", "ann")
        log.add(str(frames["2.png"]), "hole", "speck", "ann")
        log.add(str(store.parent / "elsewhere.png"), "hole", "good", "ann")
    page = page_of(store)
    assert "3 corrected" in page.text
    assert "50.0% of these right (purity)" in page.text
    assert "1 of them are not in this store" in page.text
    assert "corrected to speck by ann" in page.text
    assert len(page.all("img")) == 8


def test_a_frame_that_is_gone_is_named_and_the_report_is_written(store: Path, capsys: Capture) -> None:
    (store.parent / "frames/3.png").unlink()
    page = page_of(store, status=1)
    assert len(page.all("img")) == 5
    assert "No picture: " in page.text
    said = capsys.readouterr().err
    assert "no picture: " in said
    assert "3.png" in said


def test_a_frame_that_was_not_read_has_its_reason(tmp_path: Path) -> None:
    store = write_store(tmp_path / "verdicts.db", [failed(str(tmp_path / "a.png"), "is empty")])
    page = page_of(store)
    assert "No frame was judged." in page.text
    assert "1 not read" in page.text
    assert re.search(r"a\.png\s+is empty", page.text)


def test_lines_of_json_draw_boxes_instead_of_maps(tmp_path: Path, fake_bundle: Path, capsys: Capture) -> None:
    frames, lines = tmp_path / "frames", tmp_path / "verdicts.jsonl"
    for number in range(3):
        paint(frames / f"{number}.png", number, defect=number > 0)
    assert main(["predict", str(fake_bundle), str(frames), "--backend", "fake", "--json", str(lines)]) == 0
    page = page_of(lines)
    assert "3 frames judged" in page.text
    assert len(page.all("img")) == 3


def test_the_number_of_pictures_is_a_choice(store: Path) -> None:
    assert len(page_of(store, "--frames", 2).all("img")) == 2
    assert page_of(store, "--frames", 0).all("img") == []


def test_a_replaced_frame_is_not_shown_as_the_one_that_was_judged(store: Path, capsys: Capture) -> None:
    paint(store.parent / "frames/1.png", 77, defect=True)
    assert len(page_of(store, status=1).all("img")) == 5
    assert "1.png" in capsys.readouterr().err


def test_nothing_is_replaced_unasked_and_no_input_ever(store: Path, capsys: Capture) -> None:
    before, out = store.read_bytes(), store.with_suffix(".html")
    assert report(store, "--out", out) == 0
    assert report(store, "--out", out) == 2
    assert "--force" in capsys.readouterr().err
    assert report(store, "--out", store, "--force") == 2
    assert "read or written by this command already" in capsys.readouterr().err
    assert report(store, "--out", store.with_suffix(".pdf"), "--pdf") == 2
    assert "the name of the PDF too" in capsys.readouterr().err
    assert store.read_bytes() == before


def test_a_missing_store_or_file_of_corrections_is_one_line(tmp_path: Path, store: Path, capsys: Capture) -> None:
    for words in ((tmp_path / "none.db",), (store, "--corrections", tmp_path / "none.jsonl")):
        assert report(*words, "--out", tmp_path / "report.html") == 2
        said = capsys.readouterr().err.strip()
        assert "none." in said
        assert "\n" not in said
    assert "report.html" not in names_in(tmp_path)


# ---- PDF -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pdf_has_pages_and_leaves_nothing_else(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(printing.shutil.which(name) for name in printing.BROWSERS):
        pytest.skip("no Chromium here: apt install chromium")
    temporary = store.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    page_of(store, "--pdf")
    content = store.with_suffix(".pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert re.search(rb"/Type\s*/Page\b", content)
    assert names_in(temporary) == []


def browser_that(path: Path, does: str) -> str:
    path.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@posix
@pytest.mark.parametrize(
    ("does", "said"), [("echo no display >&2; exit 3", "no display"), ("exit 3", "status 3"), ("sleep 60", "within")]
)
def test_a_browser_that_fails_is_named_and_writes_neither_file(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, does: str, said: str
) -> None:
    monkeypatch.setattr(printing, "TIMEOUT_S", 1.0)
    program = browser_that(store.parent / "browser", does)
    monkeypatch.setattr("calibration.review.report_command.find_browser", lambda: program)
    out = store.parent / "report.html"
    assert report(store, "--out", out, "--pdf") == 2
    message = capsys.readouterr().err
    assert said in message
    assert "leave --pdf out" in message
    assert not out.exists()
    assert not out.with_suffix(".pdf").exists()


def test_without_a_browser_the_message_says_what_to_install(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(printing, "BROWSERS", ("no-such-browser",))
    assert report(store, "--out", store.with_suffix(".html"), "--pdf") == 2
    assert "apt install chromium" in capsys.readouterr().err


def test_coverage_counts_frames_that_got_a_class(tmp_path: Path, fake_bundle: Path) -> None:
    def moved(index: int, result: Prediction) -> Prediction:
        return replace(result, verdict="unknown") if index == 0 else result

    frames = [paint(tmp_path / f"{number}.png", number, defect=number > 0) for number in range(3)]
    page = page_of(make_store(tmp_path, fake_bundle, frames, change=moved))
    assert "66.7% decided (coverage)" in page.text
    assert "unknown 1 33.3% 0" in page.text
