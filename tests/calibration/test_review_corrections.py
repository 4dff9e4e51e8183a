"""Corrections made on the review page, and the figures that follow from them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from conftest import make_recipe, write_bundle
from PIL import Image
from review_pages import Desk, make_store, opened, paint, six_frames

from calibration.corrections import CorrectionLog, default_path
from calibration.review import figures
from calibration.review.session import Session


@pytest.fixture
def desk(tmp_path: Path, fake_bundle: Path) -> Iterator[Desk]:
    with opened(make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames")), fake_bundle) as page:
        yield page


def png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def square(value: int = 255, shape: tuple[int, ...] = (64, 64)) -> np.ndarray:
    pixels = np.zeros(shape, np.uint8)
    pixels[10:20, 30:50] = value
    return pixels


def mask_of(desk: Desk, number: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(desk.get(f"/mask/{number}").content)))


def test_a_correction_is_in_its_file_when_it_is_answered(desk: Desk) -> None:
    reply = desk.correct(2, "hole")
    assert reply.status == 200
    made = reply.json()["corrected"]
    assert (made["old"], made["new"], made["mask"]) == ("bridge", "hole", False)
    with CorrectionLog(desk.log.path, write=False) as other:
        (stored,) = other.current().values()
    assert (stored.new, stored.who, stored.frame) == ("hole", desk.session.who, desk.store.entry(2).path)
    assert stored.checksum == desk.store.result(2).checksum
    assert desk.store.entry(2).verdict == "bridge"


def facts_of(desk: Desk) -> dict[str, Any]:
    found: dict[str, Any] = desk.get("/api/facts").json()
    return found


def test_a_key_never_moves_to_another_class(desk: Desk, fake_bundle: Path) -> None:
    """New classes come after those of the bundle, in the order of their first use, and leave their place to nobody."""
    for number, name in enumerate(("zip", "arc", "mud"), 1):
        assert desk.correct(number, name).status == 200
    keys = {"1": "good", "2": "bridge", "3": "hole", "4": "zip", "5": "arc", "6": "mud"}
    assert facts_of(desk)["keys"] == keys
    assert desk.correct(2, "hole").status == 200  # the one frame of its class
    del keys["5"]
    assert (facts_of(desk)["keys"], "arc" in facts_of(desk)["classes"]) == (keys, False)
    assert desk.correct(4, "new").status == 200
    later = facts_of(desk)["keys"]
    assert later == {**keys, "7": "new"}
    assert Session(desk.store, desk.log, fake_bundle).places() == desk.session.places()  # as after a restart


def test_a_key_stays_when_the_new_classes_are_taught(desk: Desk, tmp_path: Path) -> None:
    """Recipes name new classes by the alphabet."""
    for number, name in enumerate(("zip", "arc"), 1):
        assert desk.correct(number, name).status == 200
    before = facts_of(desk)["keys"]
    desk.session.bundle = write_bundle(
        tmp_path / "taught", recipe=make_recipe(classes=("good", "bridge", "hole", "arc", "zip"))
    )
    desk.session.reload()
    assert facts_of(desk)["keys"] == before


def test_classes_beyond_the_digits_have_letters_that_do_nothing_else(desk: Desk) -> None:
    for number in range(16):
        assert desk.correct(1, f"class {number}").status == 200
    assert facts_of(desk)["keys"].get("1") == "good"
    assert desk.session.places()[3:] == tuple(f"class {number}" for number in range(16))
    assert [key for key, name in facts_of(desk)["keys"].items() if name == "class 15"] == ["j"]  # a to f, h, i, j


def test_a_verdict_may_be_confirmed(desk: Desk) -> None:
    assert desk.correct(2, "bridge").json()["corrected"]["new"] == "bridge"
    assert desk.get("/api/summary").json()["purity"] == {"value": 1.0, "count": 1, "of": 1}


def test_a_new_class_gets_a_key(desk: Desk) -> None:
    name = "<b>\"new\" 'é'"
    assert desk.correct(2, name).status == 200
    facts = desk.get("/api/facts").json()
    assert facts["classes"] == ["good", "bridge", "hole", name]
    assert facts["keys"]["4"] == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " hole",
        "Hole",
        "HOLE ",
        "unknown",
        "Cannot Decide",
        "../../etc",
        "a/b",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "CON",
        "g\u043eod",
        "h\u03bfle",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "x" * 501,
        None,
        3,
        "\ud800",
    ],
)
def test_a_name_that_no_class_may_have_is_refused(desk: Desk, name: Any) -> None:
    reply = desk.post("/api/corrections", {"id": 2, "new": name, "mask": None})
    assert reply.status == 400
    assert len(desk.log) == 0


@pytest.mark.parametrize("number", [0, 7, -1, 1.0, "2", True, None, 2**70, [2]])
def test_a_number_that_is_no_frames_is_refused(desk: Desk, number: Any) -> None:
    assert desk.post("/api/corrections", {"id": number, "new": "hole", "mask": None}).status in (400, 404)
    assert len(desk.log) == 0


def test_unknown_entries_are_refused(desk: Desk) -> None:
    assert desk.post("/api/corrections", {"id": 2, "new": "hole", "who": "somebody else"}).status == 400


def test_the_outline_is_accepted_as_the_mask(desk: Desk) -> None:
    assert desk.correct(2, "hole", "outline").json()["corrected"]["mask"] is True
    np.testing.assert_array_equal(mask_of(desk, 2) > 0, desk.store.result(2).mask())
    assert desk.correct(1, "hole", "outline").status == 400  # a good frame has no outline


@pytest.mark.parametrize("colours", [1, 3, 4])
def test_a_drawn_mask_is_kept_as_it_is(desk: Desk, colours: int) -> None:
    drawn = square()
    picture = drawn if colours == 1 else np.stack([drawn] * 3 + [np.full_like(drawn, 255)] * (colours - 3), axis=2)
    assert desk.correct(2, "hole", png(picture)).status == 200
    np.testing.assert_array_equal(mask_of(desk, 2), drawn)
    assert desk.post("/api/corrections/undo", {}).status == 200
    np.testing.assert_array_equal(mask_of(desk, 2) > 0, desk.store.result(2).mask())


@pytest.mark.parametrize(
    "mask",
    [
        png(square(128)),
        png(square(0)),
        png(square(shape=(64, 65))),
        png(square(shape=(65, 64))),
        png(square(shape=(63, 64))),
        base64.b64encode(base64.b64decode(png(square()))[:-60]).decode(),
        base64.b64encode(b"GIF89a" + bytes(100)).decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
        "no base64!",
        "",
        5,
        ["outline"],
        {"png": ""},
    ],
    ids=range(13),
)
def test_a_mask_that_cannot_be_used_is_refused(desk: Desk, mask: Any) -> None:
    reply = desk.post("/api/corrections", {"id": 2, "new": "hole", "mask": mask})
    assert reply.status == 400, reply.content
    assert len(desk.log) == 0
    assert not list(desk.log.path.parent.rglob("*.masks/*.png"))


def test_a_mask_on_a_good_frame_is_refused(desk: Desk) -> None:
    assert desk.correct(2, "good", png(square())).status == 400
    assert desk.correct(2, "good", "outline").status == 400


def test_undo_takes_back_the_newest_one_at_a_time(desk: Desk) -> None:
    desk.correct(2, "hole")
    desk.correct(3, "bridge")
    desk.correct(2, "good")
    first = desk.post("/api/corrections/undo", {}).json()
    assert (first["id"], first["corrected"]["new"]) == (2, "hole")
    assert desk.post("/api/corrections/undo", {}).json() == {"id": 3, "corrected": None}
    assert desk.post("/api/corrections/undo", {}).json() == {"id": 2, "corrected": None}
    assert desk.post("/api/corrections/undo", {}).status == 409


def test_undo_of_a_frame_of_another_store_says_so(tmp_path: Path, fake_bundle: Path) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    with CorrectionLog(default_path(store)) as log:
        log.add("/elsewhere/a.png", "good", "hole")
    with opened(store) as page:
        assert page.get("/api/facts").json()["corrected"] == 0
        assert page.post("/api/corrections/undo", {}).json() == {"id": None, "corrected": None}


def test_a_frame_that_was_not_read_cannot_be_corrected(tmp_path: Path, fake_bundle: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with opened(make_store(tmp_path, fake_bundle, [bad])) as page:
        assert page.correct(1, "hole").status == 409


def test_the_summary_counts_what_was_corrected(desk: Desk) -> None:
    for number, new in ((1, "good"), (2, "hole"), (3, "hole"), (4, "scratch")):
        assert desk.correct(number, new).status == 200
    summary = desk.get("/api/summary").json()
    assert {row["class"]: (row["count"], row["corrected"]) for row in summary["pareto"]} == {
        "good": (2, 1),
        "bridge": (2, 0),
        "hole": (2, 2),
        "scratch": (0, 1),
    }
    names, rows = summary["confusion"]["classes"], summary["confusion"]["rows"]
    cells = {(names[i], names[j]): n for i, row in enumerate(rows) for j, n in enumerate(row) if n}
    assert cells == {("good", "good"): 1, ("bridge", "hole"): 1, ("hole", "hole"): 1, ("good", "scratch"): 1}
    assert summary["purity"] == {"value": 0.5, "count": 2, "of": 4}
    assert summary["coverage"] == {"value": 1.0, "count": 6, "of": 6}


def test_a_moved_operating_point_shows_what_it_would_change(desk: Desk) -> None:
    desk.correct(2, "bridge")
    desk.correct(3, "good")
    stays = desk.get("/api/operating-point").json()
    assert (stays["changed"], stays["changed_total"], stays["left_out"]) == ([], 0, 0)
    assert stays["verdicts"] == stays["before"]["verdicts"] == {"good": 2, "bridge": 2, "hole": 2}
    moved = desk.get("/api/operating-point", {"defect_threshold": 1.0}).json()
    assert moved["verdicts"] == {"good": 6}
    assert moved["changed"] == [2, 3, 5, 6]
    assert (moved["purity"]["count"], moved["before"]["purity"]["count"]) == (1, 1)
    unsure = desk.get("/api/operating-point", {"reject": 0.95}).json()
    assert unsure["verdicts"] == {"cannot decide": 6}
    assert unsure["coverage"] == {"value": 0.0, "count": 0, "of": 6}
    assert unsure["purity"] == {"value": None, "count": 0, "of": 0}
    assert desk.session.recipe.operating_point.defect_threshold == 0.5
    assert desk.get("/api/operating-point", {"novelty_threshold": "none"}).json()["changed"] == []
    for bad in ({"defect_threshold": 1.1}, {"reject": "x"}, {"novelty_threshold": -1}, {"temperature": 2}):
        assert desk.get("/api/operating-point", bad).status == 400


def test_a_moved_operating_point_undoes_the_temperature_that_judged(tmp_path: Path) -> None:
    """A high temperature flattens 0.9 to less than the floor; the floor moved below it decides again."""
    floors = dict.fromkeys(("good", "bridge", "hole"), 0.6)
    recipe = make_recipe(temperature=4.0, confidence_thresholds=floors)
    bundle = write_bundle(tmp_path / "bundle", recipe=recipe)
    frames = [paint(tmp_path / "a.png", 1, defect=True)]
    with opened(make_store(tmp_path, bundle, frames), bundle) as page:
        assert page.store.entry(1).verdict == "cannot decide"
        assert page.get("/api/operating-point").json()["changed"] == []
        sure = page.store.entry(1).confidence
        assert 0.4 < sure < 0.6
        for floor, verdict in ((sure - 0.001, "bridge"), (sure + 0.001, "cannot decide")):
            assert page.get("/api/operating-point", {"reject": floor}).json()["verdicts"] == {verdict: 1}


def test_the_summary_of_a_store_with_any_number_of_verdicts_is_bounded(desk: Desk, monkeypatch: Any) -> None:
    monkeypatch.setattr(desk.store, "verdicts", lambda: {f"verdict {number}": 1 for number in range(10_000)})
    summary = desk.get("/api/summary").json()
    assert len(summary["confusion"]["rows"]) == len(summary["pareto"]) + 5 == figures.MOST_NAMES
    assert summary["coverage"]["of"] == 10_000
