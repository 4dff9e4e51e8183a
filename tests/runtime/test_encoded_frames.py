"""Frames as the content of a file with a name: read, judged and drawn as the file itself would be."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import write_bundle
from pictures import encoded, reason

from runtime import EncodedFrame, FrameError, FrameOptions, Predictor
from runtime.frames import describe, page_count, read_frame

GREY = np.random.default_rng(2).integers(0, 256, (40, 100), dtype=np.uint8)
PAGES = np.stack([GREY, 255 - GREY, GREY // 2])


@pytest.fixture
def predictor(tmp_path: Path) -> Iterator[Predictor]:
    with Predictor(write_bundle(tmp_path / "bundle"), backend="fake") as opened:
        yield opened


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, PAGES, photometric="minisblack")
    return path


def of_file(path: Path, name: str = "s3://lot/7", page: int | None = None) -> EncodedFrame:
    return EncodedFrame(name, path.read_bytes(), page)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF"])
def test_it_is_read_like_the_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.img"
    path.write_bytes(encoded(GREY, form))
    np.testing.assert_array_equal(read_frame(of_file(path)), read_frame(path))
    assert page_count(of_file(path)) == page_count(path) == 1


@pytest.mark.parametrize("content", [b"", b"GIF89a", encoded(GREY)[:-600], encoded(GREY, "TIFF")[:300]])
def test_errors_are_those_of_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "frame.img"
    path.write_bytes(content)
    assert reason(of_file(path)) == reason(path)
    with pytest.raises(FrameError) as caught:
        read_frame(of_file(path))
    assert caught.value.source == "s3://lot/7"


def test_a_page_is_chosen_by_its_number_and_by_no_name(stack: Path) -> None:
    for page in (1, 2, 3):
        np.testing.assert_array_equal(read_frame(of_file(stack, page=page)), read_frame(f"{stack}#{page}"))
        np.testing.assert_array_equal(read_frame(of_file(stack, name="lot#1", page=page)), PAGES[page - 1])
    assert page_count(of_file(stack)) == 3
    with pytest.raises(FrameError, match=r"^lot#2: holds 3 pages; .* or give EncodedFrame page=2$"):
        read_frame(of_file(stack, name="lot#2"))
    assert "give EncodedFrame a page" in reason(of_file(stack))
    assert reason(of_file(stack, page=4)) == reason(f"{stack}#4") == "there is no page 4; the file holds pages 1 to 3"
    assert reason(EncodedFrame("a", encoded(GREY), 2)) == "there is no page 2; the file holds pages 1 to 1"
    np.testing.assert_array_equal(read_frame(EncodedFrame("a", encoded(GREY), 1)), GREY)


def test_pages_are_told_apart_by_their_names(stack: Path, predictor: Predictor) -> None:
    names = [predictor(of_file(stack, name="lot", page=page)).source for page in (1, 2)]
    assert names == ["lot#1", "lot#2"]
    assert predictor(of_file(stack, name="lot#2", page=2)).source == "lot#2"
    with pytest.raises(FrameError) as caught:
        read_frame(of_file(stack, name="lot", page=9))
    assert caught.value.source == "lot#9"


def test_a_predictor_takes_it_in_every_call(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(encoded(GREY))
    frame = of_file(path)
    judged = [
        predictor(frame),
        *predictor.predict([frame]),
        *predictor.stream([frame]),
        predictor.submit(frame).result(),
    ]
    wanted = predictor(path)
    for result in judged:
        assert result.ok
        assert (result.source, result.path) == ("s3://lot/7", None)
        assert (result.checksum, result.score, result.regions) == (wanted.checksum, wanted.score, wanted.regions)
        assert np.asarray(result.overlay(frame)).tobytes() == np.asarray(wanted.overlay()).tobytes()


def test_an_overlay_is_drawn_on_the_judged_pixels_alone(predictor: Predictor, tmp_path: Path) -> None:
    path, other = tmp_path / "frame.png", tmp_path / "other.png"
    path.write_bytes(encoded(GREY))
    other.write_bytes(encoded(255 - GREY))
    by_content, by_path = predictor(of_file(path)), predictor(path)
    for result in (by_content, by_path):
        for frame in (of_file(other), other):
            with pytest.raises(FrameError, match="has changed since it was judged"):
                result.overlay(frame)
        assert result.overlay(path).size == result.overlay(of_file(path)).size == (100, 40)
    with pytest.raises(FrameError, match="needs the frame again"):
        by_content.overlay()


def test_one_frame_is_no_list_of_frames(predictor: Predictor) -> None:
    frame = EncodedFrame("a", encoded(GREY))
    with pytest.raises(FrameError, match="takes a list of frames, not EncodedFrame"):
        predictor.predict(frame)  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="takes an iterable of frames, not EncodedFrame"):
        predictor.stream(frame)  # type: ignore[arg-type]


def test_warnings_and_options_are_those_of_the_file(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "frame.tif"
    tifffile.imwrite(path, GREY.astype(np.uint16) * 8)  # a hardly used range of 16 bits
    assert predictor(of_file(path)).warnings == predictor(path).warnings != ()
    options = FrameOptions(white_level=4095)
    np.testing.assert_array_equal(read_frame(of_file(path), options), read_frame(path, options))


@pytest.mark.parametrize("data", [None, "text", bytearray(b"x"), memoryview(b"x"), 7, GREY])
def test_content_that_is_no_bytes_costs_one_frame_of_a_stream(data: Any, predictor: Predictor) -> None:
    sound = EncodedFrame("sound", encoded(GREY))
    results = list(predictor.stream([sound, EncodedFrame("bad", data), sound]))
    assert [result.ok for result in results] == [True, False, True]
    assert results[1].source == "bad"
    told = f"holds {type(data).__name__} instead of bytes, the content of an image file"
    assert results[1].to_dict() == {"source": "bad", "error": told}
    assert reason(EncodedFrame("bad", data)) == told
    with pytest.raises(FrameError, match="instead of bytes"):
        page_count(EncodedFrame("bad", data))


@pytest.mark.parametrize("name", ["", None, 7, b"name", Path("a.png")])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="name must be a text that names the frame"):
        EncodedFrame(name, b"")


@pytest.mark.parametrize("page", [0, -1, 1.0, "1", True])
def test_a_page_that_is_none_is_refused(page: Any) -> None:
    with pytest.raises(ValueError, match="page must be"):
        EncodedFrame("a", b"", page)


def test_it_passes_between_processes_and_shows_no_content() -> None:
    frame = EncodedFrame("lot/7", encoded(GREY), np.int64(1))  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(frame))
    assert again == frame
    assert repr(again) == "EncodedFrame(name='lot/7', page=1)"
    assert describe(again, 3) == "lot/7#1"
