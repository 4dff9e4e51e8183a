"""The whole loop in a real browser with the real server: judge, correct, draw, undo, teach, accept, judge again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium, opened, screen_place

from runtime.cli import main

pytestmark = pytest.mark.slow
NEW = "speck"
TEACHING_MS = 240_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def served(toy_bundle: Path, toy_frames: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a review server on a store of frames that taught nothing."""
    for name in ("starlette", "uvicorn", "jinja2"):
        pytest.importorskip(name)
    from export.synthetic import write_dataset

    bundle, new, data, store = (tmp_path / name for name in ("bundle", "new", "data", "verdicts.db"))
    shutil.copytree(toy_bundle, bundle)
    shutil.copytree(toy_frames, data)
    write_dataset(new, per_class=4, size=(96, 96), seed=2)
    assert main(["predict", str(bundle), str(new), "--backend", "cpu", "--store", str(store)]) == 0
    words = ["review", str(store), "--bundle", str(bundle), "--data", str(data)]
    program = [sys.executable, "-c", "import sys, sem_clip; sys.exit(sem_clip.main())", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"http://\S+", line)
            assert found, line
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def test_the_loop_of_looking_correcting_and_teaching(browser: Any, served: str) -> None:
    from playwright.sync_api import expect

    with opened(browser, served) as page:
        page.wait_for_selector('.tile[aria-selected="true"] .picture.there')
        before = page.locator("#position").text_content()

        # Filter, and back.
        page.locator("#labels").get_by_label("scratch").check()
        expect(page.locator("#position")).not_to_have_text(before)
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator("#position")).to_have_text(before)

        # A new class by its name, then nine frames by its key.
        page.get_by_label("Name of another class").fill(NEW)
        page.keyboard.press("Enter")
        expect(page.locator("#counts")).to_contain_text("1 corrected")
        page.locator("#gallery").focus()
        key = page.locator(f'[data-class="{NEW}"] kbd').text_content()
        for count in range(2, 11):
            page.keyboard.press(key)
            expect(page.locator("#counts")).to_contain_text(f"{count} corrected")

        # A mask on the eleventh, then undone.
        page.keyboard.press("D")
        for corner in ((20, 20), (70, 20), (70, 60), (20, 60)):
            page.mouse.click(*screen_place(page, *corner, 96))
        page.keyboard.press("Enter")
        page.keyboard.press(key)
        expect(page.locator("#tile-10 .badge")).to_have_text(f"✎ {NEW}")
        page.keyboard.press("u")
        expect(page.locator("#tile-10 .badge")).to_be_empty()
        expect(page.locator("#counts")).to_contain_text("10 corrected")

        # Teach, compare, accept, judge again: the new class is among the verdicts.
        page.locator("#tab-teach").click()
        page.get_by_label("Note").fill("specks")
        page.locator("#teach").click()
        expect(page.locator("#outcome table")).to_be_visible(timeout=TEACHING_MS)
        page.locator("#accept").click()
        expect(page.locator("#history")).to_contain_text("specks")
        page.locator("#judge").click()
        page.locator("#tab-frames").click()
        expect(page.locator("#verdicts")).to_contain_text(NEW, timeout=TEACHING_MS)
        expect(page.locator(".tile .verdict", has_text=NEW).first).to_be_visible(timeout=TEACHING_MS)
