"""Calibration as plain functions: from a request and scored frames to a recipe with a new operating point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime.changing import LOCK, holding
from runtime.errors import RecipeError
from runtime.fab.drift import REFERENCE, Collector, reference_record
from runtime.files import read_bounded, write_atomically
from runtime.jsonfields import Fields, listed, parse_json
from runtime.locking import locked
from runtime.manifest import REPLACED_MEANWHILE, bundle_of_recipe, load_bundle, replace_recipe
from runtime.operating_point import CHANGED_BY_HAND, OperatingPoint
from runtime.recipe import Recipe

from .dataset import GOOD
from .errors import CalibrationError
from .rejects import choose_for_max_reject, choose_for_purity, choose_novelty_threshold, purity_coverage
from .rules import F1_MAX, NEEDS_DEFECTS, Choice, Rule
from .scoring import Scored
from .temperature import choose_temperature, reliability
from .thresholds import choose_defect_threshold, choose_pixel_threshold

MAX_JSON_BYTES = 2**20
DEPENDS_ON = {
    "defect_threshold": {"class_share"},
    "confidence_thresholds": {
        "class_share",
        "defect_threshold",
        "temperature",
        "novelty_threshold",
        "review_disagreement",
    },
}
"""For each number of an operating point, the other numbers that its promise depends on."""


@dataclass(frozen=True, slots=True)
class Request:
    """The numbers to choose. None or False leaves a number unchanged. At most one of purity and max_reject."""

    defect_rule: Rule | None = None
    pixel_rule: Rule | None = None
    purity: float | None = None
    max_reject: float | None = None
    novelty_quantile: float | None = None
    temperature: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is requested."""
        return self == Request()

    @property
    def rejects(self) -> bool:
        """Whether confidence thresholds are requested."""
        return self.purity is not None or self.max_reject is not None


