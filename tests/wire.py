"""Messages of Protocol Buffers by hand, for tests that have no compiled ones."""

from __future__ import annotations


def field(number: int, content: bytes) -> bytes:
    """One field of a message of Protocol Buffers."""
    written, length = bytearray([number << 3 | 2]), len(content)
    while length >= 0x80:
        written.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*written, length]) + content
