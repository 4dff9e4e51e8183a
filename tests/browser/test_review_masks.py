"""Masks in a real browser: drawn, painted, accepted, kept and undone."""

from __future__ import annotations

from typing import Any

import desk
import pytest
from browsers import screen_place
from desk import expect, mask_of, names, press, saved
from fake_review import SIDE, FakeReview

pytest.importorskip("jinja2")
pytestmark = pytest.mark.slow
browser, review, page = desk.browser, desk.review, desk.page  # pytest looks for fixtures among these names


def test_places_on_the_frame_are_given_once_it_moves_no_more(page: Any, review: FakeReview) -> None:
    review.slow_ms = 200
    press(page, "s", "D")
    place = screen_place(page, 20, 20, SIDE)
    page.wait_for_selector("#similar button")
    assert screen_place(page, 20, 20, SIDE) == place


def test_a_polygon_is_saved_as_a_grey_mask(page: Any, review: FakeReview) -> None:
    press(page, "s", "D")
    for corner in ((20, 20), (70, 20), (70, 60), (20, 60)):
        page.mouse.click(*screen_place(page, *corner, SIDE))
    page.keyboard.press("Enter")
    page.locator("#save-mask").click()
    saved(page, review, 1)
    mask = mask_of(review, 2)
    assert mask[25:55, 25:65].all()
    assert not mask[:18].any()
    assert abs(mask.sum() - 50 * 40) < 100
    expect(page.locator("#tile-1 .badge")).to_contain_text("✎")


def test_brush_and_eraser_paint_what_the_class_key_saves(page: Any, review: FakeReview) -> None:
    press(page, "s", "D")
    page.get_by_role("button", name="Brush").click()
    page.mouse.move(*screen_place(page, 20, 48, SIDE))
    page.mouse.down()
    page.mouse.move(*screen_place(page, 76, 48, SIDE), steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Eraser").click()
    page.mouse.click(*screen_place(page, 48, 48, SIDE))
    press(page, "3")
    assert saved(page, review, 1) == {names(review, 2)[1]: "hole"}
    mask = mask_of(review, 2)
    assert mask[48, 20:38].all()
    assert not mask[44:52, 44:52].any()
    assert mask[48, 60:76].all()


def test_a_polygon_is_drawn_without_a_mouse(page: Any, review: FakeReview) -> None:
    press(page, "s", "D")
    for keys in (["ArrowLeft"] * 6, ["ArrowUp"] * 6, ["ArrowRight"] * 12):
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("Space")
    page.keyboard.press("Enter")
    press(page, "2")
    assert saved(page, review, 1) == {names(review, 2)[1]: "bridge"}
    assert mask_of(review, 2).any()


def test_the_outline_is_accepted_as_it_is_and_taken_back(page: Any, review: FakeReview) -> None:
    press(page, "s")
    page.wait_for_selector(".shapes .edge", state="attached")
    press(page, "D")
    page.locator("#accept-outline").click()
    expect(page.locator("#save-mask")).to_be_enabled()
    page.keyboard.press("Control+z")
    expect(page.locator("#save-mask")).to_be_disabled()
    page.locator("#accept-outline").click()
    page.locator("#save-mask").click()
    saved(page, review, 1)
    assert review.said[-1] == ("/api/corrections", {"id": 2, "new": "bridge", "mask": "outline"})


def test_a_mask_stays_when_only_the_class_changes(page: Any, review: FakeReview) -> None:
    press(page, "s", "D")
    for corner in ((20, 20), (70, 20), (70, 60)):
        page.mouse.click(*screen_place(page, *corner, SIDE))
    page.keyboard.press("Enter")
    press(page, "2")
    saved(page, review, 1)
    before = mask_of(review, 2)
    press(page, "ArrowLeft", "3")
    expect(page.locator("#status")).to_contain_text("→ hole")
    assert review.corrected() == {names(review, 2)[1]: "hole"}
    assert (mask_of(review, 2) == before).all()


def test_an_undo_comes_after_the_correction_whose_mask_is_still_packed(page: Any, review: FakeReview) -> None:
    page.evaluate(
        """() => {
          const whole = Response.prototype.arrayBuffer;
          Response.prototype.arrayBuffer = async function () {
            await new Promise((later) => setTimeout(later, 500));
            return whole.call(this);
          };
        }"""
    )
    press(page, "s", "D")
    for corner in ((20, 20), (70, 20), (70, 60)):
        page.mouse.click(*screen_place(page, *corner, SIDE))
    page.keyboard.press("Enter")
    press(page, "2", "u")
    expect(page.locator("#status")).to_contain_text("Taken back: not corrected.")
    assert [path for path, _ in review.said] == ["/api/corrections", "/api/corrections/undo"]
    assert review.corrected() == {}