DEFAULT_REQUEST = Request(defect_rule=Rule(F1_MAX), temperature=True)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A recipe with its new operating point; choices by the name of the chosen number; rates before and after."""

    recipe: Recipe
    choices: Mapping[str, Choice]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def require_labels(request: Request, recipe: Recipe, labels: set[str], where: object, *, flat: bool) -> None:
    """Raise CalibrationError, before any frame is scored, if these frames cannot serve the request.

    labels: the classes that have frames.
    """
    asked = {
        "--temperature": request.temperature,
        "--purity": request.purity is not None,
        "--max-reject": request.max_reject is not None,
        "--novelty-quantile": request.novelty_quantile is not None,
    }
    needs_classes = [name for name, wanted in asked.items() if wanted]
    rules = {"--defect-rule": request.defect_rule, "--pixel-rule": request.pixel_rule}
    needs_defects = [f"{name} {rule}" for name, rule in rules.items() if rule and rule.name in NEEDS_DEFECTS]
    good_alone = "--defect-rule conformal=0.05, good-quantile=0.99 and max-overkill=0.02 need good frames only"
    if flat and (needs_classes or needs_defects):
        raise CalibrationError(
            f"{where} is a flat folder of frames without labels, and {', '.join(needs_defects + needs_classes)} needs "
            f"labelled ones (images/<class>/<frame>); {good_alone}"
        )
    if needs_defects and not labels - {GOOD}:
        raise CalibrationError(
            f"{where} holds good frames only, and {', '.join(needs_defects)} needs defects; {good_alone}"
        )
    if GOOD not in labels:
        raise CalibrationError(f"{where} holds no good frame that is not a support of this recipe")
    absent = [name for name in recipe.classes if name not in labels]
    if needs_classes and absent:
        raise CalibrationError(
            f"{where} holds no frames of {', '.join(absent)} (supports of the recipe left out), and "
            f"{', '.join(needs_classes)} needs frames of every class of the recipe: bring some, or name what to choose "
            f"without it, such as --defect-rule f1-max; {good_alone}"
        )
    _require_known(needs_classes, recipe, labels, where)
    _require_new_confidence(request, recipe)


def _require_known(needs_classes: list[str], recipe: Recipe, labels: set[str], where: object) -> None:
    foreign = sorted(labels - set(recipe.classes))
    if needs_classes and foreign:
        raise CalibrationError(
            f"{where} holds classes that the recipe does not know ({', '.join(foreign)}; it knows "
            f"{', '.join(recipe.classes)}), and {', '.join(needs_classes)} needs the recipe's own: rename or remove "
            "them"
        )


def _require_new_confidence(request: Request, recipe: Recipe) -> None:
    """Confidence thresholds are valid only at the temperature and the defect threshold that they were chosen at."""
    asked = {"--temperature": request.temperature, "--defect-rule": request.defect_rule is not None}
    moved = [name for name, wanted in asked.items() if wanted]
    if moved and not request.rejects and any(recipe.operating_point.confidence_thresholds.values()):
        raise CalibrationError(
            "the recipe's confidence thresholds were chosen at its old temperature and defect threshold, and are not "
            "valid at new ones: choose them again with --purity or --max-reject, or leave out "
            f"{' and '.join(moved)}"
        )


def calibrate(scored: Scored, recipe: Recipe, request: Request, data: Mapping[str, Any]) -> Calibrated:
    """Choose the requested numbers and put them into a new recipe; the rest of the operating point stays.

    data: the source of the frames, for the record. Raises CalibrationError as the rules do.
    """
    old = point = recipe.operating_point
    choices: dict[str, Choice] = {}
    if request.defect_rule:
        choices["defect_threshold"] = choose_defect_threshold(request.defect_rule, scored.score, scored.defect)
    if request.pixel_rule:
        assert scored.pixels is not None
        assert scored.good_pixels is not None
        assert scored.good_peaks is not None
        choices["pixel_threshold"] = choose_pixel_threshold(
            request.pixel_rule, scored.pixels, scored.good_pixels, scored.good_peaks
        )
    if request.temperature:
        choices["temperature"] = choose_temperature(scored.probabilities, scored.truth)
    if request.novelty_quantile is not None:
        choices["novelty_threshold"] = choose_novelty_threshold(scored.novelty, request.novelty_quantile)
    point = _applied(point, choices)
    # Last, because the numbers above decide which frames the confidence thresholds judge.
    if request.purity is not None:
        choices["confidence_thresholds"] = choose_for_purity(scored, point, request.purity)
    if request.max_reject is not None:
        choices["confidence_thresholds"] = choose_for_max_reject(scored, point, request.max_reject)
    point = _applied(point, choices)
    before, after = scored.summary(old), scored.summary(point)
    moved = _changed(old, point)
    record = {
        name: _void(value, DEPENDS_ON.get(name, set()) & {*moved})
        for name, value in recipe.calibration.items()
        if name != CHANGED_BY_HAND
    }
    by_hand = [name for name in _by_hand(recipe) if name not in choices]
    record |= {name: {**choice.to_dict(), "data": data.get("folder")} for name, choice in choices.items()}
    record |= {REFERENCE: _reference(scored, point), "data": dict(data), "before": before, "after": after}
    record |= {CHANGED_BY_HAND: by_hand} if by_hand else {}
    return Calibrated(replace(recipe, operating_point=point, calibration=record), choices, before, after)


def _reference(scored: Scored, point: OperatingPoint) -> dict[str, Any]:
    """What later lots are compared with, to find drift: scores, novelties and rejects by the class that is named."""
    frames = Collector()
    named = [scored.classes[k] for k in scored.named(point)]
    for answer in zip(named, scored.score.tolist(), scored.novelty.tolist(), scored.verdicts(point), strict=True):
        frames.add(*answer)
    return reference_record(frames.groups(), point)


def report(calibrated: Calibrated, scored: Scored, old: OperatingPoint) -> dict[str, Any]:
    """The whole result, JSON-ready: operating point, promises, rates, purity/coverage curve, reliability."""
    point = calibrated.recipe.operating_point
    document: dict[str, Any] = {
        "operating_point": {"before": old.to_dict(), "after": point.to_dict()},
        "calibration": dict(calibrated.recipe.calibration),
    }
    if (scored.truth >= 0).all() and not scored.flat:
        curve = purity_coverage(scored, point)
        document["purity_coverage"] = {name: getattr(curve, name).tolist() for name in curve.__dataclass_fields__}
        right = scored.head_class == scored.truth
        document["reliability"] = {
            name: [asdict(b) for b in reliability(scored.head_confidence(p.temperature), right)]
            for name, p in (("before", old), ("after", point))
        }
    return document


def load_recipe(target: Path) -> Recipe:
    """The recipe of a bundle folder, or a recipe file. Raises BundleError, RecipeError."""
    return load_bundle(target)[1] if target.is_dir() else Recipe.load(target)


@contextmanager
def changing_recipe(target: Path) -> Iterator[Recipe]:
    """The recipe of a bundle folder or a recipe file, locked against other writers while the block runs.

    Raises BundleError, RecipeError.
    """
    load_recipe(target)  # first, so that no lock file is left where there is no recipe
    bundle, file = _bundle_of(target), target.resolve()
    with holding(bundle) if bundle else locked(file.with_name(f".{file.name}{LOCK}"), target):
        yield load_recipe(target)


def store_recipe(target: Path, recipe: Recipe, *, instead_of: Recipe) -> None:
    """Replace the recipe of a bundle folder or a recipe file atomically.

    A file that is its bundle's recipe is replaced in that bundle. instead_of: the recipe that `recipe` was made from.
    Raises BundleError, RecipeError; nothing is written if another recipe is there by now.
    """
    bundle = _bundle_of(target)
    if bundle is not None:
        replace_recipe(bundle, recipe, instead_of=instead_of)
        return
    with changing_recipe(target) as present:
        if present.to_bytes() != instead_of.to_bytes():
            raise RecipeError(target, REPLACED_MEANWHILE)
        try:
            recipe.save(target)
        except OSError as exc:
            raise RecipeError(target, f"cannot be written ({exc.strerror})") from exc


def _bundle_of(target: Path) -> Path | None:
    return target.resolve() if target.is_dir() else bundle_of_recipe(target)


def write_operating_point(point: OperatingPoint, path: Path) -> None:
    """Write it as JSON that people can edit. Raises CalibrationError."""
    try:
        write_atomically(path, operating_point_json(point).encode())
    except OSError as exc:
        raise CalibrationError(f"{path}: cannot be written ({exc.strerror})") from exc


def operating_point_json(point: OperatingPoint) -> str:
    """The text of `write_operating_point`."""
    return json.dumps(point.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def apply_by_hand(recipe: Recipe, path: Path) -> tuple[Recipe, list[str]]:
    """The recipe with the operating point of an edited JSON file, and the names of what changed.

    The record names each changed number and each number chosen at the old values: earlier promises no longer hold for
    either. Raises RecipeError with all faults of the file.
    """
    faults: list[str] = []
    try:
        document = parse_json(read_bounded(path, MAX_JSON_BYTES, RecipeError), faults)
    except (ValueError, RecursionError) as exc:
        raise RecipeError(path, f"is not readable JSON ({exc})") from exc
    point = OperatingPoint.read(Fields(document, "operating_point", faults), recipe.classes)
    if faults:
        raise RecipeError(path, listed(faults))
    changed = _changed(recipe.operating_point, point)
    if not changed:
        return recipe, []
    voided = {name for name, depends_on in DEPENDS_ON.items() if name in recipe.calibration and depends_on & {*changed}}
    record = {**recipe.calibration, CHANGED_BY_HAND: sorted({*_by_hand(recipe), *changed, *voided})}
    return replace(recipe, operating_point=point, calibration=record), changed


def _applied(point: OperatingPoint, choices: Mapping[str, Choice]) -> OperatingPoint:
    return replace(point, **{name: choice.value for name, choice in choices.items()})


def _changed(old: OperatingPoint, new: OperatingPoint) -> list[str]:
    before = old.to_dict()
    return [name for name, value in new.to_dict().items() if value != before[name]]


def _void(section: Any, moved: set[str]) -> Any:
    """The record of an earlier choice; its promise becomes void if a number that it depends on has changed since."""
    if not moved or not isinstance(section, dict):
        return section
    kept = {name: section[name] for name in ("rule", "data") if name in section}
    return {**kept, "promise": f"void: chosen before {', '.join(sorted(moved))} changed"}


def _by_hand(recipe: Recipe) -> list[str]:
    """Numbers edited since their calibration. The record is informative, so malformed content is no error."""
    names = recipe.calibration.get(CHANGED_BY_HAND)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
