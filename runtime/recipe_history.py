"""The recipes that a bundle has had, with a note each: accept another one, and go back.

    recipes/history.jsonl           one line for each change, oldest first (runtime.line_log)
    recipes/<SHA-256>.safetensors   every recipe that a line names

The folder lies in the bundle, and its manifest does not name it: bundles without one open as ever, and the runtime
never reads it. Recipes and lines are never removed. A recipe that came into the bundle in another way, by `calibrate`
for example, gets a line of its own before the next change, so that none is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .changing import holding
from .encoder import sha256_field
from .errors import BackendError, BackendUnavailable, BundleError, RecipeError
from .files import sha256_of, write_atomically
from .golden_renewal import renewed_golden
from .jsonfields import MAX_WHOLE, Fields
from .line_log import MAX_NAME, LineLog, now, read_lines, user_name
from .manifest import load_bundle, replace_recipe
from .operating_point import unprintable
from .recipe import MAX_CLASSES, Recipe

FOLDER, FILE = "recipes", "history.jsonl"
HEAD = {"format": "sem-clip-recipes", "version": 1}
MAX_NOTE = 1000
UNJUDGED = "unjudged"
"""In a recipe's `teaching`: why no comparison with the recipe before tells whether it is better."""
_log = logging.getLogger("sem_clip")
FOUND, ACCEPTED, BACK = "found", "accepted", "back"
"""What a line tells: the recipe was there already; it was accepted; the bundle went back to it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A line of the history. number: of the line, from 1. when: ISO 8601, UTC. action: FOUND, ACCEPTED or BACK.

    sha256: of the recipe (`Recipe.sha256`), which names its file. back_to: number of the line that BACK restores.
    """

    number: int
    when: str
    who: str
    action: str
    note: str
    sha256: str
    classes: tuple[str, ...]
    back_to: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "classes": list(self.classes)}


def read_history(bundle: str | Path) -> list[Kept]:
    """The lines of a bundle's history, oldest first; none where it has no history. Raises BundleError."""
    path = _place(Path(bundle)) / FILE
    return _kept(path, read_lines(path, HEAD, BundleError)) if path.is_file() else []


def accept(bundle: str | Path, recipe: str | Path | Recipe, note: str, who: str = "") -> Kept:
    """Make a recipe, or that of a file, the bundle's own, and keep the one before. Returns the new line.

    The golden frames get the new recipe's answers where onnxruntime is installed (`golden_renewal`); else a warning
    says that they keep those of an earlier recipe. Thresholds come with the recipe, calibrated or not.
    note: why, in one line of MAX_NOTE characters at most. who: by default the user of this process.
    Raises RecipeError for a recipe that the bundle's encoder cannot run; BundleError for a note that is too long, where
    the bundle holds this recipe already, and where another process changes it. Then nothing is changed.
    """
    taken = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    load_bundle(bundle)[0].encoder.check(taken, where="recipe" if isinstance(recipe, Recipe) else str(recipe))
    return _change(Path(bundle), note, who, ACCEPTED, taken)


def go_back(bundle: str | Path, number: int, note: str = "", who: str = "") -> Kept:
    """Make the recipe of the history's line `number` the bundle's own again. Returns the new line. Raises as `accept`.

    BundleError also where there is no such line, or where its recipe is damaged.
    """
    folder = Path(bundle)
    lines = read_history(folder)
    if not 1 <= number <= len(lines):
        there = f"its lines are 1 to {len(lines)}" if lines else "it has no history"
        raise BundleError(folder, f"there is no recipe {number} to go back to: {there}")
    return _change(folder, note, who, BACK, read_kept(folder, lines[number - 1]), number)


def read_kept(bundle: Path, line: Kept) -> Recipe:
    """The recipe of a line. Raises BundleError where its file is gone or damaged."""
    path = _file_of(bundle, line.sha256)
    try:
        recipe = Recipe.load(path)
    except RecipeError as exc:
        raise BundleError(path, [f"recipe {line.number} of the history: {fault}" for fault in exc.faults]) from exc
    if recipe.sha256() != line.sha256:
        raise BundleError(path, f"is not recipe {line.number} of the history: it has another SHA-256")
    return recipe


