"""Data folders: `images/<class>/`, optional `masks/<class>/`, optional `groups.csv` (`calibration.groups`).

The mask of a frame has the frame's name, with or without `_mask`, and any suffix. MVTec's layout is read as well:
`train/good`, `test/<class>` and `ground_truth/<class>`; its two parts become one set. A folder with `carinthia-s.csv`
is read as that set is distributed (`calibration.carinthia`). Names are equal in every Unicode form (NFC, NFD).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import FrameError
from runtime.folders import MASK_SUFFIX, Listing, is_folder, list_folder, one_name, pages_in
from runtime.frames import SUFFIXES, read_frame
from runtime.operating_point import is_verdict, same_name_key, unprintable
from runtime.recipe import MAX_CLASSES, FrameOptions
from runtime.terminal import printable

from . import carinthia, masks
from .errors import DatasetError
from .groups import GROUPS, read_groups

GOOD = "good"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled frame. mask: None where no truth is stored. A good frame without a mask counts as clean."""

    path: Path
    label: str
    group: str
    mask: Path | None

    def read(self, options: FrameOptions) -> NDArray[np.uint8]:
        """The whole frame, grey uint8 [H, W]. Raises FrameError."""
        return read_frame(self.path, options)

    def read_mask(self, shape: tuple[int, int], ignored: tuple[int, int] = (0, 0)) -> NDArray[np.uint8] | None:
        """The mask as 0/1 uint8 of the frame's `shape`; zeros for a good frame without one; None if unknown.

        `calibration.masks` defines which pixels are defect. None also for a mask of a defect frame that is black but
        for `ignored` rows (at the top, at the bottom): it does not show where the defect is. Raises DatasetError if the
        mask is unreadable, of another size, of more than two values, or marks a defect in a good frame.
        """
        if self.mask is None:
            return np.zeros(shape, np.uint8) if self.label == GOOD else None
        stored = masks.read_mask(self.mask)
        if stored.shape != shape:
            raise DatasetError(
                self.mask,
                f"the mask is {stored.shape[0]}x{stored.shape[1]}, its frame {self.path} {shape[0]}x{shape[1]}",
            )
        marked = masks.defect_pixels(stored)
        if self.label == GOOD and marked.any():
            raise DatasetError(
                self.mask, f"the mask marks {np.count_nonzero(marked)} pixels as defect, and its frame is {GOOD}"
            )
        return marked if self.label == GOOD or marked[ignored[0] : shape[0] - ignored[1]].any() else None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled frames. classes: `good` first, the others by name. stray: files that were left out.

    flat: the folder held frames without class folders, and they count as good.
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
        """The same set with these classes only. Raises DatasetError for unknown names, or too few."""
        wanted = [one_name(name) for name in classes]
        faults = [
            f'there is no class "{name}"; there are: {", ".join(self.classes)}'
            for name in wanted
            if name not in self.classes
        ] or _class_faults(sorted({*wanted}), good_only=False)
        if faults:
            raise DatasetError(self.folder, faults)
        kept = tuple(name for name in self.classes if name in wanted)
        return replace(self, classes=kept, samples=tuple(x for x in self.samples if x.label in kept))


@dataclass(frozen=True, slots=True)
class _Layout:
    """The folders of a data folder that hold the class folders, and the folder of the masks."""

    roots: tuple[str, ...]
    truth: str


def load_frames(folder: str | Path) -> Dataset:
    """Frames to calibrate on: a data folder, possibly of good frames alone, or a flat folder of good frames.

    Raises DatasetError with all faults.
    """
    folder = Path(folder)
    if not is_folder(folder) or _layout_of(folder) or carinthia.is_here(folder):
        return load_dataset(folder, good_only=True)
    faults: list[str] = []
    found = _list(folder, faults)
    faults += _page_faults(found.frames)
    if not found.frames and not faults:
        faults.append(f"holds neither images/<class>/ nor, as a flat folder of good frames, any {', '.join(SUFFIXES)}")
    if faults:
        raise DatasetError(folder, faults)
    samples = tuple(Sample(path, GOOD, path.name, None) for path in found.frames)
    return Dataset(folder, (GOOD,), samples, tuple(sorted([*_stray_of(found), *found.masks])), flat=True)


