"""The memory bank: patches of the good supports, from which a patch's distance raises the map. Beyond the paper.

A patch that is unlike every patch of the good supports is odd, whatever the taught layers say. A few patches of each
level stand for all (k-center coreset, as in PatchCore, Roth et al. 2022): 128 tell as much as all of ten supports do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.recipe import MEMORY_ROWS

from ..model import heads
from .views import SupportFeatures

MEMORY_FOLDS = 5
SHARE_BESIDE_MASKS, SHARE_WITHOUT_MASKS = 0.3, 2.0
"""What the memory's map counts beside the others. Beside masks more of it finds more defect frames on some sets, and
blurs outlines on all."""


@dataclass(frozen=True, slots=True)
class Memory:
    """rows: [m, MEMORY_ROWS, D], unit. scale: [m, 2], as `heads.memory_map` takes it.

    maps: [V, P], the memory's map of every view; where the view is of a good support, by a memory without its group.
    None where one good support leaves nothing to compare it with: the scale is then of no meaning. good: groups of
    good supports.
    """

    rows: Tensor
    scale: Tensor
    maps: Tensor | None
    good: int


def fit_memory(features: SupportFeatures) -> Memory:
    """Remember the unchanged views of the good supports."""
    good = features.plain & (features.labels == 0)
    rows = remember(features.tokens[good])
    levels = features.tokens.shape[1]
    groups = list(dict.fromkeys(features.group[good].tolist()))
    if len(groups) < 2:
        return Memory(rows, torch.tensor([0.0, 1.0]).repeat(levels, 1), None, len(groups))
    folds = min(MEMORY_FOLDS, len(groups))
    fold = torch.tensor([groups.index(g) % folds if g in groups else -1 for g in features.group.tolist()])
    odd = torch.empty(features.tokens.shape[:3])
    for left_out in range(-1, folds):
        views = (fold == left_out).nonzero()[:, 0].tolist()
        memory = rows if left_out < 0 else remember(features.tokens[good & (fold != left_out)])
        for view in views:
            odd[view] = _odd(features.tokens[view], memory)
    unseen = odd[good].transpose(0, 1).flatten(1)
    scale = torch.stack([unseen.mean(1), unseen.std(1).clamp_min(1e-4)], dim=1)
    return Memory(rows, scale, heads.memory_map(list(odd.unbind(1)), scale), len(groups))


def memory_share(memory: Memory, taught_by: str, at_text: bool) -> float:
    """The share of the memory's map beside the others, by what taught those (`fit_map.Layers`).

    Layers that started at the text find the defects, and the memory blurs their outlines: 0. Without masks the map
    knows where a defect is by frame labels alone, and the memory knows better: SHARE_WITHOUT_MASKS. Else
    SHARE_BESIDE_MASKS, the less of it the fewer good frames there are: few do not show how good frames differ.
    """
    if memory.maps is None:
        return 0.0
    if taught_by == "frame labels":
        return SHARE_WITHOUT_MASKS
    return 0.0 if at_text else SHARE_BESIDE_MASKS * (1 - 2 / memory.good)


def with_memory(others: Tensor, memory: Memory, share: float) -> Tensor:
    """Maps [V, P] with the memory's, which counts `share` beside the others."""
    return others if memory.maps is None else (others + share * memory.maps) / (1 + share)


def remember(tokens: Tensor) -> Tensor:
    """Of patch tokens [S, m, P, D] of every level the MEMORY_ROWS that lie furthest apart: unit rows [m, rows, D]."""
    return torch.stack([_furthest_apart(heads.unit(level).flatten(0, 1)) for level in tokens.unbind(1)])


def _furthest_apart(x: Tensor) -> Tensor:
    """k-center, greedily from the first: unit rows [n, D] to [MEMORY_ROWS, D]; fewer are repeated."""
    chosen = [0]
    nearest = x @ x[0]
    while len(chosen) < min(MEMORY_ROWS, len(x)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, x @ x[chosen[-1]])
    return x[[chosen[i % len(chosen)] for i in range(MEMORY_ROWS)]]


def _odd(tokens: Tensor, memory: Tensor) -> Tensor:
    """Oddness [m, P] of one view's tokens [m, P, D]."""
    return torch.stack([heads.oddness(z.float(), rows) for z, rows in zip(tokens, memory, strict=True)])
