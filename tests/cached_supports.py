"""Supports of the toy encoder and entries of a cache, for tests of the support cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration.dataset import Sample
from export.bundle import describe_encoder
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.teaching.support_cache import SupportCache
from export.teaching.support_pixels import read_supports
from export.teaching.views import SupportFeatures, encode_supports
from runtime.recipe import FrameOptions

CLASSES = ("good", "hole", "other")

VIEWS = 3

TEXT = torch.nn.functional.normalize(torch.randn(2, 24, generator=torch.Generator().manual_seed(0)), dim=-1)

LAYOUT = {"a": ((3, 2), torch.float16), "b": ((4,), torch.float32)}

KEY = "0" * 64

Capture = pytest.CaptureFixture[str]


class Counted(SemClipGraph):
    """The toy graph, which counts the frames that it encodes."""

    frames_encoded = 0

    def encode(self, frames: Tensor):  # type: ignore[no-untyped-def]
        self.frames_encoded += len(frames)
        return super().encode(frames)


def toy(seed: int = 0, **options: object) -> Counted:
    return Counted(load_model("toy", random_seed=seed).encoder(), **options)  # type: ignore[arg-type]


def make_sample(folder: Path, name: str, label: str = "hole", *, masked: bool = True, moved: int = 0) -> Sample:
    """A noisy frame, and a mask of a block at row `moved`."""
    pixels = np.random.default_rng(sum(name.encode())).integers(0, 200, (80, 80)).astype(np.uint8)
    mask = np.zeros((80, 80), np.uint8)
    mask[moved : moved + 20, 10:30] = 255
    Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}-{moved}-mask.png")
    return Sample(folder / f"{name}.png", label, name, folder / f"{name}-{moved}-mask.png" if masked else None)


def encode(
    graph: Counted,
    supports: Sequence[Sample],
    cache: SupportCache | None,
    *,
    text: Tensor = TEXT,
    seed: int = 0,
    views: int = VIEWS,
    options: FrameOptions | None = None,
    weights: int = 0,
) -> SupportFeatures:
    encoder = describe_encoder(load_model("toy", random_seed=weights), graph)
    read = read_supports(supports, encoder, options or FrameOptions(), seed)
    return encode_supports(graph, encoder, read, CLASSES, text, views=views, seed=seed, cache=cache)


def equal(one: SupportFeatures, other: SupportFeatures) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point()) for a, b in pairs)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def tensors(fill: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((3, 2), fill, dtype=torch.float16), "b": torch.arange(4.0)}


def key_of(number: int) -> str:
    return f"{number:064x}"
