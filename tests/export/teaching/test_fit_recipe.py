"""fit_recipe, fit_map, fit_head: transformation layers, head and thresholds, on features of planted truth."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_encoder
from numpy.typing import NDArray
from torch import Tensor

from calibration.thresholds import f1_max_threshold
from export.model import heads
from export.teaching import fit_head as fit_head_module
from export.teaching import fit_map
from export.teaching import fit_recipe as finetune
from export.teaching.fit_head import (
    BLOCK_WEIGHTS,
    MAX_FOLDS,
    HeadFit,
    fit_head,
    head_scale,
    held_out_probabilities,
    start_of_head,
)
from export.teaching.fit_map import Layers, fit_transforms
from export.teaching.fit_memory import fit_memory
from export.teaching.fit_recipe import Lesson, fit_recipe
from export.teaching.settings import TeachSettings, Temperatures
from export.teaching.text_bank import TextBank, anchor_bank
from export.teaching.text_prior import Projection
from export.teaching.views import SupportFeatures
from runtime.maps import frame_score, upsample
from runtime.recipe import FrameOptions, Recipe

CLASSES = ("good", "hole", "scratch")
ENCODER = make_encoder()
LEVELS, PATCHES, WIDTH = 4, 16, 32
QUICK = replace(TeachSettings(), steps=150)
BANK = anchor_bank(CLASSES, ENCODER.text_dim)
TEXT = torch.tensor(BANK.text_seg)


def plant(
    labels: list[int], *, seed: int = 0, unmasked: tuple[int, ...] = (), strength: float = 4.0
) -> SupportFeatures:
    """Features of one view per label; a defect moves two by two patches along one direction per level.

    The head's features tell the classes apart as well. unmasked: the views whose truth is not known.
    """
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)  # the world is the same for every draw
    directions = fixed.standard_normal((LEVELS, WIDTH))
    directions *= strength / np.linalg.norm(directions, axis=1, keepdims=True)
    centres = fixed.standard_normal((len(CLASSES), LEVELS * WIDTH))
    tokens = fixed.standard_normal((LEVELS, 1, WIDTH)) + 0.7 * rng.standard_normal(
        (len(labels), LEVELS, PATCHES, WIDTH)
    )
    targets = np.zeros((len(labels), 16, 16), np.float32)
    for view, label in enumerate(labels):
        if label:
            row, column = rng.integers(0, 3, 2)
            for r, c in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
                tokens[view, :, 4 * r + c] += directions
            targets[view, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8] = 1
    cls = 0.05 * (centres[labels] + 0.5 * rng.standard_normal((len(labels), LEVELS * WIDTH)))
    targets[list(unmasked)] = np.nan
    return SupportFeatures(
        tokens=torch.tensor(tokens, dtype=torch.float16),
        cls=torch.tensor(cls, dtype=torch.float32),
        value=torch.zeros(len(labels), LEVELS, PATCHES),
        targets=torch.tensor(targets),
        labels=torch.tensor(labels),
        plain=torch.ones(len(labels), dtype=torch.bool),
        group=torch.arange(len(labels)),
    )


LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
DEFECTS = tuple(range(4, 10))


def lesson(
    features: SupportFeatures, *, seed: int = 0, settings: TeachSettings = QUICK, bank: TextBank = BANK
) -> Lesson:
    return Lesson(features, ENCODER, CLASSES, bank, 1.0, seed, settings)


def teach(
    features: SupportFeatures, *, seed: int = 0, settings: TeachSettings = QUICK, bank: TextBank = BANK
) -> Recipe:
    return fit_recipe(lesson(features, seed=seed, settings=settings, bank=bank), FrameOptions())


def map_logits(features: SupportFeatures, weight: Tensor, bias: Tensor) -> Tensor:
    """Defect minus normal cosine of every patch, averaged over levels: [V, P]."""
    transformed = heads.transform(features.tokens.float(), weight, bias[:, None])
    similarity = heads.cosines(transformed, TEXT)
    return (similarity[..., 1] - similarity[..., 0]).mean(1)


def patch_truth(labels: list[int], seed: int) -> Tensor:
    """Bool [V, P], also of views whose target the teacher does not see."""
    return plant(labels, seed=seed).targets[:, ::4, ::4].flatten(1) > 0


def separation(weight: Tensor, bias: Tensor) -> float:
    """Share of (defect patch, other patch) pairs in the right order, on frames that were not taught."""
    fresh = plant(LABELS * 2, seed=50)
    logits, truth = map_logits(fresh, weight, bias), patch_truth(LABELS * 2, 50)
    return float((logits[truth][:, None] > logits[~truth][None]).float().mean())


def probabilities(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return heads.head_probabilities(features, weight, bias)


# ---- the classification head -----------------------------------------------------------------------------------------


def test_head_learns_classes_that_can_be_told_apart() -> None:
    features = plant(LABELS)
    weight, bias = fit_head(features.cls, features.labels, 3)
    assert weight.shape == (3, LEVELS * WIDTH)
    assert weight.dtype == bias.dtype == torch.float32
    fresh = plant(LABELS, seed=8)
    found = probabilities(fresh.cls, weight, bias)
    assert torch.equal(found.argmax(1), fresh.labels)
    assert float(found[range(10), fresh.labels].min()) > 0.5


def test_head_is_the_same_every_time() -> None:
    features = plant(LABELS)
    first, again = (fit_head(features.cls, features.labels, 3) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_classes_weigh_the_same_whatever_their_number_of_views() -> None:
    """A tenth of 100 views of one class and nine tenths of 10 of the other have the mark: with it, 9 to 1."""
    marks = [1.0] * 10 + [0.0] * 90 + [1.0] * 9 + [0.0]
    features, labels = torch.tensor(marks)[:, None], torch.tensor([0] * 100 + [1] * 10)
    weight, bias = fit_head(features, labels, 2, HeadFit(1e-8))
    found = probabilities(torch.tensor([[1.0], [0.0]]), weight, bias)
    torch.testing.assert_close(found[:, 1], torch.tensor([0.9, 0.1]), atol=0.01, rtol=0)


def test_features_that_say_nothing_leave_all_classes_alike() -> None:
    features, labels = torch.full((13, 5), 0.3), torch.tensor([0] * 9 + [1] * 3 + [2])
    weight, bias = fit_head(features, labels, 3)
    torch.testing.assert_close(probabilities(features, weight, bias), torch.full((13, 3), 1 / 3), atol=1e-3, rtol=0)


def test_standardization_of_the_head_is_folded_exactly() -> None:
    """Fitted on standardized features and on raw ones, the logits are the same numbers."""
    features = plant(LABELS)
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(LEVELS * WIDTH, generator=generator) * 5 + 0.1
    raw = features.cls * scale + torch.randn(LEVELS * WIDTH, generator=generator)
    standardized = ((raw.double() - raw.double().mean(0)) / raw.double().std(0, correction=0)).float()
    logits = []
    for x in (raw, standardized):
        weight, bias = fit_head(x, features.labels, 3)
        logits.append(x.double() @ weight.double().T + bias.double())
    torch.testing.assert_close(logits[0], logits[1], atol=2e-3, rtol=0)
    assert float(logits[0].abs().max()) > 1


def test_stronger_decay_gives_smaller_weights() -> None:
    features = plant(LABELS)
    norms = [float(fit_head(features.cls, features.labels, 3, HeadFit(l2))[0].norm()) for l2 in (1e-4, 1e-2, 1.0)]
    assert norms[0] > norms[1] > norms[2]


def test_the_paper_s_head_reads_class_tokens_alone() -> None:
    quick = replace(QUICK, steps=5)
    paper, pooled = (teach(plant(LABELS), settings=replace(quick, head=kind)) for kind in ("paper", "pooled"))
    beyond = np.s_[:, LEVELS * WIDTH :]
    assert not paper.tensors["head_weight"][beyond].any()
    assert pooled.tensors["head_weight"][beyond].all()
    assert paper.tensors["head_weight"][:, : LEVELS * WIDTH].all()
    assert paper.teaching["settings"]["head"] == "paper"
    with pytest.raises(ValueError, match="there are: pooled, paper"):
        replace(quick, head="other")


def towards_defects() -> Projection:
    """The way to the text space of a tower that knows the defects of `plant` already, at its first level."""
    directions = np.random.default_rng(99).standard_normal((LEVELS, WIDTH))
    defect = torch.tensor(directions[0] / np.linalg.norm(directions[0]), dtype=torch.float32)
    weight = defect[:, None] * (TEXT[1] - TEXT[0])
    return Projection(weight - weight.mean(0), torch.zeros(ENCODER.text_dim))


def towards_classes() -> Projection:
    """A projection that takes the last level's class tokens of `plant` to the texts of their classes."""
    fixed = np.random.default_rng(99)
    fixed.standard_normal((LEVELS, WIDTH))
    centres = torch.tensor(fixed.standard_normal((len(CLASSES), LEVELS * WIDTH))[:, -WIDTH:], dtype=torch.float32)
    weight = torch.linalg.pinv(centres) @ torch.tensor(BANK.text_cls)
    return Projection(weight, torch.zeros(ENCODER.text_dim))


