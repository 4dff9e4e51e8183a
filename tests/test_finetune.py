"""export.finetune, fit_map, fit_head: transformation layers, head and thresholds, on features of planted truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_encoder
from numpy.typing import NDArray
from torch import Tensor

from calibration.thresholds import f1_max_threshold
from export import finetune, fit_map, heads
from export import fit_head as fit_head_module
from export.finetune import fit_recipe
from export.fit_head import (
    ALPHAS,
    BLOCK_WEIGHTS,
    MAX_FOLDS,
    PRIOR_L2,
    choose_alpha,
    fit_head,
    head_scale,
    held_out_probabilities,
    text_prior,
)
from export.fit_map import choose_lambda_v, fit_transforms
from export.fit_memory import fit_memory
from export.teach_settings import TeachSettings
from export.text_bank import TextBank, anchor_bank
from export.text_prior import Projection
from export.views import SupportFeatures
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


def teach(
    features: SupportFeatures, *, seed: int = 0, settings: TeachSettings = QUICK, bank: TextBank = BANK
) -> Recipe:
    return fit_recipe(features, ENCODER, CLASSES, bank, FrameOptions(), smoothing_px=1.0, seed=seed, settings=settings)


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
    weight, bias = fit_head(features.cls, features.labels, 3, QUICK.head_l2)
    assert weight.shape == (3, LEVELS * WIDTH)
    assert weight.dtype == bias.dtype == torch.float32
    fresh = plant(LABELS, seed=8)
    found = probabilities(fresh.cls, weight, bias)
    assert torch.equal(found.argmax(1), fresh.labels)
    assert float(found[range(10), fresh.labels].min()) > 0.5


def test_head_is_the_same_every_time() -> None:
    features = plant(LABELS)
    first, again = (fit_head(features.cls, features.labels, 3, 1e-3) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_classes_weigh_the_same_whatever_their_number_of_views() -> None:
    """A tenth of 100 views of one class and nine tenths of 10 of the other have the mark: with it, 9 to 1."""
    marks = [1.0] * 10 + [0.0] * 90 + [1.0] * 9 + [0.0]
    features, labels = torch.tensor(marks)[:, None], torch.tensor([0] * 100 + [1] * 10)
    weight, bias = fit_head(features, labels, 2, 1e-8)
    found = probabilities(torch.tensor([[1.0], [0.0]]), weight, bias)
    torch.testing.assert_close(found[:, 1], torch.tensor([0.9, 0.1]), atol=0.01, rtol=0)


def test_features_that_say_nothing_leave_all_classes_alike() -> None:
    features, labels = torch.full((13, 5), 0.3), torch.tensor([0] * 9 + [1] * 3 + [2])
    weight, bias = fit_head(features, labels, 3, 1e-3)
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
        weight, bias = fit_head(x, features.labels, 3, 1e-3)
        logits.append(x.double() @ weight.double().T + bias.double())
    torch.testing.assert_close(logits[0], logits[1], atol=2e-3, rtol=0)
    assert float(logits[0].abs().max()) > 1


def test_stronger_decay_gives_smaller_weights() -> None:
    features = plant(LABELS)
    norms = [float(fit_head(features.cls, features.labels, 3, l2)[0].norm()) for l2 in (1e-4, 1e-2, 1.0)]
    assert norms[0] > norms[1] > norms[2]


def test_the_paper_s_head_reads_class_tokens_alone() -> None:
    quick = replace(QUICK, steps=5)
    paper, pooled = (teach(plant(LABELS), settings=replace(quick, head=kind)) for kind in ("paper", "pooled"))
    beyond = np.s_[:, LEVELS * WIDTH :]
    assert not paper.tensors["head_weight"][beyond].any()
    assert pooled.tensors["head_weight"][beyond].all()
    assert paper.tensors["head_weight"][:, : LEVELS * WIDTH].all()
    assert paper.teaching["settings"]["head"] == "paper"
    with pytest.raises(ValueError, match="there are: paper, pooled"):
        teach(plant(LABELS), settings=replace(quick, head="other"))


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
    held, moved = fit_head(features.cls, features.labels, 3, 1e6, prior=prior)
    torch.testing.assert_close(held, prior[0], atol=1e-4, rtol=0)
    assert float((moved - prior[1]).abs().max()) > 0.1
    _, held_too = fit_head(features.cls, features.labels, 3, 1e6, prior=prior, bias_l2=1e6)
    torch.testing.assert_close(held_too, prior[1], atol=1e-4, rtol=0)
    weight, bias = fit_head(features.cls, features.labels, 3, 1e-4, prior=prior)
    assert not torch.equal(probabilities(features.cls, *prior).argmax(1), features.labels)
    assert torch.equal(probabilities(features.cls, weight, bias).argmax(1), features.labels)


def test_the_text_is_asked_only_where_it_is_aligned_and_not_by_the_paper_s_head() -> None:
    quick = replace(QUICK, steps=3)
    assert teach(plant(LABELS), settings=quick).teaching["text_prior"] == {}
    aligned = replace(BANK, projection=towards_classes())
    said = teach(plant(LABELS), settings=quick, bank=aligned).teaching["text_prior"]
    assert set(said) == {"class_tokens", "map_height", "explained", "head_l2"}
    assert len(said["class_tokens"]) == LEVELS - LEVELS // 2
    assert 0 < said["explained"] <= 1
    shots = len(LABELS) / 3
    assert said["head_l2"] == pytest.approx(QUICK.head_l2 + PRIOR_L2 / shots)
    paper = teach(plant(LABELS), settings=replace(quick, head="paper"), bank=aligned)
    assert paper.teaching["text_prior"] == {}
    assert not paper.tensors["head_weight"][:, LEVELS * WIDTH :].any()


def test_a_head_that_starts_from_the_text_starts_from_the_map_too() -> None:
    features, aligned = plant(LABELS), replace(BANK, projection=towards_defects())
    maps = torch.rand(len(LABELS), PATCHES, generator=torch.Generator().manual_seed(0))
    head = finetune.head_input(features, features.plain, maps)
    prior, believed = text_prior(head, features.labels, aligned, QUICK, shots=4)
    assert prior is not None
    weight, bias = prior
    scale = believed["map_height"]
    assert scale > 0
    assert weight[:, -1].tolist() == pytest.approx([-scale, scale, scale], abs=1e-3), "good is the first class"
    logit = {
        h: torch.nn.functional.linear(torch.cat([head[0, :-1], torch.tensor([h])]), weight, bias) for h in (0, 0.5, 1)
    }
    torch.testing.assert_close(logit[0.5], (logit[0] + logit[1]) / 2)
    assert float(logit[1][1] - logit[1][0] - (logit[0][1] - logit[0][0])) == pytest.approx(2 * scale, abs=1e-2)
    assert text_prior(head, features.labels, BANK, QUICK, shots=4) == (None, {})


def test_the_head_learns_on_the_recipe_s_own_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(QUICK, steps=20, memory_share=0.0)
    seen: list[Tensor] = []
    read = finetune.head_input

    def spy(features: SupportFeatures, views: Tensor, maps: Tensor) -> Tensor:
        seen.append(maps)
        return read(features, views, maps)

    monkeypatch.setattr(finetune, "head_input", spy)
    features = plant(LABELS)
    own = teach(features, settings=settings)
    learnt, judged = seen  # by the head, and of the supports as the graph will judge them
    torch.testing.assert_close(learnt[features.plain], judged)
    assert own.teaching["head_maps"] == "own", "the layers start at random"
    others = teach(features, settings=replace(settings, head_maps="others"))
    assert not torch.allclose(seen[2], learnt)
    assert not np.array_equal(own.tensors["head_weight"], others.tensors["head_weight"])
    np.testing.assert_array_equal(own.tensors["transform_weight"], others.tensors["transform_weight"])
    monkeypatch.setattr(finetune, "starts_at_text", lambda *given: True)
    at_text = teach(features, settings=settings)
    assert at_text.teaching["head_maps"] == "others"
    np.testing.assert_array_equal(at_text.tensors["head_weight"], others.tensors["head_weight"])
    with pytest.raises(ValueError, match='head_maps "mine" is unknown; there are: own, others'):
        teach(features, settings=replace(settings, head_maps="mine"))


def test_maps_of_others_were_taught_without_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two views a group; each group is left out together, and judged by layers that never saw it."""
    labels = [0] * 6 + [1] * 6 + [2] * 6
    features = replace(plant(labels), group=torch.arange(len(labels)) // 2)
    taught: list[set[int]] = []
    fit = fit_map.fit_transforms

    def spy(part: SupportFeatures, *arguments: Any, **options: Any) -> Any:
        taught.append(set(part.group.tolist()))
        level = torch.full((LEVELS, WIDTH, ENCODER.text_dim), float(len(taught)))
        return level, torch.zeros(LEVELS, ENCODER.text_dim), "masks"

    monkeypatch.setattr(fit_map, "fit_transforms", spy)
    fit_map.maps_of_others(features, BANK, ENCODER.grid, QUICK, 0)
    everything = set(range(9))
    assert [everything - part for part in taught] == [{0, 3, 6}, {1, 4, 7}, {2, 5, 8}]
    monkeypatch.setattr(fit_map, "fit_transforms", fit)
    maps, value = fit_map.maps_of_others(features, BANK, ENCODER.grid, replace(QUICK, steps=60), 0)
    truth = features.targets.reshape(len(labels), 4, 4, 4, 4).mean((2, 4)).flatten(1) > 0.5
    assert maps.shape == value.shape == (18, PATCHES)
    torch.testing.assert_close(value, torch.sigmoid(QUICK.tau_v * features.value).mean(1))
    assert float(maps[truth].mean()) > float(maps[~truth].mean()) + 0.3


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2]])
def test_one_support_a_class_is_taught_whatever_its_folds_lack(labels: list[int]) -> None:
    recipe = teach(plant(labels), settings=replace(QUICK, steps=5))
    assert all(np.isfinite(tensor).all() for tensor in recipe.tensors.values())


