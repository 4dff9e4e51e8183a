"""Frames in every form they are handed over, the host program's settings, and what is said about doubtful ones."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import make_recipe, write_bundle
from pictures import encoded, made, reason, tags_of
from PIL import Image, ImageFile, PngImagePlugin
from places import ROOT, TESTS
from predictions import frame, make_prediction

from runtime import FrameError, FrameOptions, Predictor
from runtime.cli import main
from runtime.frames import describe, page_count, read_frame

RNG = np.random.default_rng(1)
GREY = RNG.integers(0, 256, (40, 100), dtype=np.uint8)
FORMS = ("PNG", "JPEG", "BMP", "TIFF")


@pytest.fixture
def predictor(tmp_path: Path) -> Iterator[Predictor]:
    with Predictor(write_bundle(tmp_path / "bundle"), backend="fake") as opened:
        yield opened


class Named:
    """A path of the host's own kind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class Unseekable(io.RawIOBase):
    """A pipe, as far as a reader can tell."""

    def __init__(self, data: bytes) -> None:
        self._left = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._left.readinto(memoryview(buffer)[:1000])


# Forms


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_is_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.img"
    path.write_bytes(encoded(GREY, form))
    expected = read_frame(path)
    data = path.read_bytes()
    for source in (str(path), Named(path), data, bytearray(data), io.BytesIO(data), Unseekable(data)):
        np.testing.assert_array_equal(read_frame(source), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_frame(file), expected)
        assert describe(file) == str(path)
        assert reason(file) == "is empty (0 bytes)"  # it was read to its end
    with path.open("rb") as file, io.BufferedReader(file, 10) as buffered:  # type: ignore[type-var]
        np.testing.assert_array_equal(read_frame(buffered), expected)


def test_a_predictor_takes_them_in_every_call(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(encoded(GREY))
    wanted = predictor(GREY).score
    data = path.read_bytes()
    forms = [lambda: Named(path), lambda: data, lambda: io.BytesIO(data), lambda: Unseekable(data)]
    assert [predictor(form()).score for form in forms] == [wanted] * 4
    assert [result.score for result in predictor.predict([form() for form in forms])] == [wanted] * 4
    assert [result.score for result in predictor.stream(form() for form in forms)] == [wanted] * 4
    assert [predictor.submit(form()).result(20).score for form in forms] == [wanted] * 4
    assert predictor(Named(path)).source == predictor(Named(path)).path == str(path)
    assert predictor(data).source == "frame"
    assert predictor(data).path is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (io.StringIO("P"), "is a file object that gives str; open it in binary mode"),
        (b"", "is empty (0 bytes)"),
        (b"frame.png", "is not a readable PNG, JPEG, BMP, TIFF file"),
        (io.BytesIO(b"GIF89a"), "is not a readable PNG, JPEG, BMP, TIFF file"),
    ],
)
def test_unreadable_content_is_refused(source: Any, said: str) -> None:
    assert reason(source) == said


def test_a_file_object_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            return bytes(1 << 20)

    monkeypatch.setattr("runtime.frames.MAX_FILE_BYTES", 5 << 20)
    assert reason(Endless()) == "is a file object of more than 5 MB; name the file"


@pytest.mark.parametrize("mode", ["La", "LAB"])
def test_a_pillow_image_that_cannot_be_meant_is_refused_by_its_mode(mode: str) -> None:
    said = f"is a Pillow image of mode {mode}, which is not read; convert it to L or RGB"
    assert reason(Image.new(mode, (8, 8))) == said


