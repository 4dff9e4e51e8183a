"""Carinthia-S (CC BY 4.0): 4,591 wafer SEM frames of 480 x 480 with masks, as its authors distribute them.

`carinthia-s.csv`, separated by semicolons, has the columns image_path, mask_path, filename and label (1 ... 6); frames
lie in `images/*.jpg`, masks in `masks/*.png`. Class 6 has no visible defect and becomes `good`; the others become
`type-1` ... `type-5`, as the authors do not name them. The set names no groups: every frame is its own.
"""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import TypeAlias

from runtime.errors import FrameError
from runtime.folders import is_folder, list_folder

from .errors import DatasetError

TABLE = "carinthia-s.csv"
GOOD_LABEL = "6"
_COLUMNS = {"image_path", "mask_path", "filename", "label"}


Row: TypeAlias = "tuple[Path, str, Path | None]"
"""A frame, its class name and its mask."""


def is_here(folder: Path) -> bool:
    """Whether `folder` holds this set."""
    try:
        return (folder / TABLE).is_file()
    except OSError:  # a folder without access: listing it reports the error
        return False


def read_table(folder: Path) -> tuple[list[Row], list[Path]]:
    """The rows, sorted by class and file name, and the files of `images` and `masks` that no row names.

    Raises DatasetError with all faults.
    """
    faults: list[str] = []
    found: dict[Path, tuple[str, Path | None]] = {}
    named: set[Path] = set()
    try:
        with (folder / TABLE).open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, delimiter=";")
            lacking = _COLUMNS - set(rows.fieldnames or ())
            if lacking:
                raise DatasetError(
                    folder, f"{TABLE} lacks the columns {', '.join(sorted(lacking))} (between semicolons)"
                )
            for line, row in enumerate(rows, start=2):
                image, mask, label = ((row[name] or "").strip() for name in ("image_path", "mask_path", "label"))
                if label not in {"1", "2", "3", "4", "5", GOOD_LABEL}:
                    faults.append(f'{TABLE} line {line}: label "{label}" is none of 1 ... 6')
                    continue
                path = _inside(folder, image)
                cover = _inside(folder, mask) if mask else None
                if path is None or (mask and cover is None):
                    faults.append(f"{TABLE} line {line}: {image if path is None else mask} is not there")
                elif path in found:
                    faults.append(f"{TABLE} line {line}: {image} appears twice")
                else:
                    named |= {path, cover or path}
                    name = "good" if label == GOOD_LABEL else f"type-{label}"
                    # A good frame shows no defect, whatever its mask marks.
                    found[path] = name, None if name == "good" else cover
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DatasetError(folder, f"{TABLE} cannot be read: {exc}") from exc
    unnamed = _unnamed(folder, named, faults)
    if faults:
        raise DatasetError(folder, faults)
    rows_of_all = ((path, *rest) for path, rest in found.items())
    return sorted(rows_of_all, key=lambda row: (row[1] != "good", row[1], row[0])), unnamed


def _unnamed(folder: Path, named: set[Path], faults: list[str]) -> list[Path]:
    unnamed: list[Path] = []
    for part in ("images", "masks"):
        if is_folder(folder / part):
            try:
                inside = list_folder(folder / part)
            except FrameError as exc:
                faults.append(str(exc))
                continue
            faults += [str(error) for error in inside.unread]
            there = [*inside.frames, *inside.masks, *inside.outputs, *inside.others, *inside.folders]
            unnamed += sorted(set(there) - named)
    return unnamed


def _inside(folder: Path, name: str) -> Path | None:
    """A file named by the table, in either Unicode form; None if it is absent or outside the folder."""
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return None
    forms = (folder / unicodedata.normalize(form, str(path)) for form in ("NFC", "NFD"))
    return next((place for place in (folder / path, *forms) if place.is_file()), None)