# ---- the class mix ---------------------------------------------------------------------------------------------------


def spoken(labels: list[int], sure: float) -> NDArray[np.float32]:
    """P_S that gives every frame's true class the probability `sure`."""
    text = np.full((len(labels), 3), (1 - sure) / 2, np.float32)
    text[range(len(labels)), labels] = sure
    return text


def mix(features: SupportFeatures, text: NDArray[np.float32]) -> tuple[float, dict[str, Any]]:
    held_out = held_out_probabilities(features.cls, features, 3, 1e-3)
    return choose_alpha(held_out, text, features.labels[features.plain])


def test_text_that_is_always_wrong_gets_no_say_and_text_that_is_always_right_all_it_can() -> None:
    features = plant(LABELS * 3, seed=1)
    assert mix(features, spoken(LABELS * 3, 0.001))[0] == 1.0
    noise = replace(features, cls=torch.randn(features.cls.shape, generator=torch.Generator().manual_seed(0)))
    assert mix(noise, spoken(LABELS * 3, 0.999))[0] == ALPHAS[0]


def test_without_a_clear_winner_the_paper_s_mix_stays() -> None:
    """The left-out supports' losses differ by less than their own scatter."""
    noise = plant(LABELS, seed=2)
    noise = replace(noise, cls=torch.randn(noise.cls.shape, generator=torch.Generator().manual_seed(1)))
    text = np.random.default_rng(0).dirichlet(np.ones(3), len(LABELS)).astype(np.float32)
    alpha, chosen_by = mix(noise, text)
    assert (alpha, chosen_by["by"]) == (0.8, "cross-validation")
    assert list(chosen_by["log_loss"]) == [f"{a:g}" for a in ALPHAS]


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
    held_out = held_out_probabilities(features.cls, features, 3, 1e-3)
    assert held_out is not None
    assert held_out.shape == (12, 3)
    assert len(fitted) == 3 <= MAX_FOLDS
    assert all(not taught & left for taught, left in zip(fitted, judged, strict=True))
    assert all(taught | left == set(map(float, range(12))) for taught, left in zip(fitted, judged, strict=True))
    assert sorted(number for left in judged for number in left) == list(range(12))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0, 1, 1, 2]])
