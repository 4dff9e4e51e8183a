"""What the map remembers of good supports, and the memory's share of the map. Beyond the paper.

A patch that is unlike every patch of the good supports is odd, whatever the taught layers say. A few patches of each
level stand for all (k-center coreset, as in PatchCore, Roth et al. 2022): 128 tell as much as all of ten supports do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.recipe import MEMORY_ROWS

from . import heads
from .teach_settings import TeachSettings
from .views import SupportFeatures

MEMORY_SHARE = 0.3
"""What the memory's map counts beside the rest, where it counts. With 1 it finds more defect frames still, and blurs
outlines."""
MEMORY_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Memory:
    """rows: [m, MEMORY_ROWS, D], unit. scale: [m, 2], as `heads.memory_map` takes it.

    maps: [V, P], the memory's map of every view; where the view is of a good support, by a memory without its group.
    None where one good support leaves nothing to compare it with: the scale is then of no meaning.
    """

    rows: Tensor
    scale: Tensor
    maps: Tensor | None


def fit_memory(features: SupportFeatures) -> Memory:
    """Remember the unchanged views of the good supports."""
    good = features.plain & (features.labels == 0)
    rows = remember(features.tokens[good])
    levels = features.tokens.shape[1]
    groups = list(dict.fromkeys(features.group[good].tolist()))
    if len(groups) < 2:
        return Memory(rows, torch.tensor([0.0, 1.0]).repeat(levels, 1), None)
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
    return Memory(rows, scale, heads.memory_map(list(odd.unbind(1)), scale))


def choose_memory_share(memory: Memory, others: Tensor, features: SupportFeatures, settings: TeachSettings) -> float:
    """What the memory's map counts beside the others: MEMORY_SHARE where it tells defect frames better, else 0.

    others: the map [V, P] without it, by layers that were taught without the frame; the memory has not seen it either.
    A handful of frames measures it poorly: the supports' AUROC must gain more than one standard error. Patches do not
    decide: the others' layers were taught on fewer supports than those of the recipe, and the memory would be thanked
    for making up for that.
    """
    if settings.memory_share is not None:
        return settings.memory_share
    if memory.maps is None or settings.head == "paper" or settings.last_level_only:
        return 0.0
    defect = (features.labels[features.plain] > 0).numpy()
    before, after = (
        heads.map_height(maps[features.plain]).numpy()
        for maps in (others, with_memory(others, memory.maps, MEMORY_SHARE))
    )
    gain, error = auroc_gain(before, after, defect)
    return MEMORY_SHARE if gain > error else 0.0


def auroc_gain(
    before: NDArray[np.float32], after: NDArray[np.float32], positive: NDArray[np.bool_]
) -> tuple[float, float]:
    """AUROC of scores `after` less that of `before` on the same frames, and its standard error (DeLong et al. 1988).

    (0, inf) with fewer than two frames of a kind.
    """
    if min(positive.sum(), (~positive).sum()) < 2:
        return 0.0, float("inf")

    def wins(scores: NDArray[np.float32]) -> NDArray[np.float64]:
        difference = scores[positive][:, None].astype(np.float64) - scores[~positive]
        result: NDArray[np.float64] = (np.sign(difference) + 1) / 2
        return result

    gain = wins(after) - wins(before)
    variance = sum(gain.mean(1 - axis).var(ddof=1) / gain.shape[axis] for axis in (0, 1))
    return float(gain.mean()), float(np.sqrt(variance))


def with_memory(others: Tensor, remembered: Tensor, share: float) -> Tensor:
    """The map with the memory's, which counts `share` beside the others."""
    return (others + share * remembered) / (1 + share)


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
