"""fit_map: the transformation layers and out-of-fold maps, on features of planted truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planted import (
    BANK,
    DEFECTS,
    ENCODER,
    LABELS,
    LEVELS,
    PATCHES,
    QUICK,
    TEXT,
    WIDTH,
    map_logits,
    patch_truth,
    plant,
    towards_defects,
)
from torch import Tensor

from export.model import heads
from export.teaching import fit_map
from export.teaching.fit_map import Layers, fit_transforms
from export.teaching.priors import Projection
from export.teaching.settings import TeachSettings
from export.teaching.text_bank import TextBank
from export.teaching.views import SupportFeatures


def task(features: SupportFeatures, settings: TeachSettings) -> fit_map._MapTask:
    return fit_map._MapTask.of(features, BANK, ENCODER.grid, settings)


def separation(weight: Tensor, bias: Tensor) -> float:
    """Fraction of (defect patch, other patch) pairs in the right order, on new frames."""
    fresh = plant(LABELS * 2, seed=50)
    logits, truth = map_logits(fresh, weight, bias), patch_truth(LABELS * 2, 50)
    return float((logits[truth][:, None] > logits[~truth][None]).float().mean())


def fit(
    features: SupportFeatures, settings: TeachSettings = QUICK, seed: int = 0, bank: TextBank = BANK
) -> tuple[Tensor, Tensor, str]:
    layers = fit_transforms(features, bank, ENCODER.grid, settings, seed)
    return layers.weight, layers.bias, layers.taught_by


def test_out_of_fold_maps_come_from_layers_taught_without_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two views per group; both are left out together, and their maps come from layers taught without them."""
    labels = [0] * 6 + [1] * 6 + [2] * 6
    features = replace(plant(labels), group=torch.arange(len(labels)) // 2)
    taught: list[set[int]] = []
    fit = fit_map.fit_transforms

    def spy(part: SupportFeatures, *arguments: Any, **options: Any) -> Layers:
        taught.append(set(part.group.tolist()))
        level = torch.full((LEVELS, WIDTH, ENCODER.text_dim), float(len(taught)))
        return Layers(level, torch.zeros(LEVELS, ENCODER.text_dim), "masks", False)

    monkeypatch.setattr(fit_map, "fit_transforms", spy)
    fit_map.out_of_fold_maps(features, BANK, ENCODER.grid, QUICK, 0)
    everything = set(range(9))
    assert [everything - part for part in taught] == [{0, 3, 6}, {1, 4, 7}, {2, 5, 8}]
    monkeypatch.setattr(fit_map, "fit_transforms", fit)
    bank = replace(BANK, projection=towards_defects())
    maps = fit_map.out_of_fold_maps(features, bank, ENCODER.grid, replace(QUICK, steps=60), 0)
    truth = features.targets.reshape(len(labels), 4, 4, 4, 4).mean((2, 4)).flatten(1) > 0.5
    assert maps.shape == (18, PATCHES)
    assert float(maps[truth].mean()) > float(maps[~truth].mean()) + 0.3


def test_start_at_the_text_separates_patches_without_teaching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_map, "START_AUROC", 0.6)  # one level of four knows the defects
    features = plant(LABELS)
    bank = replace(BANK, projection=towards_defects())
    weight, bias, _ = fit(features, replace(QUICK, steps=0), bank=bank)
    similarity = heads.cosines(heads.transform(plant(LABELS, seed=50).tokens.float(), weight, bias[:, None]), TEXT)
    logits, truth = (similarity[..., 1] - similarity[..., 0])[:, 0], patch_truth(LABELS, 50)
    assert float((logits[truth][:, None] > logits[~truth][None]).float().mean()) > 0.75
    taught, bias, _ = fit(features, bank=bank)
    assert separation(taught, bias) > 0.85


def test_map_taught_by_masks_finds_planted_defects() -> None:
    weight, bias, taught_by = fit(plant(LABELS))
    assert taught_by == "masks"
    assert (weight.shape, bias.shape) == ((LEVELS, WIDTH, ENCODER.text_dim), (LEVELS, ENCODER.text_dim))
    assert separation(weight, bias) > 0.97


def test_every_level_separates_defect_patches() -> None:
    weight, bias, _ = fit(plant(LABELS))
    truth = patch_truth(LABELS, 0)
    features = plant(LABELS)
    for j in range(LEVELS):
        similarity = heads.cosines(heads.transform(features.tokens[:, j].float(), weight[j], bias[j]), TEXT)
        logits = similarity[..., 1] - similarity[..., 0]
        assert float(logits[truth].mean()) > float(logits[~truth].mean()) + 0.2


def test_more_steps_lower_the_loss() -> None:
    features, truth = plant(LABELS), patch_truth(LABELS, 0).float()
    losses = []
    for steps in (1, 15, 150):
        weight, bias, _ = fit(features, replace(QUICK, steps=steps))
        found = torch.sigmoid(QUICK.temperatures.fit * map_logits(features, weight, bias)).clamp(1e-6, 1 - 1e-6)
        losses.append(float(torch.nn.functional.binary_cross_entropy(found, truth)))
    assert losses[0] > losses[1] > losses[2]


