"""export.text_prior: the tower's own way to the text space, and how far the text is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from export import heads
from export.checkpoint import LoadedModel, load_model
from export.prompts import load_prompts
from export.text_bank import build_text_bank
from export.text_prior import MAX_PRIOR_SCALE, Projection, fit_prior_scales, head_prior

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
    """As CLIP itself does it."""
    with torch.no_grad():
        return torch.as_tensor(model.clip.visual.ln_post(x) @ model.clip.visual.proj)


def test_a_layer_at_the_projection_gives_the_cosines_of_clip(model: LoadedModel) -> None:
    x = tokens(model)
    text = heads.unit(torch.randn((5, 24), generator=torch.Generator().manual_seed(2)))
    weight, bias = Projection.of(model.clip.visual).as_layer(x)
    own = heads.cosines(in_text_space(model, x), text)
    torch.testing.assert_close(heads.cosines(x @ weight + bias, text), own, atol=0.06, rtol=0)
    # Without a bias nothing depends on a token's size, and the two are the same.
    plain = replace(Projection.of(model.clip.visual), bias=torch.zeros(24))
    shift = model.clip.visual.ln_post.bias.data.clone()
    model.clip.visual.ln_post.bias.data.zero_()
    own = heads.cosines(in_text_space(model, x), text)
    model.clip.visual.ln_post.bias.data.copy_(shift)
    torch.testing.assert_close(heads.cosines(x @ plain.weight, text), own, atol=1e-5, rtol=0)


def test_head_prior_is_the_cosine_of_each_level_s_tokens_of_both_kinds(model: LoadedModel) -> None:
    cls = torch.stack([heads.unit(tokens(model, seed=j)) for j in range(LEVELS)], dim=1)
    pooled = torch.stack([heads.unit(tokens(model, seed=9 + j)) for j in range(LEVELS)], dim=1)
    features = torch.cat([cls.flatten(1), pooled.flatten(1), torch.rand(len(cls), 1)], dim=1)
    text = heads.unit(torch.randn((3, 24), generator=torch.Generator().manual_seed(2)))
    weight, bias = head_prior(Projection.of(model.clip.visual), text, features, LEVELS)
    assert weight.shape == (2 * LEVELS, 3, features.shape[1])
    assert not weight[:, :, -1].any(), "the map's height is no word"
    found = torch.einsum("vf,bkf->bvk", features, weight) + bias[:, None]
    expected = torch.cat([heads.cosines(in_text_space(model, x), text).transpose(0, 1) for x in (cls, pooled)])
    for block, own in zip(found, expected, strict=True):
        assert float(torch.corrcoef(torch.stack([block.flatten(), own.flatten()]))[0, 1]) > 0.98
        torch.testing.assert_close(block, own, atol=0.16, rtol=0)
    for kind in (slice(LEVELS), slice(LEVELS, None)):
        torch.testing.assert_close(found[kind].mean(0), expected[kind].mean(0), atol=0.12, rtol=0)


def test_text_is_believed_as_far_as_it_is_right() -> None:
    labels = torch.arange(3).repeat(4)
    right = torch.eye(3)[labels] * 0.2
    noise = 0.2 * torch.rand((12, 3), generator=torch.Generator().manual_seed(0))
    wrong = torch.eye(3)[(labels + 1) % 3] * 0.2
    good, useless = fit_prior_scales(torch.stack([right + 0.3 * noise, wrong]), labels).tolist()
    assert good > 10
    assert useless == pytest.approx(0, abs=0.5)
    without_a_fault = fit_prior_scales(torch.stack([right, right, wrong]), labels)
    assert float(without_a_fault.sum()) == pytest.approx(MAX_PRIOR_SCALE)
    assert float(without_a_fault[:2].min()) > 10 * float(without_a_fault[2])
    assert fit_prior_scales(torch.zeros(2, 12, 3), labels).isfinite().all()


def test_only_a_trained_tower_leads_to_the_text_space(model: LoadedModel) -> None:
    assert build_text_bank(model, load_prompts(), CLASSES).projection is None
    trained = build_text_bank(replace(model, trained=True), load_prompts(), CLASSES)
    assert trained.projection is not None
    assert trained.projection.weight.shape == (32, 24)
    assert build_text_bank(replace(model, trained=True, has_text=False), load_prompts(), CLASSES).projection is None
