"""Finding the images of a KLARF file in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import FrameError
from .klarf_model import KlarfFile, KlarfImage

MAX_NAME = 4096
"""Characters of the longest name of an image."""
_DRIVE = re.compile(r"\A[A-Za-z]:")
_SEPARATOR = re.compile(r"[/\\]+")


class ImageMissing(FrameError):
    """No such file is in the folder, or not yet. Other faults of an image stay as long as the lot names it so."""


class ImageFolder:
    """The folder that holds the images of one KLARF file.

    A name stands for folder/name: an absolute or Windows path loses its drive and root. Where nothing is there, its
    endings are tried, the longest first, since tools write their own paths. An ending that another image of the file
    has too tells nothing and is left out, unless it is the part below the folder that all images share.
    Names that differ in case alone are taken where only one fits. Nothing outside of the folder is ever opened.
    """

    def __init__(self, folder: Path | str, files: Iterable[str]) -> None:
        """files: the names of all images of the KLARF file, see `image_files`."""
        self.folder = Path(folder)
        self._real = Path(os.path.realpath(folder))
        self._names: dict[Path, dict[str, list[str]]] = {}
        names = set(files)
        self._shared = _common([parts[:-1] for parts in map(_parts, names) if parts])
        self._least = _least_endings(names)

    def find(self, image: KlarfImage) -> Path:
        """The file of an image. Raises ImageMissing if no such file is there; FrameError if it is unclear, outside of
        the folder, or in one that cannot be looked through.
        """
        if image.file is None:
            raise FrameError(str(self.folder), "the KLARF file names no image file for this defect")
        parts = _parts(image.file)
        if not parts:
            raise FrameError(_shown(image.file), "is no name of an image below a folder, so it is not opened")
        try:
            for start in self._starts(image.file, parts):
                found = self._walk(parts[start:], image.file)
                if found is not None:
                    return found
        except OSError as exc:
            reason = f"cannot be looked for in {self.folder} ({exc.strerror})"
            raise FrameError(_shown(image.file), reason) from exc
        raise ImageMissing(_shown(image.file), self._why_missing(image.file, parts))

    def _starts(self, name: str, parts: list[str]) -> list[int]:
        """Where the endings to try begin, the longest first."""
        starts = {0, *range(1, len(parts) - self._least.get(name, len(parts)) + 1)}
        if parts[: len(self._shared)] == self._shared:
            starts.add(len(self._shared))
        return sorted(starts)

    def _why_missing(self, name: str, parts: list[str]) -> str:
        tried = ["/".join(parts[start:]) for start in self._starts(name, parts)]
        if len(tried) == 1:
            return f"is not in {self.folder}"
        short = "" if tried[-1] == parts[-1] else "; shorter ones are those of other images too"
        ways = f"as any of {len(tried)} endings of its path, from {_shown(tried[0])} to {_shown(tried[-1])}"
        return f"is not in {self.folder}, {ways}{short}"

    def _walk(self, parts: list[str], name: str) -> Path | None:
        """The plain file at `parts` below the folder, or None."""
        place = self.folder
        for part in parts:
            step = place / part
            if not os.path.lexists(step):
                fitting = self._listed(place).get(part.casefold(), [])
                if len(fitting) > 1:
                    raise FrameError(_shown(name), f"may be any of {', '.join(sorted(fitting)[:5])} in {place}")
                if not fitting:
                    return None
                step = place / fitting[0]
            place = step
        if not place.is_file():
            return None
        if not Path(os.path.realpath(place)).is_relative_to(self._real):
            raise FrameError(_shown(name), f"is a link that leads out of {self.folder}, so it is not opened")
        return place

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        """Names in a folder by their lower case; read once."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            for path in folder.iterdir() if folder.is_dir() else ():
                names.setdefault(path.name.casefold(), []).append(path.name)
            self._names[folder] = names
        return self._names[folder]


def image_files(file: KlarfFile) -> set[str]:
    """The names of all image files of a KLARF file, as written."""
    return {image.file for defect in file.defects for image in defect.images if image.file is not None}


def _least_endings(names: Iterable[str]) -> dict[str, int]:
    """For each name, how many parts its shortest ending has that no other name ends in, in any letter case."""
    backwards: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        backwards.setdefault(tuple(part.casefold() for part in reversed(_parts(name))), []).append(name)
    ordered = sorted(backwards)  # names that share the longest ending are neighbours
    least: dict[str, int] = {}
    alike = 0
    for index, parts in enumerate(ordered):
        after = len(_common([list(parts), list(ordered[index + 1])])) if index + 1 < len(ordered) else 0
        least |= dict.fromkeys(backwards[parts], max(alike, after) + 1)
        alike = after
    return least


def _common(folders: list[list[str]]) -> list[str]:
    """The folders that all paths begin with."""
    shared = folders[0] if folders else []
    for parts in folders:
        length = 0
        while length < min(len(shared), len(parts)) and shared[length] == parts[length]:
            length += 1
        shared = shared[:length]
    return shared


def _parts(name: str) -> list[str]:
    """Folders and file of a path with slashes or backslashes; empty for one that no image may have."""
    parts = [part for part in _SEPARATOR.split(_DRIVE.sub("", name)) if part not in ("", ".")]
    wrong = any(part == ".." or ":" in part or not part.isprintable() for part in parts)
    return [] if wrong or len(name) > MAX_NAME else parts


def _shown(name: str) -> str:
    return repr(name[:200])
