"""A page as PDF, by a Chromium that is installed: without a window, a network, or the user's profile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from runtime.errors import BackendUnavailable, PredictorError
from runtime.terminal import show

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 180.0
MAX_PDF = 1 << 30
_OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    # The page's own policy forbids scripts; Chromium itself prints by one, so they cannot be switched off here.
    # Nothing leaves the machine: no name resolves, and what a browser does by itself is off.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-pdf-header-footer",
)


def find_browser() -> str:
    """The program that prints. Raises BackendUnavailable, with what to install."""
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    raise BackendUnavailable(
        f"a PDF needs Chromium or Chrome, and none of {', '.join(BROWSERS)} is on PATH: install one (Debian, Ubuntu: "
        "apt install chromium), or leave --pdf out and print the HTML file"
    )


def pdf_of(page: bytes, browser: str) -> bytes:
    """The PDF of an HTML page. Raises PredictorError if the browser fails, or takes more than TIMEOUT_S."""
    with tempfile.TemporaryDirectory(prefix="sem-clip-", ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_bytes(page)
        words = [browser, *_OPTIONS, f"--user-data-dir={folder}/profile", f"--print-to-pdf={target}", source.as_uri()]
        if os.name == "posix" and os.geteuid() == 0:
            words.insert(1, "--no-sandbox")  # Chromium refuses root otherwise
        said = _run(words, folder)
        size = target.stat().st_size if target.is_file() else 0
        content = target.read_bytes() if 0 < size <= MAX_PDF else b""
    if not content.startswith(b"%PDF-"):
        raise PredictorError(f"{browser} wrote no PDF: {said}; leave --pdf out and print the HTML file")
    return content


def _run(words: list[str], folder: str) -> str:
    """Run the browser; its last words. Raises PredictorError."""
    surroundings = {**os.environ, "HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}
    with Path(folder, "said").open("w+b") as said:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=surroundings, start_new_session=True
            )
        except OSError as exc:
            raise PredictorError(f"{words[0]} cannot be run ({exc.strerror}): leave --pdf out") from exc
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PredictorError(f"{words[0]} did not print within {TIMEOUT_S:.0f} s: leave --pdf out") from None
        finally:
            _end(process)
        said.seek(0)
        lines = said.read(1 << 20).decode(errors="replace").split("\n")
    return show(next((line for line in reversed(lines) if line.strip()), f"it ended with status {process.returncode}"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the browser and all of its processes, if they are still there."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
