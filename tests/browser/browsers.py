"""A headless Chromium for tests, driven by Playwright, and what tests of a page ask of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from calibration.review.printing import BROWSERS

PATIENCE_MS = 20_000
"""After which a page counts as stuck."""
UNMET = "Failed to load resource"
"""What the console says of an answer such as 409; tests look at the page's own words instead."""


def program() -> str:
    """The browser of this machine; skips the test where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: apt install chromium")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser of Playwright."""
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    path = program()
    # Chromium's sandbox needs another user than root.
    words = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=words)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page at `url`. Afterwards: no script failed, nothing was forbidden by the policy, and nobody else was asked."""
    faults: list[str] = []
    foreign: list[str] = []
    held = browser.new_context(viewport={"width": 1440, "height": 900}, **context)
    try:
        page = held.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.accept()))
        own = (url.split("?")[0], "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else foreign.append(asked.url))
        page.goto(url)
        yield page
        assert [text for text in faults if UNMET not in text] == []
        assert foreign == []
    finally:
        held.close()


STILL = """async () => {
  const box = () => JSON.stringify(document.querySelector(".stage .sheet").getBoundingClientRect());
  for (let [before, same] = ["", 0]; same < 3; ) {
    await new Promise(requestAnimationFrame);
    const now = box();
    [before, same] = [now, now === before ? same + 1 : 0];
  }
}"""


def screen_place(page: Any, x: float, y: float, side: float) -> tuple[float, float]:
    """Where on the screen a pixel of the large frame is. side: the frame's width in pixels.

    What is told of the frame moves it, and comes a moment later; the similar frames come last.
    """
    page.wait_for_selector("#similar > *", state="attached")
    page.evaluate(STILL)
    box = page.locator(".stage .sheet").bounding_box()
    return box["x"] + x * box["width"] / side, box["y"] + y * box["width"] / side


def chosen(page: Any) -> Any:
    """The tile that is chosen."""
    return page.locator('.tile[aria-selected="true"]')
