"""Windows that the model in training was most wrong on, kept to be seen again.

Most windows of a model that is right in eight of ten teach it little, and each costs what the others cost. So a part of
every batch is drawn from those with the largest losses of late, turned and mirrored anew (online hard example mining,
Shrivastava et al. 2016, arXiv:1604.03540; over time rather than within a batch, which needs no second look). The rest
of the batch is new, which keeps every kind of frame in view.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from .windows import GRID, Windows

ROOM = 400
"""Windows that are kept; the easiest leave first."""
MOST_LOOKS = 4
"""No window is trained on more often than this: the label of a defect that cannot be seen would be learnt by heart."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Windows with the loss of each when it was last seen, float32 [n], and how often it was seen, int64 [n]."""

    windows: Windows
    loss: Tensor
    looks: Tensor

    def __getitem__(self, chosen: Tensor) -> Kept:
        """Those of these indices."""
        some = Windows(*(getattr(self.windows, field.name)[chosen] for field in fields(Windows)))
        return Kept(some, self.loss[chosen], self.looks[chosen])


def joined(one: Kept, other: Kept) -> Kept:
    """Both, one after the other."""
    windows = Windows(*(torch.cat([getattr(x.windows, f.name) for x in (one, other)]) for f in fields(Windows)))
    return Kept(windows, torch.cat([one.loss, other.loss]), torch.cat([one.looks, other.looks]))


class Replay:
    """The hardest windows of one size. State: what `kept` holds; pixels as uint8, for they are whole numbers."""

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def __len__(self) -> int:
        return 0 if self.kept is None else len(self.kept.loss)

    def draw(self, count: int, like: Windows, rng: np.random.Generator) -> Kept | None:
        """Take `count` of them at random, turned and mirrored; None while there are not three times as many.

        like: windows of the size that is asked for; those of another are given up.
        """
        if self.kept is not None and self.kept.windows.fraction.shape[1] != like.fraction.shape[1]:
            self.kept = None
        if self.kept is None or count <= 0 or len(self) < 3 * count:
            return None
        order = torch.from_numpy(rng.permutation(len(self)))
        taken, self.kept = self.kept[order[:count]], self.kept[order[count:]]
        windows = taken.windows
        side = int(windows.fraction.shape[1] ** 0.5)
        pixels, parts = windows.pixels.float(), windows.fraction.reshape(-1, side, side)
        seen, marked = [], []
        for image, part in zip(pixels, parts, strict=True):
            turns, mirror = int(rng.integers(4)), bool(rng.random() < 0.5)
            image, part = torch.rot90(image, turns), torch.rot90(part, turns)
            seen.append(image.flip(1) if mirror else image)
            marked.append((part.flip(1) if mirror else part).reshape(-1))
        corner = torch.from_numpy(rng.integers(GRID - side + 1, size=(count, 2)))
        turned = replace(windows, pixels=torch.stack(seen), fraction=torch.stack(marked), corner=corner)
        return Kept(turned, taken.loss, taken.looks)

    def put(self, windows: Windows, loss: Tensor, looks: Tensor) -> None:
        """Keep the hardest of these, seen `looks` times [n] before and now once more with `loss` [n]."""
        again = torch.nonzero(looks + 1 < MOST_LOOKS)[:, 0]
        small = replace(windows, pixels=windows.pixels.to(torch.uint8))
        kept = Kept(small, loss, looks + 1)[again]
        if self.kept is not None:
            kept = joined(self.kept, kept)
        self.kept = kept[kept.loss.topk(min(ROOM, len(kept.loss))).indices]

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        if self.kept is None:
            return {}
        held = {f.name: getattr(self.kept.windows, f.name) for f in fields(Windows)}
        return {**held, "loss": self.kept.loss, "looks": self.kept.looks}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """What `state` gave."""
        windows = {f.name: state[f.name] for f in fields(Windows)} if state else None
        self.kept = None if windows is None else Kept(Windows(**windows), state["loss"], state["looks"])
