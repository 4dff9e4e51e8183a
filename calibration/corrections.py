"""Corrections: what people say of frames that were judged, in a file of their own that is never rewritten.

    {"format": "sem-clip-corrections", "version": 1}
    {"frame": "/lot7/a.png", "when": ..., "who": ..., "old": "hole", "new": "bridge", "mask": "<SHA-256>.png", ...}
    {"undo": 1, "when": ..., "who": ...}

The first line names the format. Each further line is a correction, or takes one back by its number, counted from 1
below the first line. So the file also tells who said what, and when. Masks lie in a folder beside it, named by their
content: a mask is never overwritten. `runtime.line_log` keeps the file whole whatever happens to its writer.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import FrameError
from runtime.files import sha256_of, write_atomically
from runtime.folders import one_name
from runtime.frames import read_frame
from runtime.golden import png_file
from runtime.jsonfields import Fields
from runtime.line_log import MAX_NAME, LineLog, now, read_lines, user_name
from runtime.operating_point import same_name_key, unprintable

from . import masks
from .class_names import class_fault, folder_fault
from .dataset import GOOD
from .errors import CorrectionError, DatasetError

FORMAT, VERSION = "sem-clip-corrections", 1
HEAD = {"format": FORMAT, "version": VERSION}
SUFFIX = ".corrections.jsonl"
"""What stands in place of a store's own suffix in the name of its corrections."""
MASKS = ".masks"
MOST_CHECKSUM = 2**32 - 1
_MASK = re.compile(r"[0-9a-f]{64}\.png")
_PLACE = ("lot", "wafer", "defect_id")


class Place(Protocol):
    """Where a frame was taken, of a lot."""

    @property
    def lot(self) -> str | None:
        """The lot's name."""

    @property
    def wafer(self) -> str | None:
        """The wafer's name."""

    @property
    def defect_id(self) -> str | None:
        """DEFECTID."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person says of one frame.

    frame: its absolute path, with "#page". checksum: of its grey pixels as they were judged (`Prediction.checksum`).
    when: ISO 8601, UTC. old: the verdict before. new: the class that is right; a new one too, and `old` if that is.
    mask: name of a PNG in the log's folder of masks, 255 where the defect is; None if nobody drew one.
    """

    frame: str
    checksum: int | None
    when: str
    who: str
    old: str
    new: str
    mask: str | None = None
    lot: str | None = None
    wafer: str | None = None
    defect_id: str | None = None

    @property
    def group(self) -> str:
        """The lot and wafer, or the folder: frames of one group are alike, as `calibration.groups` has it."""
        if self.lot is not None:
            return self.lot if self.wafer is None else f"{self.lot}, wafer {self.wafer}"
        return str(Path(self.frame).parent)