def test_a_head_adds_to_its_prior() -> None:
    features = plant(LABELS)
    prior = torch.randn((3, LEVELS * WIDTH), generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.0, -1.0])
    held, moved = fit_head(features.cls, features.labels, 3, HeadFit(1e6, prior=prior))
    torch.testing.assert_close(held, prior[0], atol=1e-4, rtol=0)
    assert float((moved - prior[1]).abs().max()) > 0.1
    _, held_too = fit_head(features.cls, features.labels, 3, HeadFit(1e6, prior=prior, bias_l2=1e6))
    torch.testing.assert_close(held_too, prior[1], atol=1e-4, rtol=0)
    weight, bias = fit_head(features.cls, features.labels, 3, HeadFit(1e-4, prior=prior))
    assert not torch.equal(probabilities(features.cls, *prior).argmax(1), features.labels)
    assert torch.equal(probabilities(features.cls, weight, bias).argmax(1), features.labels)


def test_the_text_is_asked_only_where_it_is_aligned_and_not_by_the_paper_s_head() -> None:
    quick = replace(QUICK, steps=3)
    assert teach(plant(LABELS), settings=quick).teaching["text_prior"] == {}
    aligned = replace(BANK, projection=towards_classes())
    record = teach(plant(LABELS), settings=quick, bank=aligned).teaching["text_prior"]
    assert set(record) == {"text", "peak", "explained"}
    assert record["text"] > 0
    assert 0 < record["explained"] <= 1
    paper = teach(plant(LABELS), settings=replace(quick, head="paper"), bank=aligned)
    assert paper.teaching["text_prior"] == {}
    assert not paper.tensors["head_weight"][:, LEVELS * WIDTH :].any()


