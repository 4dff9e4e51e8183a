"""`sem-clip report`: a store of verdicts as one file to send."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runtime.errors import PredictorError
from runtime.files import require_files, require_other_files, write_atomically
from runtime.options import at_least
from runtime.terminal import printable
from runtime.verdict_store import VerdictStore

from ..corrections import CorrectionLog, default_path
from .printing import find_browser, pdf_of
from .report import MOST_PICTURES, import_jinja, report_html


class Report:
    """Verdicts and corrections in, one HTML file out, and the same as PDF."""

    help = "Write verdicts and corrections as one self-contained HTML file, to send or to print."
    example = "sem-clip report verdicts.db --out report.html --pdf"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "store",
            type=Path,
            metavar="STORE",
            help="store of `sem-clip predict --store`, or its JSON lines, which hold no maps",
        )
        parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the report to write")
        parser.add_argument(
            "--corrections",
            type=Path,
            metavar="FILE",
            help="what people said of the frames, as `sem-clip review` writes it (default: the file beside the store, "
            "if there is one)",
        )
        parser.add_argument(
            "--frames",
            type=at_least(0, MOST_PICTURES),
            default=24,
            metavar="N",
            help=f"pictures of the least sure frames, and of the corrected ones, 0 to {MOST_PICTURES} (default: 24)",
        )
        parser.add_argument(
            "--pdf",
            action="store_true",
            help="write the report as PDF beside FILE.html as well, by Chromium without a window (default: HTML alone)",
        )
        parser.add_argument("--force", action="store_true", help="replace files that are there (default: refuse)")

    def run(self, args: argparse.Namespace) -> int:
        """Read, draw, write; 1 if some pictures could not be drawn."""
        out: Path = args.out
        pdf = out.with_suffix(".pdf") if args.pdf else None
        corrections = _corrections(args)
        outputs = [out, *([pdf] if pdf else [])]
        if pdf == out:
            raise PredictorError(f"{out} is the name of the PDF too: give --out another ending, such as .html")
        require_other_files(outputs, [args.store, *([corrections] if corrections else [])])
        require_files(outputs, force=args.force)
        import_jinja()
        browser = find_browser() if pdf else None
        with VerdictStore.of_any(args.store) as store:
            standing = {}
            if corrections is not None:
                with CorrectionLog(corrections, write=False) as log:
                    standing = log.current()
            page, undrawn = report_html(store, standing, args.frames)
        content = page.encode("utf-8", "backslashreplace")
        printed = None if browser is None else pdf_of(content, browser)
        write_atomically(out, content)
        print(f"wrote {printable(out)}", file=sys.stderr)
        if pdf is not None and printed is not None:
            write_atomically(pdf, printed)
            print(f"wrote {printable(pdf)}", file=sys.stderr)
        for line in undrawn.lines("no picture: ", " without a picture"):
            print(f"  {line}", file=sys.stderr)
        return 1 if undrawn.count else 0


def _corrections(args: argparse.Namespace) -> Path | None:
    """The file of corrections to read; None where there is none."""
    if args.corrections is not None:
        named: Path = args.corrections
        return named
    beside = default_path(args.store)
    return beside if beside.exists() else None
