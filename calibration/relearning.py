"""Teaching again: which frames teach, and which judge the recipe before and after.

What taught the old recipe teaches again, and so do the corrected frames. One in HELD_OUT of these is held out by its
content, and stays so in later rounds, for which the recipe records it. The old and the new recipe are judged on it, and
on the frames of the data folder that taught neither. Frames are known by their content (`calibration.contents`), so a
copy is the same frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import FrameError
from runtime.files import sha256_of
from runtime.folders import one_name
from runtime.operating_point import same_name_key
from runtime.recipe import MAX_CLASSES, FrameOptions, Recipe

from .contents import content_sha256, judged_content
from .corrections import Correction, CorrectionLog
from .dataset import GOOD, Dataset, Sample
from .errors import CorrectionError

HELD_OUT = 5
"""One corrected frame in so many judges and never teaches."""
LEAST = 10
"""Of so many corrected frames at least one is held out."""
HELD = "held_out"
"""In a recipe's `teaching`: SHA-256 of the corrected frames that were held out, in this round or before."""
SUPPORTS = "support_sha256"
"""In a recipe's `teaching`: SHA-256 of each support."""
CORRECTED = "corrected"
"""In a recipe's `teaching`: the corrected frames that taught it, with class and mask."""


@dataclass(frozen=True, slots=True)
class Known:
    """A labelled frame and the SHA-256 of its content. corrected: whether a person has said what it is."""

    sample: Sample
    content: str
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class Relearning:
    """What to teach again, and on what to judge it.

    classes: those of the old recipe in their order, then new ones. supports: class by class. judged: frames that taught
    neither recipe. notes: what may not have been expected, one line each. held: contents of corrected frames that may
    never teach.
    """

    classes: tuple[str, ...]
    supports: tuple[Known, ...]
    judged: tuple[Known, ...]
    notes: tuple[str, ...]
    held: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """Why the comparison tells little or nothing; "" if it does tell."""
        if not self.judged:
            return "there is nothing to compare the recipes on, since every frame taught: nothing tells which is better"
        if not any(known.corrected for known in self.judged):
            return f"no corrected frame judges, so the rates tell little: of {LEAST} or more, one is held out"
        return ""

    def dataset(self, folder: Path) -> Dataset:
        """The supports as a set."""
        return Dataset(folder, self.classes, tuple(known.sample for known in self.supports))

    def shots(self) -> dict[str, int]:
        """The number of supports of every class."""
        counts = Counter(known.sample.label for known in self.supports)
        return {label: counts[label] for label in self.classes}

    def record(self, folder: Path) -> list[dict[str, Any]]:
        """For the recipe: the corrected frames that taught it, to find them again with their class and mask."""
        return [
            {
                "frame": name_in(folder, known.sample),
                "class": known.sample.label,
                "group": known.sample.group,
                "mask": None if known.sample.mask is None else str(known.sample.mask.absolute()),
            }
            for known in self.supports
            if known.corrected
        ]


def plan_relearning(old: Recipe, dataset: Dataset, log: CorrectionLog, options: FrameOptions) -> Relearning:
    """Choose the frames.

    dataset: the data folder that holds the old recipe's supports. options: how frames are read, which the corrected
    ones must have been read by when they were judged. Raises CorrectionError with all faults.
    """
    faults: list[str] = []
    there = _contents(dataset, faults)
    corrected = _corrected(log, there, options, faults)
    taught = _taught(old, dataset, there, log, faults)
    if faults:
        raise CorrectionError(log.path, faults)
    digests = _contents_in(old, SUPPORTS)
    kept = [known for known in taught if known.content not in corrected]
    before = _contents_in(old, HELD)
    held = _held_out(corrected, kept, digests, before)
    supports = [*kept, *(known for content, known in corrected.items() if content not in held)]
    classes = _classes(old, supports, faults)
    if faults:
        raise CorrectionError(log.path, faults)
    ordered = [known for label in classes for known in supports if known.sample.label == label]
    taken = {known.content for known in supports} | set(digests)
    judged = {content: corrected[content] for content in held}
    for known in there:
        if known.content not in taken:
            judged.setdefault(known.content, known)
    notes = _notes(len(taught) - len(kept), len(digests) - len(taught), held, ordered, list(judged.values()))
    every = dict.fromkeys([*before, *held])
    return Relearning(classes, tuple(ordered), tuple(judged.values()), tuple(notes), tuple(every))