def test_a_head_that_starts_from_the_text_starts_from_the_map_too() -> None:
    features, aligned = plant(LABELS), replace(BANK, projection=towards_defects())
    maps = torch.rand(len(LABELS), PATCHES, generator=torch.Generator().manual_seed(0))
    head = finetune.head_input(features, features.plain, maps)
    prior, record = start_of_head(head, features.labels, aligned, QUICK, shots=4)
    assert prior is not None
    weight, bias = prior
    scale = record["peak"]
    assert scale > 0
    assert weight[:, -1].tolist() == pytest.approx([-scale, scale, scale], abs=1e-3), "good is the first class"
    logit = {
        h: torch.nn.functional.linear(torch.cat([head[0, :-1], torch.tensor([h])]), weight, bias) for h in (0, 0.5, 1)
    }
    torch.testing.assert_close(logit[0.5], (logit[0] + logit[1]) / 2)
    assert float(logit[1][1] - logit[1][0] - (logit[0][1] - logit[0][0])) == pytest.approx(2 * scale, abs=1e-2)
    assert start_of_head(head, features.labels, BANK, QUICK, shots=4) == (None, {})


def test_the_head_reads_out_of_fold_maps_only_where_the_layers_start_at_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(QUICK, steps=20)
    out_of_fold = torch.rand((len(LABELS), PATCHES), generator=torch.Generator().manual_seed(1))
    asked: list[int] = []
    read: list[Tensor] = []
    fit = finetune.fit_class_head

    def maps(*given: Any) -> Tensor:
        asked.append(1)
        return out_of_fold

    def spy(features: SupportFeatures, maps: Tensor, *rest: Any) -> Any:
        read.append(maps)
        return fit(features, maps, *rest)

    monkeypatch.setattr(finetune, "out_of_fold_maps", maps)
    monkeypatch.setattr(finetune, "fit_class_head", spy)
    features = plant(LABELS)
    random = teach(features, settings=settings)
    assert random.teaching["map_starts_at"] == "random"
    assert not asked, "they are computed where they are read, and nowhere else"
    judged, _ = finetune.judge_supports(features, {**random.tensors, "scalars": without_memory(random)})
    own = replace(settings, memory_share=0.0)
    teach(features, settings=own)
    torch.testing.assert_close(read[-1], judged)
    at_text = teach(features, settings=replace(own, start="text"), bank=replace(BANK, projection=towards_defects()))
    assert at_text.teaching["map_starts_at"] == "text"
    assert asked == [1]
    torch.testing.assert_close(read[-1], out_of_fold)


