"""export.model.checkpoint: architectures and sources of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from checkpoints import CONFIG, VISION, assert_holds, refusal, save_as_safetensors, weights_of, write_arch
from torch import Tensor

from export.errors import CheckpointError
from export.model.checkpoint import ARCHITECTURES, CLIP_MEAN, CLIP_STD, load_model
from runtime.files import sha256_of


@pytest.fixture
def arch(tmp_path: Path) -> str:
    return write_arch(tmp_path)


@pytest.fixture
def state(arch: str) -> dict[str, Tensor]:
    return weights_of(arch)


def test_random_weights_are_determined_by_their_seed(arch: str) -> None:
    torch.manual_seed(1)
    first = load_model(arch, random_seed=4)
    torch.manual_seed(2)
    again, other = load_model(arch, random_seed=4), load_model(arch, random_seed=5)
    assert first.sha256 == again.sha256
    assert_holds(again, first.clip.state_dict())
    assert first.sha256 != other.sha256
    assert not first.trained
    assert first.origin == "random, seed 4"


def test_random_state_of_the_caller_stays_unchanged(arch: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_model(arch, random_seed=4)
    assert torch.equal(torch.rand(3), expected)


def test_a_built_in_architecture_has_the_statistics_of_clip() -> None:
    model = load_model("toy", random_seed=0)
    assert (model.architecture, model.mean, model.std) == ("toy", CLIP_MEAN, CLIP_STD)
    assert model.encoder().image_size == (64, 64)
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())
    assert not model.clip.training


def test_another_image_size_interpolates_the_positions(tmp_path: Path) -> None:
    own = load_model("toy", random_seed=0)
    state = own.clip.state_dict()
    row = torch.arange(4.0).repeat_interleave(4)[:, None].expand(-1, 32)  # positions that grow down the frame
    state["visual.positional_embedding"] = torch.cat([torch.full((1, 32), 9.0), row])
    path = save_as_safetensors({key: value.contiguous() for key, value in state.items()}, tmp_path)
    larger = load_model("toy", weights=path, image_size=(128, 128))
    encoder = larger.encoder()
    assert (encoder.image_size, encoder.grid) == ((128, 128), (8, 8))
    positions = larger.clip.visual.positional_embedding
    assert positions.shape == (65, 32)
    assert bool((positions[0] == 9).all()), "the class token's position stays"
    grid = positions[1:].reshape(8, 8, 32)
    assert bool((grid[1:] > grid[:-1]).all())
    torch.testing.assert_close(grid[:, 0], grid[:, 5])
    same = load_model("toy", weights=path, image_size=(64, 64))
    assert same.config == load_model("toy", weights=path).config
    assert load_model("toy", weights=path, image_size=(64, 128)).encoder().grid == (4, 8)


@pytest.mark.parametrize("size", [(72, 64), (64, 72), (8, 64), (0, 64), (2048, 64)])
def test_impossible_image_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError, match=rf"image size {size[0]}x{size[1]} cannot be: a multiple of .* 16x16 px"):
        load_model("toy", random_seed=0, image_size=size)


def test_weights_of_another_size_need_the_image_size(tmp_path: Path) -> None:
    larger = load_model("toy", random_seed=0, image_size=(128, 128))
    path = save_as_safetensors(larger.clip.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="positional_embedding is"):
        load_model("toy", weights=path)
    assert load_model("toy", weights=path, image_size=(64, 64)).encoder().grid == (4, 4)


def test_the_backbone_of_the_paper_is_that_of_open_clip() -> None:
    name = ARCHITECTURES["vit_b_16_plus_240"][0]
    assert isinstance(name, str)
    config = open_clip.get_model_config(name)
    assert config["embed_dim"] == 640
    vision = config["vision_cfg"]
    assert (vision["image_size"], vision["patch_size"], vision["width"], vision["layers"]) == (240, 16, 896, 12)


def test_a_configuration_file_gives_architecture_name_and_statistics(arch: str) -> None:
    model = load_model(arch, random_seed=0)
    assert (model.architecture, model.mean, model.std) == ("small", (0.5,) * 3, (0.25,) * 3)
    assert model.encoder().width == 16


def test_a_configuration_file_without_statistics_gets_those_of_clip(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"model_cfg": CONFIG}))
    model = load_model(str(path), random_seed=0)
    assert (model.mean, model.std) == (CLIP_MEAN, CLIP_STD)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    message = refusal("vit_giant", random_seed=0)
    assert '"vit_giant" is neither a configuration file nor an architecture' in message
    assert all(name in message for name in ARCHITECTURES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe",
        json.dumps({"vision_cfg": VISION}).encode(),
        json.dumps({"model_cfg": 5}).encode(),
        json.dumps({"model_cfg": None}).encode(),
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": None}).encode(),
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": 0.5}}).encode(),
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5]}}).encode(),
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": "abc"}}).encode(),
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"std": [0.2, 0, 0.2]}}).encode(),
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"std": [0.2, float("nan"), 0.2]}}).encode(),
    ],
)
def test_an_invalid_configuration_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    assert f"{path} is not an open_clip configuration" in refusal(str(path), random_seed=0)


@pytest.mark.parametrize(
    "change", [{"embed_dim": "many"}, {"vision_cfg": None}, {"text_cfg": 3}, {"unheard_of": 1}, {"embed_dim": -1}]
)
def test_a_configuration_that_open_clip_cannot_build_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"model_cfg": {**CONFIG, **change}}))
    assert f"open_clip cannot build {path}" in refusal(str(path), random_seed=0)


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"weights": "w.pt", "pretrained": "t"},
        {"weights": "w.pt", "random_seed": 0},
        {"pretrained": "t", "random_seed": 0},
        {"weights": "w.pt", "pretrained": "t", "random_seed": 0},
    ],
)
def test_weights_come_from_exactly_one_source_and_the_message_names_all_three(sources: dict[str, Any]) -> None:
    message = refusal("toy", **sources)
    assert "exactly one source" in message
    assert all(option in message for option in ("--weights", "--pretrained", "--random-weights"))
    assert "\n" not in message


def test_a_failed_download_names_the_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("export.model.checkpoint.download_pretrained", no_network)
    message = refusal("vit_b_16_plus_240", pretrained="laion400m_e32")
    assert "laion400m_e32 of vit_b_16_plus_240 cannot be downloaded here (no route to host)" in message
    assert "--weights" in message
    assert "\n" not in message


def test_an_unknown_tag_lists_the_known_ones() -> None:
    message = refusal("vit_b_16_plus_240", pretrained="laion9000b")
    assert 'no pretrained tag "laion9000b"' in message
    assert "laion400m_e31" in message
    assert "laion400m_e32" in message


def test_an_architecture_without_pretrained_tags_is_an_error(arch: str) -> None:
    for name in ("toy", arch):
        message = refusal(name, pretrained="laion400m_e32")
        assert "it has none; use --weights" in message


def test_downloaded_weights_are_loaded_with_the_statistics_of_their_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]
) -> None:
    """A stand-in for the paper's backbone, so that nothing large is built."""
    path = tmp_path / "downloaded.pt"
    torch.save(state, path)
    tag = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "url": "x"}
    monkeypatch.setitem(ARCHITECTURES, "small", ("Small", "for this test"))  # type: ignore[misc]
    monkeypatch.setattr("export.model.checkpoint.open_clip.get_model_config", lambda _: CONFIG)
    monkeypatch.setattr("export.model.checkpoint.get_pretrained_cfg", lambda *_: tag)
    asked: list[object] = []

    def download(cfg: object, **options: object) -> str:
        asked.append((cfg, options))
        return str(path)

    monkeypatch.setattr("export.model.checkpoint.download_pretrained", download)
    model = load_model("small", pretrained="some_tag")
    assert_holds(model, state)
    assert (model.mean, model.std) == (tag["mean"], tag["std"])
    assert (model.origin, model.trained, model.sha256) == ("open_clip some_tag", True, sha256_of(path))
    # The hub resolves the paper's tag to the file of the epoch before: it must not be asked first.
    assert asked == [(tag, {"prefer_hf_hub": False})]