def test_a_pillow_image_that_was_closed_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(GREY))
    image = Image.open(tmp_path / "a.png")
    image.close()
    assert reason(image) == "is a Pillow image that was closed before it was used"


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_bmp_that_ends_early_is_refused(mode: str) -> None:
    data = encoded(Image.fromarray(GREY).convert(mode), "BMP")
    np.testing.assert_array_equal(
        read_frame(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"))
    )
    assert reason(data[:-1]).startswith("is damaged or truncated (its pixels end after")


def test_a_run_length_bmp_is_refused_by_name() -> None:
    data = bytearray(encoded(GREY, "BMP"))
    data[30] = 1
    assert reason(bytes(data)) == "is a run-length coded BMP, which is not read; save it as PNG or TIFF"


# The host program's settings


CUT = [encoded(GREY, "PNG")[:-600], encoded(GREY, "JPEG")[:-600], encoded(GREY, "BMP")[:-600]]
CUT += [encoded(GREY, "TIFF")[:300], encoded(GREY, "TIFF", compression="tiff_lzw")[:-900]]


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (ImageFile, "LOAD_TRUNCATED_IMAGES", True),
        (ImageFile, "MAXBLOCK", 1),
        (Image, "MAX_IMAGE_PIXELS", 10),
        (Image, "MAX_IMAGE_PIXELS", None),
        (Image, "ID", []),
        (Image, "OPEN", {}),
        (PngImagePlugin, "MAX_TEXT_MEMORY", 1),
        (PngImagePlugin, "MAX_TEXT_CHUNK", 1),
    ],
)
def test_pillows_settings_change_nothing(
    module: Any, name: str, value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 10_000, zip=True)
    files = [encoded(GREY, form) for form in FORMS] + [encoded(GREY, "PNG", pnginfo=text)]
    files += [encoded(GREY, "TIFF", compression="tiff_lzw"), encoded(Image.fromarray(GREY).convert("P"), "PNG")]
    before = [read_frame(data) for data in files]
    refused = [reason(data) for data in CUT]
    monkeypatch.setattr(module, name, value)
    for data, pixels in zip(files, before, strict=True):
        np.testing.assert_array_equal(read_frame(data), pixels)
    assert [reason(data) for data in CUT] == refused
    for number, data in enumerate(files):
        (tmp_path / f"{number}.img").write_bytes(data)
        assert page_count(tmp_path / f"{number}.img") == 1


