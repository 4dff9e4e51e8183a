"""What the review page works on: a store of verdicts, the log of corrections, and the bundle that judged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.jsonfields import Fields
from runtime.line_log import user_name
from runtime.manifest import load_bundle
from runtime.operating_point import OperatingPoint
from runtime.recipe import Recipe
from runtime.verdict_store import Entry, Run, VerdictStore

from ..corrections import Correction, CorrectionLog
from ..dataset import GOOD
from .web import ReviewError

AT_ONCE = 2
"""Large frames that are worked on at a time."""


class Session:
    """One run of the review page. Its methods may be called from any thread.

    store: the verdicts. log: the corrections, open to write. bundle: whose recipe teaches and judges again. data: the
    folder that holds the supports of that recipe. Raises BundleError, RecipeError.
    """

    def __init__(
        self, store: VerdictStore, log: CorrectionLog, bundle: Path | None = None, data: Path | None = None
    ) -> None:
        self.store, self.log, self.bundle, self.data = store, log, bundle, data
        self.who = user_name()
        self.room = threading.BoundedSemaphore(AT_ONCE)
        """For what needs much memory: held while pictures and masks are made."""
        self._lock = threading.Lock()
        self._recipe: Recipe | None = None
        self._places: dict[str, None] = {}
        self._ids = Kept(store.ids_by_path, store.change_counter)
        self.reload()

    def reload(self) -> None:
        """Read the bundle's recipe again, after another one took its place."""
        recipe = None if self.bundle is None else load_bundle(self.bundle)[1]
        with self._lock:
            self._recipe = recipe

    @property
    def recipe(self) -> Recipe | None:
        """The bundle's recipe; None without a bundle."""
        with self._lock:
            return self._recipe

    def require_bundle(self) -> tuple[Path, Recipe]:
        """The bundle and its recipe. Raises ReviewError without one."""
        recipe = self.recipe
        if self.bundle is None or recipe is None:
            raise ReviewError("this needs the bundle: start `sem-clip review` with --bundle DIR", 409)
        return self.bundle, recipe

    def point(self) -> OperatingPoint | None:
        """The present operating point: the recipe's, else that of the newest run; None where the store has none."""
        if (recipe := self.recipe) is not None:
            return recipe.operating_point
        runs = self.store.runs()
        return point_of(runs[-1]) if runs else None

    def taught(self) -> tuple[str, ...]:
        """The classes of the recipe, or else of the newest run: `good` alone for an empty store."""
        recipe, runs = self.recipe, self.store.runs()
        return recipe.classes if recipe is not None else runs[-1].classes if runs else (GOOD,)

    def places(self) -> tuple[str, ...]:
        """Every class that had a place here: those taught at first, then new ones in the order of their first use.

        A class keeps its place, and so its key, whatever is taken back or taught meanwhile.
        """
        names = [*self.taught(), *self.log.named()]
        with self._lock:
            self._places.update(dict.fromkeys(names))
            return tuple(self._places)

    def classes(self) -> tuple[str, ...]:
        """The classes that are taught, and the new ones of corrections that stand, in the order of their places."""
        there = {*self.taught(), *(one.new for one in self.log.current().values())}
        return tuple(name for name in self.places() if name in there)

    def entry(self, number: int) -> Entry:
        """A frame of the store. Raises ReviewError (404) where there is none: nothing else is ever served."""
        found = self.store.entry(number)
        if found is None:
            raise ReviewError(f"the store has no frame {number}", 404)
        return found

    def ids_of(self, frame: str) -> tuple[int, ...]:
        """The answers of the store to a frame, by its path; none where it holds no answer to it."""
        found: tuple[int, ...] = self._ids.get().get(frame, ())
        return found

    def correction_of(self, entry: Entry) -> Correction | None:
        """The correction of a frame that stands."""
        return None if entry.path is None else self.log.current().get(entry.path)

    def corrected(self) -> dict[int, Correction]:
        """The corrections that stand, by the frames of this store."""
        ids = self._ids.get()
        return {number: made for frame, made in self.log.current().items() for number in ids.get(frame, ())}


class Kept:
    """A value that is made once for each state of the store, by one thread while others wait for it."""

    def __init__(self, make: Callable[[], Any], state: Callable[[], object]) -> None:
        self._make, self._state = make, state
        self._lock = threading.Lock()
        self._held: tuple[object, Any] | None = None

    def get(self) -> Any:
        """The value for the present state."""
        with self._lock:
            state = self._state()
            if self._held is None or self._held[0] != state:
                self._held = None  # free the old one before the next is made
                self._held = (state, self._make())
            return self._held[1]


def point_of(run: Run) -> OperatingPoint | None:
    """A run's operating point; None where the store holds none, as of JSON lines."""
    faults: list[str] = []
    point = OperatingPoint.read(Fields(dict(run.operating_point), "operating_point", faults), run.classes)
    return None if faults else point
