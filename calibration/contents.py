"""Frames by their content: the same picture under another name is the same frame."""

from __future__ import annotations

import hashlib
from pathlib import Path

from runtime.errors import FrameError
from runtime.files import sha256_of
from runtime.frames import checksum_of, read_frame, split_page
from runtime.recipe import FrameOptions


def content_sha256(frame: str | Path) -> str:
    """Hex SHA-256 that names a frame by its content: that of its file, and for a page of a stack of file and page.

    Raises OSError.
    """
    file, page = split_page(str(frame))
    digest = sha256_of(Path(file))
    return digest if page is None else hashlib.sha256(f"{digest}#{page}".encode()).hexdigest()


def judged_content(frame: str, checksum: int | None, options: FrameOptions) -> str:
    """`content_sha256` of a frame that still is what was judged.

    checksum: of its grey pixels then (`Prediction.checksum`), read by these options. None: only that it can be read is
    checked. Raises FrameError.
    """
    try:
        content = content_sha256(frame)
    except OSError as exc:
        raise FrameError(frame, f"cannot be read ({exc.strerror})") from exc
    pixels = read_frame(frame, options)
    if checksum is not None and checksum_of(pixels) != checksum:
        raise FrameError(
            frame, "is not the picture that was judged: it has changed since, or was read by another --white-level"
        )
    return content