def load_dataset(folder: str | Path, *, good_only: bool = False) -> Dataset:
    """List a data folder and check it as far as is possible without decoding the frames.

    good_only: accept a folder without a defect class. Raises DatasetError with all faults.
    """
    folder = Path(folder)
    if carinthia.is_here(folder):
        rows, unnamed = carinthia.read_table(folder)
        samples = [Sample(path, label, path.name, mask) for path, label, mask in rows]
        classes = tuple(dict.fromkeys(sample.label for sample in samples))
        faults = _class_faults(classes, good_only=good_only)
        if faults:
            raise DatasetError(folder, faults)
        return Dataset(folder, classes, tuple(samples), tuple(unnamed))
    layout = _layout_of(folder)
    if layout is None:
        raise DatasetError(
            folder, f"there is no folder images/ in it; expected images/<class>/<frame>.png{_held(folder)}"
        )
    faults, stray = [], list[Path]()
    _look_beside(folder, layout, faults, stray)
    places = _class_folders(folder, layout, faults, stray)
    names = list(dict.fromkeys(place.name for place in places))
    faults += _class_faults(names, good_only=good_only, root=layout.roots[-1])
    truths = _index_masks(folder, layout, {one_name(place.name) for place in places}, faults, stray)
    groups = read_groups(folder, layout.roots, faults)
    samples = []
    for place in sorted(places, key=lambda place: (one_name(place.name) != GOOD, one_name(place.name))):
        samples += _samples_of(place, layout, truths, groups, faults, stray)
    faults += [f"groups.csv names {key}, which is not there" for key in groups or ()]
    faults += _mask_faults(truths, samples)
    if faults:
        raise DatasetError(folder, faults)
    classes = tuple(dict.fromkeys(sample.label for sample in samples))
    return Dataset(folder, classes, tuple(samples), tuple(stray))


def say_left_out(dataset: Dataset) -> None:
    """List the unused files of the folder on stderr."""
    for path in dataset.stray:
        print(f"left out, not a frame: {printable(path)}", file=sys.stderr)


def _layout_of(folder: Path) -> _Layout | None:
    if is_folder(folder / "images"):
        return _Layout(("images",), "masks")
    if is_folder(folder / "test") and [path.name for path in _list(folder / "train", []).folders] == [GOOD]:
        return _Layout(("train", "test"), "ground_truth")
    return None


def _held(folder: Path) -> str:
    """The folder names in `folder`, for users who named its parent or a child; or the reason it cannot be listed."""
    faults: list[str] = []
    names = [path.name for path in _list(folder, faults).folders]
    instead = f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "".join(faults[:1])
    return f"; {instead}" if instead else ""


def _list(folder: Path, faults: list[str]) -> Listing:
    """The listing of a folder. An unreadable entry is a fault: a set with gaps is another set."""
    try:
        found = list_folder(folder)
    except FrameError as exc:
        faults.append(str(exc))
        return Listing()
    faults += [str(error) for error in found.unread]
    return found


def _stray_of(found: Listing) -> list[Path]:
    """Entries of a folder of frames that are not frames, except hidden and system folders."""
    return sorted([*found.folders, *found.outputs, *found.others, *found.hidden])


def _look_beside(folder: Path, layout: _Layout, faults: list[str], stray: list[Path]) -> None:
    """Report entries next to the folders of the layout: masks in a folder of another name would be missed silently."""
    found = _list(folder, [])
    known = {*layout.roots, layout.truth, GROUPS}
    for path in sorted([*found.folders, *found.others]):
        meant = path.name.lower()
        if meant in known and path.name not in known:
            faults.append(f"{path.name} is not used under this name; call it {meant}")
    unread = [Path(error.source) for error in found.unread]
    stray += sorted([path for path in [*found.folders, *unread] if path.name not in known] + found.frames + found.masks)


def _class_folders(folder: Path, layout: _Layout, faults: list[str], stray: list[Path]) -> list[Path]:
    places: list[Path] = []
    for root in layout.roots:
        found = _list(folder / root, faults)
        stray += sorted([*found.frames, *found.masks, *found.outputs, *found.others, *found.hidden])
        places += found.folders
    own: dict[Path, Path] = {}
    for place in places:
        if own.setdefault(place.resolve(), place) != place:
            faults.append(f"{place} and {own[place.resolve()]} are one folder, by a link")
    return places


