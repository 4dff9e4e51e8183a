"""Teaching again in a real browser: compared, accepted, taken back."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import desk
import pytest
from browsers import opened
from desk import expect, press, saved
from fake_review import FakeReview

pytest.importorskip("jinja2")
pytestmark = pytest.mark.slow
browser, review, page = desk.browser, desk.review, desk.page  # pytest looks for fixtures among these names


def test_teaching_is_compared_accepted_and_shown_in_the_verdicts(page: Any, review: FakeReview) -> None:
    press(page, "3")
    saved(page, review, 1)
    page.locator("#tab-teach").click()
    page.get_by_label("Note").fill("holes")
    page.locator("#teach").click()
    expect(page.locator("#outcome")).to_contain_text("90.0 % (36 of 40)")
    expect(page.locator("#outcome .alarm")).to_have_text("few frames judged it")
    expect(page.locator("#changed-frames")).to_contain_text("1 for the better")
    page.locator("#accept").click()
    expect(page.locator("#history")).to_contain_text("holes")
    page.locator("#judge").click()
    page.locator("#tab-frames").click()
    expect(page.locator("#tile-0 .verdict")).to_contain_text("hole")
    page.locator("#tab-teach").click()
    page.get_by_role("button", name="Back to recipe 1").click()
    expect(page.locator("#status")).to_contain_text("Recipe 1 is in use again")
    # Line 3 took the recipe of line 1 back: both are the one in use.
    rows = page.locator("#history tbody tr")
    expect(rows.nth(0)).to_contain_text("in use, as 3")
    expect(rows.nth(2)).to_contain_text("in use")
    assert page.locator("#history button").all_text_contents() == ["Back to it"]
    expect(rows.nth(1).get_by_role("button", name="Back to recipe 2")).to_be_enabled()


def test_a_change_of_the_recipe_is_shown_while_it_lasts_and_made_once(page: Any, review: FakeReview) -> None:
    page.locator("#tab-teach").click()
    page.locator("#teach").click()
    expect(page.locator("#outcome table")).to_be_visible()
    acts = page.locator("#view-teach button:visible")
    for button, path in (("#accept", "/api/teach/accept"), ("#history button", "/api/recipes/back")):
        review.open.clear()
        page.locator(button).evaluate("(button) => { button.click(); button.click(); }")
        expect(page.locator("#busy")).to_contain_text("the golden frames get its answers")
        expect(page.locator("#view-teach")).to_have_attribute("aria-busy", "true")
        page.locator("#tab-summary").click()
        page.locator("#tab-teach").click()  # shows the recipes anew
        for at in range(acts.count()):
            expect(acts.nth(at)).to_be_disabled()
        review.open.set()
        expect(page.locator("#busy")).to_be_hidden()
        expect(page.locator("#history button")).to_be_enabled()
        assert [said for said, _ in review.said].count(path) == 1
    expect(page.locator("#judge")).to_be_enabled()


def test_a_change_of_the_recipe_that_is_refused_can_be_tried_again(page: Any, review: FakeReview) -> None:
    page.locator("#tab-teach").click()
    page.locator("#teach").click()
    expect(page.locator("#accept")).to_be_visible()
    review.refuse = "the disk is full"
    page.locator("#accept").click()
    expect(page.locator("#alarm")).to_contain_text("the disk is full")
    expect(page.locator("#busy")).to_be_hidden()
    review.refuse = ""
    page.locator("#accept").click()
    expect(page.locator("#status")).to_contain_text("The new recipe is accepted")


def test_an_older_answer_that_comes_late_does_not_hide_the_teaching(page: Any, review: FakeReview) -> None:
    late = []
    page.route("**/api/teach", lambda route: late.append((route, route.fetch())), times=1)
    page.locator("#tab-teach").click()  # asks, and the answer "idle" is on its way for long
    page.locator("#teach").click()
    expect(page.locator("#accept")).to_be_visible()
    (route, idle), *_ = late
    assert idle.json()["state"] == "idle"
    from playwright.sync_api import Error

    with suppress(Error):  # the page asked to drop it
        route.fulfill(response=idle)
    page.wait_for_timeout(200)
    expect(page.locator("#accept")).to_be_visible()


def test_without_a_bundle_the_page_says_why_it_cannot_teach(browser: Any) -> None:
    with FakeReview(can_teach=False) as review, opened(browser, review.url) as page:
        page.locator("#tab-teach").click()
        expect(page.locator("#why")).to_have_text("start with --bundle and --data")
        expect(page.locator("#teach")).to_be_disabled()
