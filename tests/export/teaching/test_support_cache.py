"""export.teaching.support_cache: encoded supports that are kept, found again, refused where damaged, and bounded."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from places import ROOT
from torch import Tensor

from calibration.dataset import Sample, load_dataset
from export.bundle import describe_encoder
from export.errors import ExportError
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.teach import TeachRequest, teach_recipe
from export.teaching.prompts import load_prompts
from export.teaching.support_cache import MAX_BYTES, SupportCache, default_folder, open_cache
from export.teaching.views import SupportFeatures, encode_supports
from runtime.cli import main
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


@pytest.fixture
def graph() -> Counted:
    return toy()


@pytest.fixture
def cache(tmp_path: Path) -> SupportCache:
    return SupportCache(tmp_path / "cache")


def make_sample(folder: Path, name: str, label: str = "hole", *, masked: bool = True, moved: int = 0) -> Sample:
    """A noisy frame, and a mask of a block at row `moved`."""
    pixels = np.random.default_rng(sum(name.encode())).integers(0, 200, (80, 80)).astype(np.uint8)
    mask = np.zeros((80, 80), np.uint8)
    mask[moved : moved + 20, 10:30] = 255
    Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}-{moved}-mask.png")
    return Sample(folder / f"{name}.png", label, name, folder / f"{name}-{moved}-mask.png" if masked else None)


@pytest.fixture
def supports(tmp_path: Path) -> list[Sample]:
    return [make_sample(tmp_path, "a", "good", masked=False), *(make_sample(tmp_path, name) for name in "bc")]


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
    return encode_supports(
        graph, encoder, supports, CLASSES, text, options or FrameOptions(), views=views, seed=seed, cache=cache
    )


def equal(one: SupportFeatures, other: SupportFeatures) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point()) for a, b in pairs)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def tensors(fill: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((3, 2), fill, dtype=torch.float16), "b": torch.arange(4.0)}


def key_of(number: int) -> str:
    return f"{number:064x}"


# ---- what is found again ---------------------------------------------------------------------------------------------


def test_one_more_support_encodes_one_frame_wherever_it_stands(
    graph: Counted, cache: SupportCache, supports: list[Sample], tmp_path: Path
) -> None:
    encode(graph, supports, cache)
    assert (graph.frames_encoded, cache.hits) == (3 * VIEWS, 0)
    more = [make_sample(tmp_path, "new"), *supports]
    warm = encode(graph, more, cache)
    assert (graph.frames_encoded, cache.hits) == (4 * VIEWS, 3)
    assert equal(warm, encode(graph, more, None))


def test_new_text_encodes_nothing_and_changes_the_value_logits_alone(
    graph: Counted, cache: SupportCache, supports: list[Sample]
) -> None:
    first = encode(graph, supports, cache)
    warm = encode(graph, supports, cache, text=TEXT.flip(0))
    assert graph.frames_encoded == 3 * VIEWS
    assert equal(warm, encode(graph, supports, None, text=TEXT.flip(0)))
    assert equal(replace(warm, value=first.value), first)
    assert not torch.equal(warm.value, first.value)


def test_a_copy_of_a_frame_under_another_name_label_and_group_is_the_same_support(
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
def test_what_a_support_depends_on_is_in_its_name(
    name: str, graph: Counted, cache: SupportCache, supports: list[Sample], tmp_path: Path
) -> None:
    encode(graph, supports, cache)
    before = len(entries(cache.folder))
    CHANGES[name](graph, supports, cache, tmp_path)
    assert cache.hits == 0
    assert len(entries(cache.folder)) == before + 1


def test_white_level_counts_where_it_changes_pixels(graph: Counted, cache: SupportCache, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (80, 80)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    support = [Sample(tmp_path / "deep.png", "good", "deep", None)]
    encode(graph, support, cache, options=FrameOptions(white_level=4095))
    other = encode(graph, support, cache, options=FrameOptions(white_level=8191))
    assert cache.hits == 0
    assert equal(other, encode(graph, support, None, options=FrameOptions(white_level=8191)))


@pytest.mark.parametrize("kind", ["weights", "redundancy", "input size", "half precision"])
def test_another_encoder_finds_nothing(kind: str, graph: Counted, cache: SupportCache, supports: list[Sample]) -> None:
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


def test_a_new_version_of_the_views_finds_nothing(
    graph: Counted, cache: SupportCache, supports: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(graph, supports, cache)
    monkeypatch.setattr("export.teaching.views.VIEWS_VERSION", 999)
    encode(graph, supports, cache)
    assert cache.hits == 0


# ---- files that are not what they should be --------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "one bit": lambda path, _: flip_last_byte(path),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path, _: path.write_bytes(b""),
    "no safetensors": lambda path, _: path.write_bytes(b"\xff" * 200),
    "too large": lambda path, _: path.write_bytes(path.read_bytes() + bytes(10_000)),
    "of another support": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_said_encoded_again_and_replaced(
    name: str, graph: Counted, cache: SupportCache, supports: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    cold = encode(graph, supports, cache)
    damaged, other, _ = entries(cache.folder)
    whole = damaged.read_bytes()
    DAMAGES[name](damaged, other)
    assert equal(encode(graph, supports, cache), cold)
    assert graph.frames_encoded == 4 * VIEWS
    assert damaged.read_bytes() == whole
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(damaged) in caplog.text


@pytest.mark.parametrize(
    "written",
    [
        {"a": torch.ones(3, 2)},
        {"a": torch.ones(3, 2), "b": torch.arange(4.0)},
        {"a": torch.ones(2, 3, dtype=torch.float16), "b": torch.arange(4.0)},
        {"a": torch.ones(3, 2).to(torch.float8_e4m3fn), "b": torch.arange(4.0)},
        {"a": torch.ones(0, 2, dtype=torch.float16), "b": torch.arange(4.0)},
        {**tensors(), "c": torch.ones(1)},
    ],
    ids=["missing", "type", "shape", "eight bits", "nothing in it", "more"],
)
def test_an_entry_of_another_layout_is_not_read(written: dict[str, Tensor], cache: SupportCache) -> None:
    cache.write(KEY, written)
    assert cache.read(KEY, LAYOUT) is None
    cache.write(KEY, tensors())
    found = cache.read(KEY, LAYOUT)
    assert found is not None
    assert torch.equal(found["b"], torch.arange(4.0))


def test_what_was_never_written_is_absent_without_a_word(cache: SupportCache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.read(KEY, LAYOUT) is None
    assert caplog.records == []


# ---- room ------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first_and_nothing_else_does(cache: SupportCache) -> None:
    kept = cache.folder / "notes.txt"
    kept.write_text("not an entry")
    (cache.folder / "f.safetensors").write_bytes(bytes(5000))
    cache.write(key_of(0), tensors())
    size = entries(cache.folder)[0].stat().st_size
    cache.max_bytes = 3 * size + 1
    for number in range(1, 3):
        cache.write(key_of(number), tensors())
    for number in range(3):  # last used long ago, in this order
        os.utime(cache.folder / f"{key_of(number)}.safetensors", (1000 + number, 1000 + number))
    assert cache.read(key_of(0), LAYOUT) is not None
    cache.write(key_of(3), tensors())
    assert [cache.read(key_of(number), LAYOUT) is not None for number in range(4)] == [True, False, True, True]
    assert kept.read_text() == "not an entry"
    assert (cache.folder / "f.safetensors").stat().st_size == 5000


def test_the_bound_holds_after_every_write(cache: SupportCache) -> None:
    cache.max_bytes = 2000
    for number in range(20):
        cache.write(key_of(number), tensors())
        assert 0 < sum(path.stat().st_size for path in entries(cache.folder)) <= 2000
    assert cache.read(key_of(19), LAYOUT) is not None


def test_an_entry_larger_than_the_bound_is_not_kept_and_displaces_nothing(cache: SupportCache) -> None:
    cache.write(key_of(0), tensors())
    cache.max_bytes = 1000
    cache.write(key_of(1), {"a": torch.ones(1000)})
    assert [path.stem for path in entries(cache.folder)] == [key_of(0)]


def test_one_entry_is_held_at_a_time(graph: Counted, supports: list[Sample], tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    class Watched(SupportCache):
        def read(self, key, layout):  # type: ignore[no-untyped-def]
            held.append(sum(reference() is not None for reference in alive))
            found = super().read(key, layout)
            if found is not None:
                alive.extend(weakref.ref(tensor) for tensor in found.values())
            return found

    encode(graph, supports, SupportCache(tmp_path / "cache"))
    encode(graph, supports, Watched(tmp_path / "cache"))
    assert held == [0, 0, 0]
    assert len(alive) == 15


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_the_default_lies_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened = open_cache(None)
    assert opened is not None
    assert (opened.folder, opened.max_bytes) == (tmp_path / "xdg/sem-clip/supports", MAX_BYTES)
    assert opened.folder.is_dir()


def test_none_is_no_cache() -> None:
    assert open_cache("none") is open_cache("NONE") is None
    with pytest.raises(ExportError, match="--support-cache is empty"):
        open_cache("")


def test_a_folder_that_cannot_be_written_is_an_error_if_named_and_else_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExportError, match=r"cannot be kept in .*file.*--support-cache none"):
        open_cache(str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_cache(None) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is read-only to this user")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(ExportError, match="Permission denied"):
        SupportCache(tmp_path / "cache")


def test_a_disk_that_is_mounted_read_only_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(ExportError, match="Read-only file system"):
        SupportCache(tmp_path / "cache")


def test_a_user_without_a_home_folder_gets_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("export.teaching.support_cache.default_folder", lambda: Path("~/.cache/sem-clip/supports"))
    assert open_cache(None) is None
    assert "no home folder" in caplog.text
    assert not Path("~").exists()


def test_a_disk_that_fills_is_one_warning_and_teaching_goes_on(
    graph: Counted,
    cache: SupportCache,
    supports: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("export.teaching.support_cache.write_atomically", full)
    assert equal(encode(graph, supports, cache), encode(graph, supports, None))
    assert [record.getMessage() for record in caplog.records] == [
        f"encoded supports are no longer kept in {cache.folder}: No space left on device"
    ]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        cache = SupportCache(tmp_path / "cache")
        cache.write(KEY, tensors())
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (cache.folder, *entries(cache.folder))]
    assert modes == [0o750, 0o640]


WRITER = """
import sys
from pathlib import Path
import torch
from export.support_cache import SupportCache
layout = {"a": ((1000,), torch.float32)}
cache = SupportCache(Path(sys.argv[1]), 25_000)
for number in range(150):
    key = f"{number % 9:064x}"
    found = cache.read(key, layout)
    assert found is None or torch.equal(found["a"], torch.full((1000,), float(number % 9)))
    cache.write(key, {"a": torch.full((1000,), float(number % 9))})