def _change(bundle: Path, note: str, who: str, action: str, recipe: Recipe, number: int | None = None) -> Kept:
    """Keep the recipe that is there, put `recipe` in its place, and write a line of it."""
    if len(note) > MAX_NOTE or (note and unprintable(note)):
        raise BundleError(bundle, f"a note is one line of {MAX_NOTE} characters at most that can be printed")
    bundle = bundle.resolve()
    with holding(bundle):
        present = load_bundle(bundle)[1]
        if present.sha256() == recipe.sha256():
            raise BundleError(bundle, f"holds this recipe already ({recipe.sha256()[:12]}): nothing was changed")
        folder = _place(bundle)
        with LineLog(folder / FILE, HEAD, BundleError) as log:
            lines = _kept(log.path, log.entries)
            if not lines or lines[-1].sha256 != present.sha256():
                _keep(bundle, present)
                lines.append(_line(len(lines) + 1, FOUND, present, "", who))
                log.add(_stored(lines[-1]))
            _keep(bundle, recipe)
            replace_recipe(bundle, recipe, instead_of=present, golden=_golden(bundle, present, recipe))
            made = _line(len(lines) + 1, action, recipe, note, who, number)
            log.add(_stored(made))  # last: the history never tells of what was not done
    return made


def _golden(bundle: Path, old: Recipe, new: Recipe) -> bytes | None:
    """The golden frames by the new recipe, if an engine of this host can answer them; else a warning says why not."""
    manifest = load_bundle(bundle)[0]
    if manifest.golden is None:
        return None
    try:
        return renewed_golden(bundle, manifest, old, new)
    except (BackendUnavailable, BackendError, BundleError) as exc:
        _log.warning("%s: the golden frames keep the answers of another recipe, so `verify` refuses: %s", bundle, exc)
        return None


def _line(number: int, action: str, recipe: Recipe, note: str, who: str, back_to: int | None = None) -> Kept:
    return Kept(number, now(), who or user_name(), action, note, recipe.sha256(), recipe.classes, back_to)


def _stored(line: Kept) -> dict[str, Any]:
    return {name: value for name, value in line.to_dict().items() if name != "number"}


def _keep(bundle: Path, recipe: Recipe) -> None:
    """Write a recipe's file, unless it is there."""
    path = _file_of(bundle, recipe.sha256())
    try:
        if not path.is_file() or sha256_of(path) != recipe.sha256():
            write_atomically(path, recipe.to_bytes())
    except OSError as exc:
        raise BundleError(path, f"cannot be written ({exc.strerror})") from exc


def _place(bundle: Path) -> Path:
    """The history's folder. Raises BundleError for a link that leads out of the bundle."""
    folder = bundle / FOLDER
    if folder.is_symlink() and not folder.resolve().is_relative_to(bundle.resolve()):
        raise BundleError(bundle, f"{FOLDER} is a link that leads out of the bundle: put the folder itself there")
    return folder


def _file_of(bundle: Path, sha256: str) -> Path:
    return _place(bundle) / f"{sha256}.safetensors"


def _kept(path: Path, entries: list[dict[str, Any]]) -> list[Kept]:
    """The lines of the file's entries. Raises BundleError with all faults."""
    faults: list[str] = []
    lines = [_read(number, entry, faults) for number, entry in enumerate(entries, 1)]
    if faults:
        raise BundleError(path, faults[:20])
    return lines


def _read(number: int, entry: Mapping[str, Any], faults: list[str]) -> Kept:
    fields = Fields(entry, f"line {number + 1}", faults)
    texts = {name: fields.text(name) for name in ("when", "who", "action")}
    if any(unprintable(text) or len(text) > MAX_NAME for text in texts.values()):
        fields.fault("who", f"and when and action must be 1 to {MAX_NAME} characters that can be printed")
    note = entry.get("note")
    if not isinstance(note, str) or len(note) > MAX_NOTE or (note and unprintable(note)):
        fields.fault("note", f"must be a text of {MAX_NOTE} characters at most that can be printed")
    back_to = None if entry.get("back_to") is None else fields.whole("back_to", 1, MAX_WHOLE)
    line = Kept(
        number,
        **texts,
        note=note if isinstance(note, str) else "",
        sha256=sha256_field(fields, "sha256"),
        classes=fields.texts("classes", MAX_CLASSES),
        back_to=back_to,
    )
    known = {*Kept.__dataclass_fields__} - {"number"}
    faults += [f"line {number + 1}.{name[:80]} is not known to this version" for name in entry if name not in known]
    return line
