"""`sem-clip teach --corrections`: the old recipe's supports and the corrected frames teach a new recipe.

Both recipes are then judged on frames that taught neither. The old one stays in use until the new one is accepted
(`sem-clip recipes BUNDLE --accept FILE`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calibration.before_after import BeforeAfter, compare_recipes
from calibration.corrections import CorrectionLog
from calibration.dataset import Dataset, load_dataset, say_left_out
from calibration.relearning import CORRECTED, HELD, Relearning, plan_relearning
from runtime import Predictor
from runtime.files import require_other_files, write_atomically
from runtime.frame_options import FRAME_OPTION_RANGES
from runtime.manifest import Manifest, load_bundle
from runtime.recipe import FrameOptions, Recipe
from runtime.recipe_history import UNJUDGED
from runtime.terminal import printable

from .encoders import encoder_of_bundle, require_no_recipe_of_bundle, require_value_path, take_encoder_of
from .errors import ExportError
from .model.checkpoint import require_one_source
from .options import TEACHING_DEFAULTS, VIEWS, frame_options, tiling
from .progress import Stages
from .teach import METHODS, TeachRequest, teach_recipe
from .teaching.prompts import Prompts, RecordedPrompts, load_prompts
from .teaching.settings import TeachSettings, Temperatures
from .teaching.support_cache import open_cache
from .teaching.text_bars import find_text_bars

AGAIN = "taught_again_from"
"""In a recipe's `teaching`: SHA-256 of the recipe that it follows."""


def teach_again(args: argparse.Namespace) -> int:
    """Teach, judge before and after, write the recipe and print what to type next."""
    require_no_recipe_of_bundle(args.out)
    if args.data is None:
        raise ExportError("--corrections needs --data, the folder of the frames that taught the old recipe")
    if args.shots is not None:
        raise ExportError("--shots draws frames; with --corrections those of the old recipe teach: leave it out")
    inputs = [args.corrections, *(path for path in (args.recipe, args.prompts, args.weights) if path is not None)]
    require_other_files([args.out, *([args.json] if args.json is not None else [])], inputs)
    manifest, own = load_bundle(args.bundle)
    old = own if args.recipe is None else Recipe.load(args.recipe)
    manifest.encoder.check(old, where=str(args.recipe or args.bundle))
    take_encoder_of(manifest.encoder, args)
    require_one_source(args.arch, args.weights, args.pretrained, args.random_weights or None)
    dataset = load_dataset(args.data)
    say_left_out(dataset)
    options = _frame_options(args, old, dataset)
    with CorrectionLog(args.corrections, write=False) as log:
        plan = plan_relearning(old, dataset, log, options)
    for note in plan.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    recipe = _taught(args, manifest, old, plan, _request(args, old, plan, options, manifest))
    judged = _judge(args, old, recipe, plan)
    if args.json is not None:  # before the output names the file
        write_atomically(args.json, (json.dumps(_document(old, recipe, plan, judged), indent=1) + "\n").encode())
    recipe.save(args.out)
    _say(args, old, recipe, plan, judged)
    return 0


def _taught(
    args: argparse.Namespace, manifest: Manifest, old: Recipe, plan: Relearning, request: TeachRequest
) -> Recipe:
    """The new recipe, with a record of the corrected frames."""
    require_value_path(args, manifest.encoder, request.settings)
    cache, stages = open_cache(args.support_cache), Stages()
    with stages.stage("load encoder"):
        model, graph = encoder_of_bundle(args, manifest.encoder)
    recipe = teach_recipe(model, graph, request, stages, cache)
    record: dict[str, Any] = {CORRECTED: plan.record(args.data), HELD: list(plan.held), AGAIN: old.sha256()}
    if plan.warning:
        record[UNJUDGED] = plan.warning
    recipe = replace(recipe, teaching={**recipe.teaching, **record})
    manifest.encoder.check(recipe, where=str(args.out))
    return recipe


def _request(
    args: argparse.Namespace, old: Recipe, plan: Relearning, options: FrameOptions, manifest: Manifest
) -> TeachRequest:
    """What to teach, as the old recipe was taught unless the arguments say otherwise. Raises ExportError."""
    shots = plan.shots()
    tiles = tiling(args)
    return TeachRequest(
        plan.dataset(args.data),
        _prompts(args, old),
        next(iter(shots.values())) if len(set(shots.values())) == 1 else shots,
        _whole(args.seed, old, "seed", 0, TEACHING_DEFAULTS["seed"]),
        options if tiles is None else replace(options, tile=0, overlap=0, whole=False),
        _settings(args, old),
        views=_whole(args.views, old, "views", 1, VIEWS),
        smoothing_px=manifest.smoothing_px,
        tiling=tiles,
        supports=tuple(known.sample for known in plan.supports),
    )