def without_memory(recipe: Recipe) -> NDArray[np.float32]:
    scalars = recipe.tensors["scalars"].copy()
    scalars[2] = 0
    return scalars


def test_out_of_fold_maps_are_by_layers_that_were_taught_without_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two views a group; each group is left out together, and judged by layers that never saw it."""
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


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2]])
def test_one_support_a_class_is_taught_whatever_its_folds_lack(labels: list[int]) -> None:
    recipe = teach(plant(labels), settings=replace(QUICK, steps=5))
    assert all(np.isfinite(tensor).all() for tensor in recipe.tensors.values())


# ---- held-out heads --------------------------------------------------------------------------------------------------


def test_views_of_one_support_are_never_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two views a support; what is fitted on each time lacks both views of the supports that are judged."""
    labels = [0] * 12 + [1] * 6 + [2] * 6
    features = plant(labels)
    features.plain[1::2] = False
    features.cls[:, 0] = (torch.arange(len(labels)) // 2).float()  # the support's number, in every view
    fitted: list[set[float]] = []
    judged: list[set[float]] = []
    judge = heads.head_probabilities

    def fit(x: Tensor, *arguments: Any, **options: Any) -> Any:
        fitted.append(set(x[:, 0].tolist()))
        return fit_head(x, *arguments, **options)

    def probabilities(x: Tensor, *arguments: Any) -> Tensor:
        judged.append(set(x[:, 0].tolist()))
        return judge(x, *arguments)

    monkeypatch.setattr(fit_head_module, "fit_head", fit)
    monkeypatch.setattr(heads, "head_probabilities", probabilities)
    held_out = held_out_probabilities(features.cls, features, 3, HeadFit())
    assert held_out is not None
    assert held_out.shape == (12, 3)
    assert len(fitted) == 3 <= MAX_FOLDS
    assert all(not taught & left for taught, left in zip(fitted, judged, strict=True))
    assert all(taught | left == set(map(float, range(12))) for taught, left in zip(fitted, judged, strict=True))
    assert sorted(number for left in judged for number in left) == list(range(12))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0, 1, 1, 2]])
def test_a_single_support_of_a_class_leaves_no_head_without_it(labels: list[int]) -> None:
    features = plant(labels)
    assert held_out_probabilities(features.cls, features, 3, HeadFit()) is None


@pytest.mark.parametrize("alpha", [0.8, 0.6])
def test_the_class_mix_is_the_setting_s(alpha: float) -> None:
    assert TeachSettings().alpha == 0.8, "eq. 23"
    recipe = teach(plant(LABELS), settings=replace(QUICK, steps=2, alpha=alpha))
    assert recipe.tensors["scalars"][0] == pytest.approx(alpha)


