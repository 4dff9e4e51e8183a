"""export.teaching.views: variations of support frames, with the truth moving along, and their features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calibration.dataset import Sample
from calibration.errors import DatasetError
from export.bundle import describe_encoder
from export.model import heads
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.teaching.support_pixels import read_supports
from export.teaching.views import (
    DEFECT_SHARE,
    LOSS_CELLS_PER_PATCH,
    SupportFeatures,
    _target,
    area_average,
    encode_supports,
    vary,
)
from runtime.errors import FrameError
from runtime.frames import prepare
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions

CLASSES = ("good", "hole", "scratch")
GRID = (4, 4)
CELLS = (4 * LOSS_CELLS_PER_PATCH, 4 * LOSS_CELLS_PER_PATCH)


@pytest.fixture(scope="module")
def graph() -> SemClipGraph:
    return SemClipGraph(load_model("toy", random_seed=0).encoder())


@pytest.fixture(scope="module")
def encoder(graph: SemClipGraph) -> Encoder:
    return describe_encoder(load_model("toy", random_seed=0), graph)


@pytest.fixture(scope="module")
def text_seg() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(2, 24, generator=torch.Generator().manual_seed(0)), dim=-1)


def make_sample(
    folder: Path, label: str, name: str, *, masked: bool = True, size: tuple[int, int] = (96, 80)
) -> Sample:
    """A noisy frame with a bright block in its lower right quarter, and that block's mask."""
    pixels = np.random.default_rng(len(name)).integers(0, 120, size).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    if label != "good":
        mask[size[0] // 2 : size[0] // 2 + 12, size[1] // 2 : size[1] // 2 + 12] = 255
        pixels[mask > 0] = 240
    for kind, content in (("f", pixels), ("m", mask)):
        Image.fromarray(content).save(folder / f"{kind}-{label}-{name}.png")
    path, truth = (folder / f"{kind}-{label}-{name}.png" for kind in "fm")
    return Sample(path, label, name, truth if masked else None)


@pytest.fixture
def supports(tmp_path: Path) -> list[Sample]:
    return [
        make_sample(tmp_path, "good", "a"),
        make_sample(tmp_path, "good", "b", masked=False),
        make_sample(tmp_path, "hole", "c"),
        make_sample(tmp_path, "scratch", "d", masked=False),
    ]


def encode(
    graph: SemClipGraph,
    encoder: Encoder,
    supports: list[Sample],
    text_seg: Tensor,
    *,
    views: int = 3,
    seed: int = 0,
    options: FrameOptions | None = None,
) -> SupportFeatures:
    read = read_supports(supports, encoder, options or FrameOptions(), seed)
    return encode_supports(graph, encoder, read, CLASSES, text_seg, views=views, seed=seed)


def test_the_first_view_is_unaugmented(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor
) -> None:
    features = encode(graph, encoder, supports, text_seg)
    assert features.unaugmented.tolist() == [True, False, False] * 4
    for view, sample in zip(features.unaugmented.nonzero()[:, 0].tolist(), supports, strict=True):
        frame = prepare(sample.read(FrameOptions()), encoder, FrameOptions(), "frame")
        levels = graph.encode(torch.tensor(frame)[None])
        cls = torch.cat([heads.unit(z[0, 0]) for z in levels.tokens])
        torch.testing.assert_close(features.cls[view], cls, atol=1e-5, rtol=0)
        for j in range(4):
            torch.testing.assert_close(features.tokens[view, j].float(), levels.tokens[j][0, 1:], atol=2e-3, rtol=2e-3)
            logit = heads.value_logit(levels.value[j], levels.cls[j], text_seg, torch.tensor(1.0), "cls_weight")
            torch.testing.assert_close(features.value[view, j], logit[0], atol=3e-4, rtol=0)  # of fp16 directions


def test_shapes_types_and_labels(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor
) -> None:
    features = encode(graph, encoder, supports, text_seg)
    assert (features.tokens.shape, features.tokens.dtype) == ((12, 4, 16, 32), torch.float16)
    assert (features.cls.shape, features.cls.dtype) == ((12, 128), torch.float32)
    assert features.value.shape == (12, 4, 16)
    assert features.targets.shape == (12, *CELLS)
    assert features.labels.tolist() == [0] * 6 + [1] * 3 + [2] * 3


def test_truth_is_known_for_masks_and_for_good_frames_only(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor
) -> None:
    targets = encode(graph, encoder, supports, text_seg).targets
    assert not targets[:6].any()
    assert (targets[6:9] == 1).any(dim=2).any(dim=1).all()
    assert not targets[:9].isnan().any()
    assert targets[9:].isnan().all()


def test_views_are_determined_by_seed_and_pixels(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor
) -> None:
    first = encode(graph, encoder, supports, text_seg, seed=1)
    again = encode(graph, encoder, supports, text_seg, seed=1)
    other = encode(graph, encoder, supports, text_seg, seed=2)
    turned = encode(graph, encoder, supports[::-1], text_seg, seed=1)
    assert torch.equal(first.tokens, again.tokens)
    for place in range(4):  # whatever the others are, and wherever it stands among them
        assert torch.equal(first.tokens[place * 3 : place * 3 + 3], turned.tokens[9 - place * 3 : 12 - place * 3])
    for view in range(12):
        difference = float((first.tokens[view] - other.tokens[view]).abs().max())
        assert (difference < 0.01) == bool(first.unaugmented[view])


def test_progress_reaches_the_number_of_views(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor
) -> None:
    calls: list[tuple[int, int]] = []
    encode_supports(
        graph,
        encoder,
        read_supports(supports, encoder, FrameOptions(), 0),
        CLASSES,
        text_seg,
        views=5,
        seed=0,
        progress=lambda *call: calls.append(call),
    )
    assert calls[-1] == (20, 20)
    assert calls == sorted(calls)


def test_groups_of_supports_that_are_joined_are_the_same_numbers(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor
) -> None:
    samples = [replace(sample, group=group) for sample, group in zip(supports, "dcba", strict=True)]
    names = sorted(sample.group for sample in samples)
    read = read_supports(samples, encoder, FrameOptions(), 0)
    first = encode_supports(graph, encoder, read, CLASSES, text_seg, groups=names, views=1, seed=0)
    later = encode_supports(graph, encoder, read[:2], CLASSES, text_seg, groups=names, views=1, seed=0)
    assert first.group.tolist() == [3, 2, 1, 0]
    assert first.joined(later).group.tolist() == [3, 2, 1, 0, 3, 2]


def test_ignored_rows_are_out_of_the_pixels_and_of_the_target(
    graph: SemClipGraph, encoder: Encoder, tmp_path: Path, text_seg: Tensor
) -> None:
    rng = np.random.default_rng(0)
    inner = rng.integers(0, 200, (80, 80)).astype(np.uint8)
    for name, top, bottom in (("a", 0, 255), ("b", 255, 0)):
        frame = np.concatenate([np.full((6, 80), top), inner, np.full((10, 80), bottom)]).astype(np.uint8)
        mask = np.zeros((96, 80), np.uint8)
        mask[:6] = mask[-10:] = 255 if name == "a" else 0
        mask[40:52, 40:52] = 255
        Image.fromarray(frame).save(tmp_path / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / f"{name}-mask.png")
    supports = [Sample(tmp_path / f"{n}.png", "hole", n, tmp_path / f"{n}-mask.png") for n in "ab"]
    a, b = (
        encode(graph, encoder, [sample], text_seg, options=FrameOptions(ignore_top=6, ignore_bottom=10))
        for sample in supports
    )
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.targets, b.targets)
    assert a.targets[0].any()
    assert not a.targets[0, 0].any()
    assert not a.targets[0, -1].any()


