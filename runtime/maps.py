"""Defect maps: from patch resolution to any size, to a frame score, and to regions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .kept import kept

Map = NDArray[np.float32]
TOP_SHARE = 0.01
"""Share of the map's pixels whose mean is the frame score: the highest ones."""
_SAMPLED = 31
"""The frame score samples one pixel in so many; the number is odd, so that the sample lies all over the map."""
_SMALL_PRODUCT = 200_000
"""Multiply-adds below which BLAS starts no threads. Its threads would compete with the decoders and the engine: on two
cores, a stream fell to a fifth of its speed."""


_DENSE = 1 << 17
"""Values of an up-sampling matrix: a larger one is mostly zeros, as of a frame of many tiles, and is never made whole.
A frame without tiles stays below up to a side of 8,738 pixels, at 15 patches."""
_KEPT_BYTES = 32 << 20
"""Of all matrices that are kept for the next frame."""
_BLOCK = 512
"""Pixels along an axis that are up-sampled at once in such a frame."""


def _bytes_of(matrix: Map) -> int:
    return matrix.nbytes


@kept(_KEPT_BYTES, _bytes_of)
def upsampling_matrix(size: int, cells: int, sigma: float) -> Map:
    """U [size, cells]: bilinear up-sampling with half-pixel centres, then Gaussian smoothing (both linear).

    sigma: standard deviation of the smoothing in pixels of the output; 0 for none. Rows sum to 1, so a constant map
    stays constant and values stay in [0, 1].
    """
    read, values = _upsampling_rows(size, cells, sigma, 0, size)
    matrix = np.zeros((size, cells), np.float32)
    matrix[:, read] = values
    matrix.setflags(write=False)
    return matrix


def _upsampling_rows(size: int, cells: int, sigma: float, start: int, stop: int) -> tuple[slice, Map]:
    """Rows start to stop of that matrix, as the cells that they read and [stop - start, cells read]."""
    radius = int(np.ceil(4 * sigma))
    rows = np.clip(np.arange(start - radius, stop + radius), 0, size - 1)  # beyond the border, the border again
    centres = (rows + 0.5) * cells / size - 0.5
    low = np.floor(centres).astype(int)
    share = centres - low
    read = slice(max(0, int(low[0])), min(cells, int(low[-1]) + 2))
    bilinear = np.zeros((len(rows), read.stop - read.start))
    place = np.arange(len(rows))
    np.add.at(bilinear, (place, np.clip(low, 0, cells - 1) - read.start), 1 - share)
    np.add.at(bilinear, (place, np.clip(low + 1, 0, cells - 1) - read.start), share)
    if radius:
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        bilinear = np.stack([np.convolve(column, taps / taps.sum(), mode="valid") for column in bilinear.T], axis=1)
    return read, bilinear.astype(np.float32)


def upsample(
    patch_map: Map, size: tuple[int, int], image_size: tuple[int, int], smoothing_px: float, part: slice = slice(None)
) -> Map:
    """U_h A U_wᵀ: maps [..., rows, columns] at `size` [height, width], float32 [..., height, width] in [0, 1].

    smoothing_px is given at the encoder's `image_size` and scales with the output, so the result looks the same at
    every size. A map's result does not depend on the other maps of the batch. part: rows of the result to compute.
    """
    (height, width), (rows, columns) = size, patch_map.shape[-2:]
    if max(rows * height, columns * width) > _DENSE:
        return _upsample_by_blocks(patch_map, size, image_size, smoothing_px, part)
    vertical = upsampling_matrix(height, rows, smoothing_px * height / image_size[0])[part]
    height = len(vertical)
    horizontal = upsampling_matrix(width, columns, smoothing_px * width / image_size[1])
    halfway: Map = _in_bands(vertical, columns * width) @ patch_map[..., None, :, :]
    full: Map = (halfway @ horizontal.T).reshape(*patch_map.shape[:-2], -1, width)[..., :height, :]
    return np.clip(full, 0.0, 1.0, out=full)


