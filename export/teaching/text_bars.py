"""`--ignore auto`: the rows of text bars of a data set, by the tool's metadata, else by the pixels of its frames."""

from __future__ import annotations

import numpy as np

from calibration.dataset import Dataset
from runtime.errors import BarsError
from runtime.fab.sem_bars import Bars, Look, find_bars, look
from runtime.frames import decode_frame
from runtime.recipe import FrameOptions

MOST_FRAMES, LEAST_FRAMES = 64, 8
"""Frames to look at, spread over the set and all of its classes; fewer of large ones, all of which are held at once."""
MOST_PIXELS = 200_000_000


def find_text_bars(dataset: Dataset, options: FrameOptions) -> Bars:
    """The text bars that all frames of a data set have. Deterministic.

    Raises BarsError where frames disagree or are too few; FrameError for one that cannot be read.
    """
    samples = dataset.samples
    first = _look(str(samples[0].path), options)
    count = min(MOST_FRAMES, max(LEAST_FRAMES, MOST_PIXELS // first.grey.size))
    step = max(1, -(-len(samples) // count))
    try:
        return find_bars([first, *(_look(str(sample.path), options) for sample in samples[step::step])])
    except BarsError as exc:
        raise BarsError(f"{dataset.folder}: {exc}") from None


def _look(path: str, options: FrameOptions) -> Look:
    frame = decode_frame(path, options, path, True)
    return look(path, np.asarray(frame.pixels), frame.sem.bar_rows)
