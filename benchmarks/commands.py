"""`sem-clip benchmark`. Everything that measures is imported when it runs."""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import SECTIONS
from runtime.errors import PredictorError
from runtime.files import require_files, write_atomically
from runtime.options import add_bundle_argument, add_engine_arguments, at_least, names_of
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
        add_bundle_argument(parser)
        what = parser.add_argument_group("what to measure")
        what.add_argument(
            "--sections",
            type=_sections,
            metavar="NAME,...",
            help=f"some of {', '.join(SECTIONS)} (default: all)",
        )
        what.add_argument("--batch", type=_counts, metavar="N,...", help="batch sizes, 1 to 1024 (default: 1,2,4,8,16)")
        what.add_argument(
            "--frames",
            nargs="+",
            metavar="PATH",
            help="frame files or folders, all frames of one size (default: generated frames, 480 x 480 px)",
        )
        what.add_argument(
            "--rounds",
            type=at_least(1),
            metavar="N",
            help="rounds of alternating runs; more gives steadier figures (default: 7)",
        )
        what.add_argument(
            "--soak",
            type=_minutes,
            default=0.0,
            metavar="MINUTES",
            help="also stream without pause for so long, up to 1440; 10 shows drift (default: 0, none)",
        )
        what.add_argument(
            "--quick", action="store_true", help="take about a minute; good for a look, not for figures to quote"
        )
        torch = parser.add_argument_group("comparison with PyTorch (default: none)")
        torch.add_argument(
            "--arch", metavar="NAME|FILE", help="the bundle's architecture: adds PyTorch, eager and torch.compile"
        )
        torch.add_argument("--weights", type=Path, metavar="FILE", help="the weights that the bundle was built from")
        torch.add_argument("--random-weights", action="store_true", help="random weights instead; the speed is equal")
        output = parser.add_argument_group("output")
        output.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help=f"write {RESULT}, result.md and charts into DIR (default: print result.md)",
        )
        output.add_argument(
            "--no-charts", action="store_true", help="write no charts; use it where matplotlib is not installed"
        )
        output.add_argument("--force", action="store_true", help="replace an earlier result in DIR (default: refuse)")
        add_engine_arguments(parser, several=("backend", "precision"))

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
        "backends": args.backend,
        "precisions": args.precision,
        "soak_minutes": args.soak,
        "threads": args.threads,
        "device": args.device,
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
    """Raise PredictorError where results cannot be written: before minutes of measuring, not after."""
    if args.out is not None:
        require_files([args.out / RESULT, args.out / "result.md"], force=args.force)
    else:
        require_stdout("name a folder with --out")
    if drawing and find_spec("matplotlib") is None:
        raise PredictorError('charts need matplotlib: pip install "sem-clip[plots]", or add --no-charts')


def _counts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of batch sizes from 1 to 1024 such as 1,2,4,8')
    return tuple(dict.fromkeys(int(part) for part in parts))


def _sections(text: str) -> tuple[str, ...]:
    """Known sections, in the order of SECTIONS."""
    chosen = names_of("section", SECTIONS)(text)
    return tuple(name for name in SECTIONS if name in chosen)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 24 * 60:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of minutes from 0 to 1440')
    return value
