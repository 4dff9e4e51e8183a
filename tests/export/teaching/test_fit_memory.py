"""export/teaching/fit_memory.py: the memory bank of good supports, and its weight in the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.model import heads
from export.teaching.fit_memory import (
    MEMORY_SHARE_WITH_MASKS,
    MEMORY_SHARE_WITHOUT_MASKS,
    Memory,
    coreset,
    fit_memory,
    fuse_memory,
    memory_share,
)
from export.teaching.views import SupportFeatures
from runtime.recipe import MEMORY_ROWS

LEVELS, PATCHES, WIDTH = 2, 16, 8
LABELS = [0] * 6 + [1] * 4


def plant(labels: list[int] = LABELS, *, odd: bool = True, groups: list[int] | None = None) -> SupportFeatures:
    """One view per label. Good patches lie near three directions, the first patch of a defect near a fourth (`odd`)."""
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
        unaugmented=torch.ones(len(labels), dtype=torch.bool),
        group=torch.tensor(groups or list(range(len(labels)))),
        frame=torch.arange(len(labels)),
    )


def test_coreset_rows_have_unit_length_and_lie_far_apart() -> None:
    tokens = torch.randn((3, LEVELS, 2000, WIDTH), generator=torch.Generator().manual_seed(0))
    rows = coreset(tokens)
    assert rows.shape == (LEVELS, MEMORY_ROWS, WIDTH)
    torch.testing.assert_close(torch.linalg.vector_norm(rows, dim=-1), torch.ones(LEVELS, MEMORY_ROWS))
    for level in range(LEVELS):
        all_rows = heads.unit(tokens[:, level].flatten(0, 1))
        apart = (rows[level] @ rows[level].T - 2 * torch.eye(MEMORY_ROWS)).amax()
        covered = (all_rows @ rows[level].T).amax(1).min()
        assert covered >= apart - 1e-5, "patches outside are nearer to the memory than its rows are to each other"


def test_coreset_repeats_rows_of_few_patches() -> None:
    tokens = torch.randn((1, LEVELS, 5, WIDTH), generator=torch.Generator().manual_seed(0))
    rows = coreset(tokens)
    assert rows.shape == (LEVELS, MEMORY_ROWS, WIDTH)
    assert len(torch.unique(rows[0], dim=0)) == 5


def test_patches_far_from_good_ones_raise_the_map_also_in_new_frames() -> None:
    memory = fit_memory(plant())
    assert memory.maps is not None
    defect = torch.tensor(LABELS) > 0
    assert memory.maps[defect, 0].min() > 0.9
    assert memory.maps[~defect].mean() < 0.2
    fresh = plant([0] * 20 + [1] * 20)
    distances = [heads.nearest_patch_distance(fresh.tokens[:, j].float(), memory.rows[j]) for j in range(LEVELS)]
    maps = heads.memory_map(distances, memory.scale)
    assert maps[20:, 0].min() > 0.9
    assert maps[:20].mean() < 0.2


def test_maps_of_good_supports_use_a_memory_without_their_group() -> None:
    """Each good frame twice in one group: compared with its copy, it would have distance 0 throughout."""
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
        (6, "masks", False, MEMORY_SHARE_WITH_MASKS * (1 - 2 / 6)),
        (2, "masks", False, 0.0),
        (6, "masks", True, 0.0),
        (6, "frame labels", False, MEMORY_SHARE_WITHOUT_MASKS),
        (2, "frame labels", True, MEMORY_SHARE_WITHOUT_MASKS),
        (1, "frame labels", False, 0.0),
    ],
)
def test_memory_share_depends_on_what_taught_the_map(good: int, taught_by: str, at_text: bool, expected: float) -> None:
    memory = fit_memory(plant([0] * good + [1] * 4))
    assert memory_share(memory, taught_by, at_text) == pytest.approx(expected)


def test_memory_share_counts_groups_not_frames() -> None:
    memory = fit_memory(plant([0] * 6 + [1], groups=[0, 0, 1, 1, 1, 1, 2]))
    assert memory_share(memory, "masks", at_text=False) == 0


def test_one_good_support_gives_no_maps() -> None:
    memory = fit_memory(plant([0, 1, 1]))
    assert memory.maps is None
    assert (memory.scale[:, 1] > 0).all()
    maps = torch.rand(3, PATCHES)
    assert fuse_memory(maps, memory, 1.0) is maps


def test_fuse_memory_is_a_weighted_mean() -> None:
    memory = Memory(torch.empty(0), torch.empty(0), torch.tensor([[1.0]]), 5)
    torch.testing.assert_close(fuse_memory(torch.tensor([[0.2]]), memory, 0.25), torch.tensor([[0.36]]))
    torch.testing.assert_close(fuse_memory(torch.tensor([[0.2]]), memory, 0.0), torch.tensor([[0.2]]))
