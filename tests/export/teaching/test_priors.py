"""export.teaching.priors: the tower's projection to the text space, and how far text and map are used."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from export.model import heads
from export.model.checkpoint import LoadedModel, load_model
from export.teaching.priors import MAX_PRIOR_SCALE, PEAK_SCALE, Projection, fit_prior_scales, peak_prior, text_prior
from export.teaching.prompts import load_prompts
from export.teaching.text_bank import build_text_bank

CLASSES = ("good", "hole", "scratch")
LEVELS, PATCHES = 4, 9


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    model = load_model("toy", random_seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in (model.clip.visual.ln_post.weight, model.clip.visual.ln_post.bias):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens(model: LoadedModel, count: int = 40, *, seed: int = 0) -> Tensor:
    """Tokens [count, D] of the size that a trunk gives, none of zero mean."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn((count, model.clip.visual.ln_post.normalized_shape[0]), generator=generator) + 0.7


def in_text_space(model: LoadedModel, x: Tensor) -> Tensor:
    """As CLIP does it."""
    with torch.no_grad():
        return torch.as_tensor(model.clip.visual.ln_post(x) @ model.clip.visual.proj)


def test_a_layer_at_the_projection_gives_the_cosines_of_clip(model: LoadedModel) -> None:
    x = tokens(model)
    text = heads.unit(torch.randn((5, 24), generator=torch.Generator().manual_seed(2)))
    weight, bias = Projection.of(model.clip.visual).as_layer(x)
    expected = heads.cosines(in_text_space(model, x), text)
    torch.testing.assert_close(heads.cosines(x @ weight + bias, text), expected, atol=0.06, rtol=0)
    # Without a bias nothing depends on a token's size, so both are equal.
    without_bias = replace(Projection.of(model.clip.visual), bias=torch.zeros(24))
    shift = model.clip.visual.ln_post.bias.data.clone()
    model.clip.visual.ln_post.bias.data.zero_()
    expected = heads.cosines(in_text_space(model, x), text)
    model.clip.visual.ln_post.bias.data.copy_(shift)
    torch.testing.assert_close(heads.cosines(x @ without_bias.weight, text), expected, atol=1e-5, rtol=0)


def test_text_prior_is_the_mean_cosine_of_the_upper_levels_class_tokens(model: LoadedModel) -> None:
    cls = torch.stack([heads.unit(tokens(model, seed=j)) for j in range(LEVELS)], dim=1)
    pooled = torch.stack([heads.unit(tokens(model, seed=9 + j)) for j in range(LEVELS)], dim=1)
    features = torch.cat([cls.flatten(1), pooled.flatten(1), torch.rand(len(cls), 1)], dim=1)
    text = heads.unit(torch.randn((3, 24), generator=torch.Generator().manual_seed(2)))
    weight, bias = text_prior(Projection.of(model.clip.visual), text, features, LEVELS)
    assert weight.shape == (3, features.shape[1])
    assert not weight[:, cls[0].numel() :].any(), "neither the tokens under the map nor its peak mean"
    assert not weight[:, : cls[0].numel() // 2].any(), "none of the lower levels"
    found = features @ weight.T + bias
    expected = heads.cosines(in_text_space(model, cls), text).transpose(0, 1)[LEVELS // 2 :].mean(0)
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) > 0.98
    torch.testing.assert_close(found, expected, atol=0.12, rtol=0)


def test_peak_prior_is_for_all_defects_and_against_good() -> None:
    weight, bias = peak_prior(3, 5)
    features = torch.tensor([[9.0, 9, 9, 9, 0.75], [9.0, 9, 9, 9, 0.5]])
    assert (features @ weight.T + bias).tolist() == [[-0.25, 0.25, 0.25], [0, 0, 0]]


def test_text_scale_follows_how_well_the_text_fits_the_labels() -> None:
    labels = torch.arange(3).repeat(4)
    right = torch.eye(3)[labels] * 0.2
    noise = 0.2 * torch.rand((12, 3), generator=torch.Generator().manual_seed(0))
    wrong = torch.eye(3)[(labels + 1) % 3] * 0.2
    flat = torch.zeros(12, 3)
    assert fit_prior_scales(right + 0.3 * noise, flat, labels, 4)[0] > 10
    assert fit_prior_scales(wrong, flat, labels, 4)[0] == pytest.approx(0, abs=0.5)
    perfect = fit_prior_scales(right, flat, labels, 4)
    assert sum(perfect) == pytest.approx(MAX_PRIOR_SCALE)
    assert perfect[0] > 10 * perfect[1]
    assert all(math.isfinite(scale) for scale in fit_prior_scales(flat, flat, labels, 4))


def test_peak_scale_leaves_its_prior_with_more_supports() -> None:
    labels = torch.tensor([0, 1, 2]).repeat(6)
    weight, bias = peak_prior(3, 1)
    no_text = torch.zeros(18, 3)

    def scales(peaks: Tensor) -> list[float]:
        peak = peaks[:, None] @ weight.T + bias
        return [fit_prior_scales(no_text, peak, labels, shots)[1] for shots in (1e-3, 1, 1e4)]

    # Half of the good frames are as high as the defects: the peak misleads.
    few, more, many = scales(torch.where((labels == 0) & (torch.arange(18) % 2 == 0), 0.2, 0.8))
    assert pytest.approx(few, rel=0.05) == PEAK_SCALE
    assert few > more > many
    few, more, many = scales(torch.where(labels == 0, 0.3, 0.7))
    assert few < more < many
    assert scales(torch.full((18,), 0.5)) == pytest.approx([PEAK_SCALE] * 3), "a constant peak keeps the prior scale"


def test_text_bank_has_a_projection_of_trained_towers_only(model: LoadedModel) -> None:
    assert build_text_bank(model, load_prompts(), CLASSES).projection is None
    trained = build_text_bank(replace(model, trained=True), load_prompts(), CLASSES)
    assert trained.projection is not None
    assert trained.projection.weight.shape == (32, 24)
    assert build_text_bank(replace(model, trained=True, has_text=False), load_prompts(), CLASSES).projection is None
