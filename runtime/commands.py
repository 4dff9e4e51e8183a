"""`sem-clip predict` and `sem-clip inspect`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from .arguments import MAX_THREADS, at_least
from .backends import NAMES, obstacles
from .errors import BundleError, FrameError, PredictorError
from .files import require_files, require_folder, write_atomically
from .folders import find_frames as find_frames  # the place others import it from
from .folders import output_info
from .frames import SUFFIXES
from .golden import load_golden
from .jsonlines import TO_A_FILE, json_lines
from .manifest import Artifact, Encoder, Manifest, load_bundle
from .operating_point import CHANGED_BY_HAND, VERDICTS
from .prediction import FailedFrame, Prediction
from .predictor import Predictor
from .recipe import SCALARS, Recipe
from .terminal import printable, require_stdout, show

_Answer: TypeAlias = "tuple[str, Prediction | FailedFrame]"

REASONS_SHOWN = 5
"""So many frames that could not be read are named with the reason after the run; the JSON lines have them all."""


class Predict:
    """Frames in, one JSON line each and overlays out. The field to act on is `verdict`."""

    help = "Classify and segment frames with a bundle. Act on the field `verdict` of each JSON line."
    example = "sem-clip predict bundle frames/ --json verdicts.jsonl --overlays overlays/"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="folder written by build_engine.py")
        parser.add_argument(
            "paths", nargs="+", metavar="PATH", help="frames (file.tif#3 is page 3), or folders, searched for frames"
        )
        parser.add_argument(
            "--json",
            type=Path,
            metavar="FILE",
            help="write one JSON line a frame here, not to stdout; a run that ends early leaves FILE.partial",
        )
        parser.add_argument(
            "--overlays", type=Path, metavar="DIR", help="write a picture of each frame with its defects"
        )
        parser.add_argument("--recipe", type=Path, help="judge by this recipe instead of the bundle's own")
        parser.add_argument("--backend", default="auto", help=f"{', '.join(NAMES)} (default: auto)")
        parser.add_argument("--precision", help="fp32, fp16 or int8 (default: fp16 on a GPU, else fp32)")
        parser.add_argument(
            "--white-level",
            type=at_least(1, 65535),
            metavar="VALUE",
            help="of 16-bit frames, instead of the recipe's: 4095 where the tool stores 12 bits",
        )
        parser.add_argument("--batch-size", type=at_least(1), default=8, help="frames per engine run (default: 8)")
        parser.add_argument(
            "--threads", type=at_least(0, MAX_THREADS), default=0, help="cores for the engine (default: all)"
        )
        parser.add_argument("--force", action="store_true", help="replace FILE, and write into a DIR that is not empty")

    def run(self, args: argparse.Namespace) -> int:
        """Predict; 1 if some frames failed."""
        unread: list[FrameError] = []
        _check_outputs(args)
        frames = find_frames(args.paths, unread)
        if args.overlays is not None:
            _refuse_among_frames(args.overlays, frames)
        if args.json is not None and args.json.is_file():
            _refuse_an_input(args.json, frames, args.bundle)
        names = _overlay_names(frames)
        predictor = Predictor(
            args.bundle,
            backend=args.backend,
            precision=args.precision,
            recipe=args.recipe,
            batch_size=args.batch_size,
            threads=args.threads,
            white_level=args.white_level,
        )
        with predictor, json_lines(args.json) as write:
            if args.overlays is not None:
                # Now: a place that cannot be is an error, and not a run without pictures.
                args.overlays.mkdir(parents=True, exist_ok=True)
            print(predictor.backend.description, file=sys.stderr)
            tally = Tally(predictor.recipe.classes)
            for error in unread:
                write(FailedFrame(error.source, error).to_dict())
                tally.failures.add(error)
            answers = zip(frames, predictor.stream(frames), strict=True)
            for frame, result in _with_bar(answers, len(frames)):
                write(result.to_dict())
                tally.add(result)
                if args.overlays is not None and isinstance(result, Prediction):
                    path = args.overlays / names[frame]
                    try:
                        _save_overlay(result, path)
                    except FrameError as exc:  # gone or changed since it was judged
                        tally.undrawn.add(exc)
                    except OSError as exc:  # a full disk, a name that is too long
                        tally.undrawn.add(f"{path}: {exc.strerror or exc}")
        for line in tally.lines():
            print(line, file=sys.stderr)
        return 1 if tally.failures.count or tally.undrawn.count else 0


@dataclass(slots=True)
class _Reasons:
    """How many there were, and the first few in words: an error itself would hold on to its frame's pixels."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, reason: object) -> None:
        self.count += 1
        if self.count <= REASONS_SHOWN:
            self.first.append(printable(reason))

    def lines(self, what: str, more: str) -> list[str]:
        """more: what to say of the others."""
        left = self.count - len(self.first)
        return [*(f"  {what}{reason}" for reason in self.first), *([f"  and {left} more{more}"] if left else [])]


