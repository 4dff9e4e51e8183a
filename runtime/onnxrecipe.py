"""Put another recipe into an ONNX file; neither onnx nor an engine is needed.

A bundle's graph holds its first recipe as initializers of the names of inputs. Where a server puts requests together,
no request can bring another one, so the file itself has to hold it. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from .onnxfile import MAX_BYTES, fields_of

_VARINT, _BYTES = 0, 2
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1


def with_initializers(content: bytes, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The same ONNX file with other values of some initializers; every other byte stays as it is.

    A tensor may have other sides than the one it replaces, but not another rank: the graph's K is free.
    Raises ValueError if a name is no float32 initializer of the file, or stands there twice, or if the result is too
    large for an engine; also for a file that is damaged.
    """
    try:
        changed = _with_graph(memoryview(content), tensors)
    except IndexError:
        raise ValueError("is no ONNX file, or is cut off") from None
    if len(changed) > MAX_BYTES:
        raise ValueError(f"would become {len(changed):,} bytes, more than the {MAX_BYTES:,} that an engine reads")
    return changed


def _with_graph(model: memoryview, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    parts: list[bytes | memoryview] = []
    graphs = 0
    for number, value, start, end in fields_of(model):
        if number == _GRAPH:
            graphs += 1
            parts += _field(_GRAPH, b"".join(_graph_parts(_message(value), tensors)))
        else:
            parts.append(model[start:end])
    if graphs != 1:
        raise ValueError(f"holds {graphs} graphs, not one")
    return b"".join(parts)


def _graph_parts(graph: memoryview, tensors: Mapping[str, NDArray[np.float32]]) -> Iterator[bytes | memoryview]:
    replaced: set[str] = set()
    for number, value, start, end in fields_of(graph):
        name = _name_of(_message(value)) if number == _INITIALIZER else None
        if name is None or name not in tensors:
            yield graph[start:end]
            continue
        if name in replaced:
            raise ValueError(f"holds the initializer {name} twice")
        replaced.add(name)
        tensor = tensors[name]
        _require_float(_message(value), name, tensor.ndim)
        yield from _field(_INITIALIZER, b"".join(_tensor_parts(name, tensor)))
    missing = [name for name in tensors if name not in replaced]
    if missing:
        raise ValueError(f"holds no initializer {', '.join(missing)}")


def _name_of(tensor: memoryview) -> str:
    name = b""
    for number, value, _, _ in fields_of(tensor):
        if number == _TENSOR_NAME:
            name = bytes(_message(value))
    return name.decode("utf-8")


def _require_float(tensor: memoryview, name: str, rank: int) -> None:
    """ValueError unless the initializer is float32 of this rank."""
    kind, found = 0, 0
    for number, value, _, _ in fields_of(tensor):
        if number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _DIMS:
            found += 1 if isinstance(value, int) else _count_numbers(value)
    if kind != _FLOAT or found != rank:
        raise ValueError(f"holds {name} as type {kind} of {found} sides, not as float32 of {rank}")


def _count_numbers(packed: memoryview) -> int:
    return sum(byte < 0x80 for byte in packed)


def _tensor_parts(name: str, tensor: NDArray[np.float32]) -> Iterator[bytes]:
    """A TensorProto."""
    for side in tensor.shape:
        yield _key(_DIMS, _VARINT) + _number(side)
    yield _key(_DATA_TYPE, _VARINT) + _number(_FLOAT)
    yield from _field(_TENSOR_NAME, name.encode())
    yield from _field(_RAW_DATA, np.ascontiguousarray(tensor, "<f4").tobytes())


def _field(number: int, content: bytes) -> list[bytes]:
    return [_key(number, _BYTES), _number(len(content)), content]


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


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value
