"""export.model.dual_path: the dual path against open_clip itself, and against a slow reading of the paper's eq. 1-7."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor
from towers import as_open_clip_sees, assert_near, random_frames

from export.errors import CheckpointError
from export.model.checkpoint import CLIP_MEAN, CLIP_STD, load_model
from export.model.dual_path import DualPathEncoder

TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_clip(**vision: Any) -> CLIP:
    """A small open_clip model; every parameter is moved, since open_clip starts biases at 0 and norms at 1."""
    config = {"image_size": 64, "layers": 8, "width": 32, "head_width": 16, "patch_size": 16, **vision}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip = CLIP(embed_dim=24, vision_cfg=config, text_cfg=TEXT).eval().requires_grad_(False)
        for parameter in clip.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return clip


def slow_reading(
    visual: VisionTransformer, image: Tensor, levels: int
) -> tuple[list[Tensor], list[Tensor]]:  # Z_j and V_j
    """Eq. 1-7 with open_clip's own layers for the vanilla path and loops over frames and heads for the V path."""
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def remember(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        entered.append(inputs[0])
        left.append(output)

    hooks = [block.register_forward_hook(remember) for block in visual.transformer.resblocks]
    visual(image)
    for hook in hooks:
        hook.remove()

    per_level = len(left) // levels
    z_levels, v_levels = [], []
    for level in range(levels):
        total = torch.zeros_like(left[0])
        for layer in range(level * per_level, (level + 1) * per_level):
            block = visual.transformer.resblocks[layer]
            attention = block.attn
            width = attention.embed_dim
            y = block.ln_1(entered[layer])
            v = y @ attention.in_proj_weight[2 * width :].T + attention.in_proj_bias[2 * width :]
            heads = []
            for head in v.split(width // attention.num_heads, dim=-1):
                frames = []
                for own in head:
                    scores = own @ own.T / own.shape[1] ** 0.5
                    frames.append(torch.softmax(scores, dim=-1) @ own)
                heads.append(torch.stack(frames))
            total = total + torch.cat(heads, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias
        z_levels.append(left[(level + 1) * per_level - 1])
        v_levels.append(visual.ln_post(total) @ visual.proj)
    return z_levels, v_levels


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return make_clip()


@pytest.fixture(scope="module")
def encoder(clip: CLIP) -> DualPathEncoder:
    return DualPathEncoder(clip.visual, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"image_size": [32, 96]},
        {"no_ln_pre": True},
        {"ls_init_value": 0.3},
        {"patch_dropout": 0.5},
        {"pos_embed_type": "sin_cos_2d"},
        {"patch_size": [16, 32]},
    ],
)
def test_class_token_of_the_last_level_is_the_image_embedding_of_open_clip(vision: dict[str, Any]) -> None:
    clip = make_clip(**vision)
    encoder = DualPathEncoder(clip.visual, mean=MEAN, std=STD)
    frames = random_frames(2, encoder.image_size)
    assert_near(encoder(frames).cls[-1], clip.encode_image(as_open_clip_sees(frames, MEAN, STD)))


def test_quick_gelu_of_a_model_is_kept() -> None:
    with torch.random.fork_rng(devices=[]):
        vision = {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16}
        clip = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True).eval().requires_grad_(False)
    frames = random_frames(1, (64, 64))
    levels = DualPathEncoder(clip.visual, mean=MEAN, std=STD)(frames)
    assert_near(levels.cls[-1], clip.encode_image(as_open_clip_sees(frames, MEAN, STD)))


def test_toy_model_with_clip_statistics_gives_the_image_embedding_of_open_clip() -> None:
    model = load_model("toy", random_seed=0)
    frames = random_frames(3, (64, 64))
    expected = model.clip.encode_image(as_open_clip_sees(frames, CLIP_MEAN, CLIP_STD))
    assert_near(model.encoder()(frames).cls[-1], expected)


