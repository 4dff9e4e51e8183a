"""export.model.checkpoint: weights files, and everything that can be wrong with them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TEXT, assert_holds, refusal, save_as_safetensors, weights_of, write_arch
from torch import Tensor

from export.model.checkpoint import TRAINED_TOKENS, load_model
from runtime.files import sha256_of


@pytest.fixture
def arch(tmp_path: Path) -> str:
    return write_arch(tmp_path)


@pytest.fixture
def state(arch: str) -> dict[str, Tensor]:
    return weights_of(arch)


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def save_as_state_dict(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "w.pt")
    return folder / "w.pt"


def save_as_training_checkpoint(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"epoch": 32, "name": "run", "state_dict": prefixed(state)}, folder / "epoch_32.pt")
    return folder / "epoch_32.pt"


@pytest.mark.parametrize("save", [save_as_safetensors, save_as_state_dict, save_as_training_checkpoint])
def test_weights_are_the_same_after_a_file(
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
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, arch: str, content: Any) -> None:
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


def test_a_file_may_hold_rows_of_trained_tokens_only(tmp_path: Path, arch: str, state: dict[str, Tensor]) -> None:
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
def test_invalid_trained_tokens_are_refused(
    tmp_path: Path, arch: str, state: dict[str, Tensor], tokens: list[float], rows: int, says: str
) -> None:
    held = state["token_embedding.weight"][:rows]
    kind = torch.float32 if any(isinstance(token, float) for token in tokens) else torch.int32
    path = with_trained_tokens(state, tmp_path, torch.tensor(tokens, dtype=kind), held)
    assert says in refusal(arch, weights=path)


def test_a_pretrained_tower_in_the_shared_folder_loads(shared: Path) -> None:
    folder = shared / "weights/deit-tiny"
    if not folder.is_dir():
        pytest.skip("the pretrained tower is not there")
    model = load_model(str(folder / "open_clip_config.json"), weights=folder / "visual.safetensors")
    assert (model.architecture, model.has_text, model.trained) == ("deit-tiny", False, True)
    assert model.mean == (0.485, 0.456, 0.406)
