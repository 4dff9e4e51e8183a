"""Pillow's antialiased bicubic resize as MatMuls: for the graph, and on the host in a quarter of Pillow's time.

An output pixel weighs a few input pixels, so the resize along one axis is a band matrix times the image: a stack of
small dense MatMuls, one per block of outputs. BLAS does these with vector instructions, Pillow does not.

A large result is made part by part, so that neither the matrices nor the buffers grow with it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .kept import kept

Array: TypeAlias = NDArray[np.float32]
Order: TypeAlias = Literal["C", "F"]
_BLOCK = 12
"""Outputs per block: fewer make MatMuls that are too small, more put more zeros around the band."""
_MOST_OUTPUTS, _MOST_INPUTS = 512, 8192
"""Of one band, about: a longer axis takes several. So a thread's buffers take 20 MB at most."""
_KEPT_BYTES = 16 << 20
"""Of bands that are kept for the next frame of the same size."""
_MULTIPLY_ADDS = 1 << 18
"""The most in one MatMul. OpenBLAS shares larger ones among its own threads, and decoders that resize at the same
time would wait for each other."""


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """The band matrix of one axis, or of a part of it, in blocks whose windows into the input are equally far apart.

    weights: [blocks, _BLOCK, taps], zeros for outputs past the last. step: inputs from one window to the next.
    outputs: which of the axis it gives. inputs: which of the axis it reads.
    before: places before these inputs that windows read with weights of zero. padded: all places that they read.
    """

    weights: Array
    step: int
    outputs: slice
    inputs: slice
    before: int
    padded: int

    @property
    def rows(self) -> int:
        """Outputs, those past the last included."""
        return len(self.weights) * _BLOCK

    def nbytes(self) -> int:
        """Of the weights."""
        return self.weights.nbytes


class _Buffers(threading.local):
    """A thread's buffers. To allocate and clear them for every frame costs up to three times what the resize does.

    Windows read around the image too, with weights of zero: what another frame left there is finite, and does no harm.
    """

    _key: tuple[object, ...] = ()
    _stored: tuple[Array, ...] = np.zeros(0, np.float32), np.zeros(0, np.float32)

    def buffers(self, height: int, across: _Band, down: _Band) -> tuple[Array, Array]:
        """Rows of the input as float32 [rows of a part, across.padded], and what they become [down.padded, rows]."""
        if self._key != (height, across, down):
            longest = next(_parts(height, across))
            shapes = (min(height, longest.stop), across.padded), (down.padded, across.rows)
            self._stored = tuple(_at_least(shape, old) for shape, old in zip(shapes, self._stored, strict=True))
            self._rows, self._narrow = (
                stored[: math.prod(shape)].reshape(shape) for shape, stored in zip(shapes, self._stored, strict=True)
            )
            self._key = height, across, down
        return self._rows, self._narrow


def _at_least(shape: tuple[int, int], stored: Array) -> Array:
    """A flat buffer that a shape fits into: the stored one if it does."""
    return stored if stored.size >= math.prod(shape) else np.zeros(math.prod(shape), np.float32)


_own = _Buffers()


def bicubic_matrix(source: int, target: int) -> Array:
    """R [target, source] with resize(x) = R x along one axis; of an image, R_h x R_wᵀ.

    Keys' cubic with a = -1/2, stretched over all pixels that a reduction covers, as in Pillow's Resample.c.
    """
    matrix = np.zeros((target, source), np.float32)
    for band in _bands(source, target):
        blocks, rows, taps = band.weights.shape
        part = np.zeros((blocks, rows, band.padded), np.float32)
        for index, weights in enumerate(band.weights):
            part[index, :, index * band.step : index * band.step + taps] = weights
        place = matrix[band.outputs, band.inputs]
        place[:] = part.reshape(blocks * rows, band.padded)[: len(place), band.before : band.before + place.shape[1]]
    return matrix


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """`pixels` [height, width], uint8, at another size [height, width]: R_h x R_wᵀ, then rounded and clipped to 8 bits.

    As in the graph. Pillow's own BICUBIC also rounds and clips between its passes, and which pass comes first depends
    on its version (PR 9549); it is within a level of this wherever the filter does not overshoot 0 or 255.
    """
    result = np.empty(size, np.uint8)
    for across in _bands(pixels.shape[1], size[1], "F"):
        for down in _bands(pixels.shape[0], size[0]):
            _resize_part(pixels[down.inputs, across.inputs], across, down, result[down.outputs, across.outputs])
    return result


def _resize_part(pixels: NDArray[np.uint8], across: _Band, down: _Band, result: NDArray[np.uint8]) -> None:
    """The outputs of two bands from their inputs."""
    height, width = result.shape
    rows, narrow = _own.buffers(pixels.shape[0], across, down)
    inner = narrow[down.before : down.before + pixels.shape[0]]
    for part in _parts(pixels.shape[0], across):
        padded = rows[: len(pixels[part])]
        padded[:, across.before : across.before + pixels.shape[1]] = pixels[part]
        _multiply(across, padded.T, inner[part].T)
    for part in _parts(width, down):
        columns = narrow[:, :width][:, part]
        sums = np.empty((down.rows, columns.shape[1]), np.float32)
        _multiply(down, columns, sums)
        sums += 0.5  # and the cast cuts off, so halves go up
        np.clip(sums[:height], 0, 255, out=result[:, part], casting="unsafe")


