"""WinCLIP+ (Jeong et al., CVPR 2023, arXiv:2303.14814) over the same tower and prompts, as a baseline.

It is not trained. Every window of 2 x 2 and 3 x 3 patches is encoded alone and compared with the text, and so is the
whole frame. Windows and patches are also compared with those of the good supports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.model import heads
from export.model.dual_path import DualPathEncoder

WINDOWS = (2, 3)
"""Sides of the windows, in patches: the paper's small and middle scale."""


@dataclass(frozen=True, slots=True)
class WindowFeatures:
    """Features that WinCLIP uses of n frames; unit vectors, windows in float16.

    frame: [n, C]. windows: for each of WINDOWS [n, W, C]. patches: [n, P, D], of the last level but one.
    """

    frame: Tensor
    windows: tuple[Tensor, ...]
    patches: Tensor

    def __getitem__(self, index: int) -> WindowFeatures:
        part = slice(index, index + 1)
        return WindowFeatures(self.frame[part], tuple(w[part] for w in self.windows), self.patches[part])


def join(parts: Sequence[WindowFeatures]) -> WindowFeatures:
    """The frames of several parts, in order."""
    windows = zip(*(part.windows for part in parts), strict=True)
    return WindowFeatures(
        torch.cat([part.frame for part in parts]),
        tuple(torch.cat(scale) for scale in windows),
        torch.cat([part.patches for part in parts]),
    )


@torch.inference_mode()
def encode_windows(encoder: DualPathEncoder, pixels: Tensor) -> WindowFeatures:
    """Encode frames (float32 [B, height, width] of the encoder's image size, in [0, 255]) and their windows.

    A window is the class token with only the window's patches, at their own positions (section 4.2).
    """
    embedded = encoder.embed(pixels)
    levels = encoder.levels_of(embedded)
    windows = []
    for side in WINDOWS:
        members = window_members(encoder.grid, side)
        tokens = embedded[:, 1:][:, members].flatten(0, 1)  # [B W, side², D]
        first = embedded[:, :1].repeat_interleave(len(members), 0)
        cls = encoder.levels_of(torch.cat([first, tokens], dim=1)).cls[-1]
        windows.append(heads.unit(cls).reshape(len(pixels), len(members), -1).half())
    return WindowFeatures(heads.unit(levels.cls[-1]), tuple(windows), heads.unit(levels.tokens[-2][:, 1:]).half())


def window_members(grid: tuple[int, int], side: int) -> Tensor:
    """int64 [W, side²]: the patch indices of every window, row by row."""
    places = torch.arange(grid[0] * grid[1]).reshape(grid)
    return places.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)


def spread_harmonically(scores: Tensor, members: Tensor, patches: int) -> Tensor:
    """Patch scores [P] from window scores [W] in (0, 1]: the harmonic mean of all windows with that patch (eq. 4)."""
    inverse = (1 / scores.clamp_min(1e-6))[:, None].expand(members.shape).flatten()
    total = torch.zeros(patches).index_add_(0, members.flatten(), inverse)
    count = torch.zeros(patches).index_add_(0, members.flatten(), torch.ones_like(inverse))
    return count / total


def judge(
    frame: WindowFeatures, good: WindowFeatures, text_seg: Tensor, scale: float, grid: tuple[int, int]
) -> tuple[Tensor, float]:
    """Map [rows, columns] and score of one frame, both in [0, 1].

    good: features of the good supports. text_seg: [2, C], normal and defect. scale: the tower's logit scale. The map is
    the mean of the zero-shot map (harmonic over both windows and the frame, eq. 5) and of the distance to the good
    frames (eq. 7). The score is the mean of the whole frame's score and of that distance's peak (eq. 8).
    """
    patches = grid[0] * grid[1]

    def by_text(x: Tensor) -> Tensor:
        return torch.softmax(scale * heads.cosines(x, text_seg), dim=-1)[..., 1]

    whole = by_text(frame.frame)[0]
    inverse = (1 / whole.clamp_min(1e-6)).expand(patches)
    distance = _distance(frame.patches[0], good.patches)
    for side, windows, memory in zip(WINDOWS, frame.windows, good.windows, strict=True):
        members = window_members(grid, side)
        inverse = inverse + 1 / spread_harmonically(by_text(windows[0]), members, patches)
        distance = distance + spread_harmonically(_distance(windows[0], memory), members, patches)
    zero_shot = (1 + len(WINDOWS)) / inverse
    distance = distance / (1 + len(WINDOWS))
    combined = (zero_shot + distance) / 2
    return combined.clamp(0, 1).reshape(grid), float((whole + distance.max()) / 2)


def _distance(x: Tensor, memory: Tensor) -> Tensor:
    """(1 - highest cosine) / 2 of every x [n, C] with the stored vectors [S, M, C] (eq. 6): [n] in [0, 1]."""
    return ((1 - (x.float() @ memory.flatten(0, 1).float().T).amax(1)) / 2).clamp(0, 1)
