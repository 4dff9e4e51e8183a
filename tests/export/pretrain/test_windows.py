"""export.pretrain.windows: what the embedded encoder is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.pretrain import windows as windows_module
from export.pretrain.training import held_out_frames
from export.pretrain.windows import (
    GRID,
    HELD_OUT_LAYOUTS,
    LARGEST_SIDE,
    MAX_TILT,
    MIN_REDUCED_PX,
    PATCH,
    SIDE,
    WindowStream,
    window_loader,
)
from export.synthetic import CLASSES, LAYOUTS

pytestmark = pytest.mark.slow


def stream(patches: int = 4, batch: int = 14, first: int = 0) -> WindowStream:
    return WindowStream(seed=5, first=first, batch=batch, patches=patches, per_frame=2)


@pytest.mark.parametrize("patches", [4, GRID])
def test_windows_consist_of_whole_patches_with_their_truth(patches: int) -> None:
    windows = stream(patches).make(0)
    assert windows.pixels.shape == (14, patches * PATCH, patches * PATCH)
    assert windows.pixels.dtype == torch.float32
    assert float(windows.pixels.min()) >= 0
    assert float(windows.pixels.max()) <= 255
    assert windows.fraction.shape == (14, patches**2)
    assert bool(((windows.corner >= 0) & (windows.corner + patches <= GRID)).all())
    defect = windows.label > 0
    assert bool((windows.fraction[defect].amax(1) > 0).all()), "a window named after a defect shows some of it"
    assert not windows.fraction[~defect].any(), "a window without a defect is good"
    assert len(windows.label.unique()) >= 5


def test_batches_depend_on_seed_and_number_only() -> None:
    third = stream().make(2)
    again = stream(first=2).make(2)
    assert torch.equal(third.pixels, again.pixels)
    assert torch.equal(third.label, again.label)
    assert not torch.equal(third.pixels, stream().make(1).pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_returns_batches_in_order(workers: int) -> None:
    loader = iter(window_loader(stream(first=3), workers))
    for number in (3, 4):
        assert torch.equal(next(loader).pixels, stream().make(number).pixels)


def test_frames_come_in_many_sizes_and_some_under_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    make_frame = WindowStream.make.__globals__["make_frame"]

    def spy(label: str, seed: int, **options: object) -> object:
        sizes.append(options["size"])  # type: ignore[arg-type]
        return make_frame(label, seed, **options)

    monkeypatch.setitem(WindowStream.make.__globals__, "make_frame", spy)
    windows = stream(GRID, batch=84).make(0)
    widths = [width for _, width in sizes]
    assert min(widths) >= SIDE
    assert max(widths) <= LARGEST_SIDE
    assert len(set(widths)) > 10
    tilted = [height / width for height, width in sizes if height > width]
    assert 0 < len(tilted) < len(sizes) / 2
    assert max(tilted) <= MAX_TILT + 0.01
    assert windows.pixels.shape[1:] == (SIDE, SIDE)
    pixels = windows.fraction[windows.label > 0].sum(1) * PATCH**2
    assert float(pixels.min()) >= MIN_REDUCED_PX - 1e-3, "every defect is visible after the reduction"


def test_annotations_are_no_defect_and_hide_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(windows_module, "ANNOTATED_SHARE", share)
        made[share] = [
            windows_module._reduced_frame(
                label, windows_module._Shot(70 + i, "rough", (SIDE, SIDE), False), np.random.default_rng(i)
            )
            for i, label in enumerate(["good", "particle", "scratch", "hole"] * 4)
        ]
    written = 0
    for (clean, truth, _), (image, left, _) in zip(made[0.0], made[1.0], strict=True):
        assert image.dtype == np.uint8
        assert (left <= truth).all()
        assert left.sum() >= 0.7 * truth.sum()
        changed = image != clean
        written += bool(changed.any())
        assert not changed[left == 1].any(), "the marked defect is visible"
    assert written >= 12


@pytest.mark.parametrize("patches", [6, GRID])
def test_paired_good_frames_are_the_frame_before_without_its_defect(
    patches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PAIRED_SHARE", 1.0), ("ANNOTATED_SHARE", 0.0)):
        monkeypatch.setattr(windows_module, name, value)
    monkeypatch.setattr(windows_module, "_vary", lambda image, rng: image.astype(np.float32))
    asked: list[tuple[str, tuple[object, ...]]] = []
    make_frame = WindowStream.make.__globals__["make_frame"]

    def spy(label: str, seed: int, **options: object) -> object:
        asked.append((label, (seed, *options.values())))
        return make_frame(label, seed, **options)

    monkeypatch.setitem(WindowStream.make.__globals__, "make_frame", spy)
    windows = WindowStream(seed=5, first=0, batch=21, patches=patches, per_frame=1).make(0)
    good = [i for i, (label, _) in enumerate(asked) if label == "good"]
    assert len(good) == 3
    paired = [i for i in good if i > 0]
    assert len(paired) >= 2
    for i in paired:
        assert asked[i][1] == asked[i - 1][1], "the frame made last for the class before, except for the class"
    row = int((windows.label == 0).nonzero()[-1])
    assert windows.fraction[row].sum() == 0
    if patches == GRID:  # turned and mirrored each in its own way
        before, after = windows.pixels[row - 1], windows.pixels[row]
        turned = [torch.rot90(x, k) for x in (after, after.flip(1)) for k in range(4)]
        changed = min(float((x != before).float().mean()) for x in turned)
        assert 0 < changed < 0.5


def test_large_defects_are_kept_less_often_than_small_ones() -> None:
    rng = np.random.default_rng(0)

    def kept(area: float) -> float:
        return float(np.mean([windows_module._is_kept(area, rng) for _ in range(2000)]))

    assert kept(MIN_REDUCED_PX - 0.1) == 0
    assert kept(MIN_REDUCED_PX) == kept(80.0) == 1
    assert kept(160.0) == pytest.approx(0.5**0.5, abs=0.05)
    assert kept(20_000.0) == pytest.approx(0.5, abs=0.05)


def test_held_out_layouts_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    make_frame = WindowStream.make.__globals__["make_frame"]

    def spy(label: str, seed: int, **options: object) -> object:
        seen.add(str(options["layout"]))
        return make_frame(label, seed, **options)

    monkeypatch.setitem(WindowStream.make.__globals__, "make_frame", spy)
    for number in range(3):
        stream(batch=28).make(number)
    assert seen
    assert seen <= set(LAYOUTS) - set(HELD_OUT_LAYOUTS)
    _, labels, _ = held_out_frames(2)
    assert labels.bincount().tolist() == [2] * len(CLASSES)
