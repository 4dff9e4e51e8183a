"""`sem-clip classify-lot`: KLARF lots in, the same files with class codes out."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..commands import add_frame_options, open_predictor, open_writer
from ..errors import BackendError, PredictorError, StoreError
from ..options import add_bundle_argument, add_engine_arguments, at_least
from ..parquet import import_pyarrow
from ..terminal import message, printable
from ..verdict_file import require_store
from .codes import Codes
from .lot import COLUMN, LotClassifier, lots_of_one_name
from .lot_results import Done
from .lot_run import Engine
from .lot_watch import SETTLE_S, LotWatch


class ClassifyLot:
    """KLARF files and images in, KLARF files with codes, side files and reports out."""

    help = "Classify the defects of KLARF lots: class codes into the lot's file, side files, and a report per lot."
    example = (
        "sem-clip classify-lot bundle lot7.klarf --images images/ --codes codes.toml --out classified/\n"
        "  sem-clip classify-lot bundle --watch incoming/ --images incoming/ --codes codes.toml --out classified/"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument(
            "lots", nargs="*", type=Path, metavar="LOT.klarf", help="KLARF files, version 1.1, 1.2 or 1.8"
        )
        _add_lot_arguments(parser)
        add_frame_options(parser)
        watch = parser.add_argument_group("watching a folder")
        watch.add_argument(
            "--watch",
            type=Path,
            metavar="DIR",
            help="classify each lot that appears in DIR, once and when it is whole, until Ctrl-C; needs "
            '"sem-clip[watch]" (default: the lots that are named)',
        )
        watch.add_argument(
            "--settle",
            type=_seconds,
            default=SETTLE_S,
            metavar="SECONDS",
            help=f"a lot and its images must stay as they are for this long (default: {SETTLE_S:g})",
        )
        watch.add_argument(
            "--poll",
            type=_seconds,
            metavar="SECONDS",
            help="look at DIR this often, for network shares (default: by the system's file events)",
        )
        add_engine_arguments(parser).add_argument(
            "--batch-size",
            type=at_least(1),
            default=8,
            metavar="N",
            help="frames per engine run; more is faster on a GPU and takes more memory (default: 8)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Classify; 1 if some images were not read, 2 if a lot could not be classified."""
        _check(args)
        with ExitStack() as opened:
            predictor = opened.enter_context(open_predictor(args))
            store = args.store and opened.enter_context(open_writer(args.store, args.bundle, predictor))
            classifier = LotClassifier(
                predictor=predictor,
                engine=Engine.of(predictor, args.batch_size, _frame_options(args)),
                codes=Codes.load(args.codes, predictor.recipe.classes),
                images=args.images,
                out=args.out,
                columns=tuple(dict.fromkeys(args.column or (COLUMN,))),
                types=args.image_types,
                parquet=args.parquet,
                force=args.force,
                encoding=args.encoding,
                lookup=args.lookup,
                store=store,
            )
            print(predictor.backend.description, file=sys.stderr)
            if args.watch is not None:
                _watch(args, classifier)
            return max(_one(classifier, path) for path in args.lots)


def _add_lot_arguments(parser: argparse.ArgumentParser) -> None:
    lots = parser.add_argument_group("lots")
    lots.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the lots' image files")
    lots.add_argument(
        "--codes", type=Path, required=True, metavar="FILE.toml", help="which code stands for which class and reject"
    )
    lots.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results, made if need be")
    lots.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="column that takes the codes, such as AUTOOFFSEMCLASS; may be given several times; a manual class is "
        f"never written (default: {COLUMN})",
    )
    lots.add_argument(
        "--image-types",
        type=_types,
        default=(),
        metavar="TYPE,...",
        help="judge images of these types alone, as the lots name them (default: all)",
    )
    lots.add_argument(
        "--encoding",
        metavar="NAME",
        help="of the lots' texts: utf-8, latin-1 or cp1252 (default: found from the bytes)",
    )
    lots.add_argument(
        "--no-lookup",
        dest="lookup",
        action="store_false",
        help="leave the class lookup of the lot as it is (default: add the codes that it lacks, with their names)",
    )
    lots.add_argument(
        "--no-parquet",
        dest="parquet",
        action="store_false",
        help='leave the Parquet file out, which needs "sem-clip[parquet]" (default: write it)',
    )
    lots.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="add the answers of all images, with maps and features, to a store of verdicts for `sem-clip review` and "
        "`sem-clip report`; it is made if it is not there (default: none)",
    )
    lots.add_argument("--force", action="store_true", help="replace results that are there (default: refuse)")


def _check(args: argparse.Namespace) -> None:
    """Raise PredictorError for arguments that cannot work together, before an engine is opened."""
    if bool(args.lots) == (args.watch is not None):
        raise PredictorError("name lots, or a folder with --watch; not both")
    for folder in (args.images, args.watch):
        if folder is not None and not folder.is_dir():
            raise PredictorError(f"{folder} is not a folder")
    if args.watch is not None and os.path.realpath(args.watch) == os.path.realpath(args.out):
        raise PredictorError(f"{args.out} is watched, and results in it would be taken for lots: choose another --out")
    faults = lots_of_one_name(args.lots)
    if faults:
        raise PredictorError("; ".join(faults))
    if args.parquet:
        import_pyarrow()
    if args.store is not None:
        require_store(args.store)


def _frame_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of frames are, JSON-ready."""
    sides = None if args.pixel_size is None else list(args.pixel_size)
    return {"white_level": args.white_level, "pixel_size_nm": sides, "side_files": not args.no_side_files}


def _one(classifier: LotClassifier, path: Path) -> int:
    """Classify a lot and say what became of it; 2 if that failed, which leaves the other lots as they are."""
    try:
        done = classifier.classify(path)
    except (BackendError, StoreError):  # as the next lot would fail too
        raise
    except PredictorError as exc:
        print(f"error: {message(exc)}", file=sys.stderr)
        return 2
    _say(path, done)
    return done.status


def _say(path: Path, done: Done) -> None:
    for line in (f"{path}: {done.lines[0]}", *done.lines[1:], *(f"  warning: {text}" for text in done.warnings)):
        print(printable(line), file=sys.stderr)


def _watch(args: argparse.Namespace, classifier: LotClassifier) -> None:
    """Watch until an exception ends it."""

    def classify(path: Path) -> None:
        _say(path, classifier.classify(path))

    LotWatch(args.watch, classify, classifier.open, args.settle).run(args.poll)


def _types(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f'"{text}" has an empty name')
    return names


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number') from None
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"must be 0.1 to 86400 seconds, not {text}")
    return value
