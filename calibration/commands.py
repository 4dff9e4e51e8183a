"""`sem-clip calibrate` and `sem-clip operating-point`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from runtime import Predictor
from runtime.files import require_files, write_atomically
from runtime.operating_point import VERDICTS
from runtime.options import add_bundle_argument, add_engine_arguments, engine_options
from runtime.recipe import Recipe
from runtime.terminal import require_stdout

from .calibrate import (
    DEFAULT_REQUEST,
    Calibrated,
    Request,
    apply_by_hand,
    calibrate,
    changing_recipe,
    load_recipe,
    operating_point_json,
    report,
    require_labels,
    store_recipe,
    write_operating_point,
)
from .dataset import Sample, load_frames, say_left_out
from .errors import CalibrationError
from .plots import draw_purity_coverage, draw_reliability, require_matplotlib
from .rules import DEFECT_RULES, PIXEL_RULES, Rule
from .scoring import Scored, count_labels, leave_out_supports, rate_text, score_frames


class Calibrate:
    """Frames of known class in, an operating point into the recipe."""

    help = "Choose thresholds, rejects and temperature on frames of known class, and store them in the recipe."
    example = (
        "sem-clip calibrate bundle frames/ --defect-rule conformal=0.05 --purity 0.98 --temperature\n"
        "  sem-clip calibrate bundle good-frames/ --defect-rule good-quantile=0.99"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_bundle_argument(parser)
        parser.add_argument(
            "data",
            type=Path,
            metavar="DATA",
            help="folder of frames: images/<class>/ and optional masks/<class>/, or a flat folder of good frames",
        )
        parser.add_argument(
            "--recipe",
            type=Path,
            metavar="FILE",
            help="calibrate this recipe, as `sem-clip teach` writes it (default: the bundle's own)",
        )
        _add_choices(parser)
        out = parser.add_argument_group("output")
        out.add_argument(
            "--plots", type=Path, metavar="DIR", help="write purity_coverage.png and reliability.png (needs labels)"
        )
        out.add_argument("--report", type=Path, metavar="FILE.json", help="write all figures and curves")
        out.add_argument(
            "--force", action="store_true", help="replace pictures and FILE.json if they are there (default: refuse)"
        )
        add_engine_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Score, choose, print what changed, store."""
        request = _request(args)
        pictures = _pictures(args.plots)
        require_files([*pictures, *([args.report] if args.report else [])], force=args.force)
        if args.plots:
            require_matplotlib()
        target: Path = args.recipe or args.bundle
        with changing_recipe(target) as recipe:
            self._calibrate(args, request, pictures, target, recipe)
        return 0

    def _calibrate(
        self, args: argparse.Namespace, request: Request, pictures: list[Path], target: Path, recipe: Recipe
    ) -> None:
        dataset = load_frames(args.data)
        say_left_out(dataset)
        fresh, supports = leave_out_supports(dataset, recipe)
        counts = count_labels(fresh)
        require_labels(request, recipe, set(counts), args.data, flat=dataset.flat)
        _print_data_notes(fresh, supports, recipe, flat=dataset.flat)
        with Predictor(args.bundle, recipe=recipe, **engine_options(args)) as predictor:
            print(predictor.backend.description, file=sys.stderr)
            scored = score_frames(
                predictor, fresh, pixels=request.pixel_rule is not None, flat=dataset.flat, show_progress=True
            )
            engine = predictor.backend.description
        data = {
            "folder": args.data.name or str(args.data),
            "frames": counts,
            "supports_left_out": len(supports),
            "engine": engine,
        }
        done = calibrate(scored, recipe, request, data)
        _write_files(args, pictures, done, scored, recipe)
        store_recipe(target, done.recipe, instead_of=recipe)
        _print_choices(done, recipe)
        _print_rates(done)
        print(f"\nwritten   {target}; edit it by hand with: sem-clip operating-point {target} --write point.json")


