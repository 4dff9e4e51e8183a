"""The work of a lot: its defects in the file's order, and for each the images to judge, found in a folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import FrameError
from .klarf import read_klarf
from .klarf_images import ImageFolder, ImageMissing, image_files
from .klarf_model import Defect, KlarfFile, KlarfImage
from .lot_errors import LotError
from .lot_tally import MANUAL_COLUMNS, UNCLASSIFIED, WaferFacts

_LIKE_A_PAGE = re.compile(r".+#[0-9]{1,9}")
Stamp = tuple[int, int] | None
"""Size and time of change of an image file; None where it is missing."""


@dataclass(frozen=True, slots=True)
class LotImage:
    """One image of a defect.

    name: as the lot's file names it, with `#page`. type: as that file names it.
    path: the frame to judge, as `Predictor` takes it; "" with a `fault`, which says why there is none.
    file: the file that `path` lies in.
    """

    name: str
    type: str | None
    path: str = ""
    file: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A defect to judge. wafer: the index of its wafer in the file. left_out: images of types that were not chosen."""

    wafer: int
    defect: Defect
    images: tuple[LotImage, ...]
    left_out: int


@dataclass(frozen=True, slots=True, eq=False)
class Lot:
    """A KLARF file that was read, and the folder of its images. What is in that folder is looked up once.

    sha256: of the file's content. types: the image types to judge; all of them if empty.
    """

    path: Path
    file: KlarfFile
    sha256: str
    folder: ImageFolder
    types: tuple[str, ...] = ()
    _found: dict[str, tuple[str, str, bool]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, images: Path, types: Sequence[str] = (), encoding: str | None = None) -> Lot:
        """Read a lot. encoding: None to find it from the bytes.

        Raises KlarfError; LotError for two defects of one name, and for types that no image has.
        """
        file = read_klarf(path, encoding=encoding)
        folder = ImageFolder(images, image_files(file))
        lot = cls(path, file, hashlib.sha256(file.source.data).hexdigest(), folder, tuple(types))
        lot._check()
        return lot

    @property
    def name(self) -> str:
        """The lot's own name, or the file's where it gives none."""
        return self.file.lot or self.path.name

    @property
    def wafers(self) -> list[WaferFacts]:
        """The wafers, in the file's order."""
        return [WaferFacts(wafer.id, wafer.slot, wafer.diameter_nm) for wafer in self.file.wafers]

    def entries(self) -> Iterator[Entry]:
        """The defects in the file's order, one at a time: a large lot is never held as a whole."""
        for index, wafer in enumerate(self.file.wafers):
            for defect in wafer.defects:
                yield self._entry(index, defect)

    def stamps(self) -> dict[str, Stamp]:
        """Every image file of the lot as it is now; of a missing one, its name in the lot and None."""
        files = sorted({file for file, _, _ in self._found.values() if file})
        missing = [name for name, (_, _, is_missing) in self._found.items() if is_missing]
        return {file: stamp(file) for file in files} | dict.fromkeys(missing)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it names image files, and none of them is in the folder."""
        return bool(self._found) and all(missing for _, _, missing in self._found.values())

    def _entry(self, wafer: int, defect: Defect) -> Entry:
        images = defect.images
        chosen = [image for image in images if not self.types or image.type in self.types]
        return Entry(wafer, defect, tuple(map(self._image, chosen)), len(images) - len(chosen))

    def _image(self, image: KlarfImage) -> LotImage:
        if image.file is None:
            return LotImage(f"#{image.page}", image.type, fault="the lot names no file that holds it")
        name = image.file if image.page is None else f"{image.file}#{image.page}"
        if image.file not in self._found:
            self._found[image.file] = self._find(image)
        file, fault, _ = self._found[image.file]
        if fault:
            return LotImage(name, image.type, fault=fault)
        return LotImage(name, image.type, file if image.page is None else f"{file}#{image.page}", file)

    def _find(self, image: KlarfImage) -> tuple[str, str, bool]:
        """The image's file, why there is none, and whether it is missing."""
        try:
            file = str(self.folder.find(image))
        except FrameError as exc:
            return "", exc.reason, isinstance(exc, ImageMissing)
        if _LIKE_A_PAGE.fullmatch(file):
            return "", "a file name that ends in # and a number means a page of a stack; rename it", False
        return file, "", False

    def _check(self) -> None:
        """Look for all image files, and raise LotError for what cannot be judged."""
        seen: set[tuple[str, int, int | None]] = set()
        twice: list[Defect] = []
        for entry in self.entries():
            if entry.defect.key in seen:
                twice.append(entry.defect)
            seen.add(entry.defect.key)
        if twice:
            named = [
                f"line {d.line}: wafer {d.wafer}, DEFECTID {d.id}, TEST {d.test} is there twice" for d in twice[:20]
            ]
            raise LotError(self.path, named + ([f"and {len(twice) - 20} more"] if len(twice) > 20 else []))
        if self.types:
            there = {image.type or "" for defect in self.file.defects for image in defect.images}
            absent = [name for name in self.types if name not in there]
            if absent:
                had = ", ".join(sorted(there - {""})[:20]) or "no types"
                raise LotError(self.path, f"no image is of type {', '.join(absent)}; its images have {had}")


def manual_class(defect: Defect) -> int | None:
    """The class that a person gave it; None where nobody did."""
    for column in MANUAL_COLUMNS:
        number = defect.whole(column)
        if number not in UNCLASSIFIED:
            return number
    return None


def stamp(file: str) -> Stamp:
    """What tells that a file has changed."""
    try:
        about = os.stat(file)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return about.st_size, about.st_mtime_ns