def _parts(length: int, band: _Band) -> Iterator[slice]:
    """Parts of the other axis, each small enough for one MatMul."""
    step = max(1, _MULTIPLY_ADDS // (_BLOCK * band.weights.shape[2]))
    return (slice(start, start + step) for start in range(0, length, step))


def _multiply(band: _Band, padded: Array, out: Array) -> None:
    """[padded, n] to [outputs, n], all blocks in one call: the GIL changes hands once."""
    blocks, rows, taps = band.weights.shape
    columns = padded.shape[1]
    down, along = padded.strides
    windows = as_strided(padded, (blocks, taps, columns), (band.step * down, down, along), writeable=False)
    down, along = out.strides
    np.matmul(band.weights, windows, out=as_strided(out, (blocks, rows, columns), (rows * down, down, along)))


def _bands(source: int, target: int, order: Order = "C") -> Iterable[_Band]:
    """The bands that take an axis of `source` pixels to `target`, made one after another."""
    if target <= _MOST_OUTPUTS and source <= _MOST_INPUTS:
        return (_band(source, target, 0, target, order),)
    blocks = math.ceil(target / _BLOCK)
    bands = max(math.ceil(target / _MOST_OUTPUTS), math.ceil(source / _MOST_INPUTS))
    step = math.ceil(blocks / bands) * _BLOCK
    return (_band(source, target, start, min(start + step, target), order) for start in range(0, target, step))


@kept(_KEPT_BYTES, _Band.nbytes)
def _band(source: int, target: int, begin: int, end: int, order: Order) -> _Band:
    """The band of the outputs `begin` to `end`. order: "F" lays weights out like the image.

    Worked example, 48 pixels to 24. The scale is 2, so the cubic weighs 8 inputs per output. There are 24 / 12 = 2
    blocks, whose windows start 12 x 2 = 24 inputs apart, at 0 and 24.
    Output 12, the first of block 1, has its centre at 12.5 x 2 = 25 and weighs the inputs 21 to 28. So the window must
    begin 3 inputs before 24, and all windows do: `before` is 3.
    Block 0 ends with output 11, which weighs the inputs 19 to 26. From -3 to 26 its window holds 30: `taps` is 30.
    The window of block 1 holds 21 to 50. So there are 3 places before the image and 3 after it, and `padded` is 54.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    blocks = math.ceil((end - begin) / _BLOCK)
    outputs = np.arange(begin, begin + blocks * _BLOCK)
    centres = (outputs + 0.5) * scale
    # Which inputs count, as Pillow has it.
    first = np.maximum((centres - 2 * stretch + 0.5).astype(int), 0)
    stop = np.minimum((centres + 2 * stretch + 0.5).astype(int), source)
    used = outputs < end
    stop[~used] = first[~used] = 0
    # A step is a whole number, so windows drift from the band by up to half a pixel per block: they are wider by that.
    # Each band begins where it should, so the drift does not grow with the axis.
    step = round(_BLOCK * scale)
    starts = round(begin * scale) + np.arange(blocks) * step
    start_of = np.repeat(starts, _BLOCK)
    before = max(0, int((start_of - first)[used].max()))
    taps = before + int((stop - start_of)[used].max())
    inputs = starts[:, None] - before + np.arange(taps)
    shape = (blocks, _BLOCK, 1)
    weights = _weights(inputs[:, None, :], centres.reshape(shape), first.reshape(shape), stop.reshape(shape), stretch)
    if order == "F":  # laid out like the image, or the MatMuls take twice as long
        weights = np.ascontiguousarray(weights.transpose(0, 2, 1)).transpose(0, 2, 1)
    low, high = int(inputs[0, 0]), int(inputs[-1, -1]) + 1
    read = slice(max(0, low), min(source, high))
    return _Band(weights, step, slice(begin, end), read, read.start - low, high - low)


def _weights(
    inputs: NDArray[np.int_],
    centres: NDArray[np.floating[Any]],
    first: NDArray[np.int_],
    stop: NDArray[np.int_],
    stretch: float,
) -> Array:
    """Weights [blocks, outputs, taps] that sum to 1 per output; all zero for an output with first = stop.

    inputs: [blocks, 1, taps], which input each tap reads. centres, first, stop: [blocks, outputs, 1].
    """
    weights = _cubic((inputs + 0.5 - centres) / stretch)
    weights[(inputs < first) | (inputs >= stop)] = 0
    total = weights.sum(2, keepdims=True)
    normed: Array = np.divide(weights, total, out=weights, where=total != 0).astype(np.float32)
    return normed


def _cubic(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Keys 1981, eq. 15: a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
