"""The work of a lot: its defects in the file's order, and for each the images to judge, found in a folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import FrameError, KlarfError
from .klarf import read_klarf
from .klarf_images import ImageFolder, image_files
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
    file: the file that `path` lies in. missing: whether the fault is that no such file is there.
    """

    name: str
    type: str | None
    path: str = ""
    file: str = ""
    fault: str = ""
    missing: bool = False


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
    _found: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)

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
        images = [image for entry in self.entries() for image in entry.images]
        files = {image.file for image in images if image.file}
        return {file: stamp(file) for file in sorted(files)} | {i.name: None for i in images if i.missing}

    def _entry(self, wafer: int, defect: Defect) -> Entry:
        try:
            images = defect.images
        except KlarfError as exc:
            return Entry(wafer, defect, (LotImage("its list of images", None, fault=str(exc)),), 0)
        chosen = [image for image in images if not self.types or image.type in self.types]
        return Entry(wafer, defect, tuple(map(self._image, chosen)), len(images) - len(chosen))

    def _image(self, image: KlarfImage) -> LotImage:
        if image.file is None:
            return LotImage(f"#{image.page}", image.type, fault="the lot names no file that holds it")
        name = image.file if image.page is None else f"{image.file}#{image.page}"
        if image.file not in self._found:
            self._found[image.file] = self._find(image)
        file, fault = self._found[image.file]
        if fault:
            return LotImage(name, image.type, fault=fault, missing=True)
        return LotImage(name, image.type, file if image.page is None else f"{file}#{image.page}", file)

    def _find(self, image: KlarfImage) -> tuple[str, str]:
        """The image's file, and why there is none."""
        try:
            file = str(self.folder.find(image))
        except FrameError as exc:
            return "", exc.reason
        if _LIKE_A_PAGE.fullmatch(file):
            return "", "a file name that ends in # and a number means a page of a stack; rename it"
        return file, ""

    def _check(self) -> None:
        types: dict[str, None] = {}
        seen: set[tuple[str, int, int | None]] = set()
        twice: list[str] = []
        for entry in self.entries():
            key = entry.defect.key
            if key in seen:
                twice.append(
                    f"line {entry.defect.line}: wafer {key[0]}, DEFECTID {key[1]}, TEST {key[2]} is there twice"
                )
            seen.add(key)
            if self.types and len(types) < 100:
                types |= dict.fromkeys(_types_of(entry.defect))
        absent = [name for name in self.types if name not in types]
        if self.types and absent:
            had = ", ".join(types) or "no types"
            raise LotError(self.path, f"no image is of type {', '.join(absent)}; its images have {had}")
        if twice:
            more = [f"and {len(twice) - 20} more"] if len(twice) > 20 else []
            raise LotError(self.path, [*twice[:20], *more])


def _types_of(defect: Defect) -> list[str]:
    try:
        return [image.type for image in defect.images if image.type is not None]
    except KlarfError:  # which the defect's own line of the results says
        return []


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
