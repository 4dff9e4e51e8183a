"""The convolutional stem: it adds to the patch embedding, open_clip sees it too, and it reaches across the seams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from towers import as_open_clip_sees, assert_near, random_frames

from export.errors import CheckpointError
from export.model.checkpoint import CLIP_MEAN, CLIP_STD, LoadedModel, load_model
from export.model.stem import Stem, stem_of, tokens_of

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "stem": [4, 6, 8, 10],
}
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.26, 0.27]


def write_config(folder: Path, **changes: object) -> str:
    path = folder / "open_clip_config.json"
    document = {"model_cfg": {**CONFIG, **changes}, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    path.write_text(json.dumps(document))
    return str(path)


def with_trained_stem(model: LoadedModel) -> Stem:
    """The stem of a random model, with an output that says something."""
    stem = stem_of(model.clip.visual.conv1)
    assert stem is not None
    stem.join.weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return stem


def saved(model: LoadedModel, path: Path) -> dict[str, torch.Tensor]:
    """What was written to `path`."""
    state = {key: value.contiguous() for key, value in model.clip.state_dict().items() if key != "attn_mask"}
    save_file(state, path)
    return state


def test_a_new_stem_adds_nothing_to_the_patch_embedding(tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path), random_seed=0)
    frames = random_frames(2, (64, 64))
    before = model.encoder().embed(frames)
    with_trained_stem(model)
    assert not torch.allclose(model.encoder().embed(frames), before, atol=1e-2)
    model.clip.visual.conv1.stem.join.weight.data.zero_()
    assert_near(model.encoder().embed(frames), before)


def test_encoder_with_a_stem_equals_open_clip(tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path), random_seed=0)
    with_trained_stem(model)
    frames = random_frames(3, (64, 64))
    expected = model.clip.encode_image(as_open_clip_sees(frames, MEAN, STD))
    assert_near(model.encoder()(frames).cls[-1], expected)


def test_tokens_are_in_patch_order_and_depend_on_neighbours(tmp_path: Path) -> None:
    stem = with_trained_stem(load_model(write_config(tmp_path), random_seed=0))
    frames = torch.zeros((2, 48, 192))
    frames[1, 17, 47] = 3.0  # the last column of the second row's third patch
    tokens = tokens_of(stem, frames)
    changed = ((tokens[1] - tokens[0]).abs().amax(-1) > 0).reshape(3, 12)
    assert bool(changed[1, 2])
    assert bool(changed[1, 3]), "the patch on the other side of the seam sees it too"
    assert not changed[:, 8:].any(), "more than 75 px away nobody does"


def test_stem_weights_are_required_and_loaded(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    model = load_model(config, random_seed=0)
    with_trained_stem(model)
    state = saved(model, tmp_path / "all.safetensors")
    frames = random_frames(1, (64, 64))
    again = load_model(config, weights=tmp_path / "all.safetensors")
    assert torch.equal(again.encoder().embed(frames), model.encoder().embed(frames))
    save_file({key: value for key, value in state.items() if ".stem." not in key}, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks visual\.conv1\.stem"):
        load_model(config, weights=tmp_path / "none.safetensors")


def test_stem_runs_on_larger_frames(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    model = load_model(config, random_seed=0)
    with_trained_stem(model)
    saved(model, tmp_path / "all.safetensors")
    larger = load_model(config, weights=tmp_path / "all.safetensors", image_size=(96, 128))
    assert larger.encoder().embed(random_frames(1, (96, 128))).shape == (1, 1 + 6 * 8, 32)


@pytest.mark.parametrize("widths", [[4, 6], "wide", [4, 6, -8, 8], None])
def test_invalid_widths_are_refused(widths: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot build"):
        load_model(write_config(tmp_path, stem=widths), random_seed=0)


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    vision = {**CONFIG["vision_cfg"], "patch_size": 8}  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="patches of 16x16 px, not 8x8"):
        load_model(write_config(tmp_path, vision_cfg=vision), random_seed=0)


def test_the_embedded_encoder_has_a_stem() -> None:
    model = load_model("sem_tiny", random_seed=0)
    with_trained_stem(model)
    frames = random_frames(1, (240, 240))
    expected = model.clip.encode_image(as_open_clip_sees(frames, CLIP_MEAN, CLIP_STD))
    assert_near(model.encoder()(frames).cls[-1], expected)
