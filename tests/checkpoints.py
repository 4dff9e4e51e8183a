"""A small architecture, its weights, and checks of loaded models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.errors import CheckpointError
from export.model.checkpoint import LoadedModel, load_model

VISION = {"image_size": 32, "layers": 4, "width": 16, "head_width": 8, "patch_size": 16}

TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}

CONFIG = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}


def write_arch(folder: Path) -> str:
    """A small architecture in a configuration file of its own."""
    path = folder / "small" / "open_clip_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    return str(path)


def weights_of(arch: str) -> dict[str, Tensor]:
    """Weights that fit an architecture."""
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


def save_as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"
