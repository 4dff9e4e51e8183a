"""TIFF: every way to store pixels is read as it was written or refused by name, and pages are what the file says."""

from __future__ import annotations

import io
import logging
import lzma
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import SHAPE, assert_grey, luma, made, reason, scaled, tags_of
from PIL import Image

from runtime import strips as strips_module
from runtime import tiff as tiff_module
from runtime.errors import FrameError
from runtime.frames import page_count, read_frame
from runtime.recipe import FrameOptions

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
OTHER = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, SHAPE).astype(np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (*SHAPE, 3)).astype(np.uint16)
UNIT = RNG.random(SHAPE)


KINDS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "bit": (GREY > 127, np.where(GREY > 127, 255, 0)),
    "u8": (GREY, GREY),
    "u16": (DEEP, scaled(DEEP, 65535)),
    "u32": (DEEP.astype(np.uint32), scaled(DEEP, 65535)),
    "f16": (UNIT.astype(np.float16), scaled(UNIT.astype(np.float16), 1)),
    "f32": (UNIT.astype(np.float32), scaled(UNIT.astype(np.float32), 1)),
    "f64": (UNIT, scaled(UNIT, 1)),
    "rgb8": (COLOUR, luma(COLOUR)),
    "rgb16": (DEEP_COLOUR, luma(DEEP_COLOUR) / 257),
}
"""What is written, and the grey that it means."""
LAYOUTS: dict[str, dict[str, Any]] = {"whole": {}, "strips": {"rowsperstrip": 5}, "tiles": {"tile": (16, 32)}}
COMPRESSIONS = (None, "lzw", "adobe_deflate", "deflate", "packbits", "zstd", "lzma")


def predictors(kind: str, compression: str | None) -> tuple[int, ...]:
    if compression in (None, "packbits") or kind == "bit":
        return (1,)
    return (1, 3) if kind.startswith("f") else (1, 2)


def written(kind: str, compression: str | None) -> Iterator[tuple[str, bytes]]:
    """The same pixels in every layout, byte order and size of offsets."""
    values = KINDS[kind][0]
    planes = ("contig", "separate") if values.ndim == 3 else (None,)
    every = product("<>", (False, True), LAYOUTS, planes, predictors(kind, compression))
    for order, big, layout, plane, predictor in every:
        stored = np.moveaxis(values, 2, 0) if plane == "separate" else values
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
            writer.write(
                stored,
                photometric="rgb" if values.ndim == 3 else "minisblack",
                planarconfig=plane,
                compression=compression,
                predictor=predictor,
                metadata=None,
                **LAYOUTS[layout],
            )
        yield f"{kind} {compression} {order} big={big} {layout} {plane} predictor {predictor}", file.getvalue()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_read_as_they_were_written(kind: str, compression: str | None) -> None:
    """Some 2,000 files in all. Where Pillow's libtiff reads one to the same values, it is a second witness."""
    expected = KINDS[kind][1]
    read = witnessed = 0
    for what, content in written(kind, compression):
        try:
            assert_grey(read_frame(content), expected, within=1)
        except (FrameError, AssertionError) as exc:
            raise AssertionError(f"{what}: {exc}") from exc
        read += 1
        try:
            with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
                witnessed += np.array_equal(np.asarray(image), KINDS[kind][0])
        except Exception:
            continue  # Pillow does not read it
    assert read >= 12
    if kind in ("u8", "rgb8") and compression != "zstd":  # for which not every Pillow is built
        assert witnessed >= read / 2


def stack(path: Path, *arrays: np.ndarray, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for array in arrays:
            writer.write(array, photometric="minisblack", metadata=None, contiguous=False, **options)
    return path


# Samples


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("order", "<>")
def test_packed_samples_have_the_white_of_their_depth(bits: int, order: str) -> None:
    white = (1 << bits) - 1
    values = RNG.integers(0, white + 1, SHAPE).astype(np.uint8 if bits < 8 else np.uint16)
    values[0, :2] = 0, white
    # Packed here: rows of whole bytes, highest bit first in either byte order (TIFF 6.0, section 3). tifffile writes
    # other values in big-endian files than it was given.
    bytes_of = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(*SHAPE, 2), axis=2)[:, :, 16 - bits :]
    rows = np.packbits(bytes_of.reshape(SHAPE[0], -1), axis=1)
    content = made((tags_of(bits=bits), [rows.tobytes()]), order=order)
    for white_level in (65535, 4095):
        assert_grey(read_frame(content, FrameOptions(white_level=white_level)), scaled(values, white), within=0.5)


