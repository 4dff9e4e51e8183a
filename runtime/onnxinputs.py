"""Take the default values of inputs out of an ONNX file; neither onnx nor an engine is needed.

A bundle's graph holds its first recipe as initializers of the names of inputs. ONNX Runtime lets a caller override
them; other engines read them as constants, and then no other recipe would count. Without the initializers they are
inputs as `frames` is. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Collection

from .onnxfile import fields_of

_DOC_STRING, _GRAPH = 6, 7
_INITIALIZER, _TENSOR_NAME = 5, 8
_BYTES = 2
_FIRST = b"sem-clip"


def without_defaults(content: bytes, names: Collection[str]) -> bytes:
    """The file without the initializers of these names. The other bytes of the graph stay as they are.

    It begins with a text of this project, so that no engine takes it for another format by its first bytes.
    content: a file in which `onnx_faults` found nothing. Raises ValueError or IndexError for one that is cut off or
    does not hold one graph.
    """
    model = memoryview(content)
    wanted = {name.encode() for name in names}
    found: list[bytes | memoryview] = [*_header(_DOC_STRING, len(_FIRST)), _FIRST]
    graphs = 0
    for number, value, start, end in fields_of(model):
        if number == _GRAPH and not isinstance(value, int):
            graphs += 1
            kept = _kept(value, wanted)
            found += [*_header(_GRAPH, sum(map(len, kept))), *kept]
        elif number != _DOC_STRING:
            found.append(model[start:end])
    if graphs != 1:
        raise ValueError(f"holds {graphs} graphs, not one")
    return b"".join(found)


def _kept(graph: memoryview, wanted: Collection[bytes]) -> list[memoryview]:
    """The graph in pieces, without the initializers that are wanted elsewhere."""
    kept, at = [], 0
    for number, value, start, end in fields_of(graph):
        if number == _INITIALIZER and not isinstance(value, int) and _name(value) in wanted:
            kept.append(graph[at:start])
            at = end
    return [*kept, graph[at:]]


def _header(number: int, size: int) -> tuple[bytes, bytes]:
    """What precedes the bytes of a field."""
    return _varint_of(number << 3 | _BYTES), _varint_of(size)


def _name(tensor: memoryview) -> bytes:
    """The tensor's name: as in every reader of the format, the last one that is given."""
    name = b""
    for number, value, _, _ in fields_of(tensor):
        if number == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value)
    return name


def _varint_of(value: int) -> bytes:
    """A number as Protocol Buffers write it."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
