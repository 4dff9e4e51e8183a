"""fit_head: the classification head and its start from the text, on features of planted truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planted import (
    BANK,
    LABELS,
    LEVELS,
    PATCHES,
    QUICK,
    WIDTH,
    plant,
    teach,
    towards_classes,
    towards_defects,
)
from torch import Tensor

from export.model import heads
from export.teaching import fit_head as fit_head_module
from export.teaching.fit_head import (
    BLOCK_WEIGHTS,
    MAX_FOLDS,
    HeadFit,
    features_under_maps,
    fit_head,
    head_scale,
    out_of_fold_probabilities,
    start_of_head,
)


def probabilities(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return heads.head_probabilities(features, weight, bias)


def test_fit_head_separates_separable_classes() -> None:
    features = plant(LABELS)
    weight, bias = fit_head(features.cls, features.labels, 3)
    assert weight.shape == (3, LEVELS * WIDTH)
    assert weight.dtype == bias.dtype == torch.float32
    fresh = plant(LABELS, seed=8)
    found = probabilities(fresh.cls, weight, bias)
    assert torch.equal(found.argmax(1), fresh.labels)
    assert float(found[range(10), fresh.labels].min()) > 0.5


def test_fit_head_is_deterministic() -> None:
    features = plant(LABELS)
    first, again = (fit_head(features.cls, features.labels, 3) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_classes_weigh_the_same_with_unequal_numbers_of_views() -> None:
    """A tenth of 100 views of one class and nine tenths of 10 of the other have the mark, so it means 9 to 1."""
    marks = [1.0] * 10 + [0.0] * 90 + [1.0] * 9 + [0.0]
    features, labels = torch.tensor(marks)[:, None], torch.tensor([0] * 100 + [1] * 10)
    weight, bias = fit_head(features, labels, 2, HeadFit(1e-8))
    found = probabilities(torch.tensor([[1.0], [0.0]]), weight, bias)
    torch.testing.assert_close(found[:, 1], torch.tensor([0.9, 0.1]), atol=0.01, rtol=0)


def test_constant_features_give_all_classes_the_same_probability() -> None:
    features, labels = torch.full((13, 5), 0.3), torch.tensor([0] * 9 + [1] * 3 + [2])
    weight, bias = fit_head(features, labels, 3)
    torch.testing.assert_close(probabilities(features, weight, bias), torch.full((13, 3), 1 / 3), atol=1e-3, rtol=0)


def test_fit_head_folds_standardization_exactly() -> None:
    """Heads fitted on standardized and on raw features give the same logits."""
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


def test_large_decay_keeps_the_head_at_its_prior() -> None:
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


def test_text_prior_is_used_with_aligned_text_and_not_by_the_paper_head() -> None:
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


def test_start_of_head_includes_the_peak_mean_of_the_map() -> None:
    features, aligned = plant(LABELS), replace(BANK, projection=towards_defects())
    maps = torch.rand(len(LABELS), PATCHES, generator=torch.Generator().manual_seed(0))
    head = features_under_maps(features, features.unaugmented, maps)
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


def test_out_of_fold_heads_leave_out_all_views_of_a_support(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two views per support; each fit lacks both views of the supports that it is evaluated on."""
    labels = [0] * 12 + [1] * 6 + [2] * 6
    features = plant(labels)
    features.unaugmented[1::2] = False
    features.frame[:] = torch.arange(len(labels)) // 2
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
    out_of_fold = out_of_fold_probabilities(features.cls, features, 3, HeadFit())
    assert out_of_fold is not None
    assert out_of_fold.shape == (12, 3)
    assert len(fitted) == 3 <= MAX_FOLDS
    assert all(not taught & left for taught, left in zip(fitted, judged, strict=True))
    assert all(taught | left == set(map(float, range(12))) for taught, left in zip(fitted, judged, strict=True))
    assert sorted(number for left in judged for number in left) == list(range(12))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 1, 2, 2], [0, 0, 0, 1, 2]])
def test_out_of_fold_probabilities_are_none_with_a_single_good_support_or_single_defects(labels: list[int]) -> None:
    features = plant(labels)
    assert out_of_fold_probabilities(features.cls, features, 3, HeadFit()) is None


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 2], [0] * 6 + [1] * 6 + [2] * 2])
def test_out_of_fold_heads_take_classes_of_unequal_shots(labels: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A small class does not halve what the others are fitted to; every frame is judged by a head without it."""
    features = plant(labels)
    features.cls[:, 0] = torch.arange(len(labels)).float()
    taught: list[int] = []

    def fit(x: Tensor, *arguments: Any, **options: Any) -> Any:
        taught.append(len(x))
        return fit_head(x, *arguments, **options)

    monkeypatch.setattr(fit_head_module, "fit_head", fit)
    found = out_of_fold_probabilities(features.cls, features, 3, HeadFit())
    assert found is not None
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(len(labels)))
    folds = min(MAX_FOLDS, labels.count(0), labels.count(1))
    assert len(taught) == folds
    assert sum(len(labels) - count for count in taught) == len(labels)


def test_head_scale_gives_each_block_its_weight() -> None:
    for kind, weights in BLOCK_WEIGHTS.items():
        scale = head_scale(LEVELS, WIDTH, kind)
        assert scale.shape == (3 * LEVELS * WIDTH + 1,)
        sizes = [*(block.norm() for block in scale[:-1].reshape(3, -1)), scale[-1]]
        assert [float(size) for size in sizes] == pytest.approx(weights)


def test_head_scale_is_zero_for_levels_that_are_not_read() -> None:
    def read(kind: str, levels: int) -> list[list[bool]]:
        return (head_scale(levels, 5, kind)[:-1].reshape(3, levels, 5) > 0).all(2).tolist()

    none, every, upper = [False] * 4, [True] * 4, [False, False, True, True]
    assert read("paper", 4) == [every, none, none]
    assert read("pooled", 4) == [upper, every, every]
    assert read("pooled", 1) == [[True]] * 3
