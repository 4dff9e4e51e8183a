"""The review page in a real browser, against a stand-in for its server."""

from __future__ import annotations

from typing import Any

import desk
import pytest
from browsers import chosen, opened
from desk import correct_many, expect, names, press, ready, saved
from fake_review import CLASSES, FakeReview

pytest.importorskip("jinja2")
pytestmark = pytest.mark.slow
browser, review, page = desk.browser, desk.review, desk.page  # pytest looks for fixtures among these names


def test_ten_frames_are_corrected_by_keyboard_in_order(page: Any, review: FakeReview) -> None:
    keys = ["1", "2", "3", "g", "2", "3", "1", "2", "3", "4"]
    press(page, *keys)
    found = saved(page, review, 10)
    classes = [CLASSES[0] if key == "g" else CLASSES[int(key) - 1] for key in keys]
    assert list(found.items()) == list(zip(names(review, 10), classes, strict=True))
    expect(page.locator("#position")).to_have_text("11 of 60")
    expect(page.locator("#tile-3 .badge")).to_have_text("✓ good")


def test_skip_corrects_nothing_and_undo_goes_back_to_the_frame(page: Any, review: FakeReview) -> None:
    press(page, "s", "s", "3")
    assert list(saved(page, review, 1)) == [names(review, 3)[2]]
    expect(page.locator("#position")).to_have_text("4 of 60")
    press(page, "u")
    assert saved(page, review, 0) == {}
    expect(page.locator("#position")).to_have_text("3 of 60")
    expect(page.locator("#status")).to_contain_text("Taken back")
    press(page, "u")
    expect(page.locator("#alarm")).to_contain_text("nothing to undo")


@pytest.mark.parametrize("slow_ms", [0, 400])
def test_a_queue_of_uncorrected_frames_leaves_none_out(browser: Any, slow_ms: int) -> None:
    """Pages to come shift as corrected frames leave the list."""
    with FakeReview(250, slow_ms=slow_ms) as review, opened(browser, review.url) as page:
        page.get_by_role("button", name="Least sure first").click()
        order = [frame["name"] for frame in review.listed({"order": ["least sure"], "limit": ["250"]})["frames"]]
        # Until the new list is there, keys act on the one before, which begins with the same frame.
        expect(page.locator("#tile-1 .name")).to_have_text(order[1])
        page.locator("#gallery").focus()
        ready(page)
        correct_many(page, "g", 120)
        found = saved(page, review, 120)
        assert sorted(found) == sorted(order[:120])
        ids = [body["id"] for _, body in review.said]
        assert len(ids) == len(set(ids)) == 120  # none twice


def test_filters_and_search_ask_the_server(page: Any, review: FakeReview) -> None:
    page.locator("#verdicts").get_by_label("cannot decide").check()
    open_ones = sum(frame["verdict"] == "cannot decide" for frame in review.frames)
    expect(page.locator("#position")).to_have_text(f"1 of {open_ones}")
    page.get_by_label("Least confidence").fill("0.9")
    sure = sum(frame["verdict"] == "cannot decide" and frame["confidence"] >= 0.9 for frame in review.frames)
    expect(page.locator("#position")).to_contain_text(f"of {sure}" if sure else "no frame")
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#position")).to_have_text("1 of 60")
    page.keyboard.press("Escape")
    page.locator("#gallery").focus()
    page.keyboard.press("/")
    page.keyboard.type("frame-00012")
    expect(page.locator("#position")).to_have_text("1 of 1")
    assert review.corrected() == {}  # digits in the search are no corrections


