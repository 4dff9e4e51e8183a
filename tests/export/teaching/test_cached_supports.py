"""encode_supports with a cache: what is found again, and equal recipes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_supports import (
    TEXT,
    VIEWS,
    Capture,
    Counted,
    encode,
    entries,
    equal,
    make_sample,
    toy,
)
from numpy.typing import NDArray
from PIL import Image

from calibration.dataset import Sample, load_dataset
from export.model.checkpoint import load_model
from export.progress import Stages
from export.teach import TeachRequest, teach_recipe
from export.teaching.prompts import load_prompts
from export.teaching.support_cache import SupportCache, default_folder
from runtime.cli import main
from runtime.recipe import FrameOptions


@pytest.fixture
def graph() -> Counted:
    return toy()


@pytest.fixture
def cache(tmp_path: Path) -> SupportCache:
    return SupportCache(tmp_path / "cache")


@pytest.fixture
def supports(tmp_path: Path) -> list[Sample]:
    return [make_sample(tmp_path, "a", "good", masked=False), *(make_sample(tmp_path, name) for name in "bc")]


def test_one_more_support_encodes_one_frame_at_any_position(
    graph: Counted, cache: SupportCache, supports: list[Sample], tmp_path: Path
) -> None:
    encode(graph, supports, cache)
    assert (graph.frames_encoded, cache.hits) == (3 * VIEWS, 0)
    more = [make_sample(tmp_path, "new"), *supports]
    warm = encode(graph, more, cache)
    assert (graph.frames_encoded, cache.hits) == (4 * VIEWS, 3)
    assert equal(warm, encode(graph, more, None))


def test_new_text_encodes_nothing_and_changes_value_logits_only(
    graph: Counted, cache: SupportCache, supports: list[Sample]
) -> None:
    first = encode(graph, supports, cache)
    warm = encode(graph, supports, cache, text=TEXT.flip(0))
    assert graph.frames_encoded == 3 * VIEWS
    assert equal(warm, encode(graph, supports, None, text=TEXT.flip(0)))
    assert equal(replace(warm, value=first.value), first)
    assert not torch.equal(warm.value, first.value)


def test_a_copied_frame_with_other_name_label_and_group_is_the_same_support(
    graph: Counted, cache: SupportCache, supports: list[Sample], tmp_path: Path
) -> None:
    encode(graph, supports, cache)
    shutil.copy(supports[1].path, tmp_path / "copy.png")
    found = encode(graph, [Sample(tmp_path / "copy.png", "other", "elsewhere", supports[1].mask)], cache)
    assert cache.hits == 1
    assert found.labels.tolist() == [2] * VIEWS


Change = Callable[[Counted, Sequence[Sample], SupportCache, Path], object]


def brighter(path: Path) -> None:
    pixels: NDArray[np.uint8] = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


CHANGES: dict[str, Change] = {
    "seed": lambda graph, supports, cache, _: encode(graph, supports[1:2], cache, seed=1),
    "views": lambda graph, supports, cache, _: encode(graph, supports[1:2], cache, views=VIEWS + 1),
    "ignored rows": lambda graph, supports, cache, _: encode(
        graph, supports[1:2], cache, options=FrameOptions(ignore_top=3)
    ),
    "mask": lambda graph, supports, cache, folder: encode(graph, [make_sample(folder, "b", moved=40)], cache),
    "no mask": lambda graph, supports, cache, _: encode(graph, [replace(supports[1], mask=None)], cache),
    "pixels": lambda graph, supports, cache, _: (brighter(supports[1].path), encode(graph, supports[1:2], cache)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_cache_key_changes_with_everything_a_support_depends_on(
    name: str, graph: Counted, cache: SupportCache, supports: list[Sample], tmp_path: Path
) -> None:
    encode(graph, supports, cache)
    before = len(entries(cache.folder))
    CHANGES[name](graph, supports, cache, tmp_path)
    assert cache.hits == 0
    assert len(entries(cache.folder)) == before + 1


def test_white_level_changes_the_key_if_it_changes_pixels(graph: Counted, cache: SupportCache, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (80, 80)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    support = [Sample(tmp_path / "deep.png", "good", "deep", None)]
    encode(graph, support, cache, options=FrameOptions(white_level=4095))
    other = encode(graph, support, cache, options=FrameOptions(white_level=8191))
    assert cache.hits == 0
    assert equal(other, encode(graph, support, None, options=FrameOptions(white_level=8191)))


@pytest.mark.parametrize("kind", ["weights", "redundancy", "input size", "half precision"])
def test_another_encoder_finds_no_entry(kind: str, graph: Counted, cache: SupportCache, supports: list[Sample]) -> None:
    encode(graph, supports, cache)
    other = {
        "weights": lambda: toy(1),
        "redundancy": lambda: toy(redundancy="class_mean"),
        "input size": lambda: toy(input_size=(80, 80)),
        "half precision": toy,
    }[kind]()
    if kind == "half precision":
        other.encoder = other.encoder.half_precision(torch.zeros(1, 64, 64))
    weights = 1 if kind == "weights" else 0
    warm = encode(other, supports, cache, weights=weights)
    assert (cache.hits, other.frames_encoded) == (0, 3 * VIEWS)
    assert equal(warm, encode(other, supports, None, weights=weights))


def test_a_new_version_of_the_views_finds_no_entry(
    graph: Counted, cache: SupportCache, supports: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(graph, supports, cache)
    monkeypatch.setattr("export.teaching.views.VIEWS_VERSION", 999)
    encode(graph, supports, cache)
    assert cache.hits == 0


@pytest.fixture
def request_(toy_frames: Path) -> TeachRequest:
    dataset = load_dataset(toy_frames)
    return TeachRequest(dataset, load_prompts(), shots=2, views=2)


@pytest.mark.slow
def test_recipes_are_equal_without_cache_with_a_cold_and_with_a_warm_one(
    graph: Counted, cache: SupportCache, request_: TeachRequest, capsys: Capture
) -> None:
    model = load_model("toy", random_seed=0)
    recipes = [teach_recipe(model, graph, request_, Stages(), kept) for kept in (None, cache, cache)]
    assert recipes[0].to_bytes() == recipes[1].to_bytes() == recipes[2].to_bytes()
    assert graph.frames_encoded == 2 * 14 * 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("encode 14 supports x 2 views")]
    assert [line.partition(" s   ")[2] for line in said] == [
        "",
        f"0 of 14 supports from {cache.folder}",
        f"14 of 14 supports from {cache.folder}",
    ]


@pytest.mark.slow
def test_teach_uses_the_named_folder(toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["teach", str(toy_bundle), "--data", str(toy_frames), "--shots", "2", "--views", "1"]
    kept = ["--support-cache", str(tmp_path / "cache")]
    assert main([*words, *kept, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert len(entries(tmp_path / "cache")) == 14
    capsys.readouterr()
    assert main([*words, *kept, "--out", str(tmp_path / "b.safetensors")]) == 0
    assert "14 of 14 supports from" in capsys.readouterr().err
    before = len(entries(default_folder()))
    assert main([*words, "--support-cache", "none", "--out", str(tmp_path / "c.safetensors")]) == 0
    assert len(entries(default_folder())) == before
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}) == 1


def test_an_unwritable_named_folder_is_refused_before_encoding(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    words = ["teach", str(toy_bundle), "--data", str(toy_frames), "--shots", "2", "--out", str(tmp_path / "a")]
    assert main([*words, "--support-cache", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: encoded supports cannot be kept in")
    assert "load encoder" not in said
