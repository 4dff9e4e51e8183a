"""`sem-clip predict` and `sem-clip inspect`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .describe import bundle_lines, recipe_lines
from .errors import FrameError, PredictorError
from .files import require_files, require_folder, write_atomically
from .folders import find_frames as find_frames  # the place others import it from
from .folders import output_info
from .frames import SUFFIXES
from .jsonlines import TO_A_FILE, json_lines
from .manifest import load_bundle
from .operating_point import VERDICTS
from .options import add_bundle_argument, add_engine_arguments, add_pixel_size, at_least, engine_options
from .parquet import import_pyarrow, parquet_rows
from .prediction import FailedFrame, Prediction
from .predictor import Predictor
from .recipe import Recipe
from .serving.ray_options import add_ray_arguments, uses_ray
from .terminal import Reasons, printable, progress_bar, require_stdout
from .verdict_file import require_store
from .verdict_records import Run
from .verdict_writer import VerdictWriter

REASONS_SHOWN = 5
"""How many unreadable frames the summary names with their reasons; the JSON lines and rows name all."""


class Predict:
    """Frames in, one JSON line or row each and overlays out. The field to act on is `verdict`."""

    help = "Classify and segment frames with a bundle. Act on the field `verdict` of each JSON line."
    example = "sem-clip predict bundle frames/ --json verdicts.jsonl --overlays overlays/"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument(
            "paths",
            nargs="+",
            metavar="PATH",
            help="frame files, and folders to search for frames; file.tif#3 is page 3 of a stack",
        )
        add_frame_options(parser)
        output = parser.add_argument_group("output")
        output.add_argument(
            "--json",
            type=Path,
            metavar="FILE",
            help="write one JSON line per frame to FILE instead of stdout; a run that ends early leaves FILE.partial",
        )
        output.add_argument(
            "--parquet",
            type=Path,
            metavar="FILE",
            help="write one row per frame to a Parquet FILE, with the map, and nothing to stdout; a run that ends "
            "early leaves FILE.partial (default: none)",
        )
        output.add_argument(
            "--features",
            action="store_true",
            help="fill the column of features in the Parquet file, the largest by far (default: leave it empty)",
        )
        output.add_argument(
            "--store",
            type=Path,
            metavar="FILE",
            help="add all answers, with maps and features, to a store of verdicts for `sem-clip review` and `sem-clip "
            "report`, and write nothing to stdout; it is made if it is not there (default: none)",
        )
        output.add_argument(
            "--overlays", type=Path, metavar="DIR", help="write a picture of each frame and its defects (default: none)"
        )
        output.add_argument(
            "--force",
            action="store_true",
            help="replace FILE, and write into a DIR that holds files (default: refuse)",
        )
        add_engine_arguments(parser).add_argument(
            "--batch-size",
            type=at_least(1),
            default=8,
            metavar="N",
            help="frames per engine run; more is faster on a GPU and takes more memory (default: 8)",
        )
        add_ray_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Predict; 1 if some frames were not read or some overlays not written."""
        if uses_ray(args):
            from .serving.ray_command import run_ray

            return run_ray(args)
        _refuse_archives(args.paths)
        _check_outputs(args)
        unread: list[FrameError] = []
        frames = find_frames(args.paths, unread)
        _refuse_inputs(args, frames)
        with open_predictor(args) as predictor, _results(args, predictor) as write:
            draw = _overlay_writer(args.overlays, frames)
            print(predictor.backend.description, file=sys.stderr)
            tally = Tally(predictor.recipe.classes, _kept_in(args))
            for error in unread:
                write(FailedFrame(error.source, error), error.source)
                tally.failures.add(error)
            answers = zip(frames, predictor.stream(frames), strict=True)
            for frame, result in progress_bar(answers, len(frames)):
                write(result, frame)
                tally.add(result)
                if isinstance(result, Prediction) and (reason := draw(frame, result)):
                    tally.undrawn.add(reason)
        for line in tally.lines():
            print(line, file=sys.stderr)
        return 1 if tally.failures.count or tally.undrawn.count else 0


def add_frame_options(parser: argparse.ArgumentParser) -> None:
    """Declare what frames are judged by, and how they are read."""
    frames = parser.add_argument_group("frames")
    frames.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="judge by this recipe, as `sem-clip teach` writes it (default: the bundle's own)",
    )
    frames.add_argument(
        "--white-level",
        type=at_least(1, 65535),
        metavar="VALUE",
        help="grey value that counts as white in 16-bit frames, 1 to 65535; 4095 where the tool stores 12 bits "
        "(default: the recipe's)",
    )
    add_pixel_size(frames, "default: the recipe's, if it has one")
    frames.add_argument(
        "--no-side-files",
        action="store_true",
        help="leave the tools' texts beside the frames (.txt, .hdr) alone, which saves look-ups on a slow share "
        "(default: read them, for the size of a pixel)",
    )