# ---- the transformation layers ---------------------------------------------------------------------------------------


def fit(
    features: SupportFeatures, settings: TeachSettings = QUICK, seed: int = 0, bank: TextBank = BANK
) -> tuple[Tensor, Tensor, str]:
    layers = fit_transforms(features, bank, ENCODER.grid, settings, seed)
    return layers.weight, layers.bias, layers.taught_by


def test_a_map_that_starts_at_the_text_needs_little_teaching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_map, "START_AUROC", 0.6)  # one level of four knows the defects
    features = plant(LABELS)
    bank = replace(BANK, projection=towards_defects())
    weight, bias, _ = fit(features, replace(QUICK, steps=0), bank=bank)
    similarity = heads.cosines(heads.transform(plant(LABELS, seed=50).tokens.float(), weight, bias[:, None]), TEXT)
    logits, truth = (similarity[..., 1] - similarity[..., 0])[:, 0], patch_truth(LABELS, 50)
    assert float((logits[truth][:, None] > logits[~truth][None]).float().mean()) > 0.75
    taught, bias, _ = fit(features, bank=bank)
    assert separation(taught, bias) > 0.85


def test_masks_teach_the_map_to_find_the_planted_defects() -> None:
    weight, bias, taught_by = fit(plant(LABELS))
    assert taught_by == "masks"
    assert (weight.shape, bias.shape) == ((LEVELS, WIDTH, ENCODER.text_dim), (LEVELS, ENCODER.text_dim))
    assert separation(weight, bias) > 0.97


def test_every_level_learns() -> None:
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


def test_a_frame_is_told_by_its_highest_cells() -> None:
    """A good frame with one hot spot, which a mean over cells hardly sees, and a defect frame without any."""
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
def test_whole_frames_count_the_more_the_more_good_ones_there_are(
    labels: list[int], frame_loss: float, expected: tuple[float, float]
) -> None:
    features = plant(labels)
    settings = replace(QUICK, frame_loss=frame_loss)
    assert fit_map._frame_weights(features, torch.arange(len(labels)), settings) == expected
    twice = replace(features, labels=features.labels.repeat(2), group=features.group.repeat(2))  # views of the same
    assert fit_map._frame_weights(twice, torch.arange(2 * len(labels)), settings) == expected


def test_the_loss_of_whole_frames_lowers_the_peaks_of_good_ones() -> None:
    hard = plant(LABELS, strength=1.0)
    hard.tokens[0, :, 5] += hard.tokens[4].amax() * torch.sign(hard.tokens[4, :, 0])  # an odd spot in a good frame
    peaks = []
    for weight_of_frames in (0.0, 3.0):
        weight, bias, _ = fit(hard, replace(QUICK, frame_loss=weight_of_frames))
        logits = map_logits(hard, weight, bias).amax(1)
        peaks.append(float(logits[4:].mean() - logits[:4].max()))
    assert peaks[1] > peaks[0]


def test_without_any_mask_the_map_learns_from_frame_labels_and_still_separates() -> None:
    weight, bias, taught_by = fit(plant(LABELS, unmasked=DEFECTS))
    assert taught_by == "frame labels"
    assert separation(weight, bias) > 0.9


def test_unmasked_defects_teach_only_the_head_when_others_have_masks() -> None:
    features = plant(LABELS, unmasked=(6, 9))
    swapped = features.labels.clone()
    swapped[[6, 9]] = features.labels[[9, 6]]
    as_it_is, otherwise = teach(features), teach(replace(features, labels=swapped))
    assert as_it_is.teaching["map_taught_by"] == "masks"
    for name in ("transform_weight", "transform_bias"):
        np.testing.assert_array_equal(as_it_is.tensors[name], otherwise.tensors[name])
    assert not np.array_equal(as_it_is.tensors["head_weight"], otherwise.tensors["head_weight"])


def test_standardization_of_the_tokens_is_folded() -> None:
    """A scale and an offset of the raw tokens make no difference to the cosines."""
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