def _in_bands(vertical: Map, product: int) -> Map:
    """Rows of a matrix as [bands, rows of a band, cells], zeros after the last. product: multiply-adds of a row.

    Bands of rows keep each MatMul small; one call for all of them hands over the GIL once.
    """
    height, cells = vertical.shape
    bands = -(-height // max(1, _SMALL_PRODUCT // product))
    band = -(-height // bands)
    padded = np.zeros((bands * band, cells), np.float32)
    padded[:height] = vertical
    return padded.reshape(bands, band, cells)


def _upsample_by_blocks(
    patch_map: Map, size: tuple[int, int], image_size: tuple[int, int], smoothing_px: float, part: slice
) -> Map:
    """`upsample` for large maps of tiles, whose matrices are mostly zeros: block by block, without them."""
    (height, width), (rows, columns) = size, patch_map.shape[-2:]
    wanted = range(*part.indices(height))
    full = np.empty((*patch_map.shape[:-2], len(wanted), width), np.float32)
    sigmas = smoothing_px * height / image_size[0], smoothing_px * width / image_size[1]
    across = [(at, *_upsampling_rows(width, columns, sigmas[1], *at)) for at in _blocks(0, width)]
    for start, stop in _blocks(wanted.start, wanted.stop):
        read, vertical = _upsampling_rows(height, rows, sigmas[0], start, stop)
        for (first, last), columns_read, horizontal in across:
            halfway: Map = _in_bands(vertical, horizontal.size) @ patch_map[..., None, read, columns_read]
            block = (halfway @ horizontal.T).reshape(*patch_map.shape[:-2], -1, last - first)
            full[..., start - wanted.start : stop - wanted.start, first:last] = block[..., : stop - start, :]
    return np.clip(full, 0.0, 1.0, out=full)


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + _BLOCK, stop)) for at in range(start, stop, _BLOCK))


def frame_score(full_map: Map) -> float:
    """Mean of the highest 1 % of the map's pixels, in [0, 1]."""
    return float(frame_scores(full_map[None])[0])


def frame_scores(full_maps: Map) -> Map:
    """`frame_score` of maps [n, height, width]: float32 [n]."""
    flat = full_maps.reshape(len(full_maps), -1)
    count = max(1, round(TOP_SHARE * flat.shape[1]))
    # A mean in float64 does not depend on the order in which the highest pixels are found.
    return np.array([_highest(values, count).mean(dtype=np.float64) for values in flat], np.float32)


def _highest(values: Map, count: int) -> Map:
    """The `count` highest of `values`, in any order.

    A selection among all pixels takes six times as long as one among those that reach a bound. The bound is guessed
    from a sample, so that about twice as many values reach it as are needed; if fewer reach it, all are searched.
    """
    sample = values[::_SAMPLED]
    guess = 2 * count // _SAMPLED + 2
    if len(sample) > guess:
        bound = np.partition(sample, len(sample) - guess)[len(sample) - guess]
        reaching = values[~(values < bound)]
        values = reaching if len(reaching) >= count else values
    highest: Map = np.partition(values, len(values) - count)[-count:]
    return highest


