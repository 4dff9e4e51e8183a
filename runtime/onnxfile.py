"""Check the bytes of an ONNX file before an engine reads them; neither onnx nor an engine is needed.

Graphs of this project neither branch nor loop. So a file is refused if a part of it may run for ever (Loop, Scan, If,
functions) or is known to some engines only (other domains). A part that lies in another file is refused too, because no
hash covers it. Field numbers are those of onnx.proto; the encoding is that of Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
            _check_graph(message_of(value), fields)
        elif number == 25:  # ModelProto.functions
            raise _RefusedError("holds functions of its own, which may call each other for ever")


def _check_graph(graph: memoryview, fields: _Reader) -> None:
    nodes = 0
    for number, value in fields(graph):
        if number == 1:  # GraphProto.node
            nodes += 1
            if nodes > MAX_NODES:
                raise _RefusedError(f"has more than {MAX_NODES:,} nodes")
            _check_node(message_of(value), fields)
        elif number == 5:  # GraphProto.initializer
            _check_tensor(message_of(value), fields)
        elif number == 15:  # GraphProto.sparse_initializer
            _check_sparse(message_of(value), fields)


def _check_node(node: memoryview, fields: _Reader) -> None:
    operator, domain, branches = b"?", b"", False
    for number, value in fields(node):
        if number == 4:  # NodeProto.op_type
            operator = bytes(message_of(value)[:40])
        elif number == 7:  # NodeProto.domain
            domain = bytes(message_of(value)[:80])
        elif number == 5:  # NodeProto.attribute
            branches |= _holds_graph(message_of(value), fields)
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
            _check_tensor(message_of(value), fields)
        elif number in (22, 23):  # AttributeProto.sparse_tensor, sparse_tensors
            _check_sparse(message_of(value), fields)
        found |= number in (6, 11)  # AttributeProto.g, graphs
    return found


def _check_sparse(tensor: memoryview, fields: _Reader) -> None:
    for number, value in fields(tensor):
        if number in (1, 2):  # SparseTensorProto.values, indices
            _check_tensor(message_of(value), fields)


def _check_tensor(tensor: memoryview, fields: _Reader) -> None:
    for number, value in fields(tensor):
        elsewhere = number == 14 and isinstance(value, int) and value & _32_BITS == _EXTERNAL  # data_location
        if elsewhere or number == 13:  # TensorProto.external_data
            raise _RefusedError("keeps weights in a file of their own, which no hash covers")


def message_of(value: int | memoryview) -> memoryview:
    """The bytes of a field that holds a message or a text. Raises ValueError for a number."""
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """Number and value of every field: bytes as they lie, anything else as a number. IndexError, ValueError."""
    for number, value, _, _ in fields_of(message):
        yield number, value


def fields_of(message: memoryview) -> Iterator[tuple[int, int | memoryview, int, int]]:
    """As `_fields`, with the places in the message where each field starts and ends."""
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