def test_a_channel_that_never_varies_does_no_harm() -> None:
    features = plant(LABELS)
    features.tokens[..., 3] = 2.0
    weight, bias, _ = fit(features)
    assert bool(weight.isfinite().all())
    logits, truth = map_logits(features, weight, bias), patch_truth(LABELS, 0)
    assert float(logits[truth].min()) > float(logits[~truth].median())


# ---- the whole recipe ------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes() -> None:
    features = plant(LABELS)
    settings = replace(QUICK, steps=20)
    first = teach(features, seed=3, settings=settings).to_bytes()
    torch.manual_seed(123)
    assert teach(features, seed=3, settings=settings).to_bytes() == first
    assert teach(features, seed=4, settings=settings).to_bytes() != first


def test_recipe_records_what_taught_it_and_survives_a_file(tmp_path: Path) -> None:
    taught = lesson(plant(LABELS), seed=5, settings=replace(QUICK, steps=2))
    recipe = fit_recipe(taught, FrameOptions(ignore_top=3), {"shots": 3})
    recipe.save(tmp_path / "r.safetensors")
    loaded = Recipe.load(tmp_path / "r.safetensors")
    ENCODER.check(loaded)
    assert (loaded.classes, loaded.text, loaded.frame.ignore_top) == (CLASSES, "anchors", 3)
    assert (loaded.teaching["seed"], loaded.teaching["shots"]) == (5, 3)
    assert loaded.teaching["settings"]["steps"] == 2


def test_the_v_path_counts_where_text_and_images_were_aligned_or_where_it_is_asked_for() -> None:
    quick, aligned = replace(QUICK, steps=1), replace(BANK, aligned=True)
    for bank, asked, expected in ((BANK, None, 0.0), (aligned, None, finetune.LAMBDA_V), (BANK, 0.7, 0.7)):
        recipe = teach(plant(LABELS), settings=replace(quick, lambda_v=asked), bank=bank)
        assert recipe.tensors["scalars"][1] == pytest.approx(expected)


def test_layers_start_at_the_text_where_it_is_of_use_or_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no step taken, what comes out is the start."""
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


@pytest.mark.parametrize("unmasked", [(), (4,), DEFECTS])
def test_thresholds_are_those_of_the_highest_f1_on_the_plain_supports(
    monkeypatch: pytest.MonkeyPatch, unmasked: tuple[int, ...]
) -> None:
    asked: list[tuple[Any, Any]] = []
    weights: list[float] = []

    def choose(scores: Any, positive: Any, good_weight: float = 1.0) -> tuple[float, float]:
        asked.append((np.asarray(scores), np.asarray(positive)))
        weights.append(good_weight)
        return 0.1 * len(asked), 1.0

    monkeypatch.setattr(finetune, "f1_max_threshold", choose)
    features = plant(LABELS, unmasked=unmasked)
    features.plain[[1, 5]] = False
    recipe = teach(features)
    scores, positive = asked[0]
    assert positive.tolist() == [False] * 3 + [True] * 5
    assert weights[0] == pytest.approx(5 / 3), "good and defect frames weigh the same"
    assert weights[1:] == [1.0] * (len(weights) - 1)
    assert scores[positive].min() > scores[~positive].max()
    assert recipe.operating_point.defect_threshold == pytest.approx(0.1)
    if unmasked == DEFECTS:
        assert len(asked) == 1, "no pixel's truth is known"
        assert recipe.operating_point.pixel_threshold == 0.5
        return
    values, truth = asked[1]
    assert recipe.operating_point.pixel_threshold == pytest.approx(0.2)
    known = 8 - len(unmasked)
    assert values.shape == truth.shape == (known * 256,)
    assert truth.sum() == (5 - len(unmasked)) * 64
    assert values[truth].mean() > values[~truth].mean() + 0.2


def test_the_defect_threshold_goes_by_honest_maps_and_that_of_pixels_by_the_recipe_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both go by the unchanged views."""
    features = plant(LABELS)
    features.plain[[1, 5]] = False
    generator = torch.Generator().manual_seed(1)
    own, honest = torch.rand((2, 10, PATCHES), generator=generator)
    monkeypatch.setattr(finetune, "fuse_support_maps", lambda *given: finetune.SupportMaps(own, honest))
    monkeypatch.setattr(finetune, "CLASS_SHARE", 0.0)
    asked: list[NDArray[np.float32]] = []

    def choose(scores: Any, positive: Any, good_weight: float = 1.0) -> tuple[float, float]:
        asked.append(np.asarray(scores))
        return f1_max_threshold(scores, positive, good_weight)

    monkeypatch.setattr(finetune, "f1_max_threshold", choose)
    teach(features, settings=replace(QUICK, steps=2))
    size = ENCODER.image_size
    full = [
        [upsample(row.reshape(4, 4).numpy(), size, size, 1.0) for row in of[features.plain]] for of in (honest, own)
    ]
    np.testing.assert_allclose(asked[0], [frame_score(frame) for frame in full[0]])
    assert len(asked[1]) == 8 * 256
    assert asked[1][:256].mean() == pytest.approx(full[1][0].mean(), abs=1e-5)