class Tally:
    """What became of the frames of a run: how often each verdict was given, and what failed."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.verdicts: dict[str, int] = dict.fromkeys((*classes, *VERDICTS), 0)
        self.failures, self.warnings, self.undrawn = _Reasons(), _Reasons(), _Reasons()

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
        return [
            f"{sum(count for _, count in counts)} frames",
            *(f"  {name:<{width}}  {count:6}" for name, count in counts),
            *self.failures.lines("", "; the JSON lines give every reason"),
            *self.warnings.lines("warning: ", "; the JSON lines give every warning"),
            *self.undrawn.lines("no overlay: ", " without an overlay"),
        ]


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise PredictorError where results cannot or may not be written: before a frame is read."""
    if args.json is None:
        require_stdout(TO_A_FILE)
    else:
        require_files([args.json], force=args.force)
    if args.overlays is not None:
        require_folder(args.overlays)
        if args.overlays.exists() and any(args.overlays.iterdir()) and not args.force:
            raise PredictorError(f"{args.overlays} exists; add --force to replace it, or choose another name")


def _refuse_among_frames(overlays: Path, frames: Sequence[str]) -> None:
    """Raise PredictorError if frames lie in the folder of overlays: those would be taken for frames the next time."""
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


def _with_bar(answers: Iterable[_Answer], total: int) -> Iterable[_Answer]:
    from tqdm import tqdm  # a bar for people; the Predictor itself does not need it

    bar: Iterable[_Answer] = tqdm(answers, total=total, unit="frame", file=sys.stderr, disable=None)
    return bar


class Inspect:
    """What a bundle holds, with every hash checked."""

    help = "Check a bundle and say what is in it."
    example = "sem-clip inspect bundle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="folder written by build_engine.py")

    def run(self, args: argparse.Namespace) -> int:
        """Print; a faulty bundle is an error that lists all faults."""
        manifest, recipe = load_bundle(args.bundle, verify_all=True)
        for line in (
            *_encoder_lines(manifest.encoder),
            *(line for artifact in manifest.artifacts for line in _artifact_lines(artifact)),
            *_recipe_lines(manifest.recipe_file, recipe),
            *_operating_point_lines(recipe),
            f"golden      {_golden_line(args.bundle, manifest, recipe)}",
            *(
                f"runs here   {name}: {f'no, {why}' if why else 'yes'}"
                for name, why in obstacles(args.bundle, manifest).items()
            ),
            *(f"note        {note}" for note in manifest.notes),
        ):
            print(printable(line))
        return 0


def _encoder_lines(encoder: Encoder) -> list[str]:
    size = " x ".join(map(str, encoder.input_size))
    frames = f"exactly {size} (height x width)" if encoder.resizes_in_graph else f"any size, squashed to {size}"
    return [
        f"encoder     {encoder.architecture}, weights: {encoder.weights}{'' if encoder.trained else ' (UNTRAINED)'}",
        f"            {encoder.layers} layers, width {encoder.width}, levels after {list(encoder.levels)}",
        f"            id {encoder.id[:16]}, checkpoint SHA-256 {encoder.checkpoint_sha256[:16]}",
        f"V path      {'in the graph' if encoder.value_path else 'left out of the graph: recipes need lambda_v 0'}",
        f"frames      {frames}",
    ]