def test_a_single_support_of_a_class_leaves_the_paper_s_mix(labels: list[int]) -> None:
    features = plant(labels)
    assert held_out_probabilities(features.cls, features, 3, 1e-3) is None
    assert mix(features, spoken(labels, 0.9)) == (0.8, {"by": "paper", "why": "a class has fewer than 2 supports"})


@pytest.mark.parametrize(("alpha", "by"), [(None, "cross-validation"), (0.6, "setting")])
def test_the_recipe_records_its_mix_and_who_chose_it(alpha: float | None, by: str) -> None:
    recipe = teach(plant(LABELS), settings=replace(QUICK, steps=2, alpha=alpha))
    assert recipe.teaching["alpha"]["by"] == by
    assert recipe.tensors["scalars"][0] == pytest.approx(recipe.teaching["alpha"]["value"])
    assert recipe.teaching["alpha"]["value"] in (ALPHAS if alpha is None else (0.6,))


# ---- the transformation layers ---------------------------------------------------------------------------------------


def fit(features: SupportFeatures, settings: TeachSettings = QUICK, seed: int = 0) -> tuple[Tensor, Tensor, str]:
    return fit_transforms(features, TEXT, ENCODER.grid, settings, seed)


def test_a_map_that_starts_at_the_text_needs_little_teaching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_map, "START_AUROC", 0.6)  # one level of four knows the defects
    barely = replace(QUICK, steps=1, learning_rate=1e-5)
    features = plant(LABELS)
    start = towards_defects()
    weight, bias, _ = fit_transforms(features, TEXT, ENCODER.grid, barely, 0, start=start)
    similarity = heads.cosines(heads.transform(plant(LABELS, seed=50).tokens.float(), weight, bias[:, None]), TEXT)
    logits, truth = (similarity[..., 1] - similarity[..., 0])[:, 0], patch_truth(LABELS, 50)
    assert float((logits[truth][:, None] > logits[~truth][None]).float().mean()) > 0.75
    taught, bias, _ = fit_transforms(features, TEXT, ENCODER.grid, QUICK, 0, start=start)
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
        found = torch.sigmoid(QUICK.tau_fit * map_logits(features, weight, bias)).clamp(1e-6, 1 - 1e-6)
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
    ("labels", "head", "expected"),
    [
        ([0, 1, 1], "pooled", (0.0, 1.0)),
        ([0, 0, 1, 2], "pooled", (0.5, 2.0)),
        ([0, 0, 0, 0, 1, 2], "pooled", (0.75, 2.0)),
        ([0, 0, 0, 0, 1, 2], "paper", (0.0, 0.0)),
    ],
)
def test_whole_frames_count_the_more_the_more_good_ones_there_are(
    labels: list[int], head: str, expected: tuple[float, float]
) -> None:
    features = plant(labels)
    settings = replace(QUICK, head=head)
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
    recipe = fit_recipe(
        plant(LABELS),
        ENCODER,
        CLASSES,
        BANK,
        FrameOptions(ignore_top=3),
        smoothing_px=1.0,
        seed=5,
        settings=replace(QUICK, steps=2),
        provenance={"shots": 3},
    )
    recipe.save(tmp_path / "r.safetensors")
    loaded = Recipe.load(tmp_path / "r.safetensors")
    ENCODER.check(loaded)
    assert (loaded.classes, loaded.text, loaded.frame.ignore_top) == (CLASSES, "anchors", 3)
    assert (loaded.teaching["seed"], loaded.teaching["shots"]) == (5, 3)
    assert loaded.teaching["settings"]["steps"] == 2