@pytest.mark.parametrize("white_level", [65535, 4095])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_16_bits_are_scaled_by_the_white_level(white_level: int, compression: str | None) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, DEEP, compression=compression, metadata=None)
    assert_grey(read_frame(file.getvalue(), FrameOptions(white_level=white_level)), scaled(DEEP, white_level), within=1)


@pytest.mark.parametrize("plane", ["contig", "separate"])
def test_16_bit_colour_has_the_white_of_16_bits_and_no_other(plane: str) -> None:
    file = io.BytesIO()
    values = DEEP_COLOUR if plane == "contig" else np.moveaxis(DEEP_COLOUR, 2, 0)
    tifffile.imwrite(file, values, photometric="rgb", planarconfig=plane, metadata=None)
    assert_grey(read_frame(file.getvalue()), luma(DEEP_COLOUR) / 257, within=1)
    assert "cannot be scaled to white_level=4095" in reason(file.getvalue(), FrameOptions(white_level=4095))


@pytest.mark.parametrize("kind", ["bit", "u8", "u16", "u32", "f32"])
def test_white_may_be_0_at_every_depth(kind: str) -> None:
    values, expected = KINDS[kind]
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="miniswhite", metadata=None)
    assert_grey(read_frame(file.getvalue()), 255 - expected.astype(float), within=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[-1, 5]], np.int8), "holds negative values, down to -1"),
        (np.array([[-300, 5]], np.int16), "holds negative values, down to -300"),
        (np.array([[-1, 5]], np.int32), "holds 32-bit values outside 0 ... 65535"),
        (np.array([[0, 70000]], np.uint32), "holds 32-bit values outside 0 ... 65535"),
        (np.array([[0, 70000]], np.uint64), "holds 64-bit values outside 0 ... 65535"),
        (np.array([[0.5, 1.5]], np.float32), "float frames lie in [0, 1]; this one in [0.5, 1.5]"),
        (np.array([[0.5, np.nan]], np.float64), "holds NaN or infinite values"),
        (np.array([[0.5j, 1]], np.complex64), "holds COMPLEXIEEEFP samples of 64 bits"),
    ],
)
def test_values_that_are_no_grey_are_refused(values: np.ndarray, said: str) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", metadata=None)
    assert reason(file.getvalue()).startswith(said)


def test_signed_samples_without_a_sign_are_what_they_say() -> None:
    for dtype in (np.int16, np.int32):
        file = io.BytesIO()
        tifffile.imwrite(file, np.array([[0, 257 * 90]], dtype), photometric="minisblack", metadata=None)
        assert read_frame(file.getvalue()).tolist() == [[0, 90]]


@pytest.mark.parametrize("kind", [1, 2])
def test_alpha_is_dropped_where_the_pixels_do_not_depend_on_it(kind: int) -> None:
    for colour in (GREY[:, :, None], COLOUR):
        for alpha in (np.full(SHAPE, 255, np.uint8), OTHER):
            file = io.BytesIO()
            values = np.dstack([colour, alpha])
            photometric = "rgb" if colour.shape[2] == 3 else "minisblack"
            tifffile.imwrite(
                file, values, photometric=photometric, planarconfig="contig", extrasamples=[kind], metadata=None
            )
            if kind == 2 or alpha.min() == 255:
                assert_grey(read_frame(file.getvalue()), luma(COLOUR) if colour is COLOUR else GREY, within=1)
            else:
                assert reason(file.getvalue()).startswith("holds premultiplied alpha")


def test_16_bit_grey_with_alpha_is_read() -> None:
    file = io.BytesIO()
    values = np.dstack([DEEP, DEEP[::-1]])
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig", extrasamples=[2], metadata=None)
    assert_grey(read_frame(file.getvalue()), scaled(DEEP, 65535), within=1)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_that_are_no_colour_are_refused_with_their_number(channels: int) -> None:
    file = io.BytesIO()
    values = RNG.integers(0, 256, (channels, *SHAPE), dtype=np.uint8)
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="separate", metadata=None)
    assert reason(file.getvalue()) == f"holds {channels} channels in one page; save the one that is meant"


