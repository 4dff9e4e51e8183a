"""Errors and results pass between processes: each one pickles and copies, and comes back as it was."""

from __future__ import annotations

import copy
import importlib
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe
from PIL import Image
from places import ROOT

from runtime import FailedFrame, FrameError, Predictor, SemClipError
from runtime.manifest import load_bundle

SAMPLES: dict[str, tuple[Any, ...]] = {
    "BundleError": ("bundle/", ["one fault", "another"]),
    "RecipeError": ("recipe.safetensors", "a fault"),
    "LotError": ("a.klarf", ["a fault", "another"]),
    "CorrectionError": ("data/", ["a fault"] * 30),
    "DatasetError": ("data/", ["a fault"] * 30),
    "FrameError": ("a.png", "is empty"),
    "ImageMissing": ("a.tif", "is not in images/"),
    "KlarfError": ("a.klarf", "has no column TEST", 3),
    "KlarfIncomplete": ("a.klarf", "has no EndOfFile"),
    "StoreError": ("a.sqlite", "is damaged"),
    "BackendError": ("failed", ["a.png", "b.png"]),
    "GpuError": ("failed", ["a.png"]),
    "OutOfDeviceMemory": ("no room",),
}
"""Arguments of the errors that take other ones than a text."""


def every_error() -> Iterator[type[SemClipError]]:
    """Each subclass there is; of all modules, those that define one are imported."""
    for package in ("runtime", "calibration", "export", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if re.search(r"^class \w+\(\w*(Error|Unavailable)\):", path.read_text(encoding="utf-8"), re.MULTILINE):
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    waiting = [SemClipError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


ERRORS = sorted(set(every_error()), key=lambda kind: kind.__name__)
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": (lambda value, p=p: pickle.loads(pickle.dumps(value, p))) for p in range(2, 6)},
}


@pytest.fixture(params=WAYS)
def again(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """One way to a copy."""
    return WAYS[request.param]


def assert_same(one: Any, other: Any) -> None:
    """The same type and the same values, all the way down."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
        assert one.flags.writeable == other.flags.writeable
    elif isinstance(one, BaseException):
        assert (str(one), one.args) == (str(other), other.args)
        assert vars(one) == vars(other)
    elif is_dataclass(one):
        for part in fields(one):
            assert_same(getattr(one, part.name), getattr(other, part.name))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


def test_the_walk_finds_the_errors_of_all_packages() -> None:
    names = {kind.__name__ for kind in ERRORS}
    assert {"SemClipError", "FrameError", "RecipeError", "GpuError", "DatasetError", "OutputExistsError"} <= names


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_comes_back_with_its_text_and_fields(kind: type[SemClipError], again: Callable[[Any], Any]) -> None:
    error = kind(*SAMPLES.get(kind.__name__, ("what, where and what to do",)))
    try:
        raise error from ValueError(lambda: "a cause that cannot be pickled")
    except SemClipError:
        pass
    assert_same(error, again(error))


def test_notes_come_along(again: Callable[[Any], Any]) -> None:
    error = FrameError("a.png", "is empty")
    error.add_note("of lot 7")
    assert again(error).__notes__ == ["of lot 7"]


def test_results_come_back_as_they_were(fake_bundle: Path, again: Callable[[Any], Any]) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[0, 0], pixels[20:40, 40:60] = 1, 255
    with Predictor(fake_bundle, backend="fake") as predictor:
        result = predictor(pixels)
    before = result.regions
    assert before
    assert_same(result, again(result))
    assert again(result).regions == before
    assert again(result).to_dict() == result.to_dict()


@pytest.mark.parametrize("name", ["failed", "recipe", "manifest", "encoder", "point", "options", "outputs"])
def test_records_come_back_as_they_were(name: str, fake_bundle: Path, again: Callable[[Any], Any]) -> None:
    manifest, recipe = load_bundle(fake_bundle)
    with Predictor(fake_bundle, backend="fake") as predictor:
        outputs = predictor.backend.run(np.zeros((2, 64, 64), np.uint8), recipe)
    value = {
        "failed": FailedFrame("a.png", FrameError("a.png", "is empty")),
        "recipe": make_recipe(calibration={"defect_threshold": {"rule": "youden"}}),
        "manifest": manifest,
        "encoder": make_encoder(),
        "point": recipe.operating_point,
        "options": recipe.frame,
        "outputs": outputs,
    }[name]
    assert_same(value, again(value))


OPENED: list[Predictor] = []


def open_predictor(bundle: Path) -> None:
    """In a worker process: what the message of a Predictor that cannot be pickled advises."""
    OPENED.append(Predictor(bundle, backend="fake"))


def judge(path: Path) -> Any:
    """In a worker process."""
    return OPENED[0](path)


def test_a_bad_frame_in_a_pool_of_processes_is_an_error_and_no_hang(fake_bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    sound = tmp_path / "frame.png"
    Image.new("L", (64, 64), 7).save(sound)
    spawned = get_context("spawn")
    with ProcessPoolExecutor(1, spawned, open_predictor, (fake_bundle,)) as pool:
        with pytest.raises(FrameError, match="is empty") as caught:
            pool.submit(judge, empty).result(120)
        assert caught.value.source == str(empty)
        assert pool.submit(judge, sound).result(120).frame_size == (64, 64)