def test_frames_change_none_of_pillows_settings() -> None:
    def settings() -> list[object]:
        return [ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, Image.MAX_IMAGE_PIXELS, sorted(Image.OPEN)]

    before, seen, stop = settings(), [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(settings())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for data in [encoded(GREY, form) for form in FORMS] * 5:
        read_frame(data)
    stop.set()
    watcher.join()
    assert [at for at in seen if at != before] == []


def test_a_large_frame_within_the_limit_is_no_bomb() -> None:
    data = encoded(np.zeros((9600, 9600), np.uint8), compress_level=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_frame(data).shape == (9600, 9600)


@pytest.mark.slow
def test_a_hundred_megapixels_of_16_bits_are_read_and_drawn_within_a_gigabyte(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from dataclasses import replace
from PIL import Image
sys.path[:0] = [sys.argv[2], str(__import__("pathlib").Path(sys.argv[2]).parent)]
from predictions import make_prediction
from runtime.frames import read_frame
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert read_frame(sys.argv[1]).shape == (10000, 10000)
result = replace(make_prediction(), path=sys.argv[1], frame_size=(10000, 10000), ignored_rows=(0, 9))
assert result.overlay().size == (10000, 10000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    if sys.platform != "linux":
        pytest.skip("memory is counted in other units")
    path = tmp_path / "large.png"
    path.write_bytes(encoded(np.zeros((10000, 10000), np.uint16), compress_level=9))
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path), str(TESTS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 1000


# What may not have been meant


def test_an_orientation_tag_is_never_applied_and_gives_a_warning(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("PNG", "JPEG", "TIFF"):
        path = tmp_path / f"turned.{form}"
        path.write_bytes(encoded(GREY, form, exif=exif))
        caplog.clear()
        assert read_frame(path).shape == (40, 100)
        assert caplog.messages == [
            f"{path}: its orientation tag (6) is not applied: pixels are judged and counted as stored"
        ]
        result = predictor(path)
        assert result.frame_size == (40, 100)
        assert result.warnings == (caplog.messages[0].removeprefix(f"{path}: "),)
        assert result.overlay().size == (100, 40)
        assert read_frame(encoded(GREY, form)).shape == (40, 100)
        assert len(caplog.messages) == 1


def sources_of(values: np.ndarray, form: str) -> Any:
    if form == "array":
        return values
    if form == "image":
        return Image.fromarray(values)
    return encoded(values, form)


@pytest.mark.parametrize("form", ["array", "image", "PNG", "TIFF"])
def test_a_frame_that_hardly_uses_its_depth_gets_a_warning(form: str, caplog: pytest.LogCaptureFixture) -> None:
    twelve = RNG.integers(0, 4096, (40, 50)).astype(np.uint16)
    twelve[0, :2] = 0, 4095
    read_frame(sources_of(twelve, form), name="lot7.tif")
    assert caplog.messages == [
        "lot7.tif: its values lie in [0, 4095], under 1/8 of the range up to 65535 (white); "
        "if the tool stores fewer bits, set white_level"
    ]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    read_frame(sources_of(twelve, form), FrameOptions(white_level=4095))
    enough = twelve.copy()
    enough[0, :2] = 0, 8192
    read_frame(sources_of(enough, form))
    assert caplog.messages == []


def test_hardly_used_ranges_give_warnings_except_for_8_bits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    read_frame(np.full((8, 8), 60_000, np.uint16))
    read_frame(np.full((8, 8), 0.1))
    read_frame(made((tags_of((8, 8), bits=12), [b"\x12\xc1\x2c" * 32])))  # 300 throughout
    assert [message.split("range up to ")[1].split(" ")[0] for message in caplog.messages] == ["65535", "1", "4095"]
    caplog.clear()
    for form in FORMS:
        read_frame(encoded(np.full((8, 8), 3, np.uint8), form))
    assert caplog.messages == []


def test_the_white_level_of_a_predictor_replaces_the_recipes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", recipe=make_recipe(frame=FrameOptions(ignore_top=1)))
    eight = np.arange(4096, dtype=np.uint16).reshape(64, 64) >> 4
    with Predictor(tmp_path / "bundle", backend="fake", white_level=4095) as opened:
        result = opened(eight * 16)
        assert result.frame_options == FrameOptions(ignore_top=1, white_level=4095)
        assert result.warnings == ()
        assert "warnings" not in result.to_dict()
        opened.use(make_recipe())
        assert opened(eight).frame_options.white_level == 4095
        assert opened(eight // 16).warnings[0].startswith("its values lie in [0, 15]")
        assert opened(eight // 16).to_dict()["warnings"] == list(opened(eight // 16).warnings)
    with pytest.raises(ValueError, match="white_level must lie in"):
        Predictor(tmp_path / "bundle", backend="fake", white_level=70_000)


@pytest.mark.parametrize(("arguments", "warned"), [([], True), (["--white-level", "4095"], False)])
def test_predict_takes_a_white_level(arguments: list[str], warned: bool, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    path, out = tmp_path / "a.tif", tmp_path / "out.jsonl"
    tifffile.imwrite(path, np.arange(4096, dtype=np.uint16).reshape(64, 64))
    assert (
        main(["predict", str(tmp_path / "bundle"), str(path), "--backend", "fake", "--json", str(out), *arguments]) == 0
    )
    assert ("warnings" in json.loads(out.read_text())) == warned


@pytest.mark.parametrize(
    ("option", "value"),
    [("--white-level", "0"), ("--white-level", "65536"), ("--white-level", "x"), ("--threads", "1025")],
)
def test_predict_refuses_numbers_out_of_range(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path), "a.png", option, value])
    assert f"error: argument {option}: " in capsys.readouterr().err


# Overlays


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_an_overlay_of_a_file_that_has_changed_is_refused(suffix: str, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(GREY).save(path)
    result = predictor(path)
    before = result.overlay()
    Image.fromarray(GREY).save(path)  # written again, and the same
    os.utime(path, (1, 1))
    np.testing.assert_array_equal(np.asarray(result.overlay()), np.asarray(before))
    changed = GREY.copy()
    changed[17, 31] ^= 1
    Image.fromarray(changed).save(path)
    with pytest.raises(FrameError) as caught:
        result.overlay()
    assert str(caught.value) == f"{path}: has changed since it was judged; predict it again"
    for again in (path, str(path)):
        with pytest.raises(FrameError, match="has changed since it was judged"):
            result.overlay(again)
    result.overlay(GREY)  # what the caller hands over is the caller's


def test_an_overlay_is_the_same_painted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    result = make_prediction()
    whole = np.asarray(result.overlay(frame()))
    for pixels in (1, 500, 5000):
        monkeypatch.setattr("runtime.prediction._PAINTED", pixels)
        np.testing.assert_array_equal(np.asarray(result.overlay(frame())), whole)


def test_a_tiff_that_pillow_turns_when_it_is_loaded_gets_a_warning(tmp_path: Path, predictor: Predictor) -> None:
    path = tmp_path / "turned.tif"
    Image.fromarray(GREY).save(path, tiffinfo={274: 3})
    with Image.open(path) as image:
        result = predictor(image)
    assert result.warnings[0].startswith("Pillow turned it by its orientation tag (3)")
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_frame(image), read_frame(path)[::-1, ::-1])