def test_a_mask_of_another_size_and_a_broken_frame_are_named(
    graph: SemClipGraph, encoder: Encoder, supports: list[Sample], text_seg: Tensor, tmp_path: Path
) -> None:
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(small)
    with pytest.raises(DatasetError, match=r"small\.png: the mask is 5x5"):
        encode(graph, encoder, [replace(supports[2], mask=small)], text_seg)
    supports[2].path.write_bytes(b"broken")
    with pytest.raises(FrameError, match=r"f-hole-c\.png"):
        encode(graph, encoder, supports, text_seg)


# ---- masks on a coarser grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "cells"), [((9, 7), (3, 2)), ((8, 6), (4, 3)), ((11, 5), (11, 4)), ((7, 7), (3, 5))])
def test_area_average_gives_every_pixel_to_one_cell(size: tuple[int, int], cells: tuple[int, int]) -> None:
    """So a defect of one pixel never vanishes, whatever the ratio of the sizes."""
    for row, column in np.ndindex(size):
        mask = np.zeros(size, np.uint8)
        mask[row, column] = 1
        averaged = area_average(mask, cells)
        assert averaged.shape == cells
        assert averaged.dtype == np.float32
        assert np.count_nonzero(averaged) == 1


def test_area_average_is_the_mean_of_each_cell() -> None:
    mask = (np.random.default_rng(0).random((12, 20)) < 0.3).astype(np.uint8)
    expected = mask.reshape(3, 4, 5, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(area_average(mask, (3, 5)), expected, atol=1e-6)


# ---- geometry --------------------------------------------------------------------------------------------------------


def block_frame(box: tuple[int, int, int, int], size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A dark frame with a bright block [top, left, bottom, right], and the block's cover."""
    cover = np.zeros((size, size), np.float32)
    cover[box[0] : box[2], box[1] : box[3]] = 1
    return (40 + 160 * cover).astype(np.uint8), cover


def test_frame_and_mask_are_transformed_alike() -> None:
    frame, cover = block_frame((8, 34, 20, 56))
    quarters = set()
    for seed in range(60):
        changed, moved = vary(frame, cover, np.random.default_rng(seed))
        assert changed.dtype == np.uint8
        assert changed.shape == frame.shape
        assert moved is not None
        bright = changed > (int(changed.min()) + int(changed.max())) / 2
        truth = moved > 0.5
        assert (bright & truth).sum() / (bright | truth).sum() > 0.85, seed
        row, column = (int(axis.mean()) // 32 for axis in np.nonzero(truth))
        quarters.add((row, column))
    assert quarters == {(0, 0), (0, 1), (1, 0), (1, 1)}, "flips and transposes occur"


def test_frames_that_are_not_square_keep_their_shape() -> None:
    frame, cover = block_frame((8, 34, 20, 56))
    for seed in range(8):
        changed, moved = vary(frame[:48], cover[:48], np.random.default_rng(seed))
        assert moved is not None
        assert changed.shape == moved.shape == (48, 64)


def test_dose_and_contrast_vary_but_mildly() -> None:
    frame, cover = block_frame((8, 34, 20, 56))
    means = [vary(frame, cover, np.random.default_rng(seed))[0].mean() for seed in range(40)]
    assert max(means) - min(means) > 10
    assert max(abs(mean - frame.mean()) for mean in means) < 40


def test_a_frame_without_truth_is_varied_like_one_with_truth() -> None:
    frame, cover = block_frame((8, 34, 20, 56))
    for seed in range(8):
        with_truth, _ = vary(frame, cover, np.random.default_rng(seed))
        without, nothing = vary(frame, None, np.random.default_rng(seed))
        assert nothing is None
        np.testing.assert_array_equal(with_truth, without)


@pytest.mark.parametrize(
    "box",
    [
        (30, 0, 31, 64),  # a line of one pixel across the frame
        (30, 30, 31, 31),  # a single pixel
        (0, 0, 1, 1),  # one that a crop may cut away
        (63, 20, 64, 40),
        (0, 62, 64, 64),
    ],
)
def test_a_thin_defect_never_vanishes_from_the_target(box: tuple[int, int, int, int]) -> None:
    frame, cover = block_frame(box)
    assert _target(cover, GRID).any()
    for seed in range(40):
        changed, moved = vary(frame, cover, np.random.default_rng(seed))
        target = _target(moved, GRID)
        assert target.any(), seed
        # ... nor from the frame: something stands out where the target says so.
        cells = np.kron(target, np.ones((4, 4))) > 0
        assert changed[cells].max() > np.median(changed) + 3, seed


def test_a_thin_defect_does_not_grow_in_the_target() -> None:
    _, cover = block_frame((30, 0, 31, 64))
    assert _target(cover, GRID).sum() == CELLS[1]


def test_a_cell_is_defect_from_a_quarter_of_its_area_on() -> None:
    cover = np.zeros((64, 64), np.float32)
    cover[0:4, 0:4] = 1
    for column, covered in enumerate((DEFECT_SHARE - 0.01, DEFECT_SHARE, 1.0), start=4):
        cover[0:4, 4 * column : 4 * column + 4] = covered
    target = _target(cover, GRID)
    assert target.dtype == np.float32
    assert target[0, 4:7].tolist() == [0, 1, 1]
    assert target.sum() == 3


def test_targets_of_clean_and_of_unknown_frames() -> None:
    assert _target(np.zeros((64, 64), np.float32), GRID).tolist() == np.zeros(CELLS).tolist()
    assert np.isnan(_target(None, GRID)).all()