class EditOperatingPoint:
    """The operating point as plain JSON: print, write, put back."""

    help = "Print a recipe's operating point as JSON, write it to a file to edit, or put an edited one back."
    example = (
        "sem-clip operating-point bundle --write point.json\n"
        "  sem-clip operating-point bundle --apply point.json        (after editing point.json)"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "target", type=Path, metavar="RECIPE|BUNDLE", help="recipe file (.safetensors), or bundle folder"
        )
        way = parser.add_mutually_exclusive_group()
        way.add_argument("--write", type=Path, metavar="FILE.json", help="write it to a file, to edit it")
        way.add_argument("--apply", type=Path, metavar="FILE.json", help="put an edited file back into the recipe")
        parser.add_argument(
            "--force", action="store_true", help="replace the file of --write if it is there (default: refuse)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Print, write or apply."""
        if args.apply:
            with changing_recipe(args.target) as recipe:
                return self._apply(args, recipe)
        recipe = load_recipe(args.target)
        if args.write:
            require_files([args.write], force=args.force)
            write_operating_point(recipe.operating_point, args.write)
            print(
                f"written {args.write}; put it back with: sem-clip operating-point {args.target} --apply {args.write}"
            )
        else:
            require_stdout("name a file with --write")
            print(operating_point_json(recipe.operating_point), end="")
        return 0

    def _apply(self, args: argparse.Namespace, recipe: Recipe) -> int:
        edited, changed = apply_by_hand(recipe, args.apply)
        if changed:
            store_recipe(args.target, edited, instead_of=recipe)
        old, new = recipe.operating_point.to_dict(), edited.operating_point.to_dict()
        for name in changed:
            print(f"{name}: {json.dumps(old[name])} -> {json.dumps(new[name])}")
        print(f"{args.target}: {'written' if changed else 'nothing changed'}")
        return 0


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Declare the rules by which thresholds, rejects and temperature are chosen."""
    what = parser.add_argument_group("what to choose (default: --defect-rule f1-max --temperature)")
    what.add_argument(
        "--defect-rule",
        metavar="RULE",
        help="how to choose the threshold of the defect score: f1-max; max-overkill=0.02 (share of good frames "
        "called defective); max-underkill=0.01 (share of defects missed); good-quantile=0.99; or conformal=0.05 "
        "(promised overkill). All but f1-max and max-underkill need good frames only",
    )
    what.add_argument(
        "--pixel-rule",
        metavar="RULE",
        help="how to choose the threshold of the map's pixels: f1-max (needs masks); good-quantile=0.999 (of the "
        "pixels of good frames); or conformal=0.05 (share of good frames that reach it anywhere)",
    )
    rejects = what.add_mutually_exclusive_group()
    rejects.add_argument(
        "--purity",
        type=_share,
        metavar="P",
        help="share in (0, 1] of decided frames that must be right; the least confident others stay undecided",
    )
    rejects.add_argument(
        "--max-reject",
        type=_share,
        metavar="R",
        help="largest share in (0, 1] of frames to leave undecided: the least confident ones",
    )
    what.add_argument(
        "--novelty-quantile",
        type=_share,
        metavar="Q",
        help="frames more novel than this share in (0, 1] of the data become `unknown`; 0.99 or more is usual",
    )
    what.add_argument(
        "--temperature", action="store_true", help="scale probabilities so that they match the observed accuracy"
    )


def _request(args: argparse.Namespace) -> Request:
    request = Request(
        defect_rule=Rule.parse(args.defect_rule, DEFECT_RULES) if args.defect_rule else None,
        pixel_rule=Rule.parse(args.pixel_rule, PIXEL_RULES) if args.pixel_rule else None,
        purity=args.purity,
        max_reject=args.max_reject,
        novelty_quantile=args.novelty_quantile,
        temperature=args.temperature,
    )
    return DEFAULT_REQUEST if request.empty else request


def _print_data_notes(fresh: list[Sample], supports: list[Sample], recipe: Recipe, *, flat: bool) -> None:
    if flat:
        print(f"no labels: all {len(fresh)} frames are taken to be good", file=sys.stderr)
    if supports:
        print(f"left out, supports of this recipe: {len(supports)} frames", file=sys.stderr)
    elif "support_sha256" not in recipe.teaching:
        print("the recipe does not record which frames taught it: none could be left out", file=sys.stderr)
    taught = {sample.group for sample in supports}
    near = sum(sample.group in taught for sample in fresh)
    if near:
        print(
            f"note: {near} frames are of the same groups as supports, and so easier than new frames; the promises "
            "below are optimistic",
            file=sys.stderr,
        )
    groups = Counter(sample.group for sample in fresh)
    if len(groups) < len(fresh):
        print(
            f"note: {len(fresh)} frames come from {len(groups)} groups; frames of one group are alike, so a promise "
            "with 95% confidence holds with less",
            file=sys.stderr,
        )


def _print_choices(done: Calibrated, recipe: Recipe) -> None:
    old, new = recipe.operating_point.to_dict(), done.recipe.operating_point.to_dict()
    for name, choice in done.choices.items():
        print(f"{name} by {choice.rule}")
        if isinstance(new[name], dict):
            width = max(map(len, new[name]))
            for inner, value in new[name].items():
                print(f"    {inner:<{width}}  {_number(old[name][inner])} -> {_number(value)}")
        else:
            print(f"    {_number(old[name])} -> {_number(new[name])}")
        print(f"    {choice.promise}")


def _print_rates(done: Calibrated) -> None:
    names = ("overkill", "underkill", "purity", "coverage", *VERDICTS, "ece")
    print(f"\n{'on these frames':<16}{'before':>24}{'after':>24}")
    for name in names:
        shown = name.upper() if name == "ece" else name
        print(f"{shown:<16}{rate_text(done.before[name]):>24}{rate_text(done.after[name]):>24}")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _pictures(folder: Path | None) -> list[Path]:
    return [folder / "purity_coverage.png", folder / "reliability.png"] if folder else []


def _write_files(
    args: argparse.Namespace, pictures: list[Path], done: Calibrated, scored: Scored, recipe: Recipe
) -> None:
    old, new = recipe.operating_point, done.recipe.operating_point
    try:
        if pictures and (scored.flat or (scored.truth < 0).any()):
            print("no pictures: they need labelled frames, all of the recipe's classes", file=sys.stderr)
        elif pictures:
            write_atomically(pictures[0], draw_purity_coverage(scored, old, new))
            write_atomically(pictures[1], draw_reliability(scored, old, new))
        if args.report:
            write_atomically(args.report, (json.dumps(report(done, scored, old), indent=1) + "\n").encode())
    except OSError as exc:
        raise CalibrationError(f"cannot write {exc.filename or args.plots or args.report} ({exc.strerror})") from exc


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number') from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in (0, 1], not {text}")
    return value
