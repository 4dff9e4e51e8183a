"""The memory bank: it keeps good patches of every level; patches far from all of them raise the defect map.

Beyond the paper. The patches are a k-center coreset, as in PatchCore (Roth et al. 2022): 128 per level are as good as
all patches of ten supports.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.recipe import MEMORY_ROWS

from ..model import heads
from .views import SupportFeatures

MEMORY_FOLDS = 5
MEMORY_SHARE_WITH_MASKS, MEMORY_SHARE_WITHOUT_MASKS = 0.3, 2.0
"""Weight of the memory's map relative to the others, which count 1; docs/method.md gives the reasons."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory bank and its maps of the supports. groups: how many groups the good supports are of.

    rows: unit patch tokens [m, MEMORY_ROWS, D]. scale: [m, 2], as `heads.memory_map` takes it.
    maps: [V, P], the memory's map of every view; out of fold for views of good supports. None if there is one good
    group only, which leaves nothing to compare it with; `scale` is then meaningless.
    """

    rows: Tensor
    scale: Tensor
    maps: Tensor | None
    groups: int


def fit_memory(features: SupportFeatures) -> Memory:
    """Build the memory bank from the unaugmented views of the good supports."""
    good = features.unaugmented & (features.labels == 0)
    rows = coreset(features.tokens[good])
    levels = features.tokens.shape[1]
    groups = list(dict.fromkeys(features.group[good].tolist()))
    if len(groups) < 2:
        return Memory(rows, torch.tensor([0.0, 1.0]).repeat(levels, 1), None, len(groups))
    folds = min(MEMORY_FOLDS, len(groups))
    fold = torch.tensor([groups.index(g) % folds if g in groups else -1 for g in features.group.tolist()])
    distances = torch.empty(features.tokens.shape[:3])
    for left_out in range(-1, folds):
        views = (fold == left_out).nonzero()[:, 0].tolist()
        memory = rows if left_out < 0 else coreset(features.tokens[good & (fold != left_out)])
        for view in views:
            distances[view] = _distances(features.tokens[view], memory)
    out_of_fold = distances[good].transpose(0, 1).flatten(1)
    scale = torch.stack([out_of_fold.mean(1), out_of_fold.std(1).clamp_min(1e-4)], dim=1)
    return Memory(rows, scale, heads.memory_map(list(distances.unbind(1)), scale), len(groups))


def memory_share(memory: Memory, taught_by: str, at_text: bool) -> float:
    """The weight of the memory's map relative to the others, by what taught those (`fit_map.Layers`).

    0 for layers that started at the text: they find the defects, and the memory blurs outlines.
    MEMORY_SHARE_WITHOUT_MASKS for layers taught by frame labels, which locate defects worse than the memory does.
    Else MEMORY_SHARE_WITH_MASKS, reduced with few good groups, which do not show how good frames vary.
    """
    if memory.maps is None:
        return 0.0
    if taught_by == "frame labels":
        return MEMORY_SHARE_WITHOUT_MASKS
    return 0.0 if at_text else MEMORY_SHARE_WITH_MASKS * (1 - 2 / memory.groups)


def fuse_memory(maps: Tensor, memory: Memory, share: float) -> Tensor:
    """Weighted mean of maps [V, P], which count 1, and the memory's, which count `share`."""
    return maps if memory.maps is None else (maps + share * memory.maps) / (1 + share)


def coreset(tokens: Tensor) -> Tensor:
    """The MEMORY_ROWS patch tokens of every level that lie furthest apart: [S, m, P, D] to unit rows [m, rows, D]."""
    return torch.stack([_furthest_apart(heads.unit(level).flatten(0, 1)) for level in tokens.unbind(1)])


def _furthest_apart(x: Tensor) -> Tensor:
    """Greedy k-center from the first row: unit rows [n, D] to [MEMORY_ROWS, D]; repeated if there are fewer."""
    chosen = [0]
    nearest = x @ x[0]
    while len(chosen) < min(MEMORY_ROWS, len(x)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, x @ x[chosen[-1]])
    return x[[chosen[i % len(chosen)] for i in range(MEMORY_ROWS)]]


def _distances(tokens: Tensor, memory: Tensor) -> Tensor:
    """Nearest-patch distances [m, P] of one view's tokens [m, P, D]."""
    return torch.stack([heads.nearest_patch_distance(z.float(), rows) for z, rows in zip(tokens, memory, strict=True)])
