"""Folder data sets: `images/<class>/`, optional `masks/<class>/`, optional `groups.csv`. Used by all but the runtime.

A folder with `carinthia-s.csv` is read as that set is distributed (`calibration.carinthia`).

groups.csv has at least the columns path (as `images/<class>/<file>`), class and group. Frames of one group share a
physical origin (a wafer site, a tile, a paper's figure), so what is learnt on some of them says little about others.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import FrameError
from runtime.frames import SUFFIXES, read_frame
from runtime.operating_point import is_verdict, unprintable
from runtime.recipe import MAX_CLASSES, FrameOptions

from . import carinthia
from .errors import DatasetError

GOOD = "good"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled frame. mask is None where no truth exists; a good frame without a mask is known to be clean."""

    path: Path
    label: str
    group: str
    mask: Path | None

    def read(self, options: FrameOptions) -> NDArray[np.uint8]:
        """The whole frame, grey uint8 [H, W]. Raises FrameError."""
        return read_frame(self.path, options)

    def read_mask(self, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
        """The mask as 0/1 uint8 of the frame's `shape`; zeros for a good frame without one; None if unknown.

        White (128 and above) is defect. The mask of a defect frame that is black throughout shows no one where the
        defect is: None. Raises DatasetError if it is unreadable, of another size, or holds numbers instead of white.
        """
        if self.mask is None:
            return np.zeros(shape, np.uint8) if self.label == GOOD else None
        try:
            pixels = read_frame(self.mask)
        except FrameError as exc:
            raise DatasetError(self.mask, f"the mask cannot be read: {exc.reason}") from exc
        if pixels.shape != shape:
            raise DatasetError(
                self.mask,
                f"the mask is {pixels.shape[0]}x{pixels.shape[1]}, its frame {self.path} {shape[0]}x{shape[1]}",
            )
        mask = (pixels >= 128).astype(np.uint8)
        if self.label != GOOD and not mask.any():
            if pixels.any():
                raise DatasetError(
                    self.mask, f"the mask's brightest value is {pixels.max()}: white (255) is defect, black (0) is not"
                )
            return None
        return mask


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled frames. classes: `good` first, the others by name. stray: files that were left out of it.

    flat: the folder held frames and no classes, and they were taken to be good.
    """

    folder: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    stray: tuple[Path, ...] = field(default=())
    flat: bool = False

    def of_class(self, label: str) -> list[Sample]:
        """All frames of a class."""
        return [sample for sample in self.samples if sample.label == label]

    def only(self, classes: Sequence[str]) -> Dataset:
        """The same set without its other classes. Raises DatasetError for names it does not hold, or too few."""
        faults = [
            f'there is no class "{name}"; there are: {", ".join(self.classes)}'
            for name in classes
            if name not in self.classes
        ] or _class_faults(sorted({*classes}), good_only=False)
        if faults:
            raise DatasetError(self.folder, faults)
        kept = tuple(name for name in self.classes if name in classes)
        return replace(self, classes=kept, samples=tuple(x for x in self.samples if x.label in kept))


def load_frames(folder: str | Path) -> Dataset:
    """Frames to calibrate on: a data folder, also one of good frames alone, or a flat folder of good frames.

    Raises DatasetError with all faults.
    """
    folder = Path(folder)
    if (folder / "images").is_dir() or not folder.is_dir():
        return load_dataset(folder, good_only=True)
    frames = _frames_in(folder)
    if not frames:
        raise DatasetError(
            folder, f"holds neither images/<class>/ nor, as a flat folder of good frames, any {', '.join(SUFFIXES)}"
        )
    stray = tuple(sorted(set(folder.iterdir()) - set(frames)))
    samples = tuple(Sample(path, GOOD, path.name, None) for path in frames)
    return Dataset(folder, (GOOD,), samples, stray, flat=True)


def load_dataset(folder: str | Path, *, good_only: bool = False) -> Dataset:
    """List a data folder and check everything that can be checked without decoding the frames.

    good_only: accept a folder without a defect class. Raises DatasetError with all faults.
    """
    folder = Path(folder)
    if (folder / carinthia.TABLE).is_file():
        samples = [Sample(path, label, path.name, mask) for path, label, mask in carinthia.read_table(folder)]
        classes = tuple(dict.fromkeys(sample.label for sample in samples))
        faults = _class_faults(classes, good_only=good_only)
        if faults:
            raise DatasetError(folder, faults)
        return Dataset(folder, classes, tuple(samples))
    images = folder / "images"
    if not images.is_dir():
        raise DatasetError(folder, "there is no folder images/ in it; expected images/<class>/<frame>.png")
    faults = []
    stray = sorted(path for path in images.iterdir() if not path.is_dir())
    folders = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = [path.name for path in folders]
    faults += _class_faults(names, good_only=good_only)
    masks = _index_masks(folder, names, faults)
    groups = _read_groups(folder, faults)
    samples = []
    for label in sorted(names, key=lambda name: (name != GOOD, name)):
        frames = _frames_in(images / label)
        stray += sorted(set((images / label).iterdir()) - set(frames))
        if not frames:
            faults.append(f"images/{label} holds no frames ({', '.join(SUFFIXES)})")
        for path in frames:
            key = f"images/{label}/{path.name}"
            group = key if groups is None else groups.pop(key, "")
            if not group:
                faults.append(f"groups.csv has no group for {key}")
            samples.append(Sample(path, label, group, masks.get((label, path.stem))))
    faults += [f"groups.csv names {key}, which is not there" for key in groups or ()]
    faults += _mask_faults(masks, samples)
    if faults:
        raise DatasetError(folder, faults)
    classes = tuple(dict.fromkeys(sample.label for sample in samples))
    return Dataset(folder, classes, tuple(samples), tuple(stray))


def _class_faults(names: Sequence[str], *, good_only: bool) -> list[str]:
    faults = []
    if GOOD not in names:
        faults.append(f"there is no class {GOOD} (a folder images/{GOOD} of frames without a defect)")
    if not set(names) - {GOOD} and not good_only:
        faults.append("there is no defect class: one folder images/<class> for each")
    if len(names) > MAX_CLASSES:
        faults.append(f"there are {len(names)} classes, more than {MAX_CLASSES}")
    faults += [f'no class may be called "{name}": that is a verdict' for name in names if is_verdict(name)]
    faults += [f"no class may be called {name!a}: it cannot be printed" for name in names if unprintable(name)]
    by_folded: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folded[name.casefold().strip()].append(name)
    faults += [f"two classes have one name: {', '.join(same)}" for same in by_folded.values() if len(same) > 1]
    return faults


def _index_masks(folder: Path, labels: Sequence[str], faults: list[str]) -> dict[tuple[str, str], Path]:
    """Masks by (class, file stem)."""
    masks: dict[tuple[str, str], Path] = {}
    if not (folder / "masks").is_dir():
        return masks
    loose = _frames_in(folder / "masks")
    if loose:
        faults.append(f"masks/ holds {len(loose)} files such as {loose[0].name}; expected masks/<class>/<frame>.png")
    for inner in sorted(path for path in (folder / "masks").iterdir() if path.is_dir()):
        if inner.name not in labels:
            faults.append(f"masks/{inner.name} belongs to no class of images/")
            continue
        for path in _frames_in(inner):
            if masks.setdefault((inner.name, path.stem), path) != path:
                faults.append(f"masks {masks[inner.name, path.stem]} and {path.name} are for one frame")
    return masks


def _mask_faults(masks: Mapping[tuple[str, str], Path], samples: Sequence[Sample]) -> list[str]:
    """Masks without a frame, and masks with two: the name without its suffix is all that ties them."""
    frames: dict[Path, list[str]] = {path: [] for path in masks.values()}
    for sample in samples:
        if sample.mask is not None:
            frames[sample.mask].append(sample.path.name)
    faults = [f"mask {path} belongs to no frame" for path, names in frames.items() if not names]
    shared = {path: names for path, names in frames.items() if len(names) > 1}
    return faults + [f"mask {path} belongs to several frames: {', '.join(names)}" for path, names in shared.items()]


def _frames_in(folder: Path) -> list[Path]:
    """Image files by their suffix. Hidden ones are not meant: macOS leaves a `._a.png` beside `a.png` on shares."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _read_groups(folder: Path, faults: list[str]) -> dict[str, str] | None:
    """Group by path, or None without a groups.csv."""
    path = folder / "groups.csv"
    if not path.exists():
        return None
    groups: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets begin UTF-8 with a mark
            rows = csv.DictReader(stream)
            lacking = {"path", "class", "group"} - set(rows.fieldnames or ())
            if lacking:
                faults.append(f"groups.csv lacks the columns {', '.join(sorted(lacking))}")
                return None
            for line, row in enumerate(rows, start=2):
                key, label, group = (row[name] or "" for name in ("path", "class", "group"))
                parts = key.split("/")
                if len(parts) != 3 or parts[0] != "images":
                    faults.append(f'groups.csv line {line}: "{key}" is not images/<class>/<file>')
                elif parts[1] != label:
                    faults.append(f"groups.csv line {line}: {key} is labelled {label}")
                elif key in groups:
                    faults.append(f"groups.csv line {line}: {key} appears twice")
                else:
                    groups[key] = group.strip()
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        faults.append(f"groups.csv cannot be read: {exc}")
        return None
    return groups
