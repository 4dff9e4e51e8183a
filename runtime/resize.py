"""Pillow's antialiased bicubic resize as matrix products: for the graph, and on the host at a quarter of Pillow's time.

An output pixel weighs a few input pixels, so the resize along one axis is a band matrix times the image: a stack of
small dense products, one for every block of outputs. BLAS does these with vector instructions, Pillow does not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Order: TypeAlias = Literal["C", "F"]
_BLOCK = 12
"""Outputs that share a product: fewer make products that are too small, more make more zeros beside the band."""
_MULTIPLY_ADDS = 1 << 18
"""Most that one product does. OpenBLAS shares larger ones among threads of its own, and the decoders that resize side
by side would wait for each other."""


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
    """Parts of the other axis, no larger than one product should have."""
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
    scale = source / target
    stretch = max(scale, 1.0)
    blocks = math.ceil(target / _BLOCK)
    outputs = np.arange(blocks * _BLOCK)
    centres = (outputs + 0.5) * scale
    # Which inputs count, as Pillow has it.
    first = np.maximum((centres - 2 * stretch + 0.5).astype(int), 0)
    stop = np.minimum((centres + 2 * stretch + 0.5).astype(int), source)
    stop[target:] = first[target:] = 0
    # Windows that are equally far apart leave the band by up to half a pixel a block; they are that much wider.
    step = round(_BLOCK * scale)
    starts = np.arange(blocks) * step
    used = outputs < target
    before = max(0, int((starts[outputs // _BLOCK] - first)[used].max()))
    taps = before + int((stop - starts[outputs // _BLOCK])[used].max())
    inputs = (starts[:, None] - before + np.arange(taps))[:, None, :]
    shape = (blocks, _BLOCK, 1)
    weights = _cubic((inputs + 0.5 - centres.reshape(shape)) / stretch)
    weights[(inputs < first.reshape(shape)) | (inputs >= stop.reshape(shape))] = 0
    total = weights.sum(2, keepdims=True)
    single: NDArray[np.float32] = np.divide(weights, total, out=weights, where=total != 0).astype(np.float32)
    padded = max(before + source, int(starts[-1]) + taps)
    if order == "F":  # laid out like the image, or the products take twice as long
        single = np.ascontiguousarray(single.transpose(0, 2, 1)).transpose(0, 2, 1)
    return _Band(single, step, before, padded)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys 1981, eq. 15: a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
