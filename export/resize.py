"""Pillow's antialiased bicubic resize as a matrix, so that it can stand in the graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def bicubic_matrix(source: int, target: int) -> NDArray[np.float32]:
    """R [target, source] with resize(x) = R x, read off Pillow itself: the resize of each unit vector, in float mode.

    The resize of an image is R_h x R_wᵀ.
    """
    columns = Image.fromarray(np.eye(source, dtype=np.float32))
    return np.array(columns.resize((source, target), Image.Resampling.BICUBIC), dtype=np.float32)