def _samples_of(
    place: Path,
    layout: _Layout,
    truths: Mapping[tuple[str, str], Path],
    groups: dict[str, str] | None,
    faults: list[str],
    stray: list[Path],
) -> list[Sample]:
    """The frames of one class folder. Removes the groups in use from `groups`."""
    label, where = one_name(place.name), f"{place.parent.name}/{one_name(place.name)}"
    found = _list(place, faults)
    stray += _stray_of(found)
    if not found.frames:
        faults.append(f"{where} holds no frames ({', '.join(SUFFIXES)})")
    faults += [
        f"{where}/{path.name} is named like the mask of a frame in its folder; masks belong in {layout.truth}/{label}/"
        for path in found.masks
    ]
    faults += _page_faults(found.frames)
    samples: dict[str, Sample] = {}
    for path in found.frames:
        key, stem = f"{where}/{one_name(path.name)}", one_name(path.stem)
        if key in samples:
            faults.append(f"two frames have one name, in two Unicode forms: {key}")
            continue
        group = key if groups is None else groups.pop(key, "")
        if not group:
            faults.append(f"groups.csv has no group for {key}")
        plain, marked = truths.get((label, stem)), truths.get((label, stem + MASK_SUFFIX))
        if plain and marked:
            faults.append(f"masks {plain} and {marked.name} are for one frame")
        samples[key] = Sample(path, label, group, plain or marked)
    return list(samples.values())


def _page_faults(frames: Sequence[Path]) -> list[str]:
    """Faults of files with several frames: a data folder cannot name one of them."""
    return [
        f"{path} holds {pages} pages; save each page that is a frame as a file of its own"
        for path in frames
        if (pages := pages_in(path)) > 1
    ]


def _class_faults(names: Sequence[str], *, good_only: bool, root: str = "images") -> list[str]:
    faults = []
    if GOOD not in names:
        faults.append(f"there is no class {GOOD} (a folder {root}/{GOOD} of frames without a defect)")
    if not set(names) - {GOOD} and not good_only:
        faults.append(f"there is no defect class: one folder {root}/<class> for each")
    if len(names) > MAX_CLASSES:
        faults.append(f"there are {len(names)} classes, more than {MAX_CLASSES}")
    faults += [f'no class may be called "{name}": that is a verdict' for name in names if is_verdict(name)]
    faults += [f"no class may be called {name!a}: it cannot be printed" for name in names if unprintable(name)]
    by_folded: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folded[same_name_key(name)].append(name)
    faults += [f"two classes have one name: {', '.join(same)}" for same in by_folded.values() if len(same) > 1]
    return faults


def _index_masks(
    folder: Path, layout: _Layout, labels: Set[str], faults: list[str], stray: list[Path]
) -> dict[tuple[str, str], Path]:
    """Masks by (class, file stem). Other entries go to `stray`."""
    truth = folder / layout.truth
    index: dict[tuple[str, str], Path] = {}
    if not is_folder(truth):
        if truth.is_symlink() or truth.exists():
            faults.append(f"{truth.name} is not a folder, or a link that leads to none")
        return index
    outer = _list(truth, faults)
    loose = [*outer.frames, *outer.masks]
    stray += [*outer.outputs, *outer.others, *outer.hidden]
    if loose:
        faults.append(
            f"{truth.name}/ holds {len(loose)} files such as {loose[0].name}; expected {truth.name}/<class>/<frame>.png"
        )
    for inner in outer.folders:
        label = one_name(inner.name)
        if label not in labels:
            faults.append(
                f"{truth.name}/{inner.name} belongs to no class of {' or '.join(f'{root}/' for root in layout.roots)}"
            )
            continue
        found = _list(inner, faults)
        stray += _stray_of(found)
        for path in sorted([*found.frames, *found.masks]):
            if index.setdefault((label, one_name(path.stem)), path) != path:
                faults.append(f"masks {index[label, one_name(path.stem)]} and {path.name} are for one frame")
    return index


def _mask_faults(truths: Mapping[tuple[str, str], Path], samples: Sequence[Sample]) -> list[str]:
    """Masks without a frame, and masks with two. Only the name without its suffix connects a mask with a frame."""
    frames: dict[Path, list[str]] = {path: [] for path in truths.values()}
    for sample in samples:
        if sample.mask is not None:
            frames[sample.mask].append(sample.path.name)
    faults = [f"mask {path} belongs to no frame" for path, names in frames.items() if not names]
    shared = {path: names for path, names in frames.items() if len(names) > 1}
    return faults + [f"mask {path} belongs to several frames: {', '.join(names)}" for path, names in shared.items()]
