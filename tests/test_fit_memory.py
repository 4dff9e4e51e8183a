"""export/fit_memory.py: what is remembered of good supports, and when it has a say in the map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from export import heads
from export.fit_memory import MEMORY_SHARE, auroc_gain, choose_memory_share, fit_memory, remember, with_memory
from export.teach_settings import TeachSettings
from export.views import SupportFeatures
from runtime.recipe import MEMORY_ROWS

LEVELS, PATCHES, WIDTH = 2, 16, 8
LABELS = [0] * 6 + [1] * 4
SETTINGS = TeachSettings()


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


def blind(features: SupportFeatures) -> torch.Tensor:
    """A map that knows nothing."""
    return 0.3 + 0.1 * torch.rand((len(features.labels), PATCHES), generator=torch.Generator().manual_seed(0))


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


def test_it_has_a_say_where_it_finds_defects_and_none_where_it_does_not() -> None:
    for odd, share in ((True, MEMORY_SHARE), (False, 0.0)):
        features = plant(odd=odd)
        knows = features.targets[:, ::4, ::4].flatten(1) * 0.9 + 0.05
        others = blind(features) if odd else knows
        assert choose_memory_share(fit_memory(features), others, features, SETTINGS) == share


def test_a_gain_within_the_noise_is_none() -> None:
    """One good frame of six changes places with one defect: 1/24 of AUROC, and the next six may say the opposite."""
    defect = np.array(LABELS) > 0
    before = np.linspace(0, 1, len(LABELS), dtype=np.float32)
    before[[5, 6]] = before[[6, 5]]
    after = np.linspace(0, 1, len(LABELS), dtype=np.float32)
    gain, error = auroc_gain(before, after, defect)
    assert gain == pytest.approx(1 / 24)
    assert 0 < gain <= error


def test_gain_and_its_error_are_those_of_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        truth = np.arange(50) < 30
        shared = truth + rng.standard_normal(50)
        before = (shared + rng.standard_normal(50)).astype(np.float32)
        after = (shared + 0.5 * rng.standard_normal(50)).astype(np.float32)
        found.append(auroc_gain(before, after, truth))
    gains, errors = np.array(found).T
    assert gains.mean() > 0.01
    assert errors.mean() == pytest.approx(gains.std(), rel=0.15)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_frames_tell_nothing(count: int) -> None:
    scores = np.linspace(0, 1, 5, dtype=np.float32)
    assert auroc_gain(scores, scores[::-1].copy(), np.arange(5) < count) == (0.0, float("inf"))


@pytest.mark.parametrize(
    "changes", [{"head": "paper"}, {"last_level_only": True}, {"memory_share": 0.0}], ids=["paper", "last", "asked"]
)
def test_it_has_none_in_the_paper_s_forms(changes: dict[str, object]) -> None:
    features = plant()
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    assert choose_memory_share(fit_memory(features), blind(features), features, settings) == 0.0


def test_one_good_support_leaves_nothing_to_compare_it_with() -> None:
    features = plant([0, 1, 1])
    memory = fit_memory(features)
    assert memory.maps is None
    assert (memory.scale[:, 1] > 0).all()
    assert choose_memory_share(memory, blind(features), features, SETTINGS) == 0.0


def test_without_masks_frames_alone_decide() -> None:
    features = plant()
    features.targets[features.labels > 0] = torch.nan
    assert choose_memory_share(fit_memory(features), blind(features), features, SETTINGS) == MEMORY_SHARE


def test_its_share_is_that_beside_all_others() -> None:
    others, remembered = torch.tensor([[0.2]]), torch.tensor([[1.0]])
    torch.testing.assert_close(with_memory(others, remembered, 0.25), torch.tensor([[0.36]]))
    torch.testing.assert_close(with_memory(others, remembered, 0.0), others)
