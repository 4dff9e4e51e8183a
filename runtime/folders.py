"""Find frames in folders: the contents of one folder, and the frames of a whole tree in a stable order.

Some pictures are no frames, unless they are named themselves: hidden files and folders, folders of file servers and
systems, folders called ground_truth, `masks` next to `images`, a picture `x_mask` next to a picture x (in any case),
and pictures that this program wrote. The last carry a mark in their own data (`output_info`), under any name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import unicodedata
from collections import defaultdict, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from PIL.PngImagePlugin import PngInfo

from .errors import FrameError
from .files import open_plain
from .frames import SUFFIXES, TIFF_SUFFIXES, page_count

SYSTEM_FOLDERS = frozenset(
    {
        *("#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "@tmp", "~snapshot"),  # file servers
        *("network trash folder", "temporary items"),
        *("$recycle.bin", "__macosx", "lost+found", "recycler", "system volume information"),
    }
)
"""In lower case. Names that begin with a dot are hidden anyway."""
OTHER_PICTURES = frozenset(
    {
        *(".avif", ".gif", ".heic", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".pnm", ".ppm", ".tga", ".webp"),
        *(
            ".czi",
            ".dm3",
            ".dm4",
            ".emd",
            ".fits",
            ".lif",
            ".lsm",
            ".mrc",
            ".nd2",
            ".ser",
            ".svs",
            ".tf8",
        ),  # microscopes
    }
)
"""Pictures that a user may expect among the frames of a folder, so that leaving them out is logged."""
MASK_SUFFIX = "_mask"
OUTPUT_TEXT = ("Comment", "Written by SEM-CLIP: results, not a frame")
"""PNG text of every picture that a command writes. With matplotlib: `savefig(..., metadata=dict([OUTPUT_TEXT]))`."""
_HEAD = 1024
"""Bytes of a PNG file that are searched for OUTPUT_TEXT, which is written right after the header."""
LeftOut: TypeAlias = "defaultdict[str, list[Path]]"
"""Files and folders that are no frames, by reason."""
_log = logging.getLogger("sem_clip")


@dataclass(frozen=True, slots=True)
class Listing:
    """The direct contents of a folder, sorted by name; paths begin with the folder as it was given.

    frames: image files by suffix; their content is not checked.
    folders: folders, and links to them, which are in `links` as well.
    masks: image files called x_mask, next to a frame x.
    outputs: pictures that this program wrote.
    others: files that are no images.
    hidden: files whose name begins with a dot. macOS leaves a `._a.png` next to `a.png` on shares.
    system: hidden folders, and those of file servers and systems.
    unread: links that lead nowhere, devices, and other entries that cannot be read.
    """

    frames: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    links: set[Path] = field(default_factory=set)
    masks: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    system: list[Path] = field(default_factory=list)
    unread: list[FrameError] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """The direct contents of `folder`. Raises FrameError if the folder itself cannot be read."""
    found = Listing()
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as exc:
        raise FrameError(str(folder), f"the folder cannot be read ({exc.strerror})") from exc
    for entry in ordered:
        path = folder / entry.name
        try:
            _sort_in(entry, path, found)
        except OSError as exc:  # a link to itself, a share that went away
            found.unread.append(FrameError(str(path), f"cannot be read ({exc.strerror})"))
    _set_masks_apart(found)
    return found


def _sort_in(entry: os.DirEntry[str], path: Path, found: Listing) -> None:
    """Sort an entry by what the folder reports; only links and PNG files are opened, which may raise OSError."""
    image = path.suffix.lower() in SUFFIXES
    if entry.is_dir():
        system = entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS
        (found.system if system else found.folders).append(path)
        if entry.is_symlink():
            found.links.add(path)
    elif entry.name.startswith("."):
        found.hidden.append(path)
    elif entry.is_file():
        kind = found.others if not image else found.outputs if is_output(path) else found.frames
        kind.append(path)
    elif entry.is_symlink():
        found.unread.append(FrameError(str(path), "is a link that leads to no file and no folder"))
    elif image:
        found.unread.append(FrameError(str(path), "is a device or a pipe, not a file"))
    else:
        found.others.append(path)


def _set_masks_apart(found: Listing) -> None:
    stems = {one_name(path.stem).lower() for path in found.frames}
    frames = list(found.frames)
    found.frames.clear()
    for path in frames:
        stem = one_name(path.stem).lower()
        mask = stem.endswith(MASK_SUFFIX) and stem.removesuffix(MASK_SUFFIX) in stems
        (found.masks if mask else found.frames).append(path)


def one_name(name: str) -> str:
    """A name in one Unicode form: Macs and some shares store é as two characters (NFD)."""
    return unicodedata.normalize("NFC", name)


def output_info() -> PngInfo:
    """The mark of this program's own PNG files, for Pillow: `image.save(file, "PNG", pnginfo=output_info())`."""
    info = PngInfo()
    info.add_text(*OUTPUT_TEXT)
    return info


