"""`sem-clip benchmark`. Everything that measures is imported when it runs."""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import SECTIONS as SECTION_NAMES
from runtime.arguments import MAX_THREADS, at_least
from runtime.errors import PredictorError
from runtime.files import require_files, write_atomically
from runtime.terminal import require_stdout

if TYPE_CHECKING:
    from benchmarks.speed.suite import Settings, TorchOptions

RESULT = "result.json"


class Benchmark:
    """Speed, latency and memory of a bundle on this machine."""

    help = "Measure a bundle on this machine: latency, throughput, memory, and how they grow."
    example = "sem-clip benchmark bundle --arch vit_b_16_plus_240 --weights vit_b_16_plus_240.pt --out figures/"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="folder written by build_engine.py")
        parser.add_argument(
            "--backend", action="append", type=_names, metavar="NAME,...", help="engines (default: all that run here)"
        )
        parser.add_argument(
            "--precision", action="append", type=_names, metavar="NAME,...", help="precisions (default: all it holds)"
        )
        parser.add_argument("--batch", type=_counts, metavar="N,...", help="batch sizes (default: 1,2,4,8,16)")
        parser.add_argument("--rounds", type=at_least(1), help="rounds of alternating runs (default: 7)")
        parser.add_argument(
            "--threads", type=at_least(0, MAX_THREADS), default=0, help="cores for each engine (default: all)"
        )
        parser.add_argument(
            "--sections", type=_sections, metavar="NAME,...", help=f"some of {', '.join(SECTION_NAMES)} (default: all)"
        )
        parser.add_argument("--quick", action="store_true", help="a look in about a minute, not a figure to quote")
        parser.add_argument(
            "--soak", type=_minutes, default=0.0, metavar="MINUTES", help="stream without pause; 10 shows drift"
        )
        parser.add_argument(
            "--frames", nargs="+", metavar="PATH", help="frames of one size to measure with (default: made, 480x480)"
        )
        parser.add_argument("--arch", help="architecture of the bundle: adds PyTorch, eager and torch.compile")
        parser.add_argument("--weights", type=Path, help="the weights that the bundle was built from")
        parser.add_argument("--random-weights", action="store_true", help="PyTorch with random weights of --arch")
        parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {RESULT}, result.md and charts here")
        parser.add_argument("--no-charts", action="store_true", help="write no charts (they need the plots extra)")
        parser.add_argument("--force", action="store_true", help="replace an earlier result in DIR")

    def run(self, args: argparse.Namespace) -> int:
        """Measure, write the files, print Markdown; they appear only when everything was measured."""
        drawing = args.out is not None and not args.no_charts
        _check_out(args, drawing)
        torch = _torch_options(args)
        from benchmarks.speed.report import markdown
        from benchmarks.speed.suite import measure

        with tempfile.TemporaryDirectory() as work:
            report = measure(args.bundle, Path(work), _settings(args), args.frames, torch)
        text = markdown(report)
        if args.out is not None:  # before anything is printed about it
            files = {"result.md": text.encode(), RESULT: json.dumps(report, indent=1, allow_nan=False).encode()}
            if drawing:
                from benchmarks.speed.charts import charts

                files = {**charts(report), **files}
            for name, content in files.items():
                write_atomically(args.out / name, content)
        print(text)
        return 0


def _settings(args: argparse.Namespace) -> Settings:
    from benchmarks.speed.suite import QUICK, Settings

    chosen: dict[str, Any] = {
        "backends": tuple(name for names in args.backend or () for name in names),
        "precisions": tuple(name for names in args.precision or () for name in names),
        "soak_minutes": args.soak,
        "threads": args.threads,
        **(QUICK if args.quick else {}),
    }
    for key, value in (("batches", args.batch), ("rounds", args.rounds), ("sections", args.sections)):
        if value is not None:
            chosen[key] = value
    return Settings(**chosen)


def _torch_options(args: argparse.Namespace) -> TorchOptions | None:
    from benchmarks.speed.suite import TorchOptions

    if args.arch is None:
        if args.weights is not None or args.random_weights:
            raise PredictorError("--weights and --random-weights belong to --arch: name the bundle's architecture too")
        return None
    if (args.weights is None) != args.random_weights:
        raise PredictorError("--arch needs either --weights FILE, those the bundle was built from, or --random-weights")
    return TorchOptions(args.arch, args.weights)


def _check_out(args: argparse.Namespace, drawing: bool) -> None:
    """Before minutes of measuring, not after."""
    if args.out is not None:
        require_files([args.out / RESULT, args.out / "result.md"], force=args.force)
    else:
        require_stdout("name a folder with --out")
    if drawing and find_spec("matplotlib") is None:
        raise PredictorError('charts need matplotlib: pip install "sem-clip[plots]", or add --no-charts')


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of names such as cpu,fake')
    return names


def _counts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of batch sizes from 1 to 1024 such as 1,2,4,8')
    return tuple(dict.fromkeys(int(part) for part in parts))


def _sections(text: str) -> tuple[str, ...]:
    names = _names(text)
    unknown = [name for name in names if name not in SECTION_NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}; there are {', '.join(SECTION_NAMES)}")
    return tuple(name for name in SECTION_NAMES if name in names)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 24 * 60:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of minutes from 0 to 1440')
    return value