def test_the_defect_threshold_asks_heads_that_were_taught_without_the_support() -> None:
    """The map says nothing; the held-out heads take one defect for better than two of the good ones."""
    maps, defect = [np.full((4, 4), 0.5, np.float32)] * 6, np.arange(6) > 2
    good = np.array([0.9, 0.6, 0.6, 0.75, 0.2, 0.1], np.float32)
    threshold = finetune._defect_threshold(maps, good, defect, 3, ENCODER, 1.0)
    share = finetune.CLASS_SHARE
    middle = (0.4 + 0.8) / 2  # F1 is highest with that one missed
    assert threshold == pytest.approx((1 - share) * 0.5 + share * middle, abs=1e-6)
    assert teach(plant(LABELS)).operating_point.class_share == share


def test_with_single_supports_the_threshold_is_the_map_s_and_that_of_a_guess() -> None:
    maps = [np.full((4, 4), score, np.float32) for score in (0.2, 0.6, 0.8)]
    threshold = finetune._defect_threshold(maps, None, np.array([False, True, True]), 5, ENCODER, 1.0)
    share = finetune.CLASS_SHARE
    assert threshold == pytest.approx((1 - share) * 0.4 + share * 0.8, abs=1e-6)


def test_taught_thresholds_tell_the_supports_apart() -> None:
    recipe = teach(plant(LABELS))
    assert 0 < recipe.operating_point.defect_threshold < 1
    assert 0 < recipe.operating_point.pixel_threshold < 1
    features = plant(LABELS)
    logits = map_logits(
        features, torch.tensor(recipe.tensors["transform_weight"]), torch.tensor(recipe.tensors["transform_bias"])
    )
    maps = torch.sigmoid(float(recipe.tensors["scalars"][3]) * logits)
    assert bool((maps.amax(1)[4:] > recipe.operating_point.defect_threshold).all())


