"""Requests and answers of the review page, apart from any server: what handlers take and what they give."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from runtime.errors import SemClipError

MOST_TEXT = 500
"""Characters of a text in a request: of a class, a note, a search."""
SMALL_BODY = 1 << 16
"""Bytes of a POST that holds no mask."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class ReviewError(SemClipError):
    """A request that cannot be answered as asked. status: of HTTP, 4xx."""

    def __init__(self, reason: str, status: int = 400) -> None:
        self.status = status
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    place: the variable parts of its path. query: the values of each parameter, in order. body: the object of a POST;
    empty for a GET. known: what the browser holds of this address (If-None-Match).
    """

    place: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    known: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. tag: the ETag of content that never changes under its address; "" for content that may change."""

    content: bytes
    kind: str = "application/json"
    status: int = 200
    tag: str = ""


Handler: TypeAlias = Callable[[Asked], Answer]


@dataclass(frozen=True, slots=True)
class Place:
    """An address of the server. path: with variable parts, such as "/api/frames/{id}". most_bytes: of a POST's body."""

    path: str
    handler: Handler
    method: str = "GET"
    most_bytes: int = SMALL_BODY


def json_answer(value: Any, status: int = 200) -> Answer:
    """In ASCII: names of files may hold halves of surrogate pairs, which UTF-8 does not take."""
    return Answer(json.dumps(value, allow_nan=False).encode("ascii"), status=status)


def id_in(asked: Asked, name: str = "id") -> int:
    """The number in the path. Raises ReviewError (404) if it is none."""
    text = asked.place.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise ReviewError(f'there is no {name} "{text[:40]}"', 404)
    return int(text)


class Parameters:
    """The parameters of an address, each read strictly. `finish` refuses those that were not read."""

    def __init__(self, query: Mapping[str, tuple[str, ...]]) -> None:
        self._query = query
        self._read: set[str] = set()

    def texts(self, name: str) -> tuple[str, ...]:
        """All values, each of at most MOST_TEXT characters; an empty one means none."""
        self._read.add(name)
        values = self._query.get(name, ())
        if len(values) > 100 or any(len(value) > MOST_TEXT for value in values):
            raise ReviewError(f"{name} is too long: at most 100 values of {MOST_TEXT} characters")
        return tuple(value for value in values if value)

    def text(self, name: str, default: str = "") -> str:
        """One value."""
        values = self.texts(name)
        if len(values) > 1:
            raise ReviewError(f"{name} may be given once")
        return values[0] if values else default

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        """One of the known values."""
        value = self.text(name) or default
        if value not in known:
            raise ReviewError(f"{name} must be one of {', '.join(known)}")
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """A finite number in [low, high]; None where it is absent or empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise ReviewError(f"{name} must be a finite number in [{low:g}, {high:g}]")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        text = self.text(name)
        if not text:
            return default
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise ReviewError(f"{name} must be a whole number in [{low}, {high}]")
        return int(text)

    def finish(self) -> None:
        """Refuse parameters that nobody read: a misspelt filter would show frames that were not asked for."""
        unknown = sorted(set(self._query) - self._read)
        if unknown:
            raise ReviewError(f'there is no parameter "{unknown[0][:40]}"')


def text_in(body: Mapping[str, Any], name: str, *, needed: bool = True) -> str:
    """A text of a POST, of at most MOST_TEXT characters; "" for one that is absent and not needed."""
    value = body.get(name, "" if not needed else None)
    if not isinstance(value, str) or (needed and not value) or len(value) > MOST_TEXT or _HALF_PAIR.search(value):
        raise ReviewError(f"{name} must be a text of 1 to {MOST_TEXT} characters")
    return value


def only(body: Mapping[str, Any], *names: str) -> None:
    """Refuse a POST with other entries than these."""
    unknown = sorted(set(body) - set(names))
    if unknown:
        raise ReviewError(f'there is no entry "{unknown[0][:40]}"')