class CorrectionLog:
    """A file of corrections. Safe to use from several threads.

    write: whether to add to it, which makes the file if need be and locks other writers out until `close`; a line that
    a kill cut off is then cut away, with a warning. Without, the file must be there, and such a line is ignored.
    masks: the folder of its masks.

    Raises CorrectionError, with all faults of the file.
    """

    def __init__(self, path: str | Path, write: bool = True) -> None:
        self.path = Path(path)
        self.masks = self.path.with_suffix(MASKS)
        self._lock = threading.RLock()
        self._made: list[Correction | None] = []
        self._standing: dict[str, list[int]] = {}
        self._order: list[int] = []
        self._log = LineLog(self.path, HEAD, CorrectionError) if write else None
        try:
            self._replay(self._log.entries if self._log else read_lines(self.path, HEAD, CorrectionError))
        except BaseException:
            self.close()
            raise

    def add(
        self,
        frame: str | Path,
        old: str,
        new: str,
        who: str = "",
        *,
        checksum: int | None = None,
        mask: NDArray[np.bool_] | bytes | None = None,
        site: Place | None = None,
    ) -> Correction:
        """Take a correction; it is on disk when this returns.

        who: by default the user of this process. mask: bool [height, width] of the frame, or a PNG file of it, grey,
        0 and 255. site: where the frame was taken, if that is known.
        Raises CorrectionError for names that no class may have or no folder can be called, for a mask that cannot be
        used, and where the file was opened to read or cannot be written.
        """
        log, new = self._writer(), one_name(new)
        place = {name: getattr(site, name, None) for name in _PLACE}
        made = Correction(str(frame), checksum, now(), who or user_name(), old, new, None, **place)
        with self._lock:
            faults = [*_faults(asdict(made)), *filter(None, [folder_fault(made.new)]), *self._twins(made)]
            if faults:
                raise CorrectionError(self.path, faults)
            stored = None if mask is None else self._keep(mask, new)
            made = Correction(**{**asdict(made), "mask": stored})
            log.add(asdict(made))
            self._apply(made)
        return made

    def undo(self, who: str = "") -> Correction | None:
        """Take back the newest correction that stands (`newest`), as a line of its own.

        Returns the correction of that frame that stands now, or None. Raises CorrectionError if none is left.
        """
        log = self._writer()
        with self._lock:
            if not self._order:
                raise CorrectionError(self.path, "holds no correction that could be taken back")
            number = self._order[-1]
            log.add({"undo": number, "when": now(), "who": who or user_name()})
            return self._take_back(number)

    def newest(self) -> Correction | None:
        """The newest correction that stands: the one that `undo` takes back."""
        with self._lock:
            return self._made[self._order[-1] - 1] if self._order else None

    def current(self) -> dict[str, Correction]:
        """By frame the correction that stands, the newest one last."""
        with self._lock:
            last = sorted(numbers[-1] for numbers in self._standing.values() if numbers)
            found = [self._made[number - 1] for number in last]
        return {made.frame: made for made in found if made is not None}

    def named(self) -> tuple[str, ...]:
        """All classes that corrections ever named, in the order of their first use; also of those taken back."""
        with self._lock:
            return tuple(dict.fromkeys(made.new for made in self._made if made is not None))

    def taken_back(self) -> set[str]:
        """Frames whose corrections were all taken back."""
        with self._lock:
            return {frame for frame, numbers in self._standing.items() if not numbers}

    def mask_path(self, correction: Correction) -> Path | None:
        """The file of its mask, once it is found to be the one that was drawn. Raises CorrectionError."""
        if correction.mask is None:
            return None
        path = self.masks / correction.mask
        try:
            sound = sha256_of(path) == path.stem
        except OSError as exc:
            raise CorrectionError(path, f"the mask of {correction.frame} cannot be read ({exc.strerror})") from exc
        if not sound:
            raise CorrectionError(path, f"the mask of {correction.frame} is not the one that was drawn")
        return path

    def __len__(self) -> int:
        with self._lock:
            return sum(bool(numbers) for numbers in self._standing.values())

    def close(self) -> None:
        """Let others write to the file."""
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> CorrectionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _writer(self) -> LineLog:
        if self._log is None:
            raise CorrectionError(self.path, "was opened to read, so nothing is added to it")
        return self._log

    def _twins(self, made: Correction) -> list[str]:
        """A class that another correction calls by a name that people take for the same."""
        names = {GOOD, *(one.new for one in self.current().values())} - {made.new}
        twins = sorted(name for name in names if same_name_key(name) == same_name_key(made.new))
        return [f'"{made.new}" and "{name}" would be two classes; write the name as before' for name in twins]

    def _keep(self, mask: NDArray[np.bool_] | bytes, label: str) -> str:
        """Write a mask into the folder, unless it is there; its name. Raises CorrectionError."""
        pixels = _mask_pixels(self.path, mask)
        try:
            marked = masks.defect_pixels(masks.StoredMask(self.path, pixels))
        except DatasetError as exc:
            raise CorrectionError(self.path, exc.faults) from exc
        if label == GOOD and marked.any():
            raise CorrectionError(self.path, f"the mask marks {int(marked.sum())} pixels, and the class is {GOOD}")
        if label != GOOD and not marked.any():
            raise CorrectionError(self.path, "the mask marks nothing: draw the defect, or give no mask")
        content = png_file(pixels)
        name = f"{hashlib.sha256(content).hexdigest()}.png"
        target = self.masks / name
        try:
            if not target.is_file() or sha256_of(target) != target.stem:
                write_atomically(target, content)
        except OSError as exc:
            raise CorrectionError(target, f"cannot be written ({exc.strerror})") from exc
        return name

    def _replay(self, entries: list[dict[str, Any]]) -> None:
        faults: list[str] = []
        for number, entry in enumerate(entries, 1):
            where = f"line {number + 1}"
            if "undo" not in entry:
                found = _faults(entry)
                faults += [f"{where}: {fault}" for fault in found]
                self._apply(None if found else Correction(**entry))
                continue
            fields = Fields(entry, where, faults)
            undone = fields.whole("undo", 1, len(entries))
            _people(fields)
            fields.finish()
            if undone in self._order:
                self._take_back(undone)
            elif not faults:
                faults.append(f"{where} takes back correction {undone}, which does not stand")
            else:
                self._made.append(None)
        if faults:
            raise CorrectionError(self.path, faults)

    def _apply(self, made: Correction | None) -> None:
        self._made.append(made)
        if made is not None:
            self._standing.setdefault(made.frame, []).append(len(self._made))
            self._order.append(len(self._made))

    def _take_back(self, number: int) -> Correction | None:
        """Count a line that takes back the correction `number`; what stands for its frame now."""
        undone = self._made[number - 1]
        assert undone is not None
        self._made.append(None)
        self._order.remove(number)
        left = self._standing[undone.frame]
        left.remove(number)
        return self._made[left[-1] - 1] if left else None