def test_pretrained_tower_gives_the_image_embedding_of_open_clip_and_the_v_path_of_eq_2(shared: Path) -> None:
    folder = shared / "weights/deit-tiny"
    if not folder.is_dir():
        pytest.skip("the pretrained tower is not there")
    model = load_model(str(folder / "open_clip_config.json"), weights=folder / "visual.safetensors")
    frames = random_frames(2, (224, 224))
    image = as_open_clip_sees(frames, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    encoder = model.encoder()
    assert encoder.level_layers == (3, 6, 9, 12)
    levels = encoder(frames)
    assert_near(levels.cls[-1], model.clip.encode_image(image))
    tokens, value = slow_reading(model.clip.visual, image, 4)
    for j in range(4):
        assert_near(levels.tokens[j], tokens[j])
        assert_near(levels.value[j], value[j][:, 1:])


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_both_paths_agree_with_a_literal_implementation_of_the_paper(clip: CLIP, levels: int) -> None:
    encoder = DualPathEncoder(clip.visual, mean=MEAN, std=STD, levels=levels)
    frames = random_frames(2, (64, 64))
    tokens, value = slow_reading(clip.visual, as_open_clip_sees(frames, MEAN, STD), levels)
    found = encoder(frames)
    assert len(found.tokens) == len(found.value) == len(found.cls) == levels
    for j in range(levels):
        assert_near(found.tokens[j], tokens[j])
        assert_near(found.value[j], value[j][:, 1:])
        assert_near(found.cls[j], clip.visual.ln_post(tokens[j][:, 0]) @ clip.visual.proj)


def test_v_path_differs_from_the_vanilla_path(encoder: DualPathEncoder) -> None:
    """The check above would be empty if both attentions gave one result."""
    levels = encoder(random_frames(1, (64, 64)))
    vanilla = encoder.ln_post(levels.tokens[0][:, 1:]) @ encoder.proj
    assert float((levels.value[0] - vanilla).abs().max()) > 0.1


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_level_is_not_changed_by_the_blocks_after_it(clip: CLIP, encoder: DualPathEncoder, kept: int) -> None:
    visual = copy.deepcopy(clip.visual)
    visual.transformer.resblocks = visual.transformer.resblocks[: 2 * kept]
    frames = random_frames(2, (64, 64))
    stopped = DualPathEncoder(visual, mean=MEAN, std=STD, levels=kept)(frames)
    full = encoder(frames)
    for j in range(kept):
        assert torch.equal(full.tokens[j], stopped.tokens[j])
        assert torch.equal(full.value[j], stopped.value[j])
        assert torch.equal(full.cls[j], stopped.cls[j])


def test_features_of_a_frame_do_not_depend_on_its_batch(encoder: DualPathEncoder) -> None:
    frames = random_frames(5, (64, 64))
    together = encoder(frames)
    for i in range(len(frames)):
        alone = encoder(frames[i : i + 1])
        for kind in ("tokens", "value", "cls"):
            for one, many in zip(getattr(alone, kind), getattr(together, kind), strict=True):
                assert_near(one[0], many[i])


def test_grey_patch_embedding_is_exactly_the_three_channel_one(clip: CLIP, encoder: DualPathEncoder) -> None:
    frames = random_frames(2, (64, 64))
    convolved = torch.nn.functional.conv2d(
        as_open_clip_sees(frames.double(), MEAN, STD), clip.visual.conv1.weight.double(), stride=16
    )
    expected = convolved.flatten(2).transpose(1, 2) + clip.visual.positional_embedding[1:]
    patches = ((frames - 128) / 64).reshape(2, 4, 16, 4, 16).permute(0, 1, 3, 2, 4).reshape(2, 16, 256)
    found = patches @ encoder.patch_weight + encoder.patch_position
    assert_near(found, expected.float())


def test_shapes_and_attributes_are_those_of_the_tower(encoder: DualPathEncoder) -> None:
    assert (encoder.image_size, encoder.patch_size, encoder.grid) == ((64, 64), (16, 16), (4, 4))
    assert (encoder.width, encoder.text_dim, encoder.heads) == (32, 24, 2)
    assert encoder.level_layers == (2, 4, 6, 8)
    levels = encoder(random_frames(3, (64, 64)))
    assert [z.shape for z in levels.tokens] == [(3, 17, 32)] * 4
    assert [v.shape for v in levels.value] == [(3, 16, 24)] * 4
    assert [c.shape for c in levels.cls] == [(3, 24)] * 4


def test_value_path_false_leaves_out_the_v_path_only(encoder: DualPathEncoder) -> None:
    frames = random_frames(2, (64, 64))
    whole, without = encoder(frames), encoder(frames, value_path=False)
    assert without.value == []
    for kind in ("tokens", "cls"):
        for a, b in zip(getattr(whole, kind), getattr(without, kind), strict=True):
            assert torch.equal(a, b)


def test_large_scores_of_the_v_path_keep_attention_in_fp32_if_it_is_used(clip: CLIP) -> None:
    visual = copy.deepcopy(clip.visual)
    width = 32
    with torch.no_grad():
        attention = visual.transformer.resblocks[0].attn
        attention.in_proj_weight[2 * width :] *= 40
        attention.out_proj.weight /= 40
    encoder = DualPathEncoder(visual, mean=MEAN, std=STD)
    frames = random_frames(2, (64, 64))
    assert 1 in encoder.half_precision(frames).fp32_attention
    assert 1 not in encoder.half_precision(frames, value_path=False).fp32_attention


def test_half_precision_is_a_copy_close_to_the_original(clip: CLIP) -> None:
    encoder = DualPathEncoder(copy.deepcopy(clip.visual), mean=MEAN, std=STD)
    frames = random_frames(2, (64, 64))
    before = encoder(frames)
    half = encoder.half_precision(frames)
    assert any(parameter.dtype == torch.float16 for parameter in half.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())
    again, rounded = encoder(frames), half(frames)
    for kind in ("tokens", "value", "cls"):
        for old, new, near in zip(getattr(before, kind), getattr(again, kind), getattr(rounded, kind), strict=True):
            assert torch.equal(old, new)
            assert float((near.float() - old).abs().max()) < 0.01 * float(old.abs().max())


@pytest.mark.parametrize(
    ("vision", "says"),
    [
        ({"layers": 6}, "its 6 layers do not divide into 4 levels"),
        ({"block_type": "custom"}, "not plain pre-norm residual attention blocks"),
        ({"qk_norm": True}, "not plain pre-norm residual attention blocks"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "does not pool by its class token"),
        ({"pool_type": "avg"}, "does not pool by its class token"),
        ({"final_ln_after_pool": True}, "does not pool by its class token"),
        ({"image_size": 72}, r"image size \(72, 72\) is not a multiple of its patch size \(16, 16\)"),
        ({"layers": [1, 1, 1, 1]}, "ModifiedResNet; the dual path needs a VisionTransformer"),
    ],
)
def test_unsupported_towers_are_refused(vision: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        DualPathEncoder(make_clip(**vision).visual, mean=MEAN, std=STD)


def test_a_tower_without_projection_is_refused_and_all_faults_are_named() -> None:
    visual = make_clip(layers=6, pool_type="avg").visual
    visual.proj = None
    with pytest.raises(CheckpointError) as caught:
        DualPathEncoder(visual, mean=MEAN, std=STD)
    for fault in ("6 layers", "class token", "no projection to the text space"):
        assert fault in str(caught.value)


def test_last_level_only_equals_the_last_of_all_levels() -> None:
    """Of both paths: the V path begins anew at each level, so the others' V takes no part."""
    model = load_model("toy", random_seed=0)
    pixels = 255 * torch.rand((2, 64, 64), generator=torch.Generator().manual_seed(0))
    every, last = model.encoder()(pixels), model.encoder(last_level_only=True)(pixels)
    for name in ("tokens", "value", "cls"):
        assert len(getattr(last, name)) == 1
        torch.testing.assert_close(getattr(last, name)[0], getattr(every, name)[-1])