def test_v_path_has_no_say_where_text_and_images_were_never_aligned() -> None:
    """Unless it is asked for, as an ablation does."""
    bank = replace(BANK, aligned=False, source="tower")
    for head in ("pooled", "paper"):
        settings = replace(QUICK, steps=1, head=head)
        assert teach(plant(LABELS), settings=settings, bank=bank).tensors["scalars"][1] == 0
        asked = replace(settings, lambda_v=0.7)
        assert teach(plant(LABELS), settings=asked, bank=bank).tensors["scalars"][1] == pytest.approx(0.7)


@pytest.mark.parametrize(("quality", "expected"), [("right", 1.0), ("wrong", 0.0), ("no better", 0.0)])
def test_the_supports_choose_the_v_path_s_share(quality: str, expected: float) -> None:
    features = plant(LABELS)
    truth = (features.targets.reshape(len(LABELS), 4, 4, 4, 4).mean((2, 4)).flatten(1) > 0.5).float()
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    own = (0.3 * truth + noise).clamp(0, 1)
    value = {"right": 0.9 * truth + 0.05, "wrong": 0.9 - 0.8 * truth, "no better": own}[quality]
    grid, bank = ENCODER.grid, replace(BANK, aligned=True)
    assert choose_lambda_v(own, value, features, bank, grid, QUICK) == expected
    assert choose_lambda_v(own, value, features, BANK, grid, QUICK) == 0, "its text is not aligned"
    assert choose_lambda_v(own, value, features, bank, grid, replace(QUICK, head="paper")) == 1
    for given in (bank, BANK):
        assert choose_lambda_v(own, value, features, given, grid, replace(QUICK, lambda_v=0.5)) == 0.5
    unmasked = replace(features, targets=torch.full_like(features.targets, torch.nan))
    assert (choose_lambda_v(own, value, unmasked, bank, grid, QUICK) > 0) == (expected > 0)