SIZES_NM = ("width_nm", "height_nm", "equivalent_diameter_nm", "area_nm2")
"""Fields of a region that need the size of a pixel."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected part of the mask, in frame pixels.

    x, y, width, height: bounding box, from its top-left pixel. area: pixels. centroid: (x, y). peak: highest map value.
    below_threshold: no pixel of the frame reached the pixel threshold; this is the region around the map's maximum.
    width_nm, height_nm, area_nm2: the same in nm and nm²; None where the size of a pixel is unknown.
    equivalent_diameter_nm: of the circle of this area.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    centroid: tuple[float, float]
    peak: float
    below_threshold: bool = False
    width_nm: float | None = None
    height_nm: float | None = None
    equivalent_diameter_nm: float | None = None
    area_nm2: float | None = None

    def sized(self, pixel_size_nm: tuple[float, float] | None) -> Region:
        """The same region, with sizes by the sides (x, y) of a pixel in nm; without them for None."""
        if pixel_size_nm is None:
            return replace(self, width_nm=None, height_nm=None, equivalent_diameter_nm=None, area_nm2=None)
        x, y = pixel_size_nm
        area = self.area * x * y
        return replace(
            self,
            width_nm=self.width * x,
            height_nm=self.height * y,
            equivalent_diameter_nm=2 * math.sqrt(area / math.pi),
            area_nm2=area,
        )


def find_regions(mask: NDArray[np.bool_], full_map: Map) -> tuple[Region, ...]:
    """The 8-connected regions of `mask` [height, width], largest peak first."""
    row, start, stop = _runs(mask)
    if row.size == 0:
        return ()
    label = _connect(row, start, stop)
    length = stop - start
    count = int(label.max()) + 1
    area = np.bincount(label, length, count)
    centre_x = np.bincount(label, length * (start + stop - 1) / 2, count) / area
    centre_y = np.bincount(label, length * row, count) / area
    left, right = np.full(count, mask.shape[1]), np.zeros(count, int)
    top, bottom = np.full(count, mask.shape[0]), np.zeros(count, int)
    peak = np.zeros(count, np.float32)
    np.minimum.at(left, label, start)
    np.maximum.at(right, label, stop)
    np.minimum.at(top, label, row)
    np.maximum.at(bottom, label, row + 1)
    # reduceat takes [start, stop) pairs; every other result belongs to the gaps between runs. The last may end the map.
    bounds = np.stack([row * mask.shape[1] + start, row * mask.shape[1] + stop], axis=1).ravel()
    bounds = bounds[:-1] if bounds[-1] == full_map.size else bounds
    np.maximum.at(peak, label, np.maximum.reduceat(full_map.ravel(), bounds)[::2])
    regions = [
        Region(
            x=int(left[i]),
            y=int(top[i]),
            width=int(right[i] - left[i]),
            height=int(bottom[i] - top[i]),
            area=int(area[i]),
            centroid=(float(centre_x[i]), float(centre_y[i])),
            peak=float(peak[i]),
        )
        for i in range(count)
    ]
    return tuple(sorted(regions, key=lambda region: (-region.peak, region.y, region.x)))


def around_peak(full_map: Map, background: float) -> NDArray[np.bool_]:
    """The 8-connected part of a map [height, width] that holds its maximum and is nearer to it than to `background`.

    This is a peak's full width at half maximum over its background; it is never empty. If no pixel of a small frame is
    above the background, the part is what is no lower than the maximum.
    """
    highest = float(full_map.max())
    half = (highest + min(background, highest)) / 2
    row, start, stop = _runs(full_map >= half - 1e-6)  # a flat map is flat but for rounding
    label = _connect(row, start, stop)
    peak_row, peak_column = np.unravel_index(int(full_map.argmax()), full_map.shape)
    holds = (row == peak_row) & (start <= peak_column) & (peak_column < stop)
    found = np.zeros(full_map.shape, np.bool_)
    for r, a, b in zip(*(runs[label == label[holds][0]] for runs in (row, start, stop)), strict=True):
        found[r, a:b] = True
    return found


def stretch(mask: NDArray[np.bool_], size: tuple[int, int], rows: slice = slice(None)) -> NDArray[np.bool_]:
    """A mask enlarged to a size [height, width] by the nearest pixel; only the rows `rows` of it."""
    row, column = (np.arange(new) * old // new for old, new in zip(mask.shape, size, strict=True))
    return mask[np.ix_(row[rows], column)]


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Horizontal runs of true pixels: row, first column, column after the last; in reading order."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(padded, axis=1)
    row, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    return row, start, stop


def _connect(row: NDArray[np.intp], start: NDArray[np.intp], stop: NDArray[np.intp]) -> NDArray[np.intp]:
    """Component number of each run: union-find over runs that touch (diagonals too) in neighbouring rows."""
    parent = list(range(row.size))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    rows, starts, stops = row.tolist(), start.tolist(), stop.tolist()
    above = 0
    for below in range(len(rows)):
        while rows[above] < rows[below] - 1 or (rows[above] == rows[below] - 1 and stops[above] < starts[below]):
            above += 1
        touching = above
        while touching < below and rows[touching] == rows[below] - 1 and starts[touching] <= stops[below]:
            parent[root(below)] = root(touching)
            touching += 1
    roots = np.array([root(i) for i in range(len(rows))])
    return np.unique(roots, return_inverse=True)[1]