"""


def test_two_processes_share_a_folder_and_remove_each_others_entries(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "cache")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert names
    assert all(len(name) == 64 + len(".safetensors") for name in names)


# ---- teaching --------------------------------------------------------------------------------------------------------


@pytest.fixture
def request_(toy_frames: Path) -> TeachRequest:
    dataset = load_dataset(toy_frames)
    return TeachRequest(dataset, load_prompts(), shots=2, views=2)


def test_a_recipe_is_the_same_bytes_without_a_cache_with_a_cold_and_with_a_warm_one(
    graph: Counted, cache: SupportCache, request_: TeachRequest, capsys: Capture
) -> None:
    model = load_model("toy", random_seed=0)
    recipes = [teach_recipe(model, graph, request_, Stages(), kept) for kept in (None, cache, cache)]
    assert recipes[0].to_bytes() == recipes[1].to_bytes() == recipes[2].to_bytes()
    assert graph.frames_encoded == 2 * 14 * 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("encode 14 x 2 views")]
    assert [line.partition(" s   ")[2] for line in said] == [
        "",
        f"0 of 14 supports from {cache.folder}",
        f"14 of 14 supports from {cache.folder}",
    ]


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


def test_a_named_folder_that_cannot_be_written_is_refused_before_encoding(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    words = ["teach", str(toy_bundle), "--data", str(toy_frames), "--shots", "2", "--out", str(tmp_path / "a")]
    assert main([*words, "--support-cache", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: encoded supports cannot be kept in")
    assert "load encoder" not in said
