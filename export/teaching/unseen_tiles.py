"""The tiles of good support frames that teach nothing: one of them that looks like a defect would be a false alarm.

A frame in tiles has many chances for one. So the most suspicious tiles are taught in a second pass, and both thresholds
are set by all tiles of the good frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.dataset import GOOD, Sample
from calibration.histogram import ScoreHistogram
from runtime.manifest import Encoder
from runtime.maps import frame_scores, upsample
from runtime.recipe import TENSORS, FrameOptions
from runtime.verdict import defect_scores
from runtime.windows import Size

from ..model.graph import SemClipGraph
from ..progress import Progress
from .support_pixels import Support, area_average, other_tiles
from .views import loss_grid

HARD_TILES = 4
"""Of every good frame, those that a first recipe scores highest are taught."""
_BATCH = 8
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedTiles:
    """What a recipe says of n tiles. frame: int [n]; map_scores: [n]; good: P(good) of eq. 23, [n].

    cells: their maps on the loss grid, all of them negatives.
    """

    frame: NDArray[np.intp]
    map_scores: Floats
    good: Floats
    cells: ScoreHistogram


class UnseenTiles:
    """The tiles of the good frames among `supports` that `read_supports` leaves out. Each frame is read when needed."""

    def __init__(
        self,
        graph: SemClipGraph,
        encoder: Encoder,
        supports: Sequence[Sample],
        options: FrameOptions,
        seed: int,
        smoothing_px: float,
    ) -> None:
        self._graph, self._encoder, self._options, self._seed = graph, encoder, options, seed
        self._smoothing_px = smoothing_px
        self._good = [(number, sample) for number, sample in enumerate(supports) if sample.label == GOOD]
        self._taught: set[tuple[int, Size | None]] = set()

    def hardest(
        self, tensors: Mapping[str, Floats], class_share: float, progress: Progress | None = None
    ) -> list[Support]:
        """The tiles of every frame with the highest defect scores. They count as taught from now on."""
        hard: list[Support] = []
        for done, (tiles, map_scores, good, _) in enumerate(self._judged(tensors), start=1):
            scores = defect_scores(map_scores, good[:, None], class_share)
            hard += [tiles[index] for index in np.argsort(-scores, kind="stable")[:HARD_TILES]]
            if progress is not None:
                progress(done, len(self._good))
        self._taught = {(tile.number, tile.corner) for tile in hard}
        return hard

    def judge(self, tensors: Mapping[str, Floats], progress: Progress | None = None) -> JudgedTiles:
        """All tiles that teach nothing, by the tensors of a recipe."""
        frame, map_scores, good = [np.zeros(0, np.intp)], [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
        histogram = ScoreHistogram()
        for done, (tiles, scores, probabilities, cells) in enumerate(self._judged(tensors), start=1):
            frame.append(np.array([tile.number for tile in tiles], np.intp))
            map_scores.append(scores)
            good.append(probabilities)
            histogram.add(cells, np.zeros(cells.size, np.bool_))
            if progress is not None:
                progress(done, len(self._good))
        return JudgedTiles(np.concatenate(frame), np.concatenate(map_scores), np.concatenate(good), histogram)

    def _judged(self, tensors: Mapping[str, Floats]) -> Iterator[tuple[list[Support], Floats, Floats, Floats]]:
        """Of each frame its tiles, their map scores, their P(good) and all cells of their maps."""
        inputs = {name: torch.tensor(tensors[name]) for name in TENSORS}
        size, grid = self._encoder.image_size, loss_grid(self._encoder.grid)
        for number, sample in self._good:
            found = other_tiles(sample, number, self._encoder, self._options, self._seed)
            tiles = [tile for tile in found if (number, tile.corner) not in self._taught]
            empty = np.zeros(0, np.float32)
            scores, good, cells = [empty], [empty], [empty]
            for start in range(0, len(tiles), _BATCH):
                frames = torch.from_numpy(np.stack([tile.frame for tile in tiles[start : start + _BATCH]]))
                with torch.inference_mode():
                    probabilities, maps, _ = self._graph(frames, **inputs)
                full = upsample(maps.numpy(), size, size, self._smoothing_px)
                scores.append(frame_scores(full))
                good.append(probabilities[:, 0].numpy())
                cells += [np.clip(area_average(one, grid).ravel(), 0, 1) for one in full]  # rounding may leave [0, 1]
            yield tiles, np.concatenate(scores), np.concatenate(good), np.concatenate(cells)