def test_many_defect_classes_do_not_make_every_frame_a_defect() -> None:
    """One good support of nine, and defects that the map hardly tells from it: most F1 has who calls all defects."""
    scores = np.array([0.3, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    maps = [np.full((4, 4), score, np.float32) for score in scores]
    share, good = finetune.CLASS_SHARE, (1 - scores).astype(np.float32)
    for of_heads in (None, good):
        threshold = finetune._defect_threshold(maps, of_heads, np.arange(9) > 0, 2, ENCODER, 1.0)
        assert 0.3 < ((threshold - share * 0.5) / (1 - share) if of_heads is None else threshold) < 0.4


def test_a_good_support_is_not_compared_with_a_memory_that_holds_it() -> None:
    """With it nothing in a good one is odd, which no frame to come can match."""
    features = plant(LABELS)
    settings = replace(QUICK, steps=2, memory_share=1.0)
    memory = fit_memory(features)
    layers = fit_transforms(features, BANK, ENCODER.grid, settings, 0)
    shares = finetune.Shares(0.0, 1.0)
    maps = finetune.fuse_support_maps(lesson(features, settings=settings), layers, memory, shares).own
    judged, _ = finetune.judge_supports(features, teach(features, settings=settings).tensors)
    good = features.labels == 0
    assert float(maps[good].mean()) > float(judged[good].mean()) + 0.01
    torch.testing.assert_close(maps[~good], judged[~good])


def test_a_block_counts_as_its_weight_whatever_is_read_of_it() -> None:
    for kind, weights in BLOCK_WEIGHTS.items():
        scale = head_scale(LEVELS, WIDTH, kind)
        assert scale.shape == (3 * LEVELS * WIDTH + 1,)
        sizes = [*(block.norm() for block in scale[:-1].reshape(3, -1)), scale[-1]]
        assert [float(size) for size in sizes] == pytest.approx(weights)


def test_which_levels_the_head_reads() -> None:
    def read(kind: str, levels: int) -> list[list[bool]]:
        return (head_scale(levels, 5, kind)[:-1].reshape(3, levels, 5) > 0).all(2).tolist()

    none, every, upper = [False] * 4, [True] * 4, [False, False, True, True]
    assert read("paper", 4) == [every, none, none]
    assert read("pooled", 4) == [upper, every, every]
    assert read("pooled", 1) == [[True]] * 3


# ---- the paper's method ----------------------------------------------------------------------------------------------

PAPER = {
    "steps": (400, "silent: ours"),
    "start": ("random", "eq. 9 names no start"),
    "frame_loss": (0.0, "eq. 8-17 know none"),
    "head": ("paper", "eq. 20-22"),
    "alpha": (0.8, "section 4.1, eq. 23"),
    "lambda_v": (1.0, "eq. 17: A^Z + A^V"),
    "memory_share": (0.0, "eq. 17 has none"),
    "temperatures": (Temperatures(100, 100, 100, 1), "eq. 11, 15: CLIP's; eq. 19: literally"),
}


def test_every_setting_of_the_paper_s_method_is_named_with_its_source() -> None:
    paper = TeachSettings.paper()
    names = [field.name for field in fields(TeachSettings)]
    assert list(PAPER) == names
    assert {name: getattr(paper, name) for name in names} == {name: value for name, (value, _) in PAPER.items()}
    assert TeachSettings.paper.__doc__ is not None
    assert all(f"        {name}:" in TeachSettings.paper.__doc__ for name in names)


def test_a_recipe_of_the_paper_s_method_has_nothing_of_ours_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "out_of_fold_maps", lambda *given: pytest.fail("nothing of the paper's reads them"))
    settings = replace(TeachSettings.paper(), steps=20)
    bank = replace(BANK, aligned=True, projection=towards_defects())
    recipe = teach(plant(LABELS), settings=settings, bank=bank)
    np.testing.assert_allclose(recipe.tensors["scalars"], [0.8, 1, 0, 100, 100, 1])
    assert recipe.teaching["map_starts_at"] == "random"
    assert recipe.teaching["text_prior"] == {}
    assert not recipe.tensors["head_weight"][:, LEVELS * WIDTH :].any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head": "other"}, 'head "other" is unknown; there are: pooled, paper'),
        ({"start": "zero"}, 'start "zero" is unknown; there are: auto, random, text'),
        ({"alpha": 1.5}, "alpha must lie in"),
        ({"steps": -1}, "steps must be finite and not negative, not -1"),
        ({"lambda_v": float("nan")}, "lambda_v must be finite and not negative, not nan"),
        ({"memory_share": -1.0}, "memory_share must be finite and not negative"),
    ],
)
def test_settings_that_cannot_be_are_explained(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(TeachSettings(), **changes)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_explained(value: float) -> None:
    with pytest.raises(ValueError, match="the temperature fit must be finite and above 0"):
        Temperatures(fit=value)


def test_one_good_group_leaves_no_memory_bank_whatever_was_set() -> None:
    recipe = teach(plant([0, 1, 2]), settings=replace(QUICK, steps=2, memory_share=1.0))
    assert recipe.tensors["scalars"][2] == 0
    assert recipe.teaching["memory_share"] == 0