@pytest.mark.parametrize("wide", [False, True])
def test_a_palette_of_8_or_16_bits_is_looked_up(wide: bool) -> None:
    entries = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    tags = tags_of(t262=3) | {320: (3, (entries * (256 if wide else 1)).ravel().tolist())}
    assert_grey(read_frame(made((tags, [GREY.tobytes()]))), luma(entries.T)[GREY], within=1)
    short = tags | {320: (3, [0] * 30)}
    assert "its palette is missing or too short" in reason(made((short, [GREY.tobytes()])))


@pytest.mark.parametrize("compression", ["none", "lzw"])
def test_bits_may_be_stored_last_first(compression: str) -> None:
    data = GREY.tobytes()
    if compression == "lzw":
        import imagecodecs

        data = imagecodecs.lzw_encode(data)
    reverse = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
    tags = tags_of(t266=2, t259=1 if compression == "none" else 5)
    assert_grey(read_frame(made((tags, [data.translate(reverse)]))), GREY)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr", "minisblack"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_jpeg_inside_is_read_as_the_library_reads_it(photometric: str, layout: str) -> None:
    rows, columns = np.indices((64, 96))
    smooth = (120 + 60 * np.sin(rows / 9) + 50 * np.cos(columns / 7)).astype(np.uint8)
    values = smooth if photometric == "minisblack" else np.dstack([smooth, smooth[::-1], smooth[:, ::-1]])
    options = {"strips": {"rowsperstrip": 16}}.get(layout, LAYOUTS[layout])
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, compression="jpeg", metadata=None, **options)
    file.seek(0)
    with tifffile.TiffFile(file) as opened:
        decoded = opened.pages[0].asarray()
    assert_grey(read_frame(file.getvalue()), decoded if decoded.ndim == 2 else luma(decoded), within=1.5)
    cut = bytearray(file.getvalue())
    at = cut.rindex(b"\xff\xd9")
    cut[at - 60 : at + 2] = b"\xff\xd9" + bytes(60)
    assert "JPEG data end too early" in reason(bytes(cut))


def test_jpeg_of_colour_and_opacity_is_no_ink() -> None:
    grey = np.tile(np.arange(96, dtype=np.uint8)[None] * 2, (64, 1))
    file = io.BytesIO()
    Image.fromarray(grey).convert("RGBA").save(file, "TIFF", compression="jpeg", quality=95)
    assert_grey(read_frame(file.getvalue()), grey, within=3)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"t259": 2}, "is compressed by CCITTRLE, which is not read in TIFF"),
        ({"t259": 34712}, "is compressed by JPEG2000, which is not read in TIFF"),
        ({"t259": 34887}, "is compressed by LERC, which is not read in TIFF"),
        ({"t259": 50002}, "is compressed by JPEGXL, which is not read in TIFF"),
        ({"t259": 4711}, "is compressed by an unknown method (4711), which is not read in TIFF"),
        ({"t317": 2}, "has predictor 2 with compression NONE"),
        ({"t259": 5, "t317": 3}, "has predictor 3 with compression LZW"),
        ({"t262": 5}, "holds SEPARATED pixels, which are not read"),
        ({"t262": 6}, "holds YCBCR pixels, which are not read"),
        ({"t262": 8}, "holds CIELAB pixels, which are not read"),
        ({"t262": 32803}, "holds CFA pixels, which are not read"),
        ({"t258": 24, "t339": 1}, "is truncated"),
        ({"t258": 47}, "holds UINT samples of 47 bits, which are not read"),
        ({"t32997": 3}, "holds a volume of 3 slices in one page"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tags: dict[str, int], said: str) -> None:
    assert reason(made((tags_of(**tags), [GREY.tobytes()]))).startswith(said)


def test_a_page_that_does_not_say_what_0_means_is_refused() -> None:
    tags = tags_of()
    del tags[262]
    assert reason(made((tags, [GREY.tobytes()]))).startswith("does not say whether 0 is black")


def test_a_codec_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, GREY, compression="zstd", metadata=None)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    said = reason(file.getvalue())
    assert said.startswith("needs the package imagecodecs (8-bit samples, compression ZSTD")
    assert "pip install 'sem-clip[tiff]'" in said


