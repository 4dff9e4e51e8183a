"""Take a bundle's recipe out of its ONNX file, or put another one in; neither onnx nor an engine is needed.

A bundle's graph holds its first recipe as initializers of the names of inputs. ONNX Runtime lets a caller override
them. Other engines read them as constants, and then no other recipe would count: without the initializers they are
inputs as `frames` is. Where a server puts requests together, no request can bring another recipe, so the file itself
has to hold it. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .onnxfile import MAX_BYTES, fields_of, message_of

_VARINT, _BYTES = 0, 2
_DOC_STRING, _GRAPH, _INITIALIZER = 6, 7, 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1
_FIRST = b"sem-clip"
_Part: TypeAlias = bytes | memoryview
_Change: TypeAlias = Callable[[str, memoryview], Iterable[_Part] | None]
"""What stands in place of an initializer, by its name and its TensorProto; None to leave it."""


def without_initializers(content: bytes, names: Collection[str]) -> bytes:
    """The file without the initializers of these names. The other bytes of the graph stay as they are.

    It begins with a text of this project, so that no engine takes it for another format by its first bytes.
    Raises ValueError for a file that is cut off or does not hold one graph.
    """
    return _changed(content, lambda name, _: () if name in names else None, _field(_DOC_STRING, [_FIRST]))


def with_initializers(content: bytes, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The same ONNX file with other values of some initializers; every other byte stays as it is.

    A tensor may have other sides than the one it replaces, but not another rank: the graph's K is free.
    Raises ValueError if a name is no float32 initializer of the file, or stands there twice, or if the result is too
    large for an engine; also for a file that is damaged.
    """
    replaced: set[str] = set()

    def replace(name: str, old: memoryview) -> Iterable[_Part] | None:
        if name not in tensors:
            return None
        if name in replaced:
            raise ValueError(f"holds the initializer {name} twice")
        replaced.add(name)
        _require_float(old, name, tensors[name].ndim)
        return _field(_INITIALIZER, list(_tensor_parts(name, tensors[name])))

    changed = _changed(content, replace)
    missing = [name for name in tensors if name not in replaced]
    if missing:
        raise ValueError(f"holds no initializer {', '.join(missing)}")
    if len(changed) > MAX_BYTES:
        raise ValueError(f"would become {len(changed):,} bytes, more than the {MAX_BYTES:,} that an engine reads")
    return changed


def _changed(content: bytes, change: _Change, first: Iterable[_Part] = ()) -> bytes:
    """The file with `first` before it. Raises ValueError."""
    parts, graphs = [*first], 0
    try:
        for number, value, start, end in fields_of(model := memoryview(content)):
            if number == _GRAPH:
                graphs += 1
                parts += _field(_GRAPH, list(_graph_parts(message_of(value), change)))
            else:
                parts.append(model[start:end])
    except IndexError:
        raise ValueError("is no ONNX file, or is cut off") from None
    if graphs != 1:
        raise ValueError(f"holds {graphs} graphs, not one")
    return b"".join(parts)


def _graph_parts(graph: memoryview, change: _Change) -> Iterator[_Part]:
    for number, value, start, end in fields_of(graph):
        changed = change(_name_of(message_of(value)), message_of(value)) if number == _INITIALIZER else None
        yield from (graph[start:end],) if changed is None else changed


def _name_of(tensor: memoryview) -> str:
    """As in every reader of the format, the last name that is given."""
    name = b""
    for number, value, _, _ in fields_of(tensor):
        if number == _TENSOR_NAME:
            name = bytes(message_of(value))
    return name.decode("utf-8")


def _require_float(tensor: memoryview, name: str, rank: int) -> None:
    """ValueError unless the initializer is float32 of this rank."""
    kind, found = 0, 0
    for number, value, _, _ in fields_of(tensor):
        if number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _DIMS:
            found += 1 if isinstance(value, int) else sum(byte < 0x80 for byte in value)  # packed
    if kind != _FLOAT or found != rank:
        raise ValueError(f"holds {name} as type {kind} of {found} sides, not as float32 of {rank}")


def _tensor_parts(name: str, tensor: NDArray[np.float32]) -> Iterator[_Part]:
    """A TensorProto."""
    for side in tensor.shape:
        yield _key(_DIMS, _VARINT) + _number(side)
    yield _key(_DATA_TYPE, _VARINT) + _number(_FLOAT)
    yield from _field(_TENSOR_NAME, [name.encode()])
    yield from _field(_RAW_DATA, [np.ascontiguousarray(tensor, "<f4").tobytes()])


def _field(number: int, content: list[_Part]) -> list[_Part]:
    """A field of bytes, which are given in parts."""
    return [_key(number, _BYTES), _number(sum(map(len, content))), *content]


def _key(number: int, kind: int) -> bytes:
    return _number(number << 3 | kind)


def _number(value: int) -> bytes:
    """As Protocol Buffers write it: seven bits a byte, the lowest first."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
