"""benchmarks.accuracy.promptad: learned prompts, their loss, maps and scores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from benchmarks.accuracy import promptad
from benchmarks.accuracy.promptad import (
    GENERIC_STATES,
    FrameFeatures,
    LearnedPrompts,
    PromptAD,
    StoredFeatures,
    Texts,
    abnormal_states,
    encode_embedded,
    encode_frames,
    fit_promptad,
    fit_prototypes,
    gallery_distance,
    gallery_layers,
    loss_terms,
    needed_length,
)
from export.errors import PromptError
from export.model.checkpoint import LoadedModel, load_model
from export.teaching.prompts import load_prompts

pytestmark = pytest.mark.slow

GRID = (4, 4)
SUBJECT = "image of a wafer"
STATES = ["image of a wafer with a hole", "scratched image of a wafer"]
SCALE = math.log(1 / 0.07)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", random_seed=0)


def pixels(seed: int, count: int = 1) -> torch.Tensor:
    return 255 * torch.rand((count, 64, 64), generator=torch.Generator().manual_seed(seed))


def random_unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def texts(normal: list[float], abnormal: list[float]) -> Texts:
    return Texts(torch.tensor([normal]), torch.tensor([abnormal]), torch.tensor([abnormal]))


def tokens_of(model: LoadedModel, phrases: list[str]) -> torch.Tensor:
    tokens: torch.Tensor = open_clip.SimpleTokenizer(context_length=model.clip.context_length)(phrases)
    return tokens


def test_placeholder_words_as_contexts_give_the_towers_own_text(model: LoadedModel) -> None:
    prompts = LearnedPrompts(model, SUBJECT, STATES, 2, seed=0)
    word = model.clip.token_embedding(tokens_of(model, ["N"]))[0, 1]
    with torch.no_grad():
        prompts.context[:], prompts.abnormal[:] = word, word
        found = prompts.texts()
        normal, *manual, learned = model.clip.encode_text(
            tokens_of(model, [f"N N N N {phrase}." for phrase in (SUBJECT, *STATES, f"N {SUBJECT}")])
        )
    assert found.normal.shape == (2, model.clip.visual.output_dim)
    assert torch.allclose(found.normal, normal.expand(2, -1), atol=1e-6)
    assert torch.allclose(found.manual, torch.stack(manual).repeat(2, 1), atol=1e-6)
    assert torch.allclose(found.learned, learned.expand(8, -1), atol=1e-6)


def test_every_context_is_combined_with_every_abnormal_word(model: LoadedModel) -> None:
    learned = LearnedPrompts(model, SUBJECT, STATES, 3, seed=0).texts().learned
    assert len(learned) == 12
    assert torch.unique(learned, dim=0).shape == learned.shape


def test_tokens_after_the_longest_prompt_are_dropped_only_where_unused(model: LoadedModel) -> None:
    tokens = tokens_of(model, ["a", "a b c"])
    assert needed_length(model.clip, tokens) == 5
    both_ways = load_model("toy", random_seed=0).clip
    both_ways.attn_mask = None
    assert needed_length(both_ways, tokens) == tokens.shape[1]
    with torch.no_grad():
        whole = encode_embedded(both_ways, both_ways.token_embedding(tokens), tokens)
        assert torch.allclose(whole, both_ways.encode_text(tokens), atol=1e-6)


def test_a_truncated_prompt_is_reported(model: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    LearnedPrompts(model, SUBJECT, ["wafer " * 71 + "hole"], 1, seed=0)
    (record,) = caplog.records
    assert "prompt of 148 tokens is cut to 75" in record.getMessage()


def test_the_frame_is_encoded_as_open_clip_does_and_layers_are_its_blocks(model: LoadedModel) -> None:
    encoder, frames = model.encoder(), pixels(1, 2)
    found = encode_frames(encoder, frames)
    levels = encoder(frames)  # four levels of one layer each
    assert torch.allclose(found.cls, F.normalize(levels.cls[-1], dim=-1), atol=1e-6)
    for place, layer in enumerate(gallery_layers(4)):
        assert torch.allclose(found.layers[:, place], F.normalize(levels.tokens[layer - 1][:, 1:], dim=-1), atol=1e-6)
    z, total = encoder.embed(frames), encoder.embed(frames)[:, 1:]
    for layer, block in enumerate(encoder.blocks, start=1):
        z, v = encoder._dual_path(block, z, layer)
        assert v is not None
        total = total + v
    value = F.normalize(encoder.ln_post(total) @ encoder.proj, dim=-1)
    assert torch.allclose(found.value, value, atol=1e-6), "one sum over all layers, with what the first block reads"


def test_gallery_layers_by_depth() -> None:
    assert [gallery_layers(depth) for depth in (12, 24, 4, 1)] == [(3, 8), (6, 16), (1, 3), (1, 1)]


def test_stored_features_are_restored(model: LoadedModel, tmp_path: Path) -> None:
    encoder = model.encoder()
    features = encode_frames(encoder, pixels(2, 3))
    stored = StoredFeatures(encoder, 3, tmp_path)
    stored.put(0, FrameFeatures(features.cls[:1], features.value[:1], features.layers[:1]))
    stored.put(1, FrameFeatures(features.cls[1:], features.value[1:], features.layers[1:]))
    for n in range(3):
        assert torch.equal(stored[n].cls[0], features.cls[n])
        assert torch.allclose(stored[n].value[0], features.value[n], atol=1e-3)
        assert torch.allclose(stored[n].layers[0], features.layers[n], atol=1e-3)
    assert not any(tmp_path.iterdir()), "no file is left by name"


def test_with_scale_0_the_text_gives_one_half_and_the_map_ranks_by_distance(model: LoadedModel) -> None:
    encoder = model.encoder()
    good, frame = encode_frames(encoder, pixels(3, 2)), encode_frames(encoder, pixels(4))
    gallery = good.layers.transpose(0, 1).flatten(1, 2)
    text = random_unit(2, encoder.text_dim)
    patch_map, score = PromptAD(text, text, 0.0, gallery, GRID).judge(frame)
    cosines = [(frame.layers[0, j] @ gallery[j].T).amax(1) for j in range(2)]
    distance = ((1 - cosines[0]) + (1 - cosines[1])) / 4  # patch memory of two levels
    assert torch.allclose(patch_map.flatten(), 1 / (2 + 1 / distance), atol=1e-6)
    assert patch_map.flatten().argsort().tolist() == distance.argsort().tolist()
    assert 0 < score <= float(1 / (2 + 1 / distance.max())) + 1e-6


def test_a_stored_frame_has_an_empty_map_and_score_0(model: LoadedModel) -> None:
    encoder = model.encoder()
    good = encode_frames(encoder, pixels(5, 2))
    fitted = fit_promptad(model, load_prompts(), ["hole"], good, GRID, seed=0)
    patch_map, score = fitted.judge(FrameFeatures(good.cls[1:], good.value[1:], good.layers[1:]))
    assert patch_map.abs().max() < 1e-6
    assert abs(score) < 1e-6
    strange = pixels(5, 2)[1:].clone()
    strange[:, 32:48, 16:32] = 255
    odd_map, odd_score = fitted.judge(encode_frames(encoder, strange))
    assert 1e-3 < odd_score <= 0.5
    assert float(odd_map.max()) > 1e-3


def test_the_map_rises_with_the_text_where_the_distance_is_the_same() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    gallery = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    patches = torch.tensor([[0.0, 1.0]]).expand(2, 2, 2)[None]
    frame = FrameFeatures(text[1:], torch.stack([text[0], text[1]])[None], patches)
    patch_map, score = PromptAD(text, text, 4.6, gallery, (1, 2)).judge(frame)
    sure = 1 / (1 + math.exp(-4.6))
    assert patch_map.tolist() == [pytest.approx([1 / (1 / (1 - sure) + 2), 1 / (1 / sure + 2)], abs=1e-5)]
    assert score == pytest.approx(1 / (1 / sure + 2), abs=1e-5)


def test_the_gallery_is_read_layer_by_layer() -> None:
    patches = torch.eye(2)[None].repeat(2, 1, 1)
    gallery = torch.stack([torch.eye(2)[:1], torch.eye(2)[1:]])
    assert gallery_distance(patches, gallery).tolist() == pytest.approx([0.25, 0.25])


def test_the_margin_is_positive_only_for_features_nearer_to_abnormal() -> None:
    near_normal = torch.tensor([[1.0, 0.0]], requires_grad=True)
    near_abnormal = torch.tensor([[0.0, 1.0]], requires_grad=True)
    margin = loss_terms(torch.cat([near_normal, near_abnormal]), texts([2.0, 0.0], [0.0, 3.0]), SCALE)[1]
    margin.backward()  # type: ignore[no-untyped-call]
    assert near_normal.grad is not None
    assert near_abnormal.grad is not None
    assert near_normal.grad.abs().max() == 0
    assert near_abnormal.grad.abs().max() > 0
    assert float(margin.detach()) == pytest.approx(1.0), "|f - w|² - |f - a|² is 2 for one of two features"


def test_cross_entropy_with_scale_0_is_uniform_over_all_prompts(model: LoadedModel) -> None:
    found = LearnedPrompts(model, SUBJECT, STATES, 3, seed=0).texts()
    contrast = loss_terms(random_unit(5, model.clip.visual.output_dim), found, 0.0)[0].detach()
    abnormal = 3 * (len(STATES) + 4)
    assert float(contrast) == pytest.approx(math.log(1 + abnormal), abs=1e-5)


def test_alignment_is_the_squared_distance_of_the_two_kinds_of_prompts() -> None:
    found = Texts(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
    assert float(loss_terms(random_unit(1, 2), found, 1.0)[2]) == pytest.approx(2.0)


def test_fitting_repeats_with_its_seed_changes_the_words_and_keeps_the_tower(model: LoadedModel) -> None:
    features = random_unit(6, model.clip.visual.output_dim, seed=3)
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    prompts = [LearnedPrompts(model, SUBJECT, STATES, 1, seed) for seed in (0, 0, 1)]
    first = [p.context.detach().clone() for p in prompts]
    fitted = [fit_prototypes(p, features, SCALE) for p in prompts]
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])
    assert not torch.equal(first[0], prompts[0].context)
    assert torch.allclose(fitted[0].norm(dim=-1), torch.ones(2), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.clip.state_dict().items())


def test_states_are_those_of_the_classes_and_the_generic_ones_where_the_vocabulary_is_open(model: LoadedModel) -> None:
    prompts = load_prompts()
    own = [s.replace("{}", prompts.subject) for s in prompts.states["hole"]]
    generic = [s.replace("{}", prompts.subject) for s in GENERIC_STATES]
    assert len(generic) == 8
    assert abnormal_states(model, prompts, ["hole"]) == [*generic, *own]
    assert abnormal_states(replace(model, vocabulary=frozenset({1})), prompts, ["hole"]) == own
    assert "damaged" in " ".join(abnormal_states(model, prompts, ["odd_thing"])), "a class by the [generic] section"
    with pytest.raises(PromptError, match='no prompts for class "odd_thing"'):
        abnormal_states(model, replace(prompts, generic=()), ["odd_thing"])


def test_one_good_frame_is_enough_and_none_is_refused(model: LoadedModel) -> None:
    encoder = model.encoder()
    good = encode_frames(encoder, pixels(6))
    fitted = fit_promptad(model, load_prompts(), ["hole"], good, GRID, seed=0)
    assert fitted.gallery.shape == (2, 16, encoder.width)
    none = FrameFeatures(good.cls[:0], good.value[:0], good.layers[:0])
    with pytest.raises(ValueError, match="learns from good frames, but there is none"):
        fit_promptad(model, load_prompts(), ["hole"], none, GRID, seed=0)


def test_the_two_models_have_one_and_three_contexts(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, int] = {}

    def fit(prompts: LearnedPrompts, features: torch.Tensor, scale: float) -> torch.Tensor:
        seen[len(features)] = len(prompts.context)
        assert scale == pytest.approx(SCALE), "as stored, without exp"
        return random_unit(2, features.shape[1])

    monkeypatch.setattr(promptad, "fit_prototypes", fit)
    fit_promptad(model, load_prompts(), ["hole"], encode_frames(model.encoder(), pixels(7, 2)), GRID, seed=0)
    assert seen == {2 * np.prod(GRID): 1, 2: 3}
