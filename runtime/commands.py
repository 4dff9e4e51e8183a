"""`sem-clip predict` and `sem-clip inspect`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .arguments import at_least
from .backends import NAMES, obstacles
from .errors import FrameError, PredictorError
from .files import require_folder, write_atomically
from .folders import find_frames as find_frames  # the place others import it from
from .folders import output_info
from .frames import SUFFIXES
from .manifest import load_bundle
from .operating_point import CHANGED_BY_HAND, VERDICTS
from .prediction import FailedFrame, Prediction
from .predictor import Predictor
from .recipe import SCALARS, Recipe

REASONS_SHOWN = 5
"""So many frames that could not be read are named with the reason after the run; the JSON lines have them all."""


class Predict:
    """Frames in, one JSON line each and overlays out."""

    help = "Classify and segment frames with a bundle."
    example = "sem-clip predict bundle frames/ --json verdicts.jsonl --overlays overlays/"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("bundle", type=Path, help="folder written by build_engine.py")
        parser.add_argument(
            "paths", nargs="+", metavar="PATH", help="frames (file.tif#3 is page 3), or folders, searched for frames"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON line a frame here, not to stdout")
        parser.add_argument(
            "--overlays", type=Path, metavar="DIR", help="write a picture of each frame with its defects"
        )
        parser.add_argument("--recipe", type=Path, help="judge by this recipe instead of the bundle's own")
        parser.add_argument("--backend", default="auto", help=f"{', '.join(NAMES)} (default: auto)")
        parser.add_argument("--precision", help="fp32, fp16 or int8 (default: fp16 on a GPU, else fp32)")
        parser.add_argument(
            "--white-level",
            type=_white_level,
            metavar="VALUE",
            help="of 16-bit frames, instead of the recipe's: 4095 where the tool stores 12 bits",
        )
        parser.add_argument("--batch-size", type=at_least(1), default=8, help="frames per engine run (default: 8)")
        parser.add_argument("--threads", type=at_least(0), default=0, help="cores for the engine (default: all)")
        parser.add_argument("--force", action="store_true", help="replace FILE, and write into a DIR that is not empty")

    def run(self, args: argparse.Namespace) -> int:
        """Predict; 1 if some frames failed."""
        if args.json is not None and args.json.is_dir():
            raise PredictorError(f"{args.json} is a folder; --json takes the name of a file")
        if args.overlays is not None and args.overlays.exists() and not args.overlays.is_dir():
            raise PredictorError(f"{args.overlays} is not a folder; --overlays takes the name of one")
        for path in (args.json, args.overlays):
            if path is None:
                continue
            require_folder(path.parent)
            if path.exists() and not args.force and not (path.is_dir() and not any(path.iterdir())):
                raise PredictorError(f"{path} exists; add --force to replace it, or choose another name")
        frames = find_frames(args.paths)
        from tqdm import tqdm  # a bar for people; the Predictor itself does not need it

        verdicts: Counter[str] = Counter()
        defects = 0
        failures: list[FailedFrame] = []
        undrawn: list[FrameError] = []
        with (
            Predictor(
                args.bundle,
                backend=args.backend,
                precision=args.precision,
                recipe=args.recipe,
                batch_size=args.batch_size,
                threads=args.threads,
                white_level=args.white_level,
            ) as predictor,
            _lines_to(args.json) as lines,
        ):
            print(predictor.backend.description, file=sys.stderr)
            names = _overlay_names(frames)
            answers = zip(frames, predictor.stream(frames), strict=True)
            for frame, result in tqdm(answers, total=len(frames), unit="frame", file=sys.stderr, disable=None):
                lines.write(json.dumps(result.to_dict()) + "\n")
                if isinstance(result, FailedFrame):
                    failures.append(result)
                    continue
                defects += result.is_defect
                verdicts[result.verdict] += 1
                if args.overlays is not None:
                    try:
                        _save_overlay(result, args.overlays / names[frame])
                    except FrameError as exc:  # gone or changed since it was judged
                        undrawn.append(exc)
        open_ones = ", ".join(f"{verdicts[name]} {name}" for name in VERDICTS)
        print(
            f"{len(frames)} frames: {defects} defects, {open_ones}, {len(failures)} could not be read", file=sys.stderr
        )
        for failure in failures[:REASONS_SHOWN]:
            print(f"  {failure.error}", file=sys.stderr)
        if len(failures) > REASONS_SHOWN:
            print(f"  and {len(failures) - REASONS_SHOWN} more; the JSON lines give every reason", file=sys.stderr)
        for error in undrawn[:REASONS_SHOWN]:
            print(f"  no overlay: {error}", file=sys.stderr)
        if len(undrawn) > REASONS_SHOWN:
            print(f"  and {len(undrawn) - REASONS_SHOWN} more without an overlay", file=sys.stderr)
        return 1 if failures or undrawn else 0


def _white_level(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must lie in [1, 65535], not {value}")
    return value


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
        encoder = manifest.encoder
        size = " x ".join(map(str, encoder.input_size))
        frames = f"exactly {size} (height x width)" if encoder.resizes_in_graph else f"any size, squashed to {size}"
        print(
            f"encoder     {encoder.architecture}, weights: {encoder.weights}{'' if encoder.trained else ' (UNTRAINED)'}"
        )
        print(f"            {encoder.layers} layers, width {encoder.width}, levels after {list(encoder.levels)}")
        print(f"            id {encoder.id[:16]}, checkpoint SHA-256 {encoder.checkpoint_sha256[:16]}")
        print(f"frames      {frames}")
        for artifact in manifest.artifacts:
            parity, target = artifact.parity, artifact.target
            print(f"artifact    {artifact.file}: {artifact.precision}, {artifact.bytes / 1e6:.1f} MB, SHA-256 correct")
            if artifact.kind == "engine":
                print(
                    f"            {target.get('product')} {target.get('version')}, compute capability "
                    f"{target.get('compute_capability')}, {target.get('os')}, batch {target.get('batch')}, up to "
                    f"{target.get('most_classes')} classes"
                )
                continue
            print(
                f"            parity on {parity.get('frames')} frames: probabilities "
                f"{_distance(parity.get('max_abs_probability'))}, map "
                f"{_distance(parity.get('max_abs_defect_map'))}, labels equal {parity.get('labels_equal')}"
            )
            attention = artifact.operators.get("Attention", 0)
            print(f"            {sum(artifact.operators.values())} operators, {attention} Attention")
        teaching, rows = recipe.teaching, recipe.frame
        print(f"recipe      {manifest.recipe_file}: {', '.join(recipe.classes)}; text from {recipe.text}")
        print(f"            shots {teaching.get('shots')}, seed {teaching.get('seed')}")
        print(f"            map taught by {teaching.get('map_taught_by')}")
        print(f"            {len(recipe.support_features)} supports")
        print(f"            rows ignored: {rows.ignore_top} at the top, {rows.ignore_bottom} at the bottom")
        scalars = zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True)
        print("            " + ", ".join(f"{name} {value:g}" for name, value in scalars))
        _print_operating_point(recipe)
        for name, why in obstacles(args.bundle, manifest).items():
            print(f"runs here   {name}: {f'no, {why}' if why else 'yes'}")
        for note in manifest.notes:
            print(f"note        {note}")
        return 0


def _print_operating_point(recipe: Recipe) -> None:
    point = recipe.operating_point
    print(f"verdicts    defect threshold {point.defect_threshold:.4f}, pixel threshold {point.pixel_threshold:.4f}")
    novelty = "never" if point.novelty_threshold is None else f"above novelty {point.novelty_threshold:.4f}"
    review = "also" if point.review_disagreement else "not"
    floors = ", ".join(f"{name} {value:.3f}" for name, value in point.confidence_thresholds.items())
    print(f"            temperature {point.temperature:.4g}; unknown: {novelty}")
    print(f"            cannot decide: below confidence {floors}; {review} where class and map disagree")
    by_hand = recipe.calibration.get(CHANGED_BY_HAND)
    edited = by_hand if isinstance(by_hand, list) else []
    for name in edited:
        print(f"            {name} changed by hand: no promise speaks of it")
    for name, section in recipe.calibration.items():
        if name not in edited and isinstance(section, dict) and "rule" in section:
            print(f"            {name} by {section['rule']}: {section.get('promise')}")
    if not recipe.calibration:
        print("            as taught, never calibrated")


def _distance(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, int | float) else "unknown"


def _overlay_names(frames: list[str]) -> dict[str, str]:
    """A file name for each frame: its own, with as many parent folders as it takes to tell them apart."""
    names: dict[str, str] = {}
    for depth in range(1, 1 + max(len(Path(frame).parts) for frame in frames)):
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


@contextmanager
def _lines_to(path: Path | None) -> Iterator[TextIO]:
    """stdout, or a file that appears under its name only once it is whole."""
    if path is None:
        yield sys.stdout
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            yield out
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
