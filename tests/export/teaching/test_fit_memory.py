"""export/teaching/fit_memory.py: the memory bank of good supports, and what it counts in the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.model import heads
from export.teaching.fit_memory import (
    SHARE_BESIDE_MASKS,
    SHARE_WITHOUT_MASKS,
    Memory,
    fit_memory,
    memory_share,
    remember,
    with_memory,
)
from export.teaching.views import SupportFeatures
from runtime.recipe import MEMORY_ROWS

LEVELS, PATCHES, WIDTH = 2, 16, 8
LABELS = [0] * 6 + [1] * 4


def plant(labels: list[int] = LABELS, *, odd: bool = True, groups: list[int] | None = None) -> SupportFeatures:
    """One view a label. Good patches lie near three directions; the first patch of a defect near a fourth, if `odd`."""
    rng = np.random.default_rng(0)
    directions = 4 * np.eye(WIDTH)[:4]
    kinds = rng.integers(0, 3, (len(labels), PATCHES))
    targets = np.zeros((len(labels), 16, 16), np.float32)
    for view, label in enumerate(labels):
        if label:
            targets[view, :4, :4] = 1
            if odd:
                kinds[view, 0] = 3
    tokens = directions[kinds][:, None] + 0.3 * rng.standard_normal((len(labels), LEVELS, PATCHES, WIDTH))
    return SupportFeatures(
        tokens=torch.tensor(tokens, dtype=torch.float16),
        cls=torch.zeros(len(labels), LEVELS * WIDTH),
        value=torch.zeros(len(labels), LEVELS, PATCHES),
        targets=torch.tensor(targets),
        labels=torch.tensor(labels),
        plain=torch.ones(len(labels), dtype=torch.bool),
        group=torch.tensor(groups or list(range(len(labels)))),
    )


def test_unit_rows_that_lie_far_apart_are_remembered() -> None:
    tokens = torch.randn((3, LEVELS, 2000, WIDTH), generator=torch.Generator().manual_seed(0))
    rows = remember(tokens)
    assert rows.shape == (LEVELS, MEMORY_ROWS, WIDTH)
    torch.testing.assert_close(torch.linalg.vector_norm(rows, dim=-1), torch.ones(LEVELS, MEMORY_ROWS))
    for level in range(LEVELS):
        all_rows = heads.unit(tokens[:, level].flatten(0, 1))
        apart = (rows[level] @ rows[level].T - 2 * torch.eye(MEMORY_ROWS)).amax()
        covered = (all_rows @ rows[level].T).amax(1).min()
        assert covered >= apart - 1e-5, "what is left out is nearer to the memory than its rows are to each other"


def test_few_patches_are_remembered_more_than_once() -> None:
    tokens = torch.randn((1, LEVELS, 5, WIDTH), generator=torch.Generator().manual_seed(0))
    rows = remember(tokens)
    assert rows.shape == (LEVELS, MEMORY_ROWS, WIDTH)
    assert len(torch.unique(rows[0], dim=0)) == 5


def test_patches_unlike_all_of_the_good_ones_stand_out_also_of_frames_not_seen() -> None:
    memory = fit_memory(plant())
    assert memory.maps is not None
    defect = torch.tensor(LABELS) > 0
    assert memory.maps[defect, 0].min() > 0.9
    assert memory.maps[~defect].mean() < 0.2
    fresh = plant([0] * 20 + [1] * 20)
    odd = [heads.oddness(fresh.tokens[:, j].float(), memory.rows[j]) for j in range(LEVELS)]
    maps = heads.memory_map(odd, memory.scale)
    assert maps[20:, 0].min() > 0.9
    assert maps[:20].mean() < 0.2


def test_good_supports_are_judged_by_a_memory_without_their_group() -> None:
    """Each good frame twice, under one group: were it judged by its twin, nothing in it would be odd at all."""
    features = plant([0, 0, 0, 1], groups=[0, 1, 2, 3])
    doubled = features.part(torch.tensor([0, 0, 1, 1, 2, 2, 3]))
    memory = fit_memory(doubled)
    assert memory.maps is not None
    assert memory.scale[:, 0].min() > 1e-3
    one_each = fit_memory(features)
    torch.testing.assert_close(memory.scale[:, 0], one_each.scale[:, 0], atol=1e-3, rtol=0.05)


@pytest.mark.parametrize(
    ("good", "taught_by", "at_text", "expected"),
    [
        (6, "masks", False, SHARE_BESIDE_MASKS * (1 - 2 / 6)),
        (2, "masks", False, 0.0),
        (6, "masks", True, 0.0),
        (6, "frame labels", False, SHARE_WITHOUT_MASKS),
        (2, "frame labels", True, SHARE_WITHOUT_MASKS),
        (1, "frame labels", False, 0.0),
    ],
)
def test_its_share_is_by_what_taught_the_map(good: int, taught_by: str, at_text: bool, expected: float) -> None:
    memory = fit_memory(plant([0] * good + [1] * 4))
    assert memory_share(memory, taught_by, at_text) == pytest.approx(expected)


def test_good_frames_of_one_group_count_as_one() -> None:
    memory = fit_memory(plant([0] * 6 + [1], groups=[0, 0, 1, 1, 1, 1, 2]))
    assert memory_share(memory, "masks", at_text=False) == 0


def test_one_good_support_leaves_nothing_to_compare_it_with() -> None:
    memory = fit_memory(plant([0, 1, 1]))
    assert memory.maps is None
    assert (memory.scale[:, 1] > 0).all()
    others = torch.rand(3, PATCHES)
    assert with_memory(others, memory, 1.0) is others


def test_its_share_is_that_beside_all_others() -> None:
    memory = Memory(torch.empty(0), torch.empty(0), torch.tensor([[1.0]]), 5)
    torch.testing.assert_close(with_memory(torch.tensor([[0.2]]), memory, 0.25), torch.tensor([[0.36]]))
    torch.testing.assert_close(with_memory(torch.tensor([[0.2]]), memory, 0.0), torch.tensor([[0.2]]))