def name_in(folder: Path, sample: Sample) -> str:
    """The name of a support in a recipe: its path in the data folder, or the whole path of one that lies elsewhere."""
    inside = sample.path.is_relative_to(folder)
    return sample.path.relative_to(folder).as_posix() if inside else str(sample.path)


def is_held_out(content: str) -> bool:
    """Whether a corrected frame of this content judges."""
    return int(content[:16], 16) % HELD_OUT == 0


def _contents(dataset: Dataset, faults: list[str]) -> list[Known]:
    """The frames of the data folder with their content."""
    found = []
    for sample in dataset.samples:
        try:
            found.append(Known(sample, sha256_of(sample.path)))
        except OSError as exc:
            faults.append(f"{sample.path}: cannot be read ({exc.strerror})")
    return found


def _corrected(
    log: CorrectionLog, there: Sequence[Known], options: FrameOptions, faults: list[str]
) -> dict[str, Known]:
    """The corrected frames by their content; of one picture under two names the newer correction, if both agree."""
    of_folder = {known.content: known.sample for known in there}
    found: dict[str, Known] = {}
    for correction in log.current().values():
        try:
            content = judged_content(correction.frame, correction.checksum, options)
            mask = log.mask_path(correction)
        except FrameError as exc:
            faults.append(str(exc))
            continue
        except CorrectionError as exc:
            faults += exc.faults
            continue
        twin = found.get(content)
        if twin is not None and twin.sample.label != correction.new:
            faults.append(
                f"{correction.frame} is {correction.new} and {twin.sample.path} is {twin.sample.label}, and both are "
                "one picture: correct one of them"
            )
        found[content] = Known(_sample(correction, mask, of_folder.get(content)), content, corrected=True)
    return found


def _sample(correction: Correction, mask: Path | None, of_folder: Sample | None) -> Sample:
    """A corrected frame. One of the data folder keeps its group there, and its mask unless a new one was drawn."""
    path, group = Path(correction.frame), correction.group
    if of_folder is not None:
        path, group = of_folder.path, of_folder.group
        if mask is None and correction.new != GOOD != of_folder.label:
            mask = of_folder.mask
    return Sample(path, correction.new, group, mask)


def _contents_in(old: Recipe, name: str) -> list[str]:
    recorded = old.teaching.get(name)
    return [str(digest) for digest in recorded] if isinstance(recorded, list) else []


def _taught(
    old: Recipe, dataset: Dataset, there: Sequence[Known], log: CorrectionLog, faults: list[str]
) -> list[Known]:
    """The old recipe's supports, found by name and content; without those whose correction was taken back since."""
    names, digests = old.teaching.get("supports"), _contents_in(old, SUPPORTS)
    if not isinstance(names, list) or len(names) != len(digests) or not digests:
        faults.append("the old recipe does not record which frames taught it: teach it anew with `sem-clip teach`")
        return []
    by_name = {one_name(name_in(dataset.folder, known.sample)): known for known in there}
    by_content = {known.content: known.sample.path for known in there}
    stated, taken_back = _stated(old), _contents_of(log.taken_back())
    found: list[Known] = []
    for name, digest in zip(map(str, names), digests, strict=True):
        if name in stated:
            if digest not in taken_back:
                _add_stated(name, digest, stated[name], dataset.folder, found, faults)
        elif (known := by_name.get(one_name(name))) is None:
            where = f"; the same picture is {by_content[digest]} now" if digest in by_content else ""
            faults.append(f"{name}, which taught the old recipe, is not in {dataset.folder}{where}")
        elif known.content != digest:
            faults.append(f"{name} is not the picture that taught the old recipe: its content has changed")
        else:
            found.append(known)
    return found


def _contents_of(frames: Iterable[str]) -> set[str]:
    """The contents of those frames that can be read."""
    found = set()
    for frame in frames:
        with suppress(OSError):
            found.add(content_sha256(frame))
    return found


