"""benchmarks.accuracy.winclip: windows, harmonic means, and the score of a stored frame."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.accuracy.winclip import WINDOWS, encode_windows, join, judge, spread_harmonically, window_members
from export.model.checkpoint import load_model
from export.model.dual_path import DualPathEncoder

GRID = (4, 4)


@pytest.fixture(scope="module")
def encoder() -> DualPathEncoder:
    return load_model("toy", random_seed=0).encoder()


def pixels(seed: int, count: int = 1) -> torch.Tensor:
    return 255 * torch.rand((count, 64, 64), generator=torch.Generator().manual_seed(seed))


def test_windows_slide_by_one_patch() -> None:
    assert window_members((2, 3), 2).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5]]
    assert window_members(GRID, 3).shape == (4, 9)


def test_spread_is_the_harmonic_mean_of_the_windows_of_a_patch() -> None:
    members = window_members((2, 3), 2)
    assert spread_harmonically(torch.tensor([0.5, 0.25]), members, 6).tolist() == pytest.approx(
        [0.5, 1 / 3, 0.25] * 2, abs=1e-6
    )


def test_a_window_depends_on_its_own_patches_only(encoder: DualPathEncoder) -> None:
    frame = pixels(1)
    changed = frame.clone()
    changed[:, :16, :16] = 0  # the first patch
    one, other = encode_windows(encoder, frame), encode_windows(encoder, changed)
    for side, before, after in zip(WINDOWS, one.windows, other.windows, strict=True):
        moved = (before != after).any(-1)[0]
        assert moved.tolist() == (window_members(GRID, side) == 0).any(1).tolist()


def test_joined_frames_are_those_encoded_alone(encoder: DualPathEncoder) -> None:
    frames = pixels(2, 3)
    together = encode_windows(encoder, frames)
    joined = join([encode_windows(encoder, frame[None]) for frame in frames])
    assert torch.allclose(together.frame, joined.frame, atol=1e-5)
    assert torch.allclose(together[2].windows[0].float(), joined[2].windows[0].float(), atol=2e-3)


def test_a_stored_frame_has_distance_0_and_a_new_patch_a_higher_one(encoder: DualPathEncoder) -> None:
    good = pixels(3)
    strange = good.clone()
    strange[:, 32:48, 16:32] = 255
    memory = encode_windows(encoder, good)
    text = F.normalize(torch.randn((2, encoder.text_dim), generator=torch.Generator().manual_seed(0)), dim=-1)
    calm, calm_score = judge(memory, memory, text, 0.0, GRID)  # a scale of 0: the text says 0.5 of everything
    assert calm.flatten().tolist() == pytest.approx([0.25] * 16, abs=1e-3)
    assert calm_score == pytest.approx(0.25, abs=1e-3)
    odd, odd_score = judge(encode_windows(encoder, strange), memory, text, 0.0, GRID)
    assert int(odd.argmax()) == 2 * 4 + 1
    assert odd_score > calm_score
    assert 0 <= float(odd.min()) <= float(odd.max()) <= 1
