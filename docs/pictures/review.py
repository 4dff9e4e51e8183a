"""Draw the pictures of the review page: photographs of a running one. See docs/development.md.

sem-clip review demo/verdicts.db --bundle demo/bundle --data demo/bundle-frames/teach
python docs/pictures/review.py http://127.0.0.1:PORT/

It corrects the frames that are least sure, to the class whose folder they lie in.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from calibration.review.printing import BROWSERS

SIZE = {"width": 1360, "height": 850}
QUALITY, CORRECTED = 72, 16
_TRUTH = """async (count) => {
  const asked = async (path) => (await fetch(path)).json();
  const { frames } = await asked(`/api/frames?order=least+sure&corrected=no&limit=${count}`);
  const sources = await Promise.all(frames.map(async ({ id }) => (await asked(`/api/frames/${id}`)).source));
  return sources.map((source) => source.split("/").at(-2));
}"""
"""The folder of each of the frames that are least sure."""


def photograph(page: Any, name: str, width: int) -> None:
    """What the page shows now, `width` pixels wide."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    height = round(picture.height * width / picture.width)
    target = Path(__file__).parent / name
    picture.resize((width, height), Image.Resampling.LANCZOS).save(target, "JPEG", quality=QUALITY, optimize=True)
    print(f"{target}: {width} x {height}, {target.stat().st_size:,} bytes")


def main(url: str) -> None:
    """The frames with a queue and a mask, then the summary."""
    program = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if program is None:
        sys.exit("no Chromium here: apt install chromium")
    words = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=words)
        page = browser.new_context(viewport=SIZE, color_scheme="light").new_page()
        page.goto(url)
        page.get_by_role("button", name="Least sure first").click()
        page.wait_for_selector("#similar button img")
        page.wait_for_timeout(1500)
        photograph(page, "review.jpg", 1200)
        page.locator("#gallery").focus()
        for name in page.evaluate(_TRUTH, CORRECTED):
            page.keyboard.press(page.locator(f'[data-class="{name}"] kbd').text_content())
            page.wait_for_timeout(300)
        page.locator("#tab-summary").click()
        page.wait_for_selector("#changed")
        for _ in range(8):
            page.get_by_label("Defect threshold").press("ArrowRight")
        page.wait_for_timeout(1500)
        page.locator("#view-summary").evaluate("(view) => (view.scrollTop = 0)")
        photograph(page, "review-summary.jpg", 1000)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