def test_frame_loss_depends_on_the_highest_cells() -> None:
    """A good frame with one hot spot, which hardly changes the mean over cells, and a defect frame without any."""
    target = torch.zeros(4, 10, 10)
    target[2:, 4:6, 4:6] = 1
    calm, hot = torch.full((2, 4, 10, 10), -5.0), torch.full((2, 4, 10, 10), -5.0)
    calm[:, 2:, 4:6, 4:6] = hot[:, 2, 4:6, 4:6] = 5.0
    hot[:, 0, 0, :2] = 5.0
    right, wrong = (float(fit_map._frame_loss(logit, target, 3.0)) for logit in (calm, hot))
    # Of each of 2 levels: the good frame's spot counts 3, the silent defect 1, each costs 5; 4 frames.
    assert right == pytest.approx(0, abs=0.05)
    assert wrong == pytest.approx(2 * (3 * 5 + 5) / 4, abs=0.1)
    target[[0, 3]] = torch.nan
    assert float(fit_map._frame_loss(hot, target, 3.0)) == pytest.approx(0, abs=0.05)
    assert float(fit_map._frame_loss(hot, torch.full_like(target, torch.nan), 3.0)) == 0


@pytest.mark.parametrize(
    ("labels", "frame_loss", "expected"),
    [
        ([0, 1, 1], 1.0, (0.0, 1.0)),
        ([0, 0, 1, 2], 1.0, (0.5, 2.0)),
        ([0, 0, 0, 0, 1, 2], 1.0, (0.75, 2.0)),
        ([0, 0, 0, 0, 1, 2], 0.0, (0.0, 2.0)),
    ],
)
def test_frame_weight_grows_with_the_number_of_good_groups(
    labels: list[int], frame_loss: float, expected: tuple[float, float]
) -> None:
    features = plant(labels)
    settings = replace(QUICK, frame_loss=frame_loss)
    assert fit_map._frame_weights(task(features, settings)) == expected
    twice = replace(features, labels=features.labels.repeat(2), group=features.group.repeat(2))  # views of the same
    assert fit_map._frame_weights(task(twice, settings)) == expected


def test_frame_loss_lowers_the_peaks_of_good_frames() -> None:
    hard = plant(LABELS, strength=1.0)
    hard.tokens[0, :, 5] += hard.tokens[4].amax() * torch.sign(hard.tokens[4, :, 0])  # an odd spot in a good frame
    peaks = []
    for weight_of_frames in (0.0, 3.0):
        weight, bias, _ = fit(hard, replace(QUICK, frame_loss=weight_of_frames))
        logits = map_logits(hard, weight, bias).amax(1)
        peaks.append(float(logits[4:].mean() - logits[:4].max()))
    assert peaks[1] > peaks[0]


def test_map_taught_by_frame_labels_finds_planted_defects() -> None:
    weight, bias, taught_by = fit(plant(LABELS, unmasked=DEFECTS))
    assert taught_by == "frame labels"
    assert separation(weight, bias) > 0.9


def test_fit_transforms_folds_standardization_of_tokens() -> None:
    """Scale and offset of the raw tokens do not change the cosines."""
    features = plant(LABELS)
    steps_of_a_16th = (features.tokens.float() * 16).round() / 16  # exact in fp16 after the change below, too
    offset = torch.randint(-4, 5, (1, LEVELS, 1, WIDTH), generator=torch.Generator().manual_seed(0))
    cosines = []
    for tokens in (steps_of_a_16th, 2 * steps_of_a_16th + offset):
        moved = replace(features, tokens=tokens.half())
        assert torch.equal(moved.tokens.float(), tokens)
        weight, bias, _ = fit(moved, replace(QUICK, steps=20))
        cosines.append(map_logits(moved, weight, bias))
    torch.testing.assert_close(cosines[0], cosines[1], atol=5e-3, rtol=0)
    assert float(cosines[0].std()) > 0.05


def test_a_constant_channel_does_not_disturb_the_map() -> None:
    features = plant(LABELS)
    features.tokens[..., 3] = 2.0
    weight, bias, _ = fit(features)
    assert bool(weight.isfinite().all())
    logits, truth = map_logits(features, weight, bias), patch_truth(LABELS, 0)
    assert float(logits[truth].min()) > float(logits[~truth].median())


def test_layers_start_at_the_text_if_it_helps_or_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0 steps the result is the start."""
    monkeypatch.setattr(fit_map, "START_AUROC", 0.6)
    features, none = plant(LABELS), replace(QUICK, steps=0)
    good = towards_defects()
    bad = Projection(-good.weight, good.bias)
    random, *_ = fit(features, none)
    for projection, start, at_text in (
        (good, "auto", True),
        (good, "random", False),
        (bad, "auto", False),
        (bad, "text", True),
    ):
        found, *_ = fit(features, replace(none, start=start), bank=replace(BANK, projection=projection))
        assert torch.equal(found, random) == (not at_text)
    with pytest.raises(ValueError, match='start "text" takes a tower whose text'):
        fit(features, replace(none, start="text"))


def test_progress_counts_every_step() -> None:
    calls: list[tuple[int, int]] = []
    settings = replace(QUICK, steps=7)
    fit_transforms(plant(LABELS), BANK, ENCODER.grid, settings, 0, progress=lambda *call: calls.append(call))
    assert calls == [(step, 7) for step in range(1, 8)]
