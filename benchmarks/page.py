"""How quick the review page is over many frames, in headless Chromium: the first picture, scrolling, and a jump.

    python -m benchmarks.page bundle --frames 10000

The frames are generated and the answers are those of the fake engine: what is timed is the page and its server. A
browser in between and Playwright belong to the figures. `gap` is the time between two pictures that the browser
drew while the gallery scrolled from its first frame to its last; 60 a second are 17 ms apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from calibration.review.printing import BROWSERS
from export.synthetic import write_dataset
from runtime import Predictor, PredictorError
from runtime.options import at_least
from runtime.packages import child_command, child_environment
from runtime.verdict_store import Run, Site, VerdictWriter

PER_CLASS, SIZE = 30, (480, 480)
SCROLL_MS = 5000
_SCROLL = """async (milliseconds) => {
  const gallery = document.getElementById("gallery");
  const gaps = [], began = performance.now(), whole = gallery.scrollHeight - gallery.clientHeight;
  for (let last = began, now = began; now - began < milliseconds; last = now) {
    now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
    gallery.scrollTop = whole * Math.min(1, (now - began) / milliseconds);
  }
  return gaps;
}"""
_ALL_THERE = """() => {
  const pictures = [...document.querySelectorAll("#gallery .tile .picture")];
  return pictures.length > 0 && pictures.every((picture) => picture.classList.contains("there"));
}"""


def write_store(folder: Path, bundle: Path, count: int) -> Path:
    """A store of `count` frames under names of their own; the same 210 files stand behind them."""
    write_dataset(folder / "data", per_class=PER_CLASS, size=SIZE)
    made = sorted((folder / "data/images").rglob("*.png"))
    store = folder / "verdicts.db"
    frames = folder / "frames"
    frames.mkdir()
    names = [frames / f"{index:06}.png" for index in range(count)]
    for index, name in enumerate(names):
        os.link(made[index % len(made)], name)
    with Predictor(bundle, backend="fake") as predictor:
        run = Run.now(bundle, predictor.manifest.encoder.id, predictor.recipe)
        with VerdictWriter(store, run) as writer:
            for name, result in zip(names, predictor.stream(names), strict=True):
                writer.add(result, Site(lot=f"lot {name.stem[:3]}"), str(name))
    return store


def measure(url: str) -> dict[str, float]:
    """Milliseconds of one visit, with nothing cached."""
    from playwright.sync_api import sync_playwright

    program = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if program is None:
        raise PredictorError("the page needs a browser: apt install chromium")
    words = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=words)
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        began = time.perf_counter()
        page.goto(url, wait_until="commit")
        page.wait_for_selector("#gallery .tile .picture.there")
        first = time.perf_counter()
        page.wait_for_function(_ALL_THERE)
        whole = time.perf_counter()
        gaps = sorted(page.evaluate(_SCROLL, SCROLL_MS))
        stopped = time.perf_counter()
        page.wait_for_function(_ALL_THERE)
        settled = time.perf_counter()
        browser.close()
    return {
        "first picture": 1000 * (first - began),
        "all in sight": 1000 * (whole - began),
        "gap, median": statistics.median(gaps),
        "gap, 99 %": gaps[int(0.99 * len(gaps))],
        "gap, longest": gaps[-1],
        "all in sight after scrolling": 1000 * (settled - stopped),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print a table of visits."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="bundle folder, as `sem-clip build` writes it")
    parser.add_argument("--frames", type=at_least(1, 1_000_000), default=10_000, help="frames (default: 10000)")
    parser.add_argument("--rounds", type=at_least(1, 100), default=3, help="visits (default: 3)")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sem-clip-") as folder:
        store = write_store(Path(folder), args.bundle, args.frames)
        program = child_command("runtime.cli", "review", str(store))
        with Popen(program, stdout=PIPE, text=True, env=child_environment()) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                if not line:
                    return 2  # the server has said why
                rounds: list[dict[str, Any]] = [measure(line.split()[-1]) for _ in range(args.rounds)]
            finally:
                server.terminate()
    print(f"| ms, {args.frames} frames | " + " | ".join(f"visit {n + 1}" for n in range(args.rounds)) + " |")
    print("|---" * (args.rounds + 1) + "|")
    for name in rounds[0]:
        print(f"| {name} | " + " | ".join(f"{visit[name]:.0f}" for visit in rounds) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
