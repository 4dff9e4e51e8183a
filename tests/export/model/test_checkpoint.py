"""export.model.checkpoint: architectures, weights, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.errors import CheckpointError
from export.model.checkpoint import ARCHITECTURES, CLIP_MEAN, CLIP_STD, TRAINED_TOKENS, LoadedModel, load_model
from runtime.files import sha256_of

VISION = {"image_size": 32, "layers": 4, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture
def arch(tmp_path: Path) -> str:
    """A small architecture in a configuration file of its own."""
    path = tmp_path / "small" / "open_clip_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    return str(path)


@pytest.fixture
def state(arch: str) -> dict[str, Tensor]:
    """Weights that fit it."""
    model = load_model(arch, random_seed=7)
    return {key: value.clone() for key, value in model.clip.state_dict().items()}


def assert_holds(model: LoadedModel, state: dict[str, Tensor], *, text: bool = True) -> None:
    found = model.clip.state_dict()
    assert model.has_text is text
    for key, value in state.items():
        if key.startswith("visual.") or (text and key != "logit_scale"):
            assert torch.equal(found[key], value), key


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(*args, **options)
    return str(caught.value)


# ---- random weights and architectures --------------------------------------------------------------------------------


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


def test_random_state_of_the_caller_is_left_alone(arch: str) -> None:
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
def test_image_sizes_that_cannot_be(size: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError, match=rf"image size {size[0]}x{size[1]} cannot be: a multiple of .* 16x16 px"):
        load_model("toy", random_seed=0, image_size=size)


def test_weights_for_another_size_are_not_fitted_unasked(tmp_path: Path) -> None:
    larger = load_model("toy", random_seed=0, image_size=(128, 128))
    path = save_as_safetensors(larger.clip.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="positional_embedding is"):
        load_model("toy", weights=path)
    assert load_model("toy", weights=path, image_size=(64, 64)).encoder().grid == (4, 4)


def test_the_papers_backbone_is_the_one_of_open_clip() -> None:
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
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
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


# ---- where weights come from -----------------------------------------------------------------------------------------


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


def test_without_network_the_message_names_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_architecture_without_pretrained_weights_says_so(arch: str) -> None:
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


# ---- weights files ---------------------------------------------------------------------------------------------------


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def save_as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def save_as_state_dict(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "w.pt")
    return folder / "w.pt"


def save_as_training_checkpoint(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"epoch": 32, "name": "run", "state_dict": prefixed(state)}, folder / "epoch_32.pt")
    return folder / "epoch_32.pt"


@pytest.mark.parametrize("save", [save_as_safetensors, save_as_state_dict, save_as_training_checkpoint])
def test_weights_make_the_round_trip(
    tmp_path: Path, arch: str, state: dict[str, Tensor], save: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    path = save(state, tmp_path)
    model = load_model(arch, weights=path)
    assert_holds(model, state)
    assert (model.trained, model.origin, model.sha256) == (True, path.name, sha256_of(path))


def test_keys_with_module_prefix_are_read(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
    assert_holds(load_model(arch, weights=save_as_safetensors(prefixed(state), tmp_path)), state)


def test_half_precision_weights_become_float32(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
    halved = {key: value.half() for key, value in state.items()}
    model = load_model(arch, weights=save_as_safetensors(halved, tmp_path))
    assert_holds(model, {key: value.float() for key, value in halved.items()})
    assert {value.dtype for value in model.clip.state_dict().values()} == {torch.float32}


def test_image_tower_alone_has_no_text(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    assert_holds(load_model(arch, weights=save_as_safetensors(visual, tmp_path)), visual, text=False)
    scaled = {**visual, "logit_scale": torch.tensor(4.6), "logit_bias": torch.tensor(0.0)}
    assert not load_model(arch, weights=save_as_state_dict(scaled, tmp_path)).has_text


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, arch: str) -> None:
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    pickle.loads(pickle.dumps(Bomb()))
    assert marker.is_dir(), "the bomb of this test must be a live one"
    marker.rmdir()
    torch.save({"visual.proj": Bomb()}, tmp_path / "modern.pt")
    torch.save({"visual.proj": Bomb()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"visual.proj": Bomb()}))
    for name in ("modern.pt", "old.pt", "bare.pkl"):
        message = refusal(arch, weights=tmp_path / name)
        assert f"{name} cannot be read as safetensors or as a plain state dict" in message
        assert "\n" not in message
        assert not marker.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x08" + b"\0" * 7 + b"{}      "])
def test_damaged_files_are_refused(tmp_path: Path, arch: str, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(arch, weights=path)
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path, arch: str) -> None:
    assert refusal(arch, weights=tmp_path / "absent.pt") == f"there is no weights file {tmp_path / 'absent.pt'}"
    assert "there is no weights file" in refusal(arch, weights=tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(3)])
def test_something_else_than_a_state_dict_is_refused(tmp_path: Path, arch: str, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "does not hold a state dict of tensors" in refusal(arch, weights=tmp_path / "w.pt")


def test_missing_extra_and_misshaped_weights_are_all_listed(
    tmp_path: Path, arch: str, state: dict[str, Tensor]
) -> None:
    del state["visual.proj"]
    del state["token_embedding.weight"]
    state["visual.extra"] = torch.zeros(1)
    state["visual.class_embedding"] = torch.zeros(17)
    message = refusal(arch, weights=save_as_safetensors(state, tmp_path))
    assert "does not fit the architecture" in message
    for fault in (
        "lacks visual.proj",
        "lacks token_embedding.weight",
        "has visual.extra, which the architecture has not",
        "visual.class_embedding is [17], the architecture needs [16]",
    ):
        assert fault in message


def test_a_long_list_of_faults_is_cut_and_counted(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
    renamed = {f"encoder.{key}": value for key, value in state.items()}
    message = refusal(arch, weights=save_as_safetensors(renamed, tmp_path))
    needed = len(state) - 1  # logit_scale is not needed
    assert f"and {needed + len(renamed) - 5} more" in message
    assert len(message) < 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, arch: str, state: dict[str, Tensor], value: float
) -> None:
    state["visual.proj"][0, 0] = value
    assert "not finite" in refusal(arch, weights=save_as_safetensors(state, tmp_path))


def test_weights_of_the_text_tower_are_checked_as_well(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
    state["text_projection"][0, 0] = float("nan")
    assert "not finite" in refusal(arch, weights=save_as_safetensors(state, tmp_path))


def with_trained_tokens(state: dict[str, Tensor], folder: Path, tokens: Tensor, rows: Tensor) -> Path:
    changed = {**state, TRAINED_TOKENS: tokens, "token_embedding.weight": rows}
    return save_as_safetensors(changed, folder)


def test_a_file_may_hold_the_trained_words_alone(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
    tokens = torch.tensor([3, 0, 9], dtype=torch.int32)
    rows = state["token_embedding.weight"][tokens]
    model = load_model(arch, weights=with_trained_tokens(state, tmp_path, tokens, rows.half()))
    assert model.vocabulary == {0, 3, 9}
    table = model.clip.token_embedding.weight
    torch.testing.assert_close(table[tokens], rows, atol=1e-3, rtol=1e-3)
    others = [i for i in range(TEXT["vocab_size"]) if i not in model.vocabulary]
    assert torch.equal(table[others], load_model(arch, random_seed=0).clip.token_embedding.weight[others])
    whole = load_model(arch, weights=save_as_safetensors(state, tmp_path))
    assert whole.vocabulary is None


@pytest.mark.parametrize(
    ("tokens", "rows", "says"),
    [
        ([0, 1, 1], 3, "does not name the rows"),
        ([0, 1], 3, "does not name the rows"),
        ([], 0, "does not name the rows"),
        ([0.0, 1.0], 2, "does not name the rows"),
        ([0, 16], 2, "goes beyond the vocabulary of 16"),
        ([-1, 2], 2, "goes beyond the vocabulary of 16"),
    ],
)
def test_trained_words_that_cannot_be_are_refused(
    tmp_path: Path, arch: str, state: dict[str, Tensor], tokens: list[float], rows: int, says: str
) -> None:
    held = state["token_embedding.weight"][:rows]
    kind = torch.float32 if any(isinstance(token, float) for token in tokens) else torch.int32
    path = with_trained_tokens(state, tmp_path, torch.tensor(tokens, dtype=kind), held)
    assert says in refusal(arch, weights=path)


def test_pretrained_tower_beside_the_project_loads(shared: Path) -> None:
    folder = shared / "weights/deit-tiny"
    if not folder.is_dir():
        pytest.skip("the pretrained tower is not there")
    model = load_model(str(folder / "open_clip_config.json"), weights=folder / "visual.safetensors")
    assert (model.architecture, model.has_text, model.trained) == ("deit-tiny", False, True)
    assert model.mean == (0.485, 0.456, 0.406)
