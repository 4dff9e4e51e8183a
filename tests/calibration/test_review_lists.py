"""What the review page shows: facts, lists, one frame, its pictures, frames and supports like it, the wafer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from conftest import make_recipe, write_bundle
from PIL import Image
from review_pages import Desk, make_store, opened, paint, six_frames, with_features

from calibration.review.pictures import THUMB
from runtime.cli import main
from runtime.files import sha256_of
from runtime.verdict_store import Site

WAFER = tuple(Site("L1", str(1 + k % 2), str(k), 1e6 * k, -1e6 * k, 300.0) for k in range(6))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A page with a bundle whose two first supports are frames of its data folder. Tests may correct and must undo."""
    folder = tmp_path_factory.mktemp("review")
    data = folder / "data"
    supports = [paint(data / f"images/{name}/{k}.png", k, defect=k > 0) for k, name in enumerate(("good", "bridge"))]
    paint(data / "images/hole/2.png", 2, defect=True)
    features = np.zeros((4, 385), np.float32)
    features[:, 0], features[:, 1] = (1, 1, 1, 0), (0, 0.2, 0.5, 1)
    names = [str(path.relative_to(data)) for path in supports]
    teaching = {
        "supports": [*names, "images/hole/2.png", "../secret.png"],
        "support_sha256": [*map(sha256_of, supports), "0" * 64, sha256_of(supports[0])],
    }
    (folder / "secret.png").write_bytes(supports[0].read_bytes())
    bundle = write_bundle(folder / "bundle", recipe=make_recipe(support_features=features, teaching=teaching))
    store = make_store(folder, bundle, six_frames(folder / "frames"), change=with_features, sites=WAFER)
    with opened(store, bundle, data) as page:
        yield page


def picture(desk: Desk, path: str, **query: Any) -> Image.Image:
    reply = desk.get(path, query)
    assert (reply.status, reply.header("content-type")) == (200, "image/png")
    return Image.open(io.BytesIO(reply.content))


def names(desk: Desk, **query: Any) -> list[str]:
    reply = desk.get("/api/frames", query)
    assert reply.status == 200, reply.content
    return [frame["name"][:5] for frame in reply.json()["frames"]]


def test_facts_tell_what_the_page_begins_with(desk: Desk) -> None:
    facts = desk.get("/api/facts").json()
    assert facts["classes"] == ["good", "bridge", "hole"]
    assert facts["keys"] == {"1": "good", "2": "bridge", "3": "hole"}
    assert facts["verdicts"] == {"good": 2, "bridge": 2, "hole": 2}
    assert (facts["frames"], facts["lots"], facts["corrected"]) == (6, ["L1"], 0)
    assert facts["wafers"] == [{"lot": "L1", "wafer": "1", "mm": 300.0}, {"lot": "L1", "wafer": "2", "mm": 300.0}]
    assert facts["operating_point"]["defect_threshold"] == 0.5
    assert facts["page_token"] == desk.guard.page_token


def test_frames_are_filtered_sorted_and_paged(desk: Desk) -> None:
    assert names(desk) == ["0.png", "1.png", "2.png", "3.png", "4.png", "<img "]
    assert names(desk, verdict=["bridge", "hole"]) == ["1.png", "2.png", "4.png", "<img "]
    assert names(desk, label="good", lot="L1") == ["0.png", "3.png"]
    assert names(desk, lot="L2") == []
    assert names(desk, text="IMG SRC") == ["<img "]
    assert names(desk, order="newest", limit=2) == ["<img ", "4.png"]
    assert names(desk, offset=4) == ["4.png", "<img "]
    assert names(desk, order="source", descending="true", limit=1) == ["<img "]
    assert desk.get("/api/frames", {"limit": 2, "verdict": "good"}).json()["total"] == 2


@pytest.mark.parametrize(
    "query",
    [
        {"verdcit": "good"},
        {"order": "id; DROP TABLE answers"},
        {"offset": "-1"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "1e3"},
        {"min_confidence": "nan"},
        {"max_novelty": "inf"},
        {"min_size_nm": "much"},
        {"corrected": "maybe"},
        {"descending": "yes"},
        {"text": "x" * 501},
        {"text": ["a", "b"]},
        {"verdict": [str(k) for k in range(101)]},
    ],
    ids=str,
)
def test_a_filter_that_means_nothing_is_refused(desk: Desk, query: dict[str, Any]) -> None:
    reply = desk.get("/api/frames", query)
    assert reply.status == 400
    assert next(iter(query)) in reply.json()["error"]


