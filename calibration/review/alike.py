"""Frames like this one, and the supports that are nearest to it: by the cosine of the features that judged it."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.changing import is_relative
from runtime.errors import FrameError
from runtime.frames import read_frame
from runtime.recipe import Recipe
from runtime.verdict import unit_rows

from ..contents import content_sha256
from ..relearning import CORRECTED
from .listing import entry_json
from .pictures import Pictures, small_picture
from .session import Kept, Session
from .web import Answer, Asked, Parameters, ReviewError, id_in, json_answer

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Alike:
    """Handlers of /api/frames/{id}/similar, /api/frames/{id}/supports and /support/{number}."""

    def __init__(self, session: Session, pictures: Pictures) -> None:
        self._session, self._pictures = session, pictures
        self._features = Kept(self._read_features, session.store.change_counter)
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str], str | None] = {}

    def similar(self, asked: Asked) -> Answer:
        """The frames of the store that are most like this one, the likest first."""
        number, count = _asked(asked, 12)
        session = self._session
        session.entry(number)
        ids, rows = self._features.get()
        place = np.flatnonzero(ids == number)
        if not place.size:
            raise ReviewError("the store has no features of this frame", 404)
        cosines = rows @ rows[place[0]]
        cosines[place[0]] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(count, len(ids) - 1)].tolist()
        current = session.log.current()
        found = []
        for index in best:
            entry = session.entry(int(ids[index]))
            cosine = round(float(cosines[index]), 6)
            found.append({**entry_json(entry, current.get(entry.path or "")), "cosine": cosine})
        return json_answer({"frames": found})

    def supports(self, asked: Asked) -> Answer:
        """The supports of the bundle's recipe that are nearest to this frame."""
        number, count = _asked(asked, 4)
        _, recipe = self._session.require_bundle()
        result = self._pictures.result(self._session.entry(number))
        if result.encoder_id != recipe.encoder_id or not result.features.size:
            raise ReviewError("another encoder judged this frame, so the supports cannot be compared with it", 409)
        cosines = recipe.unit_supports @ unit_rows(result.features[None])[0]
        best = np.argsort(-cosines, kind="stable")[:count].tolist()
        found = [{**self._support(recipe, index), "cosine": round(float(cosines[index]), 6)} for index in best]
        return json_answer({"supports": found})

    def support(self, asked: Asked) -> Answer:
        """The picture of a support, if its file is there and is the one that taught."""
        number = id_in(asked, "number")
        given = Parameters(asked.query)
        given.choice("size", ("thumb",), "thumb")
        given.finish()
        _, recipe = self._session.require_bundle()
        path, (_, digest) = self._path(recipe, number), support_record(recipe, number)
        if path is None or not _is(path, digest):  # looked at again: the file may have changed since it was found
            raise ReviewError("the support's file is not there, or is not the one that taught", 404)
        with self._session.room:
            return Answer(small_picture(read_frame(path, recipe.frame)), "image/png")

    def _support(self, recipe: Recipe, index: int) -> dict[str, Any]:
        name, _ = support_record(recipe, index)
        shown = name.rpartition("/")[2] or f"support {index + 1}"
        picture = self._path(recipe, index) is not None
        return {"number": index, "name": shown, "class": class_of(recipe, name), "picture": picture}

    def _path(self, recipe: Recipe, index: int) -> str | None:
        """The support's file: one of the data folder, or a frame of this store, with the content that taught."""
        name, digest = support_record(recipe, index)
        if not name or not _SHA256.fullmatch(digest):
            return None
        with self._lock:
            if (name, digest) not in self._found:
                path = self._place(name)
                self._found[name, digest] = path if path is not None and _is(path, digest) else None
            return self._found[name, digest]

    def _place(self, name: str) -> str | None:
        """Where a support of this name may lie. A recipe could name any file, so nothing else is looked at."""
        if self._session.ids_of(name):
            return name
        data = self._session.data
        if data is None or not is_relative(name):
            return None
        path = (data / name).resolve()
        return str(data / name) if path.is_relative_to(data.resolve()) else None

    def _read_features(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids, rows = self._session.store.features()
        return ids, unit_rows(rows) if len(ids) else rows


def support_record(recipe: Recipe, index: int) -> tuple[str, str]:
    """Name and SHA-256 of the file of support `index`; "" where the recipe does not record them.

    A recipe that reads tiles has more features than support frames, and then no name belongs to a feature.
    """
    names, digests = recipe.teaching.get("supports"), recipe.teaching.get("support_sha256")
    count = len(recipe.support_features)
    if not isinstance(names, list) or not isinstance(digests, list) or not len(names) == len(digests) == count:
        return "", ""
    if not 0 <= index < count or not isinstance(names[index], str) or not isinstance(digests[index], str):
        return "", ""
    return names[index], digests[index]


def class_of(recipe: Recipe, name: str) -> str | None:
    """The class of a support: as a correction said, else its folder; None if neither tells."""
    entries = recipe.teaching.get(CORRECTED)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("frame") == name:
            label = entry.get("class")
            return label if label in recipe.classes else None
    folder = Path(name).parent.name
    return folder if folder in recipe.classes else None


def _is(path: str, digest: str) -> bool:
    try:
        return content_sha256(path) == digest
    except (OSError, FrameError):
        return False


def _asked(asked: Asked, default: int) -> tuple[int, int]:
    given = Parameters(asked.query)
    count = given.whole("count", default, 1, 100)
    given.finish()
    return id_in(asked), count
