"""Check the bytes of an ONNX file before an engine reads them, and put another recipe into it; neither onnx nor an
engine is needed.

Graphs of this project neither branch nor loop. So a file is refused if a part of it may run for ever (Loop, Scan, If,
functions) or is known to some engines only (other domains). A part that lies in another file is refused too, because no
hash covers it. Field numbers are those of onnx.proto; the encoding is that of Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 2**31 - 1
"""Protocol Buffers hold no more in one message."""
MAX_FIELDS = 10**6
"""A graph of twelve layers has some 20,000 in the messages that are read."""
MAX_NODES = 20_000
"""A graph of twelve layers has some 2,000; an engine takes minutes to optimize many more."""
_DOMAINS = (b"", b"ai.onnx")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_32_BITS = 2**32 - 1
_EXTERNAL = 1
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1

Field = tuple[int, int | memoryview]


def onnx_faults(content: bytes | memoryview) -> list[str]:
    """The first reason why the file is not one of this project's; empty if there is none.

    The number of fields bounds the time; little memory is used.
    """
    left = MAX_FIELDS

    def fields(message: memoryview) -> Iterator[Field]:
        nonlocal left
        for field in _fields(message):
            left -= 1
            if left < 0:
                raise _RefusedError(f"has more than {MAX_FIELDS:,} fields")
            yield field

    try:
        _check_model(memoryview(content), fields)
    except _RefusedError as exc:
        return [str(exc)]
    except (IndexError, ValueError):
        return ["is no ONNX file, or is cut off"]
    return []


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
    for number, value, start, end in _spans(model):
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
    for number, value, start, end in _spans(graph):
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
    for number, value in _fields(tensor):
        if number == _TENSOR_NAME:
            name = bytes(_message(value))
    return name.decode("utf-8")


def _require_float(tensor: memoryview, name: str, rank: int) -> None:
    """ValueError unless the initializer is float32 of this rank."""
    kind, found = 0, 0
    for number, value in _fields(tensor):
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


class _RefusedError(Exception):
    """The reason why a file is refused."""


_Reader = Callable[[memoryview], Iterator[Field]]


def _check_model(model: memoryview, fields: _Reader) -> None:
    graphs = 0
    for number, value in fields(model):
        if number == 7:  # ModelProto.graph
            graphs += 1
            if graphs > 1:  # readers merge them into one
                raise _RefusedError("holds more than one graph")
            _check_graph(_message(value), fields)
        elif number == 25:  # ModelProto.functions
            raise _RefusedError("holds functions of its own, which may call each other for ever")


def _check_graph(graph: memoryview, fields: _Reader) -> None:
    nodes = 0
    for number, value in fields(graph):
        if number == 1:  # GraphProto.node
            nodes += 1
            if nodes > MAX_NODES:
                raise _RefusedError(f"has more than {MAX_NODES:,} nodes")
            _check_node(_message(value), fields)
        elif number == 5:  # GraphProto.initializer
            _check_tensor(_message(value), fields)
        elif number == 15:  # GraphProto.sparse_initializer
            _check_sparse(_message(value), fields)


def _check_node(node: memoryview, fields: _Reader) -> None:
    operator, domain, branches = b"?", b"", False
    for number, value in fields(node):
        if number == 4:  # NodeProto.op_type
            operator = bytes(_message(value)[:40])
        elif number == 7:  # NodeProto.domain
            domain = bytes(_message(value)[:80])
        elif number == 5:  # NodeProto.attribute
            branches |= _holds_graph(_message(value), fields)
    name = operator.decode("ascii", "backslashreplace")
    if domain not in _DOMAINS:
        owner = domain.decode("ascii", "backslashreplace")
        raise _RefusedError(f"holds an operator {name} of {owner}, which is not of the ONNX standard")
    if branches:
        raise _RefusedError(f"holds an operator {name} with a graph of its own, which may run for ever")


def _holds_graph(attribute: memoryview, fields: _Reader) -> bool:
    found = False
    for number, value in fields(attribute):
        if number in (5, 10):  # AttributeProto.t, tensors
            _check_tensor(_message(value), fields)
        elif number in (22, 23):  # AttributeProto.sparse_tensor, sparse_tensors
            _check_sparse(_message(value), fields)
        found |= number in (6, 11)  # AttributeProto.g, graphs
    return found


def _check_sparse(tensor: memoryview, fields: _Reader) -> None:
    for number, value in fields(tensor):
        if number in (1, 2):  # SparseTensorProto.values, indices
            _check_tensor(_message(value), fields)


def _check_tensor(tensor: memoryview, fields: _Reader) -> None:
    for number, value in fields(tensor):
        elsewhere = number == 14 and isinstance(value, int) and value & _32_BITS == _EXTERNAL  # data_location
        if elsewhere or number == 13:  # TensorProto.external_data
            raise _RefusedError("keeps weights in a file of their own, which no hash covers")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """Number and value of every field: bytes as they lie, anything else as a number. IndexError, ValueError."""
    for number, value, _, _ in _spans(message):
        yield number, value


def _spans(message: memoryview) -> Iterator[tuple[int, int | memoryview, int, int]]:
    """As `_fields`, and where each field begins and ends."""
    at, end = 0, len(message)
    while at < end:
        start = at
        key, at = _varint(message, at)
        number, kind = (key & _32_BITS) >> 3, key & 7  # as in the engine's reader, which drops the bits above
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value, start, at
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("no kind of field that ONNX has")
        if at + length > end:
            raise IndexError("a field that ends after its message")
        yield number, message[at : at + length] if kind == _BYTES else 0, start, at + length
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