def is_output(path: Path) -> bool:
    """Whether this program wrote the picture. False for an unreadable file: reading it as a frame gives the reason."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with open_plain(path) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"tEXt" + "\0".join(OUTPUT_TEXT).encode("latin-1") in head


def find_frames(paths: Sequence[str], unread: list[FrameError] | None = None) -> list[str]:
    """Expand folders (a data set's `images/` if there is one) and multi-page files, in a stable order.

    Links are followed, and each folder is searched once. Entries that cannot be read go to `unread`: closed folders,
    links that lead nowhere or back to a folder they lie in. A file that is named itself is passed on unchecked.
    Raises FrameError if a folder holds no frames, and without `unread` for the first entry that would go there.
    """
    frames: list[str] = []
    failed: list[FrameError] = []
    for name in paths:
        if not name:  # from an unset shell variable; Path takes it for the current folder
            raise FrameError(name, "an empty name is no path; the current folder is .")
        frames += _frames_below(name, failed) if is_folder(Path(name)) else _pages(name)
    if unread is None and failed:
        raise failed[0]
    if unread is not None:
        unread += failed
    return list(dict.fromkeys(frames))


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False for a path inside a closed folder, and for an impossible name."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _frames_below(name: str, failed: list[FrameError]) -> list[str]:
    root, before = Path(name), len(failed)
    left_out: LeftOut = defaultdict(list)
    if is_folder(root / "images"):
        with contextlib.suppress(FrameError):  # some folders can be entered but not listed
            above = list_folder(root)
            others = [path for path in above.folders if path.name != "images" and not _is_truth(path, {"images"})]
            left_out["next to images/"] += above.frames + others
        root /= "images"
    found = _walk(root, left_out, failed)
    summary = [
        f"{len(some)} {why} ({some[0]}{', ...' if len(some) > 1 else ''})" for why, some in left_out.items() if some
    ]
    if summary:
        _log.warning("%s: left out as no frames: %s", name, "; ".join(summary))
    if not found and len(failed) == before:
        raise FrameError(name, f"the folder holds no frames ({', '.join(SUFFIXES)})")
    return [page for file in found for page in _pages(str(file))]


def _walk(root: Path, left_out: LeftOut, failed: list[FrameError]) -> list[Path]:
    """All frames below `root`. Links come last, so that a frame is named by its real path if it has one."""
    frames: list[Path] = []
    entered: set[tuple[int, int]] = set()
    folders, links = [root], deque[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                left_out["already searched under another name"].append(folder)
                continue
            entered.add((status.st_dev, status.st_ino))
            listing = list_folder(folder)
        except OSError as exc:
            failed.append(FrameError(str(folder), f"the folder cannot be read ({exc.strerror})"))
            continue
        except FrameError as exc:
            failed.append(exc)
            continue
        frames += listing.frames
        failed += listing.unread
        left_out["masks"] += listing.masks
        left_out["results of this program"] += listing.outputs
        left_out["pictures of kinds that are not read"] += [
            path for path in listing.others if path.suffix.lower() in OTHER_PICTURES
        ]
        hidden = [path for path in listing.hidden if path.suffix.lower() in SUFFIXES]
        left_out["hidden or of the system"] += listing.system + hidden
        names = {path.name.lower() for path in listing.folders}
        for inner in listing.folders:
            if _is_truth(inner, names):
                left_out["masks"].append(inner)
            elif inner not in listing.links:
                folders.append(inner)
            elif inner.parent.resolve().is_relative_to(inner.resolve()):
                failed.append(FrameError(str(inner), "is a link to a folder that it lies in; it is not followed"))
            else:
                links.append(inner)
    return sorted(frames)


def _is_truth(folder: Path, siblings: Set[str]) -> bool:
    """Whether a folder holds masks, by its name and the lower-case names of its sibling folders."""
    name = folder.name.lower()
    return name == "ground_truth" or (name == "masks" and "images" in siblings)


def _pages(name: str) -> list[str]:
    """`name#1`, `name#2`, ... for a file of several pages."""
    pages = pages_in(name)
    return [name] if pages == 1 else [f"{name}#{page}" for page in range(1, pages + 1)]


def pages_in(path: str | Path) -> int:
    """How many frames a TIFF file holds, by suffix. 1 for other files and broken ones, which reading then refuses."""
    if Path(path).suffix.lower() not in TIFF_SUFFIXES:
        return 1
    try:
        return page_count(path)
    except FrameError:
        return 1