def test_corrected_frames_can_be_left_out_and_listed_alone(desk: Desk) -> None:
    assert desk.correct(desk.ids()["2.png"], "bridge").status == 200
    assert names(desk, corrected="yes") == ["2.png"]
    assert names(desk, corrected="no", verdict="hole") == ["<img "]
    (shown,) = desk.get("/api/frames", {"corrected": "yes"}).json()["frames"]
    assert shown["verdict"] == "hole"  # the verdict itself never changes
    assert (shown["corrected"]["old"], shown["corrected"]["new"], shown["corrected"]["mask"]) == (
        "hole",
        "bridge",
        False,
    )
    assert shown["corrected"]["who"] == desk.session.who
    assert desk.post("/api/corrections/undo", {}).status == 200
    assert names(desk, corrected="yes") == []


def test_a_frame_tells_all_that_is_known(desk: Desk) -> None:
    told = desk.get(f"/api/frames/{desk.ids()['1.png']}").json()
    assert (told["verdict"], told["lot"], told["wafer"], told["defect_id"]) == ("bridge", "L1", "2", "1")
    assert told["probabilities"]["bridge"] == pytest.approx(0.9)
    assert told["reason"].startswith("bridge 0.9")
    assert (told["width"], told["height"], told["x_nm"], told["y_nm"]) == (64, 64, 1e6, -1e6)
    assert (told["pixel_threshold"], told["defect_threshold"]) == (0.5, 0.5)
    (region,), (outline,) = told["regions"], told["outline"]
    assert [min(x for x, _ in outline), min(y for _, y in outline)] == [region["x"], region["y"]]
    assert told["warnings"] == []
    good = desk.get(f"/api/frames/{desk.ids()['0.png']}").json()
    assert (good["regions"], good["outline"]) == ([], [])


def test_pictures_are_the_frames_pixels(desk: Desk) -> None:
    number = desk.ids()["1.png"]
    whole = np.asarray(picture(desk, f"/picture/{number}"))
    assert whole.shape == (64, 64)
    assert (whole[16:48, 16:48] == 250).all()
    part = np.asarray(picture(desk, f"/picture/{number}", region="10,12,20,8"))
    np.testing.assert_array_equal(part, whole[12:20, 10:30])


@pytest.mark.parametrize(
    "region", ["0,0,65,1", "64,0,1,1", "0,0,0,1", "-1,0,1,1", "1,1,1", "a,b,c,d", "0,0,1,65", "99999,0,1,1"]
)
def test_a_region_outside_of_the_frame_is_refused(desk: Desk, region: str) -> None:
    assert desk.get("/picture/1", {"region": region}).status == 400


def test_map_and_outline_lie_over_the_frame(desk: Desk) -> None:
    number = desk.ids()["1.png"]
    result = desk.store.result(number)
    shown = np.asarray(picture(desk, f"/map/{number}").convert("RGBA"))
    np.testing.assert_array_equal(shown[..., 3], np.rint(result.defect_map() * np.float32(255)))
    assert set(map(tuple, shown[..., :3].reshape(-1, 3))) == {(255, 40, 30)}
    line = np.asarray(picture(desk, f"/outline/{number}").convert("RGBA"))[..., 3] > 0
    mask = result.mask()
    assert line.any()
    assert (mask & line).sum() == line.sum() < mask.sum()
    drawn = np.asarray(picture(desk, f"/mask/{number}", v="2026-01-01"))
    np.testing.assert_array_equal(drawn, mask.astype(np.uint8) * 255)


def test_small_pictures_are_small_and_kept_by_the_browser(tmp_path: Path, fake_bundle: Path) -> None:
    frame = paint(tmp_path / "wide.png", 1, defect=True, size=(300, 900))
    with opened(make_store(tmp_path, fake_bundle, [frame])) as page:
        for kind in ("picture", "map", "outline"):
            first = page.get(f"/{kind}/1", {"size": "thumb"})
            assert Image.open(io.BytesIO(first.content)).size == (THUMB, round(THUMB / 3))
            tag = first.header("etag")
            again = page.get(f"/{kind}/1", {"size": "thumb"}, if_none_match=tag)
            assert (again.status, again.content) == (304, b"")
            assert page.get(f"/{kind}/1", {"size": "full"}, if_none_match=tag).status == 200
    with opened(tmp_path / "verdicts.db") as other:  # another run may serve another store at the same address
        assert other.get("/outline/1", {"size": "thumb"}, if_none_match=tag).status == 200