def test_common_files_need_no_package_of_codecs(tmp_path: Path) -> None:
    for kind, compression in product(
        ("bit", "u8", "u16", "rgb8", "rgb16", "f32"), (None, "lzw", "deflate", "packbits")
    ):
        for number, (what, content) in enumerate(written(kind, compression)):
            if "predictor 3" not in what:
                (tmp_path / f"{kind}-{compression}-{number}.tif").write_bytes(content)
    for path in sorted(tmp_path.glob("*.tif")):
        np.save(path.with_suffix(".npy"), read_frame(path))
    code = """
import sys
sys.modules["imagecodecs"] = None
from pathlib import Path
import numpy as np
from runtime.frames import read_frame
paths = sorted(Path(sys.argv[1]).glob("*.tif"))
for path in paths:
    np.testing.assert_array_equal(read_frame(path), np.load(path.with_suffix(".npy")), str(path))
print(len(paths))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


# Data that are not all there


@pytest.mark.usefixtures("inflating")
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_strip_that_ends_early_is_refused_and_not_filled(compression: str | None) -> None:
    for layout in LAYOUTS:
        file, refused = io.BytesIO(), 0
        tifffile.imwrite(file, GREY, compression=compression, metadata=None, **LAYOUTS[layout])
        file.seek(0)
        with tifffile.TiffFile(file) as opened:
            page = opened.pages[0]
            counts = page.tags[325 if layout == "tiles" else 279]
            values = page.databytecounts
            for change in (lambda n: n - 1, lambda n: n // 2, lambda n: 0):
                content = bytearray(file.getvalue())
                size = 8 if counts.dtype == 16 else 4 if counts.dtype == 4 else 2
                at = counts.valueoffset + size * (len(values) - 1)
                content[at : at + size] = change(values[-1]).to_bytes(size, "little")
                try:
                    pixels = read_frame(bytes(content))
                except FrameError:
                    refused += 1
                else:  # an end mark behind the pixels may be missing
                    assert_grey(pixels, GREY)
        assert refused >= 2


def test_pixels_past_the_end_of_the_file_are_missed() -> None:
    whole = made((tags_of(), [GREY.tobytes()]))
    moved = tags_of() | {273: (4, [len(whole) - 100])}
    assert reason(made((moved, [GREY.tobytes()]))).startswith("is truncated: its pixels end after")
    absent = tags_of() | {273: (4, [0, 0]), 279: (4, [0, 0]), 278: (4, [20]), 259: (3, [5])}
    assert reason(made((absent, [b""]))).startswith("lacks the pixels of strip or tile 1 of 2")
    fewer = tags_of() | {278: (4, [10])}
    assert reason(made((fewer, [GREY.tobytes()]))).startswith("is damaged: it should have 4 strips or tiles")


# Pages


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


def test_a_page_by_its_number_is_the_page_whatever_lies_beside_the_stack(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.tif", GREY, OTHER)
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "a.tif#1", "TIFF")
    assert_grey(read_frame(f"{path}#1"), GREY)
    assert_grey(read_frame(tmp_path / "a.tif#1"), GREY)
    stack(path, GREY)
    assert not read_frame(f"{path}#1").any()  # a.tif is no stack, so the name is that of a file


def test_a_stack_given_as_bytes_cannot_be_told_which_page(tmp_path: Path) -> None:
    content = stack(tmp_path / "a.tif", GREY, OTHER).read_bytes()
    assert reason(content) == "holds 2 pages; a frame is one of them; name the file"


# Hostile files


def refused_soon(content: bytes) -> str:
    began = time.monotonic()
    said = reason(content)
    assert time.monotonic() - began < 5
    return said


def test_pages_that_form_a_loop_are_refused() -> None:
    one = (tags_of(), [GREY.tobytes()])
    first = struct.unpack("<I", made(one)[4:8])[0]
    many = made(*[one] * 150)
    assert "its pages form a loop" in refused_soon(made(one, link=first))
    second = struct.unpack_from("<I", many, first + 2 + 12 * len(one[0]) + 24)[0]  # strips have two tags more
    assert "its pages form a loop" in refused_soon(many[:-4] + struct.pack("<I", second))


def test_more_pages_than_anybody_means_are_refused() -> None:
    page = struct.pack("<HHHII", 1, 256, 3, 1, 5)
    out = bytearray(b"II*\0" + struct.pack("<I", 8))
    for _ in range(tiff_module.MAX_PAGES + 1):
        out += page + struct.pack("<I", len(out) + len(page) + 4)
    assert "more than 100,000 pages" in refused_soon(bytes(out))


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({273: (4, [8])}, ""),
        ({256: (4, [60000]), 257: (4, [60000])}, "more than 100 megapixels"),
        ({256: (4, [10000]), 257: (4, [10000]), 258: (3, [64]), 278: (4, [10000])}, "holds 800 MB of pixels"),
        ({322: (4, [1 << 20]), 323: (4, [1 << 20]), 324: (4, [8]), 325: (4, [9])}, "most of which lie outside of it"),
        ({256: (4, [9000]), 257: (4, [9000]), 322: (4, [1]), 323: (4, [1])}, "more than 131,072"),
        ({262: (2, b"x")}, "its tag 262 is wrong"),
        ({256: (4, [50] * 10_000), 257: (4, [100_000_000])}, "its tag 256 is wrong"),
        ({32997: (4, [50] * 10_000), 257: (4, [100_000_000])}, "its tag 32997 is wrong"),
    ],
)
def test_a_size_that_nobody_means_is_refused_before_memory_is_taken(tags: dict[int, Any], said: str) -> None:
    content = made((tags_of() | tags, [GREY.tobytes()]))
    if said:
        assert said in refused_soon(content)
    else:
        read_frame(content)


def test_tags_of_gigantic_length_or_there_twice_are_refused() -> None:
    content = bytearray(made((tags_of(), [GREY.tobytes()])))
    table = struct.unpack_from("<I", content, 4)[0]
    for entry in range(struct.unpack_from("<H", content, table)[0]):
        damaged = content.copy()
        struct.pack_into("<I", damaged, table + 2 + 12 * entry + 4, 1 << 31)
        assert "its tag " in refused_soon(bytes(damaged))
        double = content.copy()
        double[table + 2 : table + 14] = content[table + 2 + 12 * entry : table + 14 + 12 * entry]
        if entry:
            assert "there twice" in refused_soon(bytes(double))


@pytest.mark.usefixtures("inflating")
def test_compressed_data_unpack_to_what_was_promised_and_no_more() -> None:
    import imagecodecs

    flood = bytes(300_000_000)
    for method, packed in (
        (8, zlib.compress(flood, 1)),
        (34925, lzma.compress(flood, preset=0)),
        (50000, imagecodecs.zstd_encode(flood)),
    ):
        assert "is damaged" in refused_soon(made((tags_of(t259=method), [packed])))


@pytest.mark.usefixtures("inflating")
@pytest.mark.parametrize("method", [8, 34925])
def test_compressed_data_are_verified_where_they_end(method: int) -> None:
    import lzma
    import zlib

    def pack(data: bytes) -> bytes:
        return zlib.compress(data) if method == 8 else lzma.compress(data)

    noise = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    whole = pack(noise.tobytes())
    padded = pack(noise.tobytes() + bytes(5000))  # a last strip that was filled up
    assert_grey(read_frame(made((tags_of(t259=method), [padded]))), noise, within=0)
    for packed in (whole, padded):
        for at in range(20, len(packed), len(packed) // 40):
            zeros = packed[:at] + bytes(len(packed) - at)
            flipped = packed[:at] + bytes([packed[at] ^ 4]) + packed[at + 1 :]
            for damaged in (zeros, flipped):
                assert "damaged" in reason(made((tags_of(t259=method), [damaged])))


def test_strips_that_share_their_bytes_are_refused() -> None:
    rows = 2000
    tags = tags_of((rows, 50), t259=5) | {278: (4, [1]), 273: (4, [8] * rows), 279: (4, [rows * 50] * rows)}
    assert "overlap or lie past the end" in refused_soon(made((tags, [bytes(rows * 50)])))


def test_the_library_does_not_talk_about_a_frame_and_does_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    more = tags_of() | {305: (2, b"\xff\xfe\x81"), 282: (3, [1])}
    content = made((more, [GREY.tobytes()] * 1))
    few = made((tags_of() | {278: (4, [10])}, [GREY.tobytes()]))
    with caplog.at_level(logging.DEBUG, "tifffile"):
        read_frame(content)
        reason(few)
        assert not [record for record in caplog.records if record.name == "tifffile"]
        with tifffile.TiffFile(io.BytesIO(few)) as opened:
            assert opened.pages[0].shape == SHAPE
        assert [record for record in caplog.records if record.name == "tifffile"]


@pytest.mark.parametrize("kind", ["u8", "u16", "rgb16"])
def test_a_large_page_is_put_together_in_bands(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips_module, "_BAND", 700)
    for _, content in written(kind, "lzw"):
        assert_grey(read_frame(content), KINDS[kind][1], within=1)
