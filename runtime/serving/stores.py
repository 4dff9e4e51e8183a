"""Files in object stores, named by URIs: s3://bucket/lot/a.tif?endpoint_override=minio:9000#2 is page 2 of a stack.

pyarrow reads the stores. A name in a URI is quoted as URIs are: `a b.png` is a%20b.png.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from ..errors import FrameError

_URI = re.compile(
    r"(?P<store>[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(#(?P<page>[1-9][0-9]{0,8}))?"
)
_SECRET = re.compile(r"//[^/@]*:[^/@]*@|[?&][^=&]*(?:key|password|sas|secret|token)[^=&]*=[^&#]*", re.IGNORECASE)
_KEPT_STORES = 16


def is_uri(name: str) -> bool:
    """Whether a name is a URI and no path."""
    return "://" in name


@dataclass(frozen=True, slots=True)
class Stored:
    """A file or folder in a store. path: quoted, from "/" on; query: what the store needs, such as its region."""

    store: str
    path: str
    query: str
    page: int | None

    @classmethod
    def of(cls, uri: str) -> Stored:
        """Parse a URI. Raises FrameError for other text, and for a URI with a password: it would go into answers."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise FrameError(uri, "is no URI of a file, such as s3://bucket/frame.png")
        if _SECRET.search(uri):
            raise FrameError(
                _SECRET.sub("...", uri),
                "holds a password or key, which would stand in answers: set it in the environment",
            )
        page = match["page"]
        return cls(match["store"], match["path"] or "", match["query"] or "", None if page is None else int(page))

    def __str__(self) -> str:
        return f"{self.store}{self.path}{self.query}" + ("" if self.page is None else f"#{self.page}")

    def below(self, path: str) -> Stored:
        """A file below this folder."""
        return replace(self, path=f"{self.path.rstrip('/')}/{quote(path)}")

    def open(self) -> tuple[Any, str]:
        """The file system of pyarrow, and the path in it. Raises FrameError where the store cannot be reached."""
        try:
            filesystem, root = _filesystem(self.store, self.query)
        except (OSError, ValueError, NotImplementedError) as exc:
            raise FrameError(str(self), f"is in a store that cannot be read here ({exc})") from exc
        return filesystem, root.rstrip("/") + unquote(self.path)


@lru_cache(_KEPT_STORES)
def _filesystem(store: str, query: str) -> tuple[Any, str]:
    """Opened once: S3, for example, is asked for the region of a bucket."""
    from pyarrow import fs

    found: tuple[Any, str] = fs.FileSystem.from_uri(f"{store}/{query}")
    return found