def test_what_may_change_is_kept_nowhere(desk: Desk) -> None:
    for path in ("/", "/api/facts", "/api/frames", "/mask/2"):
        assert desk.get(path).header("cache-control") == "no-store"


def test_similar_frames_come_by_their_cosine(desk: Desk) -> None:
    ids = desk.ids()
    found = desk.get(f"/api/frames/{ids['2.png']}/similar", {"count": 3}).json()["frames"]
    assert {found[0]["name"], found[1]["name"]} == {"1.png", "3.png"}
    assert found[0]["cosine"] == found[1]["cosine"] == pytest.approx(np.cos(0.1), abs=1e-5)
    assert found[2]["cosine"] == pytest.approx(np.cos(0.2), abs=1e-5)
    assert len(desk.get(f"/api/frames/{ids['2.png']}/similar").json()["frames"]) == 5


def test_supports_come_by_their_cosine_with_a_picture_where_the_file_is_the_one_that_taught(desk: Desk) -> None:
    found = desk.get(f"/api/frames/{desk.ids()['0.png']}/supports").json()["supports"]
    assert [support["number"] for support in found] == [0, 1, 2, 3]
    assert [support["class"] for support in found] == ["good", "bridge", "hole", None]
    assert found[0]["cosine"] == pytest.approx(1)
    assert [support["picture"] for support in found] == [True, True, False, False]
    assert picture(desk, "/support/1").size == (64, 64)
    for number in (2, 3, 4, 10**17):  # another content; a path out of the folder; no such support
        assert desk.get(f"/support/{number}").status == 404
    file = desk.session.data / "images/bridge/1.png"
    taught = file.read_bytes()
    file.write_bytes((file.parents[1] / "hole/2.png").read_bytes())  # another frame by now
    assert desk.get("/support/1").status == 404
    file.write_bytes(taught)
    assert desk.get("/support/1").status == 200


def test_the_wafer_shows_its_own_frames(desk: Desk) -> None:
    shown = desk.get("/api/wafer", {"lot": "L1", "wafer": "2"}).json()
    assert shown["mm"] == 300.0
    assert [(point["x"], point["y"]) for point in shown["points"]] == [(1e6, -1e6), (3e6, -3e6), (5e6, -5e6)]
    assert desk.get("/api/wafer", {"lot": "L1", "wafer": "9"}).status == 404


def test_a_frame_that_was_not_read_has_its_reason_and_no_pictures(tmp_path: Path, fake_bundle: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with opened(make_store(tmp_path, fake_bundle, [bad])) as page:
        told = page.get("/api/frames/1").json()
        assert (told["verdict"], told["outline"], told["probabilities"]) == (None, [], {})
        assert "is not a readable" in told["error"]
        for path in ("/picture/1", "/map/1", "/outline/1", "/mask/1"):
            reply = page.get(path)
            assert reply.status == 404
            assert "is not a readable" in reply.json()["error"]
        assert page.get("/api/facts").json()["verdicts"] == {"not read": 1}


def test_json_lines_show_frames_without_maps(tmp_path: Path, fake_bundle: Path) -> None:
    paint(tmp_path / "frames/a.png", 1, defect=True)
    lines = tmp_path / "verdicts.jsonl"
    assert main(["predict", str(fake_bundle), str(tmp_path / "frames"), "--backend", "fake", "--json", str(lines)]) == 0
    with opened(lines) as page:
        told = page.get("/api/frames/1").json()
        assert (told["verdict"], len(told["regions"]), told["outline"]) == ("bridge", 1, [])
        assert "JSON lines hold no map" in told["warnings"][0]
        assert picture(page, "/picture/1").size == (64, 64)
        assert page.get("/map/1").status == 404
        assert page.get("/api/frames/1/similar").status == 404
        assert page.get("/api/operating-point", {"defect_threshold": 0.2}).status == 409
        assert page.post("/api/judge", {}).status == 409
        assert page.correct(1, "hole").status == 200


def test_a_frame_of_another_encoder_is_not_compared_with_supports(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(desk.session.recipe, encoder_id="cd" * 32)
    monkeypatch.setattr(desk.session, "_recipe", recipe)
    assert desk.get("/api/frames/1/supports").status == 409
