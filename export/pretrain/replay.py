"""Hard windows: those with the largest recent losses, kept to be trained on again.

A part of every batch is drawn from them, rotated and mirrored anew; the rest of the batch is new. This is online hard
example mining (Shrivastava et al. 2016, arXiv:1604.03540), over time rather than within a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from .windows import GRID, Windows

ROOM = 400
"""Most windows that are kept; the easiest leave first."""
MOST_LOOKS = 4
"""No window is trained on more often, or labels of invisible defects would be memorized."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Windows with the last loss of each, float32 [n], and how often each was trained on, int64 [n]."""

    windows: Windows
    loss: Tensor
    looks: Tensor

    def __getitem__(self, chosen: Tensor) -> Kept:
        """The windows at these indices."""
        some = Windows(*(getattr(self.windows, field.name)[chosen] for field in fields(Windows)))
        return Kept(some, self.loss[chosen], self.looks[chosen])


def joined(one: Kept, other: Kept) -> Kept:
    """Both, one after the other."""
    windows = Windows(*(torch.cat([getattr(x.windows, f.name) for x in (one, other)]) for f in fields(Windows)))
    return Kept(windows, torch.cat([one.loss, other.loss]), torch.cat([one.looks, other.looks]))


class Replay:
    """The hardest windows of one size; their pixels are stored as uint8."""

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def __len__(self) -> int:
        return 0 if self.kept is None else len(self.kept.loss)

    def draw(self, count: int, like: Windows, rng: np.random.Generator) -> Kept | None:
        """Take `count` of them at random, rotated and mirrored; None while there are not three times as many.

        like: windows of the wanted size; windows of another size are dropped.
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
        """Keep the hardest of these; looks [n]: how often each was trained on before. loss [n]: of this time."""
        again = torch.nonzero(looks + 1 < MOST_LOOKS)[:, 0]
        small = replace(windows, pixels=windows.pixels.to(torch.uint8))
        kept = Kept(small, loss, looks + 1)[again]
        if self.kept is not None:
            kept = joined(self.kept, kept)
        self.kept = kept[kept.loss.topk(min(ROOM, len(kept.loss))).indices]

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        if self.kept is None:
            return {}
        held = {f.name: getattr(self.kept.windows, f.name) for f in fields(Windows)}
        return {**held, "loss": self.kept.loss, "looks": self.kept.looks}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors of `state`."""
        windows = {f.name: state[f.name] for f in fields(Windows)} if state else None
        self.kept = None if windows is None else Kept(Windows(**windows), state["loss"], state["looks"])