def test_layers_start_at_the_text_only_where_it_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no step taken, what comes out is the start."""
    monkeypatch.setattr(fit_map, "START_AUROC", 0.6)
    features, none = plant(LABELS), replace(QUICK, steps=1, learning_rate=0.0)
    random, *_ = fit_transforms(features, TEXT, ENCODER.grid, none, 0)
    good = towards_defects()
    kept, *_ = fit_transforms(features, TEXT, ENCODER.grid, none, 0, start=good)
    assert not torch.equal(kept, random)
    bad = Projection(-good.weight, good.bias)
    left, *_ = fit_transforms(features, TEXT, ENCODER.grid, none, 0, start=bad)
    torch.testing.assert_close(left, random)


def test_progress_counts_every_step() -> None:
    calls: list[tuple[int, int]] = []
    settings = replace(QUICK, steps=7)
    fit_transforms(plant(LABELS), TEXT, ENCODER.grid, settings, 0, progress=lambda *call: calls.append(call))
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


def test_the_defect_threshold_goes_by_maps_of_others_where_the_head_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both thresholds go by the unchanged views, and that of pixels by the recipe's own maps as ever."""
    features = plant(LABELS)
    features.plain[[1, 5]] = False
    unseen = torch.rand((10, PATCHES), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(finetune, "maps_of_others", lambda *_: (unseen, torch.zeros_like(unseen)))
    monkeypatch.setattr(finetune, "CLASS_SHARE", 0.0)
    settings = replace(QUICK, lambda_v=0.0, memory_share=0.0)
    asked: list[int] = []

    def choose(scores: Any, positive: Any, good_weight: float = 1.0) -> tuple[float, float]:
        asked.append(len(scores))
        return f1_max_threshold(scores, positive, good_weight)

    monkeypatch.setattr(finetune, "f1_max_threshold", choose)
    own, others = (teach(features, settings=replace(settings, head_maps=maps)) for maps in finetune.HEAD_MAPS)
    assert asked == [8, 8 * 256, 8, 8 * 256]
    size = ENCODER.image_size
    scores = [frame_score(upsample(row.reshape(4, 4).numpy(), size, size, 1.0)) for row in unseen[features.plain]]
    expected = f1_max_threshold(scores, features.labels[features.plain].numpy() > 0, 5 / 3)[0]
    assert others.operating_point.defect_threshold == expected != own.operating_point.defect_threshold
    assert others.operating_point.pixel_threshold == own.operating_point.pixel_threshold


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


def test_a_good_support_that_is_remembered_sets_no_threshold() -> None:
    """Thresholds take the memory's map of a memory without the support: with it, nothing in a good one is odd."""
    features = plant(LABELS)
    memory = fit_memory(features)
    tensors = {**teach(features).tensors}
    tensors["scalars"] = tensors["scalars"].copy()
    tensors["scalars"][2] = 1.0
    with_it, _ = finetune._judge_supports(features, tensors, ENCODER)
    without, _ = finetune._judge_supports(features, tensors, ENCODER, memory.maps)
    good = features.labels == 0
    assert np.mean([m.mean() for m, g in zip(without, good, strict=True) if g]) > np.mean(
        [m.mean() for m, g in zip(with_it, good, strict=True) if g]
    )
    for a, b, label in zip(with_it, without, features.labels, strict=True):
        if label:
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_with_the_last_level_only_the_others_have_no_say() -> None:
    """The defect of `plant` lies at the first level, so the last alone must not find it."""
    quick = replace(QUICK, steps=60)
    features = plant(LABELS)
    recipe = teach(features, settings=replace(quick, last_level_only=True))
    tensors = recipe.tensors
    assert not tensors["transform_weight"][:-1].any()
    assert not tensors["transform_bias"][:-1].any()
    assert tensors["transform_weight"][-1].any()
    heads_of_levels = tensors["head_weight"][:, : 3 * LEVELS * WIDTH].reshape(3, 3, LEVELS, WIDTH)
    assert not heads_of_levels[:, :, :-1].any()
    assert heads_of_levels[:, :, -1].any()


@pytest.mark.parametrize("last_level_only", [False, True])
def test_a_block_counts_as_its_weight_whatever_is_read_of_it(last_level_only: bool) -> None:
    for kind, weights in BLOCK_WEIGHTS.items():
        scale = head_scale(LEVELS, WIDTH, kind, last_level_only=last_level_only)
        assert scale.shape == (3 * LEVELS * WIDTH + 1,)
        sizes = [*(block.norm() for block in scale[:-1].reshape(3, -1)), scale[-1]]
        assert [float(size) for size in sizes] == pytest.approx(weights)


def test_which_levels_the_head_reads() -> None:
    def read(kind: str, last: bool) -> list[list[bool]]:
        scale = head_scale(4, 5, kind, last_level_only=last)
        return (scale[:-1].reshape(3, 4, 5) > 0).all(2).tolist()

    none, every, upper, last = [False] * 4, [True] * 4, [False, False, True, True], [False, False, False, True]
    assert read("paper", False) == [every, none, none]
    assert read("paper", True) == [last, none, none]
    assert read("pooled", False) == [upper, every, every]
    assert read("pooled", True) == [last, last, last]
    with pytest.raises(ValueError, match='head "both" is unknown; there are: paper, pooled'):
        head_scale(4, 5, "both")
