"""The review page in a browser, against a stand-in for its server: fixtures, and how a person works there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browsers import chromium, opened
from fake_review import SIDE, FakeReview
from PIL import Image


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def review() -> Iterator[FakeReview]:
    with FakeReview() as served:
        yield served


@pytest.fixture
def page(browser: Any, review: FakeReview) -> Iterator[Any]:
    with opened(browser, review.url) as shown:
        shown.wait_for_selector('.tile[aria-selected="true"] .picture.there')
        yield shown


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator, "the page")


def ready(page: Any) -> None:
    """A frame is shown, so that keys have something to act on."""
    expect(page.locator("#detail .body")).to_be_visible()


def press(page: Any, *keys: str) -> None:
    for key in keys:
        ready(page)
        page.keyboard.press(key)


def saved(page: Any, review: FakeReview, count: int) -> dict[str, str]:
    """The corrections, once there are `count`. Many may take their time, as long as they go on."""
    counts = page.locator("#counts")
    while not (shown := counts.text_content()).endswith(f" {count} corrected"):
        expect(counts).not_to_have_text(shown)
    return review.corrected()


COUNT_MISSES = """() => {
  window.missed = 0;
  // No MutationObserver: it is told nothing where the same text is set again.
  Object.defineProperty(document.getElementById("status"), "textContent", {
    set(text) { missed += text.includes("press again"); this.replaceChildren(text); },
  });
}"""


def correct_many(page: Any, key: str, count: int) -> None:
    """Press a class key as fast as it goes until `count` presses have reached a frame.

    While the list is read anew a key reaches none; the page says to press again, and each such press is made up for.
    """
    page.evaluate(COUNT_MISSES)
    pressed = 0
    while left := count - pressed + page.evaluate("missed"):
        page.wait_for_selector("#detail .body")  # the list waits for all corrections that are on their way
        for _ in range(left):
            page.keyboard.press(key)
        pressed += left


def mask_of(review: FakeReview, number: int) -> np.ndarray:
    image = Image.open(io.BytesIO(review.masks[number]))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (SIDE, SIDE))
    pixels = np.asarray(image)
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels > 0


def names(review: FakeReview, count: int) -> list[str]:
    return sorted(frame["name"] for frame in review.frames)[:count]
