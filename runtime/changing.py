"""Change a bundle in place: new files get free names, one step replaces the manifest, then the old files go.

    with changing(bundle) as staging:      # the lock is held; leftovers of killed writers are gone
        ...                                # write new files and manifest.json into `staging`, a folder in the bundle
        commit(bundle, staging, moves, out_of_use)

No folder is renamed, so mount points, links and files outside the manifest stay as they are. An existing name never
gets other content. A reader of the old manifest finds the files it names, or finds them missing and reads the new
manifest. A process that dies at any point leaves the whole old bundle or the whole new one. The staging folder's
journal lists its leftovers, and the next writer removes them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from .errors import BundleError
from .files import read_bounded, sync_folder
from .locking import locked

MANIFEST = "manifest.json"
LOCK = ".lock"
STAGING = ".sem-clip-new-"
_JOURNAL = ".journal"
_MAX_BYTES = 4 * 2**20


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the bundle's lock while the block runs, after removing leftovers of killed writers.

    Raises BundleError if another process or thread holds it.
    """
    with locked(folder / LOCK, folder) as first:
        if first:
            for left in folder.glob(f"{STAGING}*"):
                _clear(folder, left)
        yield


@contextmanager
def changing(folder: Path) -> Iterator[Path]:
    """As `holding`, with a folder for new files inside the bundle.

    A change nested in another of the same thread takes effect at once. Raises BundleError.
    """
    with holding(folder):
        staging = folder / f"{STAGING}{secrets.token_hex(4)}"
        try:
            staging.mkdir()
        except OSError as exc:
            raise BundleError(folder, f"cannot be changed ({exc.strerror})") from exc
        try:
            yield staging
        finally:
            _clear(folder, staging)


def commit(folder: Path, staging: Path, moves: Mapping[str, str], out_of_use: Iterable[str]) -> None:
    """Move staged files to free names in the bundle, then put the staged manifest in place.

    moves: free name by staged name. out_of_use: files of the old manifest that the new one drops. Raises BundleError
    and leaves the bundle as it was.
    """
    journal = {"files": [*moves.values(), *out_of_use]}
    try:
        (staging / _JOURNAL).write_text(json.dumps(journal), encoding="utf-8")
        sync(staging)
        for source, name in moves.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / source).rename(folder / name)
        for parent in {(folder / name).parent for name in moves.values()} | {folder}:
            sync_folder(parent)
        (staging / MANIFEST).replace(folder / MANIFEST)
        sync_folder(folder)
    except OSError as exc:
        raise BundleError(folder, f"the change cannot be written ({exc.strerror})") from exc


def free_name(folder: Path, name: str, sha256: str) -> str:
    """A name that is free in the bundle: `name`, or `name` with a part of the content's hash."""
    path = PurePosixPath(name)
    for number in range(1, 1000):
        tail = "" if number == 1 else f"-{sha256[:12]}" if number == 2 else f"-{sha256[:12]}-{number}"
        candidate = path.with_name(f"{path.stem}{tail}{path.suffix}").as_posix()
        if not os.path.lexists(folder / candidate):
            return candidate
    raise BundleError(folder, f"there is no free name for {name}")


def sync(folder: Path) -> None:
    """Flush a folder's content to disk before a rename makes it visible."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def unfinished(folder: Path) -> set[str]:
    """Names in a bundle's folder that belong to a writer: its lock, its staging folders, and files it has moved."""
    names = {LOCK, *(left.name for left in folder.glob(f"{STAGING}*"))}
    for left in folder.glob(f"{STAGING}*"):
        names |= {PurePosixPath(file).parts[0] for file in _journal(left)}
    return names


def is_writers(part: str) -> bool:
    """Whether a file or folder of this name belongs to a writer and is removed with its other leftovers."""
    return part == LOCK or part.startswith(".sem-clip-")


def _journal(staging: Path) -> list[str]:
    """Files that a change added or took out of use; none if it did not get that far."""
    try:
        names = json.loads(read_bounded(staging / _JOURNAL, _MAX_BYTES, BundleError))["files"]
    except (BundleError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return [name for name in names if _is_inside(staging.parent, name)] if isinstance(names, list) else []


def _clear(folder: Path, staging: Path) -> None:
    """End a change, whether it succeeded or not: remove the files of its journal that the manifest does not name, then
    the staging folder."""
    if staging.is_symlink() or not staging.is_dir():
        return
    # A text search instead of parsing: a name that occurs anywhere in the manifest is kept.
    with suppress(BundleError):
        manifest = _text_of(folder / MANIFEST)
        for name in _journal(staging):
            if json.dumps(name) in manifest or f'"{name}"' in manifest:
                continue
            with suppress(OSError):
                (folder / name).unlink()
            for parent in [folder / above for above in PurePosixPath(name).parents][:-1]:
                with suppress(OSError):  # a folder that is not empty stays
                    parent.rmdir()
    shutil.rmtree(staging, ignore_errors=True)


def _text_of(manifest: Path) -> str:
    """The manifest's text; empty if it is absent. Raises BundleError if it cannot be read."""
    if not os.path.lexists(manifest):
        return ""
    return read_bounded(manifest, _MAX_BYTES, BundleError).decode("utf-8", "replace")


def is_relative(name: str) -> bool:
    """Whether a manifest's name leads to a file below its folder on every system."""
    return not any(mark in name for mark in "\\:\0") and not {"", ".", ".."} & {*name.split("/")}


def _is_inside(folder: Path, name: object) -> bool:
    """Whether `name` is a file below the folder, other than its manifest."""
    if not isinstance(name, str) or name == MANIFEST or not is_relative(name):
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())
