"""Deflate streams and checksums: by ISA-L where the package isal is installed (`sem-clip[fast]`), else by zlib.

ISA-L takes half of zlib's time, and inflating is most of what reading a PNG frame costs. The pixels are the same.
Both refuse a stream whose checksum is wrong or that ends early. They differ on streams that no writer makes: zlib
refuses an incomplete distance code under a right checksum, and ISA-L may meet damage behind the bytes asked for.
"""

from __future__ import annotations

import zlib
from typing import Any, Protocol

_igzip: Any = None
try:
    from isal import __version__ as _version
    from isal import igzip_lib as _igzip
    from isal.isal_zlib import adler32, crc32
except ImportError:
    from zlib import adler32, crc32

__all__ = ["LIBRARY", "Inflater", "ZlibInflater", "adler32", "crc32", "inflater"]

LIBRARY = f"zlib {zlib.ZLIB_RUNTIME_VERSION}" if _igzip is None else f"ISA-L of isal {_version}"
"""What inflates in this process, for people."""


class Inflater(Protocol):
    """One stream being inflated, with the interface of `lzma.LZMADecompressor`.

    eof: the end was reached, and the checksum there is right. needs_input: all that was given is inflated.
    """

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        """The next bytes, at most `max_length` > 0. data: the whole stream in the first call, then b""."""
        ...


class ZlibInflater:
    """zlib as an Inflater."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()
        self.needs_input = True

    @property
    def eof(self) -> bool:
        """As `Inflater`."""
        return self._stream.eof

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        """As `Inflater.decompress`. Raises zlib.error for damaged data."""
        part = self._stream.decompress(data or self._stream.unconsumed_tail, max_length)
        self.needs_input = len(part) < max_length and not self._stream.unconsumed_tail
        return part


def inflater() -> Inflater:
    """An Inflater for one zlib stream (RFC 1950). Damaged data raise the library's own error."""
    if _igzip is None:
        return ZlibInflater()
    found: Inflater = _igzip.IgzipDecompressor(flag=_igzip.DECOMP_ZLIB)
    return found