class Tally:
    """The outcome of a run: how often each verdict was given, and what failed.

    kept_in: what names all frames of which the summary names a few.
    """

    def __init__(self, classes: Sequence[str], kept_in: str = "JSON lines") -> None:
        self._kept_in = kept_in
        self.verdicts: dict[str, int] = dict.fromkeys((*classes, *VERDICTS), 0)
        self.failures, self.warnings, self.undrawn = (Reasons(REASONS_SHOWN) for _ in range(3))

    def add(self, result: Prediction | FailedFrame) -> None:
        """Count one frame."""
        if isinstance(result, FailedFrame):
            self.failures.add(result.error)
            return
        self.verdicts[result.verdict] += 1
        for text in result.warnings:
            self.warnings.add(f"{result.source}: {text}")

    def lines(self) -> list[str]:
        """The summary for people: a line for each class and each reject, then what failed and why."""
        counts = [*self.verdicts.items(), *([("not read", self.failures.count)] if self.failures.count else [])]
        width = max(len(name) for name, _ in counts)
        told = [
            *self.failures.lines("", f"; the {self._kept_in} give every reason"),
            *self.warnings.lines("warning: ", f"; the {self._kept_in} give every warning"),
            *self.undrawn.lines("no overlay: ", " without an overlay"),
        ]
        return [
            f"{sum(count for _, count in counts)} frames",
            *(f"  {name:<{width}}  {count:6}" for name, count in counts),
            *(f"  {line}" for line in told),
        ]


@contextmanager
def _results(
    args: argparse.Namespace, predictor: Predictor
) -> Iterator[Callable[[Prediction | FailedFrame, str], None]]:
    """A function that writes one result, of the frame of a path: as a JSON line, as a row, and into a store."""
    with ExitStack() as files:
        line = files.enter_context(json_lines(args.json)) if _writes_json(args) else None
        row = files.enter_context(parquet_rows(args.parquet)) if args.parquet is not None else None
        store = files.enter_context(open_writer(args.store, args.bundle, predictor)) if args.store is not None else None

        def write(result: Prediction | FailedFrame, path: str) -> None:
            if line is not None:
                line(result.to_dict())
            if row is not None:
                row(result.to_row(features=args.features))
            if store is not None:
                store.add(result, path=path)

        yield write


def _writes_json(args: argparse.Namespace) -> bool:
    return args.json is not None or (args.parquet is None and args.store is None)


