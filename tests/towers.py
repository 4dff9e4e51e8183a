"""Frames for towers, as the encoder and as open_clip take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def random_frames(count: int, size: Sequence[int]) -> Tensor:
    """Grey frames with structure at all scales, float32 [count, height, width], whole numbers in 0 ... 255."""
    rng = np.random.default_rng(5)
    height, width = size
    coarse = np.kron(rng.uniform(0, 200, (count, height // 8, width // 8)), np.ones((8, 8)))
    return torch.tensor(np.rint(coarse + rng.uniform(0, 55, (count, height, width))), dtype=torch.float32)


def as_open_clip_sees(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The frames as RGB of three equal channels in [0, 1], normalised."""
    rgb = frames[:, None].repeat(1, 3, 1, 1) / 255
    return (rgb - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(1, 3, 1, 1)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