def test_only_tiles_in_sight_exist_however_long_the_list_is(browser: Any) -> None:
    with FakeReview(10_000) as review, opened(browser, review.url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_selector(".tile .picture.there")
        page.keyboard.press("End")
        expect(page.locator("#position")).to_have_text("10000 of 10000")
        expect(chosen(page).locator(".name")).to_have_text(names(review, 10_000)[-1])
        page.evaluate("for (let at = 0; at < 200; at += 1) document.getElementById('gallery').scrollTop = at * 1000")
        page.keyboard.press("Home")
        page.wait_for_selector("#tile-0 .picture.there")
        assert page.locator(".tile").count() < 200
        assert sum("/picture/" in url for url in asked) < 500


def test_a_refused_correction_is_said_and_is_not_shown_as_saved(page: Any, review: FakeReview) -> None:
    review.refuse = "the disk is full"
    press(page, "2")
    expect(page.locator("#alarm")).to_contain_text(f"Not saved: {names(review, 1)[0]}: the disk is full")
    expect(page.locator("#tile-0 .badge")).to_be_empty()


def test_a_refused_correction_is_named_until_it_is_made(page: Any, review: FakeReview) -> None:
    alarm, first = page.locator("#alarm"), names(review, 1)[0]
    review.refuse = "the disk is full"
    press(page, "2")
    expect(alarm).to_contain_text("the disk is full")
    review.refuse = ""
    press(page, "3")
    saved(page, review, 1)
    expect(alarm).to_contain_text(f"Saving works again. Still not saved: {first}")
    expect(alarm).not_to_contain_text("the disk is full")
    expect(alarm).to_have_class("past")
    alarm.get_by_role("button", name=first).click()
    expect(page.locator("#detail h2")).to_have_text(first)
    press(page, "2")
    assert saved(page, review, 2)[first] == "bridge"
    expect(alarm).to_be_hidden()


def test_a_refused_undo_is_said_until_something_is_saved(page: Any, review: FakeReview) -> None:
    press(page, "u")
    expect(page.locator("#alarm")).to_contain_text("nothing to undo")
    press(page, "2")
    saved(page, review, 1)
    expect(page.locator("#alarm")).to_be_hidden()


def test_names_with_markup_stay_text(browser: Any) -> None:
    with FakeReview(12) as review:
        odd = '<img src=x onerror=alert(1)>"\n&amp;.png'
        for frame in review.frames:
            frame.update(name=odd, verdict=CLASSES[3], label=CLASSES[3], lot=odd)
        with opened(browser, review.url) as page:
            assert page.locator("#tile-0 .name").text_content() == odd
            expect(page.locator("#tile-0 .verdict")).to_contain_text(CLASSES[3])
            press(page, "4")
            saved(page, review, 1)
            for name in ("summary", "wafer", "teach"):
                page.locator(f"#tab-{name}").click()
            assert page.locator("main b, main img[src=x]").count() == 0


def test_a_new_class_is_named_in_the_page(page: Any, review: FakeReview) -> None:
    page.get_by_label("Name of another class").fill("particle")
    page.keyboard.press("Enter")
    assert saved(page, review, 1) == {names(review, 1)[0]: "particle"}


def test_a_digit_that_no_class_has_is_said_and_corrects_nothing(page: Any, review: FakeReview) -> None:
    press(page, "9")
    expect(page.locator("#status")).to_have_text("No class has the key 9: nothing is corrected.")
    expect(page.locator("#position")).to_have_text("1 of 60")
    press(page, "2")
    assert saved(page, review, 1) == {names(review, 1)[0]: "bridge"}


def test_a_class_key_that_is_held_down_corrects_one_frame(page: Any, review: FakeReview) -> None:
    ready(page)
    for _ in range(5):
        page.keyboard.down("2")
    page.keyboard.up("2")
    saved(page, review, 1)


def test_single_keys_can_be_switched_off(page: Any, review: FakeReview) -> None:
    page.keyboard.press("?")
    page.get_by_label("Keys without Ctrl").uncheck()
    page.get_by_role("button", name="Close").click()
    page.locator("#gallery").focus()
    page.keyboard.press("2")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#position")).to_have_text("2 of 60")
    assert review.corrected() == {}


def test_the_summary_follows_corrections_and_the_slider_stores_nothing(page: Any, review: FakeReview) -> None:
    press(page, "1", "3", "3")
    saved(page, review, 3)
    page.locator("#tab-summary").click()
    expect(page.locator("#purity")).to_have_text("66.7 % (2 of 3)")
    expect(page.locator("#changed")).to_have_text("No verdict would change.")
    page.get_by_label("Defect threshold").fill("0.95")
    defects = sum(frame["verdict"] != "good" and frame["score"] < 0.95 for frame in review.frames)
    moved = sum(frame["verdict"] != "good" for frame in review.frames)
    assert defects == moved
    expect(page.locator("#changed")).to_contain_text(f"{moved} verdicts would change")
    assert {path for path, _ in review.said} == {"/api/corrections"}
    page.locator("#changed button").first.click()
    expect(page.locator("#view-frames")).to_be_visible()


def test_the_wafer_is_walked_by_keys(page: Any, review: FakeReview) -> None:
    page.locator("#tab-wafer").click()
    page.locator(".wafer path").first.wait_for()
    page.locator("div.wafer").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#wafer-said")).to_contain_text("mm")
    page.keyboard.press("Enter")
    expect(page.locator("#view-frames")).to_be_visible()
    expect(page.locator("#detail .answer")).to_be_visible()


def test_new_answers_are_offered(page: Any, review: FakeReview) -> None:
    review.frames.append({**review.frames[0], "id": 999, "name": "a-first.png"})
    review.changed += 1
    page.locator("#renew").click()
    expect(page.locator("#position")).to_contain_text("of 61")


FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest("[disabled], noscript, svg, option")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faint.push(`${text.data.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return [...new Set(faint)];
}"""
NAMELESS = """() => [...document.querySelectorAll(
    "button, input, select, [role=tab], [role=listbox], [role=application], img")]
  .filter((node) => node.checkVisibility())
  .filter((node) => node.tagName === "IMG" ? !node.hasAttribute("alt")
    : !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length || node.title))
  .map((node) => node.outerHTML.slice(0, 120))"""


LAST = {"frames": "#similar button", "summary": "#changed:not(:empty)", "wafer": ".wafer path", "teach": "#history td"}
"""What comes last in each view."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_readable_and_every_control_has_a_name(browser: Any, scheme: Any) -> None:
    with FakeReview() as review, opened(browser, review.url, color_scheme=scheme) as page:
        press(page, "2", "3")
        saved(page, review, 2)
        press(page, "D")
        page.wait_for_selector("#similar button")
        for name in ("frames", "summary", "wafer", "teach"):
            page.locator(f"#tab-{name}").click()
            page.wait_for_selector(LAST[name])
            assert page.evaluate(FAINT) == [], name
            assert page.evaluate(NAMELESS) == [], name


def test_tab_reaches_all_parts_and_the_focus_is_seen(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        at = page.evaluate(
            "() => { const node = document.activeElement; const name = node.id || node.dataset.class; "
            "return [name || (node.tagName === 'BODY' ? 'BODY' : node.textContent), "
            "getComputedStyle(node).outlineStyle] }"
        )
        if at[0] == "BODY":  # round once; the browser's own controls come before the first again
            continue
        assert at[1] != "none", at
        seen.add(at[0])
    assert {"tab-frames", "text", "corrected", "opacity", "gallery", "draw", "good", "new-class", "undo"} <= seen