def _whole(given: int | None, old: Recipe, name: str, least: int, default: Any) -> int:
    """A whole number of the arguments, else of the old recipe, else the default, which is then said."""
    if given is not None:
        if given < least:
            raise ExportError(f"--{name} must be at least {least}")
        return given
    recorded = old.teaching.get(name)
    if isinstance(recorded, int) and not isinstance(recorded, bool) and recorded >= least:
        return recorded
    print(f"note: the old recipe does not record its {name}: {default} is taken (--{name})", file=sys.stderr)
    return int(default)


def _settings(args: argparse.Namespace, old: Recipe) -> TeachSettings:
    if args.method is not None:
        return METHODS[args.method][0]
    recorded = old.teaching.get("settings")
    try:
        if not isinstance(recorded, Mapping):
            raise TypeError("there are none")
        return TeachSettings(**{**recorded, "temperatures": Temperatures(**recorded["temperatures"])})
    except (TypeError, ValueError, KeyError) as exc:
        raise ExportError(
            f"the old recipe's settings are none of this version ({exc}): name a method with --method"
        ) from exc


def _prompts(args: argparse.Namespace, old: Recipe) -> Prompts:
    """The old recipe's prompts, and those of the shipped file for new classes; or those of --prompts alone."""
    prompts = load_prompts(args.prompts)
    recorded = old.teaching.get("prompts")
    if args.prompts is not None or not isinstance(recorded, Mapping):
        return prompts
    sound = {
        str(name): [str(phrase) for phrase in phrases]
        for name, phrases in recorded.items()
        if isinstance(phrases, list) and phrases
    }
    return RecordedPrompts.of(sound, prompts)


def _frame_options(args: argparse.Namespace, old: Recipe, dataset: Dataset) -> FrameOptions:
    """The old recipe's, with what the arguments change. Raises ExportError."""
    names = [name for name, *_ in FRAME_OPTION_RANGES]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    rows = {"ignore_top", "ignore_bottom"} & given.keys()
    if args.ignore and rows:
        raise ExportError("--ignore auto finds the rows: leave out --ignore-top and --ignore-bottom")
    for name in names:  # `frame_options` checks them
        if getattr(args, name) is None:
            setattr(args, name, getattr(old.frame, name))
    ignore, args.ignore = args.ignore, None
    checked = frame_options(args)
    changed: dict[str, Any] = {name: getattr(checked, name) for name in names}
    if args.pixel_size is not None:
        changed["pixel_size_nm"] = checked.pixel_size_nm
    if rows:
        changed["bars"] = None
    options = replace(old.frame, **changed)
    if ignore == "auto":
        bars = find_text_bars(dataset, replace(options, ignore_top=0, ignore_bottom=0, bars=None))
        print(bars.summary(), file=sys.stderr)
        options = replace(options, ignore_top=bars.top, ignore_bottom=bars.bottom, bars=bars)
    return options


def _judge(args: argparse.Namespace, old: Recipe, new: Recipe, plan: Relearning) -> BeforeAfter | None:
    with Predictor(args.bundle, recipe=old) as predictor:
        return compare_recipes(predictor, old, new, plan.judged, show_progress=True)


def _document(old: Recipe, new: Recipe, plan: Relearning, judged: BeforeAfter | None) -> dict[str, Any]:
    return {
        "old_recipe": old.sha256(),
        "new_recipe": new.sha256(),
        "classes": list(new.classes),
        "new_classes": list(new.classes[len(old.classes) :]),
        "supports": plan.shots(),
        "notes": list(plan.notes),
        "warning": plan.warning or None,
        "judged": None if judged is None else judged.to_dict(),
    }


def _say(args: argparse.Namespace, old: Recipe, new: Recipe, plan: Relearning, judged: BeforeAfter | None) -> None:
    for line in [] if judged is None else judged.lines():
        print(line)
    if plan.warning:
        print(f"warning: {plan.warning}")
    if old.calibration:
        print("note: the old recipe was calibrated and the new one is not: `sem-clip calibrate` does it")
    added = new.classes[len(old.classes) :]
    new_names = ", ".join(added)
    print(f"recipe {args.out}: {', '.join(new.classes)}{f'; new: {new_names}' if added else ''}")
    print(f'next:  sem-clip recipes {args.bundle} --accept {args.out} --note "..."')