def _stated(old: Recipe) -> dict[str, Mapping[str, Any]]:
    """By name what the old recipe records of corrected frames. Odd entries count as absent."""
    entries = old.teaching.get(CORRECTED)
    sound = entries if isinstance(entries, list) else []
    return {str(e.get("frame")): e for e in sound if isinstance(e, dict) and isinstance(e.get("class"), str)}


def _add_stated(
    name: str, digest: str, entry: Mapping[str, Any], folder: Path, found: list[Known], faults: list[str]
) -> None:
    """A frame that was corrected in an earlier round; this file of corrections need not name it."""
    path = folder / name  # `name` itself where it is a whole path
    mask = Path(str(entry["mask"])) if entry.get("mask") else None
    try:
        if content_sha256(path) != digest:
            faults.append(f"{path} is not the picture that taught the old recipe: its content has changed")
            return
        if mask is not None and not mask.is_file():
            faults.append(f"{mask}, the mask of {path}, is gone")
            return
    except OSError as exc:
        faults.append(f"{path}, which taught the old recipe, cannot be read ({exc.strerror})")
        return
    group = str(entry.get("group") or path.parent)
    found.append(Known(Sample(path, str(entry["class"]), group, mask), digest, corrected=True))


def _held_out(
    corrected: Mapping[str, Known], kept: Sequence[Known], digests: Sequence[str], earlier: Sequence[str]
) -> list[str]:
    """Contents of the corrected frames that judge. earlier: those that were held out in earlier rounds.

    What taught the old recipe cannot judge it. A class that nothing else would teach is taught by its first frame,
    unless that was held out before. Where none of LEAST frames or more would judge, the first one that its class can
    spare does.
    """
    free, before = corrected.keys() - set(digests), set(earlier)
    held = [content for content in corrected if content in free and (content in before or is_held_out(content))]
    teach = Counter(known.sample.label for known in kept)
    teach.update(known.sample.label for content, known in corrected.items() if content not in held)
    for content in sorted(set(held) - before):
        if not teach[label := corrected[content].sample.label]:
            teach[label] = 1
            held.remove(content)
    if not held and len(corrected) >= LEAST:
        held = [content for content in sorted(free) if teach[corrected[content].sample.label] > 1][:1]
    return held


def _classes(old: Recipe, supports: Sequence[Known], faults: list[str]) -> tuple[str, ...]:
    """The old classes, then new ones by name."""
    labels = {known.sample.label for known in supports}
    faults += [
        f"no frame is left that teaches {name}: all of its supports were corrected to another class"
        for name in old.classes
        if name not in labels
    ]
    classes = (*old.classes, *sorted(labels - set(old.classes)))
    taken = {same_name_key(name): name for name in old.classes}
    faults += [
        f'"{name}" and "{taken[same_name_key(name)]}" would be two classes; write the name as the recipe does'
        for name in classes[len(old.classes) :]
        if same_name_key(name) in taken
    ]
    if len(classes) > MAX_CLASSES:
        faults.append(f"there would be {len(classes)} classes, more than {MAX_CLASSES}")
    return classes


def _notes(
    overruled: int, taken_back: int, held: Sequence[str], supports: Sequence[Known], judged: Sequence[Known]
) -> list[str]:
    notes = []
    if overruled:
        notes.append(f"{overruled} supports of the old recipe were corrected or confirmed: they teach what that says")
    if taken_back > 0:
        notes.append(f"{taken_back} supports of the old recipe are left out: their corrections were taken back")
    corrected = sum(known.corrected for known in supports)
    notes.append(f"{corrected} corrected frames teach, {len(held)} are held out to judge")
    labels = {known.sample.label for known in supports}
    untaught = sorted({known.sample.label for known in judged if known.corrected} - labels)
    notes += [f"nothing teaches {name}: its frames are held out, so correct one more" for name in untaught]
    groups = {known.sample.group for known in supports}
    near = sum(known.sample.group in groups for known in judged)
    if near:
        notes.append(f"{near} of {len(judged)} frames that judge are of the same groups as supports, and so easier")
    return notes
