"""Watch a folder: each lot that appears is classified once, as soon as it is whole.

A lot is whole when its KLARF file ends with EndOfFile, all images that it names are there, and the file and the images
have stayed as they are for some seconds. Files that were there before count as new: what was classified by an earlier
watch is known by its results.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BackendError, BackendUnavailable, BundleError, KlarfIncomplete, PredictorError, StoreError
from ..terminal import message, printable
from .lot_plan import Lot, Stamp, stamp

SUFFIXES = re.compile(r".+\.(?:klarf|kla|[0-9]{3})", re.IGNORECASE)
"""Names of lots. Other files of the folder may be images."""
IDLE_S = 30.0
"""The folder is looked through this often, even without an event: a share may pass none on."""
SETTLE_S = 5.0
LONGEST_S = 60.0
"""A lot that is not whole is read again at least this often."""


@dataclass(slots=True)
class _Waiting:
    """A lot that is not whole yet.

    since: when it was last seen to change, or was read. pause: how long it then is left alone; it grows with each
    reading that finds nothing new. told: what was last said of it.
    """

    stamp: Stamp
    since: float
    pause: float
    images: Mapping[str, Stamp] | None = None
    told: str = ""


@dataclass(slots=True, eq=False)
class LotWatch:
    """The lots of one folder, without its sub-folders.

    classify: called with each lot when it is whole; its PredictorError is said, and the lot is left until it changes.
        After a BundleError, by which another process judges the lot, it is called again.
    open_lot: reads a lot and finds its images. settle_s: for how long all must have stayed as it is.
    """

    folder: Path
    classify: Callable[[Path], None]
    open_lot: Callable[[Path], Lot]
    settle_s: float = SETTLE_S
    _waiting: dict[Path, _Waiting] = field(default_factory=dict)
    _taken: dict[Path, Stamp] = field(default_factory=dict)

    def look(self, now: float) -> bool:
        """Go through the folder once and classify what is whole. now: seconds of any clock. Returns whether lots wait.

        Raises BackendError, StoreError; OSError where the folder cannot be read.
        """
        found = sorted(path for path in self.folder.iterdir() if SUFFIXES.fullmatch(path.name))
        for gone in {*self._waiting, *self._taken} - {*found}:
            self._waiting.pop(gone, None)
            self._taken.pop(gone, None)
        for path in found:
            seen = stamp(str(path))
            if path.is_file() and not path.name.startswith(".") and self._taken.get(path) != seen:
                self._consider(path, seen, now)
        return bool(self._waiting)

    def _consider(self, path: Path, seen: Stamp, now: float) -> None:
        waiting = self._waiting.setdefault(path, _Waiting(seen, now, self.settle_s))
        if waiting.stamp != seen:
            self._waiting[path] = waiting = _Waiting(seen, now, self.settle_s, told=waiting.told)
        if now - waiting.since < waiting.pause:
            return
        try:
            images = self.open_lot(path).stamps()
        except KlarfIncomplete as exc:
            self._wait_longer(waiting, now, f"waiting: {exc}")
            return
        except PredictorError as exc:
            self._leave(path, seen, exc)
            return
        missing = [file for file, there in images.items() if there is None]
        still, waiting.images = waiting.images == images, images
        if missing:
            some = f"{len(missing)} of its image files are not there yet, such as {missing[0]}"
            self._wait_longer(waiting, now, f"waiting: {path}: {some}")
        elif still:
            self._take(path, seen, waiting, now)
        else:  # first seen, or changed since
            waiting.since, waiting.pause = now, self.settle_s

    def _take(self, path: Path, seen: Stamp, waiting: _Waiting, now: float) -> None:
        try:
            self.classify(path)
        except (BackendError, StoreError):
            raise
        except BundleError as exc:  # another process judges it, and may be killed
            self._wait_longer(waiting, now, f"waiting: {exc}")
        except PredictorError as exc:
            self._leave(path, seen, exc)
        else:
            del self._waiting[path]
            self._taken[path] = seen

    def _leave(self, path: Path, seen: Stamp, error: PredictorError) -> None:
        print(f"error: {message(error)}; it is left until it changes", file=sys.stderr)
        self._waiting.pop(path, None)
        self._taken[path] = seen

    def _wait_longer(self, waiting: _Waiting, now: float, text: str) -> None:
        waiting.since, waiting.pause = now, min(2 * waiting.pause, max(LONGEST_S, self.settle_s))
        if waiting.told != text:
            waiting.told = text
            print(printable(text), file=sys.stderr)

    def run(self, poll_s: float | None = None) -> NoReturn:
        """Watch until an exception, such as Ctrl-C, ends it. poll_s: look at the files this often, for network shares
        that pass no events on; None for the system's events.

        Raises BackendUnavailable without watchdog, and what `look` raises.
        """
        wake = threading.Event()
        observer = _observer(self.folder, wake, poll_s)
        observer.start()
        try:
            while True:
                wake.clear()
                waits = self.look(time.monotonic())
                wake.wait(min(IDLE_S, max(self.settle_s / 4, 0.1)) if waits else IDLE_S)
        finally:
            observer.stop()
            observer.join()


def _observer(folder: Path, wake: threading.Event, poll_s: float | None) -> Any:
    """Sets `wake` at each event of a lot in the folder."""
    try:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver
    except ImportError as exc:
        raise BackendUnavailable(f'--watch needs watchdog ({exc}): pip install "sem-clip[watch]"') from exc

    class Wake(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if wakes(event.event_type, event.src_path, event.dest_path):
                wake.set()

    observer: Any = Observer() if poll_s is None else PollingObserver(timeout=poll_s)
    observer.schedule(Wake(), str(folder))
    return observer


def wakes(kind: str, *paths: str | bytes) -> bool:
    """Whether an event is one of a lot's file, apart from our own reading of it.

    A hundred thousand images may come into the folder; a lot that waits for them is looked at by the clock.
    """
    of_lot = any(SUFFIXES.fullmatch(os.path.basename(os.fsdecode(path))) for path in paths)  # noqa: PTH119
    return of_lot and kind not in ("opened", "closed_no_write")
