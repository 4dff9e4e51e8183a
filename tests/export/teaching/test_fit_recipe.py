"""fit_recipe: maps, thresholds and record of a recipe, on features of planted truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from planted import (
    BANK,
    CLASSES,
    DEFECTS,
    ENCODER,
    LABELS,
    PATCHES,
    QUICK,
    lesson,
    map_logits,
    plant,
    teach,
    towards_defects,
)
from torch import Tensor

from calibration.thresholds import f1_max_threshold
from export.teaching import fit_recipe as fit_recipe_module
from export.teaching.fit_map import fit_transforms
from export.teaching.fit_memory import fit_memory
from export.teaching.fit_recipe import ScoredSupports, defect_threshold, fit_recipe
from export.teaching.views import SupportFeatures
from runtime.maps import frame_score, upsample
from runtime.recipe import FrameOptions, Recipe


def test_head_is_fitted_on_out_of_fold_maps_if_layers_start_at_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(QUICK, steps=20)
    out_of_fold = torch.rand((len(LABELS), PATCHES), generator=torch.Generator().manual_seed(1))
    calls: list[int] = []
    read: list[Tensor] = []
    fit = fit_recipe_module.fit_class_head

    def maps(*given: Any) -> Tensor:
        calls.append(1)
        return out_of_fold

    def spy(features: SupportFeatures, maps: Tensor, *rest: Any) -> Any:
        read.append(maps)
        return fit(features, maps, *rest)

    monkeypatch.setattr(fit_recipe_module, "out_of_fold_maps", maps)
    monkeypatch.setattr(fit_recipe_module, "fit_class_head", spy)
    features = plant(LABELS)
    random = teach(features, settings=settings)
    assert random.teaching["map_starts_at"] == "random"
    assert not calls, "computed only if needed"
    judged, _ = fit_recipe_module.judge_supports(features, {**random.tensors, "scalars": without_memory(random)})
    no_memory = replace(settings, memory_share=0.0)
    teach(features, settings=no_memory)
    torch.testing.assert_close(read[-1], judged)
    at_text = teach(
        features, settings=replace(no_memory, start="text"), bank=replace(BANK, projection=towards_defects())
    )
    assert at_text.teaching["map_starts_at"] == "text"
    assert calls == [1]
    torch.testing.assert_close(read[-1], out_of_fold)


def without_memory(recipe: Recipe) -> NDArray[np.float32]:
    scalars = recipe.tensors["scalars"].copy()
    scalars[2] = 0
    return scalars


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2]])
def test_one_shot_per_class_gives_finite_tensors(labels: list[int]) -> None:
    recipe = teach(plant(labels), settings=replace(QUICK, steps=5))
    assert all(np.isfinite(tensor).all() for tensor in recipe.tensors.values())


def test_unmasked_defects_teach_the_head_only_if_others_have_masks() -> None:
    features = plant(LABELS, unmasked=(6, 9))
    swapped = features.labels.clone()
    swapped[[6, 9]] = features.labels[[9, 6]]
    as_it_is, otherwise = teach(features), teach(replace(features, labels=swapped))
    assert as_it_is.teaching["map_taught_by"] == "masks"
    for name in ("transform_weight", "transform_bias"):
        np.testing.assert_array_equal(as_it_is.tensors[name], otherwise.tensors[name])
    assert not np.array_equal(as_it_is.tensors["head_weight"], otherwise.tensors["head_weight"])


def test_equal_seeds_give_equal_bytes() -> None:
    features = plant(LABELS)
    settings = replace(QUICK, steps=20)
    first = teach(features, seed=3, settings=settings).to_bytes()
    torch.manual_seed(123)
    assert teach(features, seed=3, settings=settings).to_bytes() == first
    assert teach(features, seed=4, settings=settings).to_bytes() != first


def test_recipe_with_its_record_is_the_same_after_a_file(tmp_path: Path) -> None:
    taught = lesson(plant(LABELS), seed=5, settings=replace(QUICK, steps=2))
    recipe = fit_recipe(taught, FrameOptions(ignore_top=3), {"shots": 3})
    recipe.save(tmp_path / "r.safetensors")
    loaded = Recipe.load(tmp_path / "r.safetensors")
    ENCODER.check(loaded)
    assert (loaded.classes, loaded.text, loaded.frame.ignore_top) == (CLASSES, "anchors", 3)
    assert (loaded.teaching["seed"], loaded.teaching["shots"]) == (5, 3)
    assert loaded.teaching["settings"]["steps"] == 2


def test_lambda_v_follows_text_alignment_unless_set() -> None:
    quick, aligned = replace(QUICK, steps=1), replace(BANK, aligned=True)
    for bank, asked, expected in ((BANK, None, 0.0), (aligned, None, fit_recipe_module.LAMBDA_V), (BANK, 0.7, 0.7)):
        recipe = teach(plant(LABELS), settings=replace(quick, lambda_v=asked), bank=bank)
        assert recipe.tensors["scalars"][1] == pytest.approx(expected)


@pytest.mark.parametrize("unmasked", [(), (4,), DEFECTS])
def test_thresholds_have_the_highest_f1_on_unaugmented_supports(
    monkeypatch: pytest.MonkeyPatch, unmasked: tuple[int, ...]
) -> None:
    asked: list[tuple[Any, Any]] = []
    weights: list[float] = []

    def choose(scores: Any, positive: Any, good_weight: float = 1.0) -> tuple[float, float]:
        asked.append((np.asarray(scores), np.asarray(positive)))
        weights.append(good_weight)
        return 0.1 * len(asked), 1.0

    monkeypatch.setattr(fit_recipe_module, "f1_max_threshold", choose)
    features = plant(LABELS, unmasked=unmasked)
    features.unaugmented[[1, 5]] = False
    features.frame[[1, 5]] = torch.tensor([0, 4])  # second views of the supports before them
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


def test_defect_threshold_reads_fitting_maps_and_pixel_threshold_recipe_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both read unaugmented views only."""
    features = plant(LABELS)
    features.unaugmented[[1, 5]] = False
    features.frame[[1, 5]] = torch.tensor([0, 4])  # second views of the supports before them
    generator = torch.Generator().manual_seed(1)
    by_recipe, fitting = torch.rand((2, 10, PATCHES), generator=generator)
    monkeypatch.setattr(
        fit_recipe_module, "fuse_support_maps", lambda *given: fit_recipe_module.SupportMaps(by_recipe, fitting)
    )
    monkeypatch.setattr(fit_recipe_module, "CLASS_SHARE", 0.0)
    asked: list[NDArray[np.float32]] = []

    def choose(scores: Any, positive: Any, good_weight: float = 1.0) -> tuple[float, float]:
        asked.append(np.asarray(scores))
        return f1_max_threshold(scores, positive, good_weight)

    monkeypatch.setattr(fit_recipe_module, "f1_max_threshold", choose)
    teach(features, settings=replace(QUICK, steps=2))
    size = ENCODER.image_size
    full = [
        [upsample(row.reshape(4, 4).numpy(), size, size, 1.0) for row in of[features.unaugmented]]
        for of in (fitting, by_recipe)
    ]
    np.testing.assert_allclose(asked[0], [frame_score(frame) for frame in full[0]])
    assert len(asked[1]) == 8 * 256
    assert asked[1][:256].mean() == pytest.approx(full[1][0].mean(), abs=1e-5)


