"""Drawing supports, and splitting a data set into frames that teach and frames that test; both by groups.

Frames of one group share a physical origin. So ten shots should not be ten exposures of one place, and no group may be
on both sides of a split.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from calibration.dataset import Dataset, Sample
from calibration.errors import DatasetError


def draw_supports(
    dataset: Dataset, shots: int | Mapping[str, int], seed: int, *, allowed: Iterable[Sample] | None = None
) -> tuple[Sample, ...]:
    """K frames of every class, spread over as many groups as possible; class by class, `good` first.

    Nested: the draw for 5 shots begins with that for 2. shots: K, or one for each class by its name.
    allowed: draw from these samples only. Raises DatasetError if a class has fewer than its shots.
    """
    by_class = dict.fromkeys(dataset.classes, shots) if isinstance(shots, int) else dict(shots)
    if min(by_class.values()) < 1:
        raise DatasetError(dataset.folder, f"shots must be at least 1, not {min(by_class.values())}")
    pool = list(dataset.samples if allowed is None else allowed)
    supports: list[Sample] = []
    faults = []
    for label in dataset.classes:
        order = _draw_order([sample for sample in pool if sample.label == label], label, seed)
        wanted = by_class[label]
        if len(order) < wanted:
            faults.append(
                f"class {label} has {len(order)} frames to draw from, fewer than the {wanted} shots asked for"
            )
        supports += order[:wanted]
    if faults:
        raise DatasetError(dataset.folder, faults)
    return tuple(supports)


def split_by_group(dataset: Dataset, pool: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Frames to draw supports from, and test frames; no group is on both sides.

    Each class gives groups to the first part, in the seed's order, until these hold `pool` frames and are at least
    `pool` groups or half of its groups. At least one group of every class stays for the test. Raises DatasetError if a
    class has a single group, which can be on one side only.
    """
    taken: set[str] = set()
    faults = []
    groups: dict[str, set[str]] = defaultdict(set)
    for sample in dataset.samples:
        groups[sample.label].add(sample.group)
    for label in dataset.classes:
        samples = dataset.of_class(label)
        sizes: dict[str, int] = defaultdict(int)
        for sample in samples:
            sizes[sample.group] += 1
        names = sorted(sizes)
        if len(names) < 2:
            faults.append(
                f"class {label} has a single group: it cannot both teach and test; leave it out with --classes"
            )
            continue
        order = _generator(seed, label, "split").permutation(len(names))
        spread = min(pool, len(names) // 2)
        for name in [names[index] for index in order]:
            mine = taken & set(names)
            if sum(sizes[group] for group in mine) >= pool and len(mine) >= spread:
                break
            if not any(group <= taken | {name} for group in groups.values()):
                taken.add(name)
    if faults:
        raise DatasetError(dataset.folder, faults)
    return (
        [sample for sample in dataset.samples if sample.group in taken],
        [sample for sample in dataset.samples if sample.group not in taken],
    )


def _draw_order(samples: Sequence[Sample], label: str, seed: int) -> list[Sample]:
    """Round-robin over shuffled groups, each with its frames shuffled."""
    rng = _generator(seed, label, "draw")
    by_group: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_group[sample.group].append(sample)
    names = sorted(by_group)
    queues = [
        [by_group[names[g]][i] for i in rng.permutation(len(by_group[names[g]]))] for g in rng.permutation(len(names))
    ]
    order = []
    for turn in range(max((len(queue) for queue in queues), default=0)):
        order += [queue[turn] for queue in queues if len(queue) > turn]
    return order


def _generator(seed: int, label: str, purpose: str) -> np.random.Generator:
    """A random stream per class and purpose, so that adding a class does not change the draws of the others."""
    return np.random.default_rng([seed, zlib.crc32(label.encode()), zlib.crc32(purpose.encode())])