def _kept_in(args: argparse.Namespace) -> str:
    return "JSON lines" if _writes_json(args) else "rows" if args.parquet is not None else "entries of the store"


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise PredictorError where results cannot or may not be written: before a frame is read."""
    if _writes_json(args) and args.json is None:
        require_stdout(TO_A_FILE)
    if args.parquet is not None:
        import_pyarrow()
    elif args.features:
        raise PredictorError("--features fills a column of a Parquet file: name one with --parquet")
    files = {"--json": args.json, "--parquet": args.parquet, "--store": args.store}
    _refuse_one_name({option: path for option, path in files.items() if path is not None})
    require_files([path for path in (args.json, args.parquet) if path is not None], force=args.force)
    if args.store is not None:
        require_store(args.store)
    if args.overlays is not None:
        require_folder(args.overlays)
        if args.overlays.exists() and any(args.overlays.iterdir()) and not args.force:
            raise PredictorError(f"{args.overlays} exists; add --force to replace it, or choose another name")


def _refuse_one_name(files: Mapping[str, Path]) -> None:
    """Raise PredictorError for two outputs in one file. files: by option."""
    first: dict[str, str] = {}
    for option, path in files.items():
        other = first.setdefault(os.path.realpath(path), option)
        if other != option:
            raise PredictorError(f"{other} and {option} are one file, {files[other]}: give two names")


def _refuse_archives(paths: Sequence[str]) -> None:
    """Raise PredictorError for what no frame is, and what --engine ray reads."""
    for path in paths:
        if ("://" in path or path.lower().endswith(".parquet")) and not Path(path).is_dir():
            kind = "a URI" if "://" in path else "a Parquet file"
            raise PredictorError(
                f"{path} is {kind}: --engine ray reads frames from there; add --engine ray --parquet DIR"
            )


def _refuse_inputs(args: argparse.Namespace, frames: Sequence[str]) -> None:
    """Raise PredictorError where an output would replace an input, or be taken for one."""
    if args.overlays is not None:
        _refuse_among_frames(args.overlays, frames)
    for path in (args.json, args.parquet, args.store):
        if path is not None and path.is_file():
            _refuse_an_input(path, frames, args.bundle)


def _refuse_among_frames(overlays: Path, frames: Sequence[str]) -> None:
    """Raise PredictorError if frames lie in the folder of overlays: the next run would judge the overlays."""
    folder = os.path.realpath(overlays)
    for parent in sorted({os.path.dirname(frame) for frame in frames}):  # noqa: PTH120  a lot may have 100,000 frames
        real = Path(os.path.realpath(parent))
        if folder == str(real) or folder in map(str, real.parents):
            raise PredictorError(f"{overlays} holds frames that are judged ({real}): choose another place for overlays")


def _refuse_an_input(target: Path, frames: Sequence[str], bundle: Path) -> None:
    """Raise PredictorError if what --force would replace is read by this very run."""
    real = os.path.realpath(target)
    if Path(os.path.realpath(bundle)) in Path(real).parents:
        raise PredictorError(f"{target} is a file of the bundle: choose another place for the results")
    if any(target.name in frame and os.path.realpath(frame.partition("#")[0]) == real for frame in frames):
        raise PredictorError(f"{target} is a frame that is judged: choose another place for the results")


def open_predictor(args: argparse.Namespace) -> Predictor:
    """By the bundle, and the options of `add_frame_options` and `add_engine_arguments`, with --batch-size."""
    return Predictor(
        args.bundle,
        **engine_options(args),
        recipe=args.recipe,
        batch_size=args.batch_size,
        white_level=args.white_level,
        pixel_size_nm=args.pixel_size,
        side_files=not args.no_side_files,
    )


def open_writer(store: Path, bundle: Path, predictor: Predictor) -> VerdictWriter:
    """A writer for what a Predictor answers from now on. Raises StoreError."""
    return VerdictWriter(store, Run.now(bundle, predictor.manifest.encoder.id, predictor.recipe))


class Inspect:
    """What a bundle or a recipe holds, with every hash checked."""

    help = "Check a bundle or a recipe, and print what it holds and which backends run here."
    example = "sem-clip inspect bundle\n  sem-clip inspect metal2.safetensors"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "target", type=Path, metavar="BUNDLE|RECIPE", help="bundle folder, or recipe file (.safetensors)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Print; a faulty bundle or recipe is one error that lists all faults."""
        target: Path = args.target
        if target.is_file():
            smoothing = "smoothing   by the bundle that runs this recipe"
            lines = [*recipe_lines(str(target), Recipe.load(target)), smoothing]
        else:
            lines = bundle_lines(target, *load_bundle(target, verify_all=True))
        for line in lines:
            print(printable(line))
        return 0


def _overlay_writer(folder: Path | None, frames: list[str]) -> Callable[[str, Prediction], object]:
    """A function of a frame and its prediction that writes its overlay; it returns why that failed, or None.

    The folder is made now: a place that cannot be is an error, and not a run without pictures.
    """
    if folder is None:
        return lambda *_: None
    names, target = _overlay_names(frames), folder
    target.mkdir(parents=True, exist_ok=True)

    def draw(frame: str, result: Prediction) -> object:
        path = target / names[frame]
        try:
            _save_overlay(result, path)
        except FrameError as exc:  # gone or changed since it was judged
            return exc
        except OSError as exc:  # a full disk, a name that is too long
            return f"{path}: {exc.strerror or exc}"
        return None

    return draw


def _overlay_names(frames: list[str]) -> dict[str, str]:
    """A file name for each frame: its own, with as many parent folders as it takes to tell them apart."""
    names: dict[str, str] = {}
    for depth in range(1, 1 + max((len(Path(frame).parts) for frame in frames), default=0)):
        names = {frame: _picture_name(Path(frame), depth) for frame in frames}
        if len({name.casefold() for name in names.values()}) == len(frames):
            return names
    return {frame: f"{index:06d}_{names[frame]}" for index, frame in enumerate(frames)}


def _picture_name(frame: Path, depth: int) -> str:
    """lot1/b.tif#2 becomes b-2.png, or lot1_b-2.png with one parent."""
    suffix, _, page = frame.suffix.partition("#")
    stem = frame.name[: -len(frame.suffix)] if suffix.lower() in SUFFIXES else frame.name.replace("#", "-")
    parents = [part for part in frame.parts[-depth:-1] if part not in ("/", "..")]
    return "_".join([*parents, stem]) + (f"-{page}" if page else "") + ".png"


def _save_overlay(result: Prediction, path: Path) -> None:
    picture = io.BytesIO()
    result.overlay().save(picture, "PNG", pnginfo=output_info())
    write_atomically(path, picture.getvalue())
