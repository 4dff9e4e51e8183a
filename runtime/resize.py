"""Pillow's antialiased bicubic resize as MatMuls: for the graph, and on the host in a quarter of Pillow's time.

An output pixel weighs a few input pixels, so the resize along one axis is a band matrix times the image: a stack of
small dense MatMuls, one per block of outputs. BLAS does these with vector instructions, Pillow does not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Order: TypeAlias = Literal["C", "F"]
_BLOCK = 12
"""Outputs per block: fewer make MatMuls that are too small, more put more zeros around the band."""
_MULTIPLY_ADDS = 1 << 18
"""The most in one MatMul. OpenBLAS shares larger ones among its own threads, and decoders that resize at the same
time would wait for each other."""


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """The band matrix of one axis in blocks whose windows into the padded input are equally far apart.

    weights: [blocks, _BLOCK, taps], zeros for outputs past the last. step: inputs from one window to the next.
    before: zeros before the input. padded: its length with the zeros on both sides.
    """

    weights: Array
    step: int
    before: int
    padded: int

    @property
    def outputs(self) -> int:
        """Those past the last included."""
        return len(self.weights) * _BLOCK


class _Buffers(threading.local):
    """A thread's buffers of the latest size, with the zeros that the windows want around the image: some 2 MB.

    To allocate and clear them for every frame costs up to three times what the resize itself does.
    """

    _key: tuple[object, ...] = ()

    def buffers(self, height: int, across: _Band, down: _Band) -> tuple[Array, Array]:
        """Rows of the input as float32 [rows of a part, across.padded], and what they become [down.padded, outputs]."""
        if self._key != (height, across, down):
            longest = next(_parts(height, across))
            self._rows = np.zeros((min(height, longest.stop), across.padded), np.float32)
            self._narrow = np.zeros((down.padded, across.outputs), np.float32)
            self._key = height, across, down
        return self._rows, self._narrow


_own = _Buffers()


def bicubic_matrix(source: int, target: int) -> Array:
    """R [target, source] with resize(x) = R x along one axis; of an image, R_h x R_wᵀ.

    Keys' cubic with a = -1/2, stretched over all pixels that a reduction covers, as in Pillow's Resample.c.
    """
    band = _band(source, target)
    blocks, rows, taps = band.weights.shape
    matrix = np.zeros((blocks, rows, band.padded), np.float32)
    for index, weights in enumerate(band.weights):
        matrix[index, :, index * band.step : index * band.step + taps] = weights
    whole = matrix.reshape(blocks * rows, band.padded)
    return np.ascontiguousarray(whole[:target, band.before : band.before + source])


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """`pixels` [height, width], uint8, at another size [height, width]: R_h x R_wᵀ, then rounded and clipped to 8 bits.

    As in the graph. Pillow's own BICUBIC also rounds and clips between its passes, and which pass comes first depends
    on its version (PR 9549); it is within a level of this wherever the filter does not overshoot 0 or 255.
    """
    height, width = size
    across, down = _band(pixels.shape[1], width, "F"), _band(pixels.shape[0], height, "C")
    rows, narrow = _own.buffers(pixels.shape[0], across, down)
    inner = narrow[down.before : down.before + pixels.shape[0]]
    for part in _parts(pixels.shape[0], across):
        padded = rows[: len(pixels[part])]
        padded[:, across.before : across.before + pixels.shape[1]] = pixels[part]
        _multiply(across, padded.T, inner[part].T)
    result = np.empty(size, np.uint8)
    for part in _parts(width, down):
        columns = narrow[:, :width][:, part]
        sums = np.empty((down.outputs, columns.shape[1]), np.float32)
        _multiply(down, columns, sums)
        sums += 0.5  # and the cast cuts off, so halves go up
        np.clip(sums[:height], 0, 255, out=result[:, part], casting="unsafe")
    return result


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


@lru_cache(maxsize=16)
def _band(source: int, target: int, order: Order = "C") -> _Band:
    """The band matrix that takes an axis of `source` pixels to `target`. order: "F" lays weights out like the image.

    Worked example, 48 pixels to 24. The scale is 2, so the cubic weighs 8 inputs per output. There are 24 / 12 = 2
    blocks, whose windows start 12 x 2 = 24 inputs apart, at 0 and 24.
    Output 12, the first of block 1, has its centre at 12.5 x 2 = 25 and weighs the inputs 21 to 28. So the window must
    begin 3 inputs before 24, and all windows do: `before` is 3.
    Block 0 ends with output 11, which weighs the inputs 19 to 26. From -3 to 26 its window holds 30: `taps` is 30.
    The window of block 1 holds 21 to 50. So there are 3 zeros before the image and 3 after it, and `padded` is 54.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    blocks = math.ceil(target / _BLOCK)
    outputs = np.arange(blocks * _BLOCK)
    centres = (outputs + 0.5) * scale
    # Which inputs count, as Pillow has it.
    first = np.maximum((centres - 2 * stretch + 0.5).astype(int), 0)
    stop = np.minimum((centres + 2 * stretch + 0.5).astype(int), source)
    stop[target:] = first[target:] = 0
    # A step is a whole number, so windows drift from the band by up to half a pixel per block: they are wider by that.
    step = round(_BLOCK * scale)
    starts = np.arange(blocks) * step
    used = outputs < target
    before = max(0, int((starts[outputs // _BLOCK] - first)[used].max()))
    taps = before + int((stop - starts[outputs // _BLOCK])[used].max())
    inputs = starts[:, None] - before + np.arange(taps)
    shape = (blocks, _BLOCK, 1)
    weights = _weights(inputs[:, None, :], centres.reshape(shape), first.reshape(shape), stop.reshape(shape), stretch)
    if order == "F":  # laid out like the image, or the MatMuls take twice as long
        weights = np.ascontiguousarray(weights.transpose(0, 2, 1)).transpose(0, 2, 1)
    return _Band(weights, step, before, max(before + source, int(starts[-1]) + taps))


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