def test_defect_threshold_uses_out_of_fold_heads() -> None:
    """The map is constant; the out-of-fold heads rank one defect better than two of the good frames."""
    map_scores, defect = np.full(6, 0.5, np.float32), np.arange(6) > 2
    good = np.array([0.9, 0.6, 0.6, 0.75, 0.2, 0.1], np.float32)
    threshold = defect_threshold(ScoredSupports(np.arange(6), defect, map_scores, good), 3)
    share = fit_recipe_module.CLASS_SHARE
    middle = (0.4 + 0.8) / 2  # F1 is highest with that one missed
    assert threshold == pytest.approx((1 - share) * 0.5 + share * middle, abs=1e-6)
    assert teach(plant(LABELS)).operating_point.class_share == share


def test_defect_threshold_of_single_supports_mixes_map_threshold_and_guess() -> None:
    map_scores = np.array([0.2, 0.6, 0.8], np.float32)
    threshold = defect_threshold(ScoredSupports(np.arange(3), np.arange(3) > 0, map_scores, None), 5)
    share = fit_recipe_module.CLASS_SHARE
    assert threshold == pytest.approx((1 - share) * 0.4 + share * 0.8, abs=1e-6)


def test_taught_thresholds_separate_the_supports() -> None:
    recipe = teach(plant(LABELS))
    assert 0 < recipe.operating_point.defect_threshold < 1
    assert 0 < recipe.operating_point.pixel_threshold < 1
    features = plant(LABELS)
    logits = map_logits(
        features, torch.tensor(recipe.tensors["transform_weight"]), torch.tensor(recipe.tensors["transform_bias"])
    )
    maps = torch.sigmoid(float(recipe.tensors["scalars"][3]) * logits)
    assert bool((maps.amax(1)[4:] > recipe.operating_point.defect_threshold).all())


def test_defect_threshold_stays_above_good_frames_with_many_defect_classes() -> None:
    """One good support of nine, and defects hardly above it: F1 would be highest if all frames were defects."""
    scores = np.array([0.3, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95], np.float32)
    share, good = fit_recipe_module.CLASS_SHARE, (1 - scores).astype(np.float32)
    for of_heads in (None, good):
        threshold = defect_threshold(ScoredSupports(np.arange(9), np.arange(9) > 0, scores, of_heads), 2)
        assert 0.3 < ((threshold - share * 0.5) / (1 - share) if of_heads is None else threshold) < 0.4


def test_fitting_maps_of_good_supports_use_a_memory_without_them() -> None:
    """With itself in the memory bank a good support has distance 0, which new frames cannot have."""
    features = plant(LABELS)
    settings = replace(QUICK, steps=2, memory_share=1.0)
    memory = fit_memory(features)
    layers = fit_transforms(features, BANK, ENCODER.grid, settings, 0)
    weights = fit_recipe_module.MapWeights(0.0, 1.0)
    maps = fit_recipe_module.fuse_support_maps(lesson(features, settings=settings), layers, memory, weights).recipe
    judged, _ = fit_recipe_module.judge_supports(features, teach(features, settings=settings).tensors)
    good = features.labels == 0
    assert float(maps[good].mean()) > float(judged[good].mean()) + 0.01
    torch.testing.assert_close(maps[~good], judged[~good])


def test_memory_share_is_zero_with_one_good_group_whatever_is_set() -> None:
    recipe = teach(plant([0, 1, 2]), settings=replace(QUICK, steps=2, memory_share=1.0))
    assert recipe.tensors["scalars"][2] == 0
    assert recipe.teaching["memory_share"] == 0
