"""export.teaching.supports: drawing supports and splitting, both over groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from calibration.dataset import Dataset, Sample
from calibration.errors import DatasetError
from export.teaching.supports import draw_supports, split_by_group


def names(samples: Sequence[Sample]) -> list[str]:
    return [f"{sample.label}/{sample.path.name}" for sample in samples]


# ---- drawing supports ------------------------------------------------------------------------------------------------


def synthetic(frames: dict[str, int], groups: int) -> Dataset:
    """A data set without files; a class's frames take turns over its groups."""
    samples = [
        Sample(Path(f"images/{label}/{n:03d}.png"), label, f"{label}-{n % groups}", None)
        for label, count in frames.items()
        for n in range(count)
    ]
    return Dataset(Path(), tuple(frames), tuple(samples))


SET = synthetic({"good": 20, "hole": 12, "scratch": 9}, groups=4)


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_nested_and_without_replacement(seed: int) -> None:
    per_class: dict[str, list[str]] = {label: [] for label in SET.classes}
    for shots in (1, 2, 5, 9):
        supports = draw_supports(SET, shots, seed)
        assert [sample.label for sample in supports] == [label for label in SET.classes for _ in range(shots)]
        for label in SET.classes:
            mine = names([sample for sample in supports if sample.label == label])
            assert len(set(mine)) == shots
            assert mine[: len(per_class[label])] == per_class[label]
            per_class[label] = mine


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shots", [1, 3, 4, 6, 8])
def test_draws_are_spread_over_groups(seed: int, shots: int) -> None:
    for label in SET.classes:
        groups = Counter(sample.group for sample in draw_supports(SET, shots, seed) if sample.label == label)
        assert len(groups) == min(shots, 4)
        assert max(groups.values()) - min(groups.values()) <= 1


def test_draws_depend_on_the_seed_only() -> None:
    draws = [tuple(names(draw_supports(SET, 4, seed))) for seed in range(8)]
    assert len(set(draws)) == 8
    assert tuple(names(draw_supports(SET, 4, 3))) == draws[3]
    again = draw_supports(SET, 4, 3, allowed=iter(SET.samples))
    assert tuple(names(again)) == draws[3]


def test_a_further_class_does_not_change_other_draws() -> None:
    wider = synthetic({"good": 20, "bridge": 5, "hole": 12, "scratch": 9}, groups=4)
    for seed in range(3):
        mine = [sample for sample in draw_supports(wider, 4, seed) if sample.label != "bridge"]
        assert names(mine) == names(draw_supports(SET, 4, seed))


def test_draws_come_from_the_allowed_samples() -> None:
    allowed = [sample for sample in SET.samples if sample.group.endswith(("-1", "-2"))]
    supports = draw_supports(SET, 4, 0, allowed=allowed)
    assert set(names(supports)) <= set(names(allowed))


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_below_one_are_refused(shots: int) -> None:
    with pytest.raises(DatasetError, match="shots must be at least 1"):
        draw_supports(SET, shots, 0)


def test_every_class_with_too_few_frames_is_named() -> None:
    with pytest.raises(DatasetError) as caught:
        draw_supports(SET, 15, 0)
    assert [fault.split(",")[0] for fault in caught.value.faults] == [
        "class hole has 12 frames to draw from",
        "class scratch has 9 frames to draw from",
    ]


# ---- splitting by group ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pool", [1, 5, 10, 100])
def test_a_split_never_shares_a_group(seed: int, pool: int) -> None:
    # Groups that hold several classes, as generated frames and most real ones do.
    rng = np.random.default_rng(seed)
    samples = tuple(
        Sample(Path(f"images/{label}/{n}.png"), label, f"site-{rng.integers(8)}", None)
        for label in ("good", "hole", "scratch")
        for n in range(30)
    )
    dataset = Dataset(Path(), ("good", "hole", "scratch"), samples)
    teach, test = split_by_group(dataset, pool, seed)
    assert not {sample.group for sample in teach} & {sample.group for sample in test}
    assert sorted(names([*teach, *test])) == sorted(names(samples))
    for side in (teach, test):
        assert {sample.label for sample in side} == set(dataset.classes)


@pytest.mark.parametrize("pool", [1, 2, 3, 5])
def test_a_split_leaves_enough_frames_to_draw_from(pool: int) -> None:
    teach, _ = split_by_group(SET, pool, 0)
    assert len(draw_supports(SET, pool, 0, allowed=teach)) == pool * len(SET.classes)


def test_a_split_depends_on_the_seed() -> None:
    splits = {tuple(names(split_by_group(SET, 2, seed)[0])) for seed in range(10)}
    assert len(splits) > 3
    assert split_by_group(SET, 2, 4) == split_by_group(SET, 2, 4)


def test_every_class_with_a_single_group_is_named() -> None:
    with pytest.raises(DatasetError) as caught:
        split_by_group(synthetic({"good": 9, "hole": 4}, groups=1), 2, 0)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "class good has a single group",
        "class hole has a single group",
    ]


@pytest.mark.parametrize("seed", range(20))
def test_classes_that_share_groups_all_stay_in_the_test(seed: int) -> None:
    sites = {"good": range(6), "bridge": range(2), "hole": range(6)}
    samples = [
        Sample(Path(f"images/{label}/{site}-{n}.png"), label, f"site-{site}", None)
        for label, places in sites.items()
        for site in places
        for n in range(6)
    ]
    pool, test = split_by_group(Dataset(Path(), tuple(sites), tuple(samples)), 10, seed)
    assert {sample.label for sample in test} == set(sites)
    assert not {sample.group for sample in pool} & {sample.group for sample in test}


def test_shots_may_differ_by_class() -> None:
    shots = {label: 1 + number for number, label in enumerate(SET.classes)}
    supports = draw_supports(SET, shots, 0)
    assert Counter(sample.label for sample in supports) == shots
    equal = draw_supports(SET, 9, 0)
    for label, count in shots.items():
        mine, all_of = ([s for s in drawn if s.label == label] for drawn in (supports, equal))
        assert mine == all_of[:count]
    with pytest.raises(DatasetError, match="shots must be at least 1, not 0"):
        draw_supports(SET, {**shots, SET.classes[-1]: 0}, 0)
