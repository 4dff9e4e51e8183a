"""Corrected frames as a data folder: images/<class>/, masks/<class>/ and groups.csv (`calibration.dataset`)."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import tiff
from runtime.errors import FrameError
from runtime.files import new_folder, open_plain, require_folder
from runtime.folders import MASK_SUFFIX, one_name
from runtime.frames import SUFFIXES, checksum_of, read_frame, split_page
from runtime.golden import png_file
from runtime.operating_point import same_name_key
from runtime.recipe import FrameOptions

from .class_names import MAX_NAME_BYTES, folder_fault
from .contents import judged_content
from .corrections import Correction, CorrectionLog
from .dataset import GOOD
from .errors import CorrectionError
from .groups import GROUPS

_COLUMNS = ("path", "class", "group", "frame", "old", "who", "when")


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. counts: frames by class."""

    folder: Path
    counts: Mapping[str, int]
    masks: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A frame to write. file, page: of the frame. name: of the copy. mask: the file of its mask."""

    correction: Correction
    file: Path
    page: int | None
    name: str
    mask: Path | None

    @property
    def path(self) -> str:
        """In the folder."""
        return f"images/{self.correction.new}/{self.name}"


def export_folder(log: CorrectionLog, out: Path, options: FrameOptions) -> Export:
    """Write the corrections that stand as a data folder, whole or not at all.

    options: how the frames were read when they were judged. Files are copied as they are; pages of stacks, and files
    whose ending is none of a frame, become PNG files. groups.csv has the lot and wafer of each frame,
    else its folder, and who corrected it.
    Raises CorrectionError with all faults: frames that are gone or changed, classes that no folder can be called, one
    picture of two classes; PredictorError or OSError where `out` cannot be written.
    """
    current = list(log.current().values())
    faults = [] if current else ["no correction stands, so there is nothing to write"]
    if out.exists():
        faults.append(f"{out} exists: choose another --out")
    faults += _class_faults([correction.new for correction in current])
    entries = _entries(log, current, options, faults)
    if faults:
        raise CorrectionError(log.path, faults)
    require_folder(out.parent)
    counts: dict[str, int] = {}
    with new_folder(out) as scratch:
        for entry in entries:
            label = entry.correction.new
            counts[label] = counts.get(label, 0) + 1
            _write(scratch, entry, options)
        (scratch / GROUPS).write_bytes(_groups(entries))
    return Export(out, counts, sum(entry.mask is not None for entry in entries))


def _class_faults(labels: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(labels))
    faults = [fault for name in names if (fault := folder_fault(name))]
    by_key: dict[str, str] = {}
    for name in names:
        other = by_key.setdefault(same_name_key(name), name)
        if other != name:
            faults.append(f'"{name}" and "{other}" would be one folder on some systems')
    return faults


def _entries(
    log: CorrectionLog, current: Sequence[Correction], options: FrameOptions, faults: list[str]
) -> list[_Entry]:
    """The frames to write, each checked: it is there, it is what was judged, and no other has its picture."""
    found: list[_Entry] = []
    seen: dict[str, Correction] = {}
    names: dict[str, set[str]] = {}
    for correction in current:
        try:
            content = judged_content(correction.frame, correction.checksum, options)
            mask = log.mask_path(correction)
        except FrameError as exc:
            faults.append(str(exc))
            continue
        except CorrectionError as exc:
            faults += exc.faults
            continue
        twin = seen.setdefault(content, correction)
        if twin is not correction:
            if twin.new != correction.new:
                faults.append(f"{correction.frame} is {correction.new}, and the same picture {twin.frame} {twin.new}")
            continue
        file, page = split_page(correction.frame)
        name = _name(Path(file), page, content, names.setdefault(correction.new, set()))
        found.append(_Entry(correction, Path(file), page, name, mask if correction.new != GOOD else None))
    return found


def _name(file: Path, page: int | None, content: str, taken: set[str]) -> str:
    """The name of a copy: the frame's own, with a part of its content's hash where that is taken or means a mask."""
    stem = one_name(file.stem).lstrip(".") or "frame"
    suffix = file.suffix if page is None and file.suffix.lower() in SUFFIXES else ".png"
    if page is not None:
        stem += f"-{page}"
    if len(stem.encode()) > MAX_NAME_BYTES - 20 or stem.lower().endswith(MASK_SUFFIX):
        stem = f"{stem[:40]}-{content[:12]}"
    if stem.casefold() in taken:
        stem = f"{stem}-{content[:12]}"
    taken.add(stem.casefold())
    return stem + suffix


def _write(scratch: Path, entry: _Entry, options: FrameOptions) -> None:
    """Copy a frame and its mask. Raises CorrectionError if the copy is not read as the frame is."""
    target = scratch / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == entry.file.suffix:
        shutil.copyfile(entry.file, target)
    else:
        target.write_bytes(_as_png(entry, options))
    before, after = (read_frame(source, options) for source in (entry.correction.frame, target))
    if before.shape != after.shape or checksum_of(before) != checksum_of(after):
        raise CorrectionError(
            entry.correction.frame, "cannot be written as a PNG file without a change: save it as one yourself"
        )
    if entry.mask is not None:
        mask = scratch / "masks" / entry.correction.new / f"{target.stem}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.mask, mask)


def _as_png(entry: _Entry, options: FrameOptions) -> bytes:
    """A frame as a PNG file: with 16 bits where it has them, so that any white level reads it."""
    with io.BufferedReader(open_plain(entry.file)) as file:
        is_tiff = file.peek(4)[:4] in tiff.SIGNATURES
        stored = tiff.decode(file, entry.page, entry.correction.frame) if is_tiff else None
    if stored is not None and stored.white is None and not stored.inverted:  # its white is the frame options'
        pixels = stored.values
        if isinstance(pixels, np.ndarray) and pixels.ndim == 2 and pixels.dtype == np.uint16:
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            return content.getvalue()
    return png_file(read_frame(entry.correction.frame, options))


def _groups(entries: Sequence[_Entry]) -> bytes:
    """groups.csv, and more columns for people."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(_COLUMNS)
    for entry in entries:
        made = entry.correction
        rows.writerow((entry.path, made.new, made.group, made.frame, made.old, made.who, made.when))
    return text.getvalue().encode()
