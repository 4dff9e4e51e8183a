"""Hard windows come again: which are kept, how often they are seen, and that they stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.pretrain import replay
from export.pretrain.replay import MOST_LOOKS, Replay
from export.pretrain.windows import GRID, PATCH, Windows

SIDE = 3


def windows(count: int, side: int = SIDE, seed: int = 0) -> Windows:
    """Windows whose patches are as bright as they are defective, at random."""
    parts = torch.randint(0, 256, (count, side, side), generator=torch.Generator().manual_seed(seed)).float()
    pixels = parts.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    corner = torch.zeros((count, 2), dtype=torch.int64)
    return Windows(pixels, parts.flatten(1) / 255, torch.arange(count), corner)


def filled(count: int) -> Replay:
    """Window i has loss i."""
    kept = Replay()
    kept.put(windows(count), torch.arange(float(count)), torch.zeros(count, dtype=torch.int64))
    return kept


def test_the_hardest_windows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "ROOM", 30)
    kept = filled(40)
    assert len(kept) == 30
    drawn = kept.draw(10, windows(1), np.random.default_rng(0))
    assert drawn is not None
    assert len(set(drawn.windows.label.tolist())) == 10
    assert min(drawn.windows.label.tolist()) >= 10, "the ten easiest left"
    assert len(kept) == 20, "what is drawn is gone until it is put back"


def test_windows_are_rotated_with_their_truth() -> None:
    original = windows(30)
    drawn = filled(30).draw(10, original, np.random.default_rng(1))
    assert drawn is not None
    seen = drawn.windows
    assert seen.pixels.dtype == torch.float32
    pooled = seen.pixels.reshape(-1, SIDE, PATCH, SIDE, PATCH).mean((2, 4)).flatten(1) / 255
    torch.testing.assert_close(pooled, seen.fraction)
    before = original.fraction[seen.label]
    assert not torch.equal(seen.fraction, before)
    torch.testing.assert_close(seen.fraction.sort(1).values, before.sort(1).values)
    assert bool(((seen.corner >= 0) & (seen.corner <= GRID - SIDE)).all())


def test_no_window_is_drawn_more_often_than_allowed() -> None:
    kept, rng, seen = filled(9), np.random.default_rng(0), torch.ones(9, dtype=torch.int64)
    while (again := kept.draw(1, windows(1), rng)) is not None:
        seen[again.windows.label] += 1
        kept.put(again.windows, again.loss, again.looks)
    assert int(seen.max()) == MOST_LOOKS
    assert len(kept) == 2, "too few to draw from; all others have been seen often enough"


def test_none_are_drawn_while_there_are_few_or_of_another_size() -> None:
    kept, rng = filled(8), np.random.default_rng(0)
    assert kept.draw(3, windows(1), rng) is None
    assert kept.draw(0, windows(1), rng) is None
    assert kept.draw(2, windows(1), rng) is not None
    assert kept.draw(2, windows(1, side=5), rng) is None
    assert len(kept) == 0


def test_windows_are_the_same_after_a_checkpoint() -> None:
    kept, again = filled(12), Replay()
    again.load_state(kept.state())
    a, b = (x.draw(4, windows(1), np.random.default_rng(3)) for x in (kept, again))
    assert a is not None
    assert b is not None
    assert torch.equal(a.windows.pixels, b.windows.pixels)
    assert torch.equal(a.looks, b.looks)
    again.load_state(Replay().state())
    assert len(again) == 0
