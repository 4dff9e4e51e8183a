"""TIFF: which pages are frames, and stacks that are read page by page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import SHAPE, assert_grey, made, reason, scaled, tags_of
from PIL import Image
from tiffs import GREY, OTHER, RNG, stack

from runtime import tiff as tiff_module
from runtime.errors import FrameError
from runtime.frames import page_count, read_frame


@pytest.mark.parametrize(
    "marked", [{"t254": 1}, {"t255": 2}, {"t254": 4, "t262": 4}, {"t254": 5, "t262": 4}, {"t262": 4}]
)
def test_reduced_copies_and_masks_are_no_frames(marked: dict[str, int], tmp_path: Path) -> None:
    small = (tags_of((9, 12), **marked), [bytes(9 * 12)])
    one, other = (tags_of(t254=0), [GREY.tobytes()]), (tags_of(t254=2), [OTHER.tobytes()])
    (tmp_path / "one.tif").write_bytes(made(small, one, small))
    assert page_count(tmp_path / "one.tif") == 1
    assert_grey(read_frame(tmp_path / "one.tif"), GREY)
    (tmp_path / "two.tif").write_bytes(made(one, small, other, small))
    assert page_count(tmp_path / "two.tif") == 2
    assert_grey(read_frame(f"{tmp_path / 'two.tif'}#2"), OTHER)
    assert reason(f"{tmp_path / 'two.tif'}#3") == "there is no page 3; the file holds pages 1 to 2"
    assert reason(made(small)).startswith("holds no frame: all of its pages are marked")


def one_ifd_stack(description: bytes, slices: np.ndarray, *, order: str = "<") -> bytes:
    """Slices one after the other, and one page that tells of the first."""
    tags = tags_of(bits=8 * slices.itemsize) | {270: (2, description), 279: (4, [slices[0].nbytes])}
    return made((tags, [slices.astype(slices.dtype.newbyteorder(order)).tobytes()]), order=order)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "about", ["ImageJ=1.53t\nimages=3\nslices=3\n\0", 'tifffile {"shape": [3, 37, 50], "truncated": true}']
)
def test_a_stack_in_one_page_is_read_slice_by_slice(about: str, order: str, tmp_path: Path) -> None:
    about = about.removeprefix("tifffile ")
    slices = RNG.integers(0, 65536, (3, *SHAPE)).astype(np.uint16)
    path = tmp_path / "stack.tif"
    path.write_bytes(one_ifd_stack(about.encode(), slices, order=order))
    assert page_count(path) == 3
    for number, values in enumerate(slices, 1):
        assert_grey(read_frame(f"{path}#{number}"), scaled(values, 65535), within=1)
    path.write_bytes(one_ifd_stack(about.encode(), slices[:2], order=order))
    with pytest.raises(FrameError, match="its description promises 3 images and it holds 2"):
        page_count(path)


def test_stacks_of_imagej_and_ome_are_their_pages(tmp_path: Path) -> None:
    slices = RNG.integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    for name, options in (("ij", {"imagej": True}), ("ome", {"ome": True}), ("cut", {"truncate": True}), ("plain", {})):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, slices, photometric="minisblack", **options)
        assert page_count(path) == 4
        for number, values in enumerate(slices, 1):
            assert_grey(read_frame(f"{path}#{number}"), values)


def test_a_stack_is_walked_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    walk = tiff_module._walk
    monkeypatch.setattr(tiff_module, "_walk", lambda file, name: walks.append(name) or walk(file, name))
    pages = RNG.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    path = stack(tmp_path / "stack.tif", *pages, compression="lzw")
    assert page_count(path) == 40
    for number in (40, 1, 17, 39):
        assert_grey(read_frame(f"{path}#{number}"), pages[number - 1])
    assert len(walks) == 1
    stack(path, *pages[::-1][:20])
    assert page_count(path) == 20
    assert_grey(read_frame(f"{path}#1"), pages[-1])
    assert len(walks) == 2


def test_a_page_of_a_stack_costs_no_more_bytes_than_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 pages, one is read: not the file, and not the tags of the pages before it."""
    path = stack(tmp_path / "stack.tif", *[GREY] * 200)
    page_count(path)
    read: list[int] = []

    class Counting(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr("runtime.frames.io.BufferedReader", Counting)
    read_frame(f"{path}#200")
    assert GREY.nbytes <= sum(read) < GREY.nbytes + 4000


def test_a_numbered_page_is_found_next_to_files_of_that_name(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.tif", GREY, OTHER)
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "a.tif#1", "TIFF")
    assert_grey(read_frame(f"{path}#1"), GREY)
    assert_grey(read_frame(tmp_path / "a.tif#1"), GREY)
    stack(path, GREY)
    assert not read_frame(f"{path}#1").any()  # a.tif is no stack, so the name is that of a file


def test_a_stack_given_as_bytes_cannot_be_told_which_page(tmp_path: Path) -> None:
    content = stack(tmp_path / "a.tif", GREY, OTHER).read_bytes()
    assert reason(content) == "holds 2 pages; a frame is one of them; name the file, or give EncodedFrame a page"
