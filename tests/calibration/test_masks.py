"""calibration.masks: two kinds of pixels, or a refusal that names the values found."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from calibration.dataset import Sample
from calibration.errors import DatasetError
from calibration.masks import defect_pixels, read_mask
from runtime.pixels import row_blocks

SIZE = 48
INSIDE = np.zeros((SIZE, SIZE), bool)
INSIDE[10:20, 12:30] = True
BORDER = np.zeros_like(INSIDE)
BORDER[8:22, 10:32] = True
BORDER &= ~INSIDE


def grey(inside: int, outside: int = 0, dtype: type = np.uint8) -> NDArray[Any]:
    return np.where(INSIDE, inside, outside).astype(dtype)


def colour(inside: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(INSIDE[..., None], inside, outside).astype(np.uint8))


def palette(numbers: NDArray[Any], *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.frombytes("P", (SIZE, SIZE), numbers.astype(np.uint8).tobytes())
    image.putpalette([part for entry in colours for part in entry])
    return image


def noise_below(alpha: NDArray[Any], inside: int) -> Image.Image:
    """`inside` where it is opaque; under transparent pixels, the colours that a paint program leaves there."""
    rng = np.random.default_rng(0)
    below = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    below[alpha > 0] = inside
    return Image.fromarray(np.dstack([below, alpha]))


def save(image: Image.Image | NDArray[Any], path: Path, **options: Any) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def read(path: Path, label: str = "hole") -> NDArray[np.uint8] | None:
    return Sample(Path("frame.png"), label, "g", path).read_mask((SIZE, SIZE))


# ---- masks that are meant --------------------------------------------------------------------------------------------

MEANT: dict[str, Callable[[Path], Path]] = {
    "0 and 255": lambda folder: save(grey(255), folder / "m.png"),
    "0 and 1": lambda folder: save(grey(1), folder / "m.png"),
    "0 and a class number": lambda folder: save(grey(17), folder / "m.png"),
    "16 bits, 0 and 65535": lambda folder: save(grey(65535, dtype=np.uint16), folder / "m.png"),
    "16 bits, 0 and 255": lambda folder: save(grey(255, dtype=np.uint16), folder / "m.png"),
    "16 bits, 0 and 1": lambda folder: save(grey(1, dtype=np.uint16), folder / "m.tif"),
    "floats": lambda folder: save(grey(1, dtype=np.float32), folder / "m.tif"),
    "32 bits": lambda folder: save(grey(60_000, dtype=np.int32), folder / "m.tif"),
    "1 bit, PNG": lambda folder: save(Image.fromarray(INSIDE), folder / "m.png"),
    "1 bit, TIFF": lambda folder: save(Image.fromarray(INSIDE), folder / "m.tif"),
    "1 bit, BMP": lambda folder: save(Image.fromarray(INSIDE), folder / "m.bmp"),
    "2 bits": lambda folder: save(palette(INSIDE, (0, 0, 0), (255, 255, 255)), folder / "m.png", bits=2),
    "white on black": lambda folder: save(colour((255,) * 3, (0,) * 3), folder / "m.png"),
    "red on black": lambda folder: save(colour((255, 0, 0), (0, 0, 0)), folder / "m.png"),
    "dark blue on black": lambda folder: save(colour((0, 0, 1), (0, 0, 0)), folder / "m.bmp"),
    "opaque": lambda folder: save(colour((9, 9, 9, 255), (0, 0, 0, 255)), folder / "m.png"),
    "palette, entry 1": lambda folder: save(palette(INSIDE, (0, 0, 0), (128, 0, 0)), folder / "m.png"),
    "palette, entries the other way": lambda folder: save(
        palette(~INSIDE, (255, 255, 255), (0, 0, 0)), folder / "m.png"
    ),
    "palette, one entry transparent": lambda folder: save(
        palette(INSIDE, (9, 9, 9), (128, 0, 0)), folder / "m.png", transparency=0
    ),
    "white on transparent white": lambda folder: save(colour((255,) * 4, (255, 255, 255, 0)), folder / "m.png"),
    "grey with opacity": lambda folder: save(colour((200, 255), (200, 0)), folder / "m.png"),
    "half opaque on transparent": lambda folder: save(colour((255, 0, 0, 90), (0, 0, 0, 0)), folder / "m.png"),
    "white on transparent noise": lambda folder: save(
        noise_below(np.where(INSIDE, 255, 0).astype(np.uint8), 255), folder / "m.png"
    ),
    "one grey said to be transparent": lambda folder: save(grey(200, 255), folder / "m.png", transparency=255),
}


@pytest.mark.parametrize("kind", MEANT)
def test_two_kinds_of_pixels_are_a_mask(kind: str, tmp_path: Path) -> None:
    marked = read(MEANT[kind](tmp_path))
    assert marked is not None
    assert marked.dtype == np.uint8
    assert np.array_equal(marked, INSIDE.astype(np.uint8))


RED = np.dstack([grey(255), grey(0), grey(0)])
TIFFS: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "boolean": (INSIDE, {"photometric": "minisblack"}),
    "big-endian, 16 bits": (grey(255, dtype=np.uint16), {"byteorder": ">"}),
    "deflate, predictor, tiles": (grey(7), {"compression": "zlib", "predictor": True, "tile": (16, 16)}),
    "BigTIFF": (grey(1), {"bigtiff": True}),
    "colour": (RED, {"photometric": "rgb"}),
    "colour in planes": (np.moveaxis(RED, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    "colour and opacity": (np.dstack([RED, grey(255)]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "palette": (
        INSIDE.astype(np.uint8),
        {"photometric": "palette", "colormap": np.pad([[0, 32768]] * 3, ((0, 0), (0, 254))).astype(np.uint16)},
    ),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_masks_in_tiff_keep_their_values(kind: str, tmp_path: Path) -> None:
    pixels, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "m.tif", pixels, **options)
    marked = read(tmp_path / "m.tif")
    assert marked is not None
    assert np.array_equal(marked, INSIDE)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (np.dstack([grey(0, dtype=np.uint16)] * 2 + [grey(200, dtype=np.uint16)]), {"photometric": "rgb"}),
        (np.dstack([grey(255)] * 2), {"photometric": "minisblack", "planarconfig": "contig"}),
        (np.dstack([RED, grey(255)]), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (RED, {"photometric": "cielab"}),
    ],
    ids=["16-bit colour", "2 channels", "4 channels", "Lab"],
)
def test_tiff_masks_with_unusable_channels_are_refused(
    pixels: NDArray[Any], options: dict[str, Any], tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "m.tif", pixels, **options)
    with pytest.raises(DatasetError, match=r"m\.tif: the mask (holds|cannot be read)"):
        read(tmp_path / "m.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_white_throughout_is_a_defect_that_fills_the_frame(dtype: type, tmp_path: Path) -> None:
    value = 1 if dtype is bool else np.iinfo(dtype).max
    marked = read(save(np.full((SIZE, SIZE), value, dtype), tmp_path / "m.png"))
    assert marked is not None
    assert marked.all()


@pytest.mark.parametrize("black", [np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)])
def test_an_all_black_mask_of_a_defect_frame_is_unknown(black: NDArray[Any], tmp_path: Path) -> None:
    path = save(black, tmp_path / "m.png")
    assert read(path) is None
    good = read(path, "good")
    assert good is not None
    assert not good.any()


# ---- masks that cannot be meant --------------------------------------------------------------------------------------

VOID = np.where(INSIDE, 1, np.where(BORDER, 255, 0))
FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "void border": (lambda f: save(VOID.astype(np.uint8), f / "m.png"), r"3 values \(0, 1, 255\)"),
    "void border, 16 bits": (lambda f: save(VOID.astype(np.uint16), f / "m.tif"), r"3 values \(0, 1, 255\)"),
    "void border, palette": (
        lambda f: save(palette(INSIDE + 2 * BORDER, (0, 0, 0), (128, 0, 0), (224, 224, 192)), f / "m.png"),
        re.escape("3 values (0 (0, 0, 0), 1 (128, 0, 0), 2 (224, 224, 192))"),
    ),
    "instances": (
        lambda f: save((VOID % 100 + grey(3)).astype(np.uint8), f / "m.png"),
        r"3 values \(0, 4, 55\)",
    ),
    "three colours": (
        lambda f: save(np.dstack([VOID, VOID * 0, grey(90)]).astype(np.uint8), f / "m.png"),
        r"3 values \(\(0, 0, 0\), \(1, 0, 90\), \(255, 0, 0\)\)",
    ),
    "a frame": (
        lambda f: save(np.arange(SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16), f / "m.png"),
        r"at least 2304 values \(0, 1, 2, 3, 4, 5, \.\.\.\)",
    ),
    "numbers without 0": (lambda f: save(grey(2, 1), f / "m.png"), "holds 1 and 2, which does not show"),
    "two colours and no black": (
        lambda f: save(colour((255, 0, 0), (0, 0, 255)), f / "m.png"),
        re.escape("holds (0, 0, 255) and (255, 0, 0), which"),
    ),
    "a palette of two blacks": (
        lambda f: save(palette(INSIDE, (0, 0, 0), (0, 0, 0)), f / "m.png"),
        re.escape("holds 0 (0, 0, 0) and 1 (0, 0, 0), which"),
    ),
    "one value": (lambda f: save(grey(1, 1), f / "m.png"), "is 1 throughout"),
    "16 bits, 255 throughout": (lambda f: save(grey(255, 255, np.uint16), f / "m.png"), "is 255 throughout"),
    "wholly transparent": (lambda f: save(noise_below(grey(0), 0), f / "m.png"), "is transparent throughout"),
    "black on transparent": (
        lambda f: save(colour((0, 0, 0, 255), (0, 0, 0, 0)), f / "m.png"),
        re.escape("holds transparent and (0, 0, 0), which"),
    ),
    "black and white, partly transparent": (
        lambda f: save(np.dstack([grey(255)] * 3 + [np.where(BORDER, 0, 255)]).astype(np.uint8), f / "m.png"),
        r"3 values \(transparent, \(0, 0, 0\), \(255, 255, 255\)\)",
    ),
    "two opacities": (
        lambda f: save(colour((255, 255, 255, 255), (255, 255, 255, 90)), f / "m.png"),
        re.escape("(255, 255, 255) of opacity 90 and (255, 255, 255), which"),
    ),
    "black on white": (lambda f: save(grey(0, 255), f / "m.png"), r"is 92 % defect \(255\), as if drawn black on"),
    "negative numbers": (lambda f: save(grey(-1, 0, np.int32), f / "m.tif"), "-1|negative|outside 0"),
    "not a number": (lambda f: save(np.where(INSIDE, np.nan, 0).astype(np.float32), f / "m.tif"), "(?i)holds nan"),
    "CMYK": (lambda f: save(colour((255, 0, 0), (0, 0, 0)).convert("CMYK"), f / "m.tif"), "CMYK|SEPARATED"),
    "two pages": (
        lambda f: save(grey(255), f / "m.tif", save_all=True, append_images=[Image.fromarray(grey(255))]),
        "holds 2 pages; save the right one",
    ),
    "16 bits, one value transparent": (
        lambda f: save(grey(65535, dtype=np.uint16), f / "m.png", transparency=65535),
        "one of its 16-bit values transparent",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_an_ambiguous_mask_is_refused_with_the_values_found(kind: str, tmp_path: Path) -> None:
    make, says = FILES[kind]
    path = make(tmp_path)
    with pytest.raises(DatasetError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: the mask ")


def test_edges_smoothed_by_jpeg_or_a_brush_are_refused(tmp_path: Path) -> None:
    large = Image.new("L", (SIZE * 4, SIZE * 4))
    ImageDraw.Draw(large).ellipse((40, 40, 120, 120), fill=255)
    for path in (
        save(large.resize((SIZE, SIZE), Image.Resampling.BICUBIC), tmp_path / "smooth.png"),
        save(Image.fromarray(grey(255)), tmp_path / "m.jpg"),
    ):
        with pytest.raises(DatasetError, match=r"holds at least \d+ values \(0, \d+, .* smoothed edges"):
            read(path)


@pytest.mark.parametrize("array", [INSIDE, grey(255), grey(65535, dtype=np.uint16)], ids=["bool", "8 bits", "16 bits"])
def test_tiff_that_stores_white_as_0_is_refused(array: NDArray[Any], tmp_path: Path) -> None:
    """Pillow shows the inverse of what tifffile reads. tifffile writes booleans like this by default."""
    tifffile.imwrite(tmp_path / "m.tif", array, photometric=None if array.dtype == bool else "miniswhite")
    with pytest.raises(DatasetError, match="stores white as 0"):
        read(tmp_path / "m.tif")


def test_a_defect_in_the_mask_of_a_good_frame_is_refused(tmp_path: Path) -> None:
    path = save(grey(255), tmp_path / "m.png")
    with pytest.raises(DatasetError, match="marks 180 pixels as defect, and its frame is good"):
        read(path, "good")
    with pytest.raises(DatasetError, match="marks 2304 pixels"):
        read(save(grey(255, 255), path), "good")


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    path = save(np.random.default_rng(0).integers(0, 2, (SIZE, SIZE), dtype=np.uint8), tmp_path / "m.png")
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(DatasetError, match="the mask cannot be read: is damaged"):
        read(path)


def test_blocks_of_rows_are_one_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.masks.row_blocks", partial(row_blocks, most=5 * SIZE))
    path = save(colour((255, 0, 0, 255), (0, 0, 0, 255)), tmp_path / "m.png")
    assert np.array_equal(defect_pixels(read_mask(path)), INSIDE)
