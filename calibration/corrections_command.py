"""`sem-clip corrections`: what people corrected, as a data folder or as manual classes of a lot."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from runtime.errors import PredictorError
from runtime.fab.klarf import read_klarf
from runtime.fab.klarf_writing import write_klarf
from runtime.files import require_files, require_other_files
from runtime.options import at_least
from runtime.recipe import FrameOptions
from runtime.terminal import printable

from .corrections import CorrectionLog
from .corrections_folder import export_folder
from .corrections_klarf import MANUAL_COLUMN, klarf_with_corrections
from .dataset import GOOD


class Corrections:
    """Corrections in, a data folder or a KLARF file out."""

    help = "Write corrected frames as a data folder, or as manual classes into a copy of a lot's KLARF file."
    example = (
        "sem-clip corrections verdicts.corrections.jsonl --out corrected/\n"
        "  sem-clip corrections verdicts.corrections.jsonl --klarf lot7.klarf --codes codes.toml --out manual.klarf"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("file", type=Path, metavar="FILE", help="corrections, as `sem-clip review` writes them")
        parser.add_argument(
            "--out",
            type=Path,
            metavar="DIR|FILE",
            help="folder of images/, masks/ and groups.csv to write; with --klarf the file to write (default: list the "
            "corrections)",
        )
        parser.add_argument(
            "--white-level",
            type=at_least(1, 65535),
            metavar="VALUE",
            help="grey value that counted as white in 16-bit frames when they were judged (default: 65535)",
        )
        lot = parser.add_argument_group("manual classes of a lot")
        lot.add_argument(
            "--klarf",
            type=Path,
            metavar="LOTFILE",
            help="write the corrections of this lot into a copy of its file (default: a data folder)",
        )
        lot.add_argument(
            "--codes",
            type=Path,
            metavar="FILE.toml",
            help="which code stands for which class, as for `classify-lot` (default: none; --klarf needs it)",
        )
        lot.add_argument(
            "--column",
            metavar="NAME",
            help=f"column that takes the codes (default: {MANUAL_COLUMN})",
        )
        lot.add_argument(
            "--replace-classes",
            action="store_true",
            help="replace manual classes that other people have given (default: refuse)",
        )
        lot.add_argument(
            "--no-lookup",
            dest="lookup",
            action="store_false",
            help="leave the class lookup of the lot as it is (default: add the codes that it lacks, with their names)",
        )
        lot.add_argument(
            "--encoding",
            metavar="NAME",
            help="of the lot's texts: utf-8, latin-1 or cp1252 (default: found from the bytes)",
        )
        lot.add_argument("--force", action="store_true", help="replace the KLARF file of --out (default: refuse)")

    def run(self, args: argparse.Namespace) -> int:
        """List, or write."""
        of_lot = {
            "--codes": args.codes is not None,
            "--column": args.column is not None,
            "--replace-classes": args.replace_classes,
            "--no-lookup": not args.lookup,
            "--encoding": args.encoding is not None,
            "--force": args.force,
        }
        given = [option for option, is_given in of_lot.items() if is_given]
        if args.klarf is None and given:
            raise PredictorError(f"{given[0]} is for a lot alone: add --klarf, or leave it out")
        if args.klarf is not None and args.white_level is not None:
            raise PredictorError("--white-level is for a data folder alone: leave it out, or --klarf")
        if args.klarf is not None and (args.codes is None or args.out is None):
            raise PredictorError("--klarf needs --codes and --out")
        with CorrectionLog(args.file, write=False) as log:
            if args.klarf is not None:
                _write_klarf(args, log)
            elif args.out is not None:
                _write_folder(args, log)
            else:
                for line in listing(log):
                    print(line)
        return 0


def listing(log: CorrectionLog) -> list[str]:
    """The corrections that stand, one line each, and how many of each kind there are."""
    current = list(log.current().values())
    lines = []
    for made in current:
        drawn = " with a mask" if made.mask else ""
        lines.append(printable(f"{made.when}  {made.who:<12} {made.old} -> {made.new}{drawn}  {made.frame}"))
    kinds = Counter((made.old, made.new) for made in current)
    lines += [printable(f"{count:6}  {old} -> {new}") for (old, new), count in kinds.most_common()]
    return [*lines, f"{len(current)} frames are corrected or confirmed"]


def _write_folder(args: argparse.Namespace, log: CorrectionLog) -> None:
    done = export_folder(
        log, args.out, FrameOptions() if args.white_level is None else FrameOptions(white_level=args.white_level)
    )
    for label, count in sorted(done.counts.items()):
        print(printable(f"{count:6}  {label}"))
    print(f"written {args.out}: {sum(done.counts.values())} frames, {done.masks} masks")
    if GOOD not in done.counts:
        print(f"note: there is no class {GOOD}, which a data folder needs before it teaches alone", file=sys.stderr)


def _write_klarf(args: argparse.Namespace, log: CorrectionLog) -> None:
    require_other_files([args.out], [args.file, args.klarf, args.codes])
    require_files([args.out], force=args.force)
    column = args.column or MANUAL_COLUMN
    content, count = klarf_with_corrections(
        log,
        args.klarf,
        args.codes,
        column=column,
        replace=args.replace_classes,
        lookup=args.lookup,
        encoding=args.encoding,
    )
    write_klarf(read_klarf(args.klarf, encoding=args.encoding), content, args.out, force=args.force)
    print(f"written {args.out}: {count} defects in {column.upper()}")