def _artifact_lines(artifact: Artifact) -> list[str]:
    target = {name: show(value) for name, value in artifact.target.items()}
    first = f"artifact    {artifact.file}: {artifact.precision}, {artifact.bytes / 1e6:.1f} MB, SHA-256 correct"
    if artifact.kind == "engine":
        return [
            first,
            f"            {target.get('product')} {target.get('version')}, compute capability "
            f"{target.get('compute_capability')}, {target.get('os')}, batch {target.get('batch')}, up to "
            f"{target.get('most_classes')} classes",
        ]
    parity = artifact.parity
    return [
        first,
        f"            parity on {show(parity.get('frames'))} frames: probabilities "
        f"{_distance(parity.get('max_abs_probability'))}, map {_distance(parity.get('max_abs_defect_map'))}, "
        f"labels equal {show(parity.get('labels_equal'))}",
        f"            {show(sum(artifact.operators.values()))} operators, "
        f"{show(artifact.operators.get('Attention', 0))} Attention",
    ]


def _recipe_lines(file: str, recipe: Recipe) -> list[str]:
    teaching, rows = recipe.teaching, recipe.frame
    scalars = zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True)
    return [
        f"recipe      {file}: {', '.join(recipe.classes)}; text from {recipe.text}",
        f"            shots {show(teaching.get('shots'))}, seed {show(teaching.get('seed'))}",
        f"            map taught by {show(teaching.get('map_taught_by'))}",
        f"            {len(recipe.support_features)} supports",
        f"            rows ignored: {rows.ignore_top} at the top, {rows.ignore_bottom} at the bottom",
        "            " + ", ".join(f"{name} {value:g}" for name, value in scalars),
    ]


def _operating_point_lines(recipe: Recipe) -> list[str]:
    point = recipe.operating_point
    novelty = "never" if point.novelty_threshold is None else f"above novelty {point.novelty_threshold:.4f}"
    review = "also" if point.review_disagreement else "not"
    floors = ", ".join(f"{name} {value:.3f}" for name, value in point.confidence_thresholds.items())
    lines = [
        f"verdicts    defect threshold {point.defect_threshold:.4f}, pixel threshold {point.pixel_threshold:.4f}",
        f"            defect score: {1 - point.class_share:.4g} x map + {point.class_share:.4g} x (1 - P(good))",
        f"            temperature {point.temperature:.4g}; unknown: {novelty}",
        f"            cannot decide: below confidence {floors}; {review} where class and score disagree",
    ]
    by_hand = recipe.calibration.get(CHANGED_BY_HAND)
    edited = by_hand if isinstance(by_hand, list) else []
    lines += [f"            {show(name)} changed by hand: no promise speaks of it" for name in edited]
    for name, section in recipe.calibration.items():
        if name not in edited and isinstance(section, dict) and "rule" in section:
            lines.append(f"            {name} by {show(section['rule'])}: {show(section.get('promise'))}")
    return lines if recipe.calibration else [*lines, "            as taught, never calibrated"]


def _golden_line(bundle: Path, manifest: Manifest, recipe: Recipe) -> str:
    """Of golden frames that are missing or damaged too: nothing but `verify` needs them."""
    try:
        golden = load_golden(bundle, manifest, recipe)
    except BundleError as exc:
        return f"no frames to verify engines by: {'; '.join(exc.faults)}"
    made_up = " (made-up patterns)" if golden.source == "patterns" else ""
    return f"{show(manifest.golden and manifest.golden.file)}: {len(golden.frames)} frames{made_up}, SHA-256 correct"


def _distance(value: object) -> str:
    try:
        return f"{value:.1e}" if isinstance(value, int | float) else "unknown"
    except OverflowError:  # a whole number, which JSON has of any size
        return show(value)


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
