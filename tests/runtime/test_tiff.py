"""TIFF: every way to store pixels is read as it was written, or refused by name."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import SHAPE, assert_grey, luma, made, reason, scaled, tags_of
from PIL import Image
from tiffs import COLOUR, COMPRESSIONS, DEEP, DEEP_COLOUR, GREY, KINDS, LAYOUTS, OTHER, RNG, written

from runtime import strips as strips_module
from runtime.errors import FrameError
from runtime.frames import read_frame
from runtime.recipe import FrameOptions


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


def test_signed_samples_that_are_not_negative_are_read() -> None:
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
def test_unsupported_kinds_are_refused_by_name(tags: dict[str, int], said: str) -> None:
    assert reason(made((tags_of(**tags), [GREY.tobytes()]))).startswith(said)


def test_a_page_without_a_photometric_tag_is_refused() -> None:
    tags = tags_of()
    del tags[262]
    assert reason(made((tags, [GREY.tobytes()]))).startswith("does not define whether 0 is black")


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


def test_tifffile_logs_nothing_about_frames_and_logs_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
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