def default_path(store: Path) -> Path:
    """Where the corrections of a store of verdicts lie: beside it."""
    return store.with_suffix(SUFFIX)


def _people(fields: Fields) -> None:
    """Read who wrote a line, and when; faults go to `fields`."""
    for name in ("who", "when"):
        if unprintable(text := fields.text(name)) or len(text) > MAX_NAME:
            fields.fault(name, f"must be 1 to {MAX_NAME} characters that can be printed")


def _faults(entry: Mapping[str, Any]) -> list[str]:
    """All faults of a correction, as `asdict` gives it."""
    faults: list[str] = []
    fields = Fields(entry, "correction", faults)
    frame = fields.text("frame")
    if frame and (not Path(frame).is_absolute() or "\0" in frame or not _is_text(frame)):
        fields.fault("frame", f"must be an absolute path that is valid text, not {frame[:200]!a}")
    if entry.get("checksum") is not None:
        fields.whole("checksum", 0, MOST_CHECKSUM)
    _people(fields)
    old, new = fields.text("old"), fields.text("new")
    if unprintable(old) or len(old) > MAX_NAME:
        fields.fault("old", f"must be 1 to {MAX_NAME} characters that can be printed")
    if new and (fault := class_fault(new)):
        faults.append(fault)
    for name in ("mask", *_PLACE):
        if entry.get(name) is not None and unprintable(fields.text(name)):
            fields.fault(name, "must be text that can be printed")
    mask = entry.get("mask")
    if isinstance(mask, str) and not _MASK.fullmatch(mask):
        fields.fault("mask", "must be the name of a mask: its SHA-256 and .png")
    known = Correction.__dataclass_fields__
    faults += [f"correction.{name} is missing" for name in known if name not in entry]
    faults += [f"correction.{str(name)[:80]} is not known to this version" for name in entry if name not in known]
    return list(dict.fromkeys(faults))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as a file's name that is no text has
        return False
    return True


def _mask_pixels(where: Path, mask: NDArray[np.bool_] | bytes) -> NDArray[np.uint8]:
    """A mask as uint8 [height, width], 0 and 255. Raises CorrectionError."""
    if isinstance(mask, bytes):
        try:
            pixels = read_frame(mask, name="mask")
        except FrameError as exc:
            raise CorrectionError(where, f"the mask cannot be read: {exc.reason}") from exc
        if ((pixels != 0) & (pixels != 255)).any():
            raise CorrectionError(where, "the mask must be grey, 0 and 255, and it holds other values")
        return pixels
    if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
        raise CorrectionError(where, f"a mask is bool [height, width], not {mask.dtype} {list(mask.shape)}")
    return mask.astype(np.uint8) * np.uint8(255)
