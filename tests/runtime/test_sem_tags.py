"""runtime.fab.sem_tags and sem_makers: what the TIFF files of each maker say."""

from __future__ import annotations

import random
import struct
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from sem_files import FEI, PHENOM, SIZE, TESCAN, THERMO, ZEISS, grey, tiff

from runtime.errors import FrameError
from runtime.fab.sem_metadata import SemMetadata, read_sem_metadata
from runtime.fab.sem_values import KNOWN_FIELDS
from runtime.frames import EncodedFrame, read_frame

THUMBNAIL = b"\xff\xd8 PixelSizeX=1 \xff\xd9\r\n"
MAKERS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "zeiss": (
        tiff((34118, ZEISS)),
        {
            "pixel_size_nm": (7.344, 7.344),
            "magnification": 50_000,
            "voltage_kv": 20,
            "working_distance_mm": 2.8,
            "detector": "InLens",
            "maker": "Zeiss",
            "model": "Supra 40",
            "acquired": datetime(2019, 7, 18, 10, 9, 27),
            "bar_rows": None,
        },
    ),
    "fei": (
        tiff((34682, FEI)),
        {
            "pixel_size_nm": (2.0345, 2.5),
            "magnification": 200_000,
            "voltage_kv": 5,
            "working_distance_mm": 4.12,
            "detector": "TLD",
            "maker": "FEI",
            "model": "Helios G4 UX",
            "acquired": datetime(2019, 3, 12, 22, 22, 13),
            "bar_rows": (0, 16),
        },
    ),
    "tescan": (
        tiff((50431, THUMBNAIL + TESCAN.encode())),
        {
            "pixel_size_nm": (41, 42),
            "magnification": 5000,
            "voltage_kv": 15,
            "working_distance_mm": 10,
            "detector": "SE",
            "maker": "Tescan",
            "model": "MIRA3 LMH",
            "acquired": datetime(2019, 3, 12, 10, 22, 13),
            "bar_rows": (0, 20),
        },
    ),
    "phenom": (
        tiff((34683, PHENOM)),
        {
            "pixel_size_nm": (20, 20),
            "magnification": None,
            "voltage_kv": 15,
            "working_distance_mm": 6.5,
            "detector": "BSD",
            "maker": "Phenom",
            "model": "Phenom ProX",
            "acquired": None,
            "bar_rows": (0, 16),
        },
    ),
    "thermo": (
        tiff((34683, THERMO)),
        {
            "pixel_size_nm": (3, 3),
            "magnification": None,
            "voltage_kv": 2,
            "working_distance_mm": 4,
            "detector": "T1",
            "maker": "FEI Company",
            "model": "Apreo",
            "acquired": datetime(2019, 3, 12, 10, 22, 13),
            "bar_rows": None,
        },
    ),
}


def known(sem: SemMetadata) -> dict[str, Any]:
    return {name: value for name in KNOWN_FIELDS if (value := getattr(sem, name)) is not None}


@pytest.mark.parametrize("maker", MAKERS)
def test_each_maker_is_read_completely(maker: str) -> None:
    data, expected = MAKERS[maker]
    sem = read_sem_metadata(data)
    assert set(expected) == set(KNOWN_FIELDS)
    for name, value in expected.items():
        found = getattr(sem, name)
        assert found == (value if isinstance(value, str | datetime | None) else pytest.approx(value)), name
        assert (name in sem.source) == (value is not None), name
    assert sem.warnings == ()
    assert read_sem_metadata(EncodedFrame("a.tif", data)) == sem


def test_older_zeiss_files_have_the_size_of_a_pixel_without_a_name() -> None:
    older = ZEISS.replace("AP_IMAGE_PIXEL_SIZE", "AP_OTHER")
    assert read_sem_metadata(tiff((34118, older))).pixel_size_nm == pytest.approx((7.34375 * 8, 7.34375 * 8))
    broken = read_sem_metadata(tiff((34118, older.replace("7.343750e-009", "none"))))
    assert broken.pixel_size_nm is None
    assert "pixel_size_nm is not read" in broken.warnings[0]


def test_fei_is_read_from_its_older_tag_and_from_the_end_of_the_file() -> None:
    expected = known(read_sem_metadata(tiff((34682, FEI))))
    assert known(read_sem_metadata(tiff((34680, FEI)))) == expected
    ended = read_sem_metadata(tiff(end=FEI.encode()))
    assert known(ended) == expected
    assert ended.source["pixel_size_nm"] == "text at the end of the file"


def test_xml_after_the_sections_adds_to_them_and_must_not_contradict_them() -> None:
    agrees = THERMO.replace("3e-9</X>", "2.0345e-9</X>").replace("3e-9</Y>", "2.5e-9</Y>")
    agrees = agrees.replace(">2000<", ">5000<").replace(">0.004<", ">0.00412<")
    sem = read_sem_metadata(tiff((34682, FEI + agrees)))
    assert (sem.warnings, sem.model) == ((), "Helios G4 UX")
    sem = read_sem_metadata(tiff((34682, FEI + THERMO)))
    assert sem.pixel_size_nm is sem.voltage_kv is None
    assert any("2.0345 x 2.5 by TIFF tag 34682 and 3 x 3 by TIFF tag 34682 (XML)" in text for text in sem.warnings)


def test_each_page_of_a_stack_has_its_own_metadata(tmp_path: Any) -> None:
    import tifffile

    path = tmp_path / "lot.tif"
    with tifffile.TiffWriter(path) as writer:
        for side in ("7.344", "3.5"):
            text = ZEISS.replace("= 7.344", f"= {side}")
            writer.write(grey(), photometric="minisblack", metadata=None, extratags=[(34118, 2, len(text), text, True)])
    assert [read_sem_metadata(f"{path}#{page}").pixel_size_nm for page in (1, 2)] == [(7.344, 7.344), (3.5, 3.5)]


def test_olympus_sis_is_read() -> None:
    # The head of the structure, then one entry of general data whose place is in the file.
    data = tiff((33560, b"S" * 68))
    place = data.index(b"S" * 68)
    general = len(data)
    head = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 22, 10, 12, 2, 119, b"a", 1) + struct.pack("<hhI", 1, 1, general)
    body = struct.pack("<10xhdd8xd2x34s32s", -9, 4.5, 4.5, 1000.0, b"camera", b"type")
    sem = read_sem_metadata(data[:place] + head + data[place + 68 :] + body + bytes(200))
    assert sem.pixel_size_nm == pytest.approx((4.5, 4.5))
    assert (sem.maker, sem.magnification, sem.acquired) == ("Olympus SIS", 1000, datetime(2019, 3, 12, 10, 22))


@pytest.mark.parametrize(
    ("options", "description", "size"),
    [
        ({"resolution": (72, 72), "resolutionunit": 2}, None, None),
        ({"resolution": (96, 96), "resolutionunit": 2}, None, None),
        ({"resolution": (300, 300), "resolutionunit": 2}, None, None),
        ({"resolution": (4800, 4800), "resolutionunit": 2}, None, None),
        ({"resolution": (118, 118), "resolutionunit": 3}, None, None),
        ({"resolution": (1, 1), "resolutionunit": 1}, None, None),
        ({"resolution": (2e6, 1e6), "resolutionunit": 3}, None, (5, 10)),
        ({"resolution": (0.5, 0.25)}, "ImageJ=1.53t\nunit=nm\n", (2, 4)),
        ({"resolution": (100, 100)}, "ImageJ=1.53t\nunit=micron\n", (10, 10)),
        ({"resolution": (100, 100)}, "ImageJ=1.53t\nunit=\\u00B5m\n", (10, 10)),
        ({"resolution": (300, 300)}, "ImageJ=1.53t\nunit=inch\n", None),
        ({"resolution": (1, 1)}, "ImageJ=1.53t\nunit=pixel\n", None),
        ({"resolution": (72, 72), "resolutionunit": 2}, "ImageJ=1.53t\n", None),
        ({}, "ImageJ=1.53t\nunit=nm\n", None),
    ],
)
def test_resolution_counts_only_where_it_means_the_specimen(
    options: dict[str, Any], description: str | None, size: tuple[float, float] | None
) -> None:
    sem = read_sem_metadata(tiff(description=description, **options))
    assert sem.pixel_size_nm == (size if size is None else pytest.approx(size, rel=1e-6))
    assert sem.warnings == ()


def test_a_frame_without_metadata_knows_nothing() -> None:
    assert known(read_sem_metadata(tiff())) == {}
    assert known(read_sem_metadata(grey())) == {}
    assert read_sem_metadata(tiff()).warnings == ()


@pytest.mark.parametrize(
    ("tags", "warning"),
    [
        ((34118, ZEISS.replace("7.344 nm", "7.344 px")), "pixel_size_nm is not read"),
        ((34118, ZEISS.replace("7.344 nm", "0 nm")), "is not within"),
        ((34118, ZEISS.replace("= 7.344 nm", "= 1e300 m")), "pixel_size_nm is not read"),
        ((34118, ZEISS.replace("128 * 96", "256 * 192")), "is for 256 columns, and the frame has 128"),
        ((34118, ZEISS.replace("EHT = 20.00 kV", "EHT = 20,00 kV")), "voltage_kv is not read"),
        ((34682, FEI.replace("=2.0345e-009", "=two")), "pixel_size_nm is not read"),
        ((34682, FEI.replace("ResolutionX=128", "ResolutionX=64")), "is for 64 columns"),
        ((34682, FEI.replace("DatabarHeight=16", "DatabarHeight=12")), "12 by DatabarHeight, 16 by ResolutionY"),
        ((34682, FEI.replace("ResolutionY=80", "ResolutionY=800")), "is for 800 rows"),
        ((34682, FEI.replace("PM", "")), "may be a month and a day"),
        ((50431, TESCAN.replace("StripSize=20", "StripSize=90")), "is not possible in a frame of 96"),
        ((34683, "<FeiImage><pixelWidth>"), "XML is damaged"),
        ((34683, '<!DOCTYPE a [<!ENTITY b "c">]><FeiImage>&b;</FeiImage>'), "declares a type or entities"),
        ((34683, "<?xml version='1.0'?><html/>"), 'the kind "html" is not known'),
        ((33560, bytes(200)), "is not read"),
    ],
)
def test_what_is_not_plausible_is_unknown_with_a_warning(tags: tuple[int, Any], warning: str) -> None:
    data = tiff(tags)
    sem = read_sem_metadata(data)
    assert any(warning in text and text.startswith("TIFF tag ") for text in sem.warnings), sem.warnings
    np.testing.assert_array_equal(read_frame(data), grey())


def test_a_bar_that_was_cut_off_is_no_bar() -> None:
    sem = read_sem_metadata(tiff((34682, FEI), frame=grey(80)))
    assert sem.bar_rows == (0, 0)


def test_a_tag_beyond_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sem = read_sem_metadata(tiff((34118, ZEISS + " " * (1 << 20))))
    assert sem.pixel_size_nm is None
    assert "is no text of at most 1,048,576 bytes" in sem.warnings[0]


@pytest.mark.parametrize("maker", [*MAKERS, "end"])
def test_damaged_metadata_never_cost_the_frame(maker: str) -> None:
    """Only bytes of the text are changed: damage elsewhere is for the tests of TIFF."""
    data = tiff(end=FEI.encode()) if maker == "end" else MAKERS[maker][0]
    starts = [data.find(text.encode()) for text in (ZEISS, FEI, TESCAN, PHENOM, THERMO)]
    start = max(starts)
    end = start + max(len(text) for text in (ZEISS, FEI, TESCAN, PHENOM, THERMO) if data.find(text.encode()) >= 0)
    rng = random.Random(1)
    for _ in range(150):
        hostile = bytearray(data)
        for _ in range(rng.randrange(1, 40)):
            hostile[rng.randrange(start, end)] = rng.choice(b"\x00\xff=[]<>\n0123456789eE.-+nmukKxX ")
        sem = read_sem_metadata(bytes(hostile))
        size = sem.pixel_size_nm
        assert size is None or all(1e-3 <= side <= 1e6 for side in size)
        assert sem.bar_rows is None or 0 <= sum(sem.bar_rows) <= SIZE[0] // 2
        assert all(len(text) < 400 for text in sem.warnings)


@pytest.mark.parametrize("name", ["1908248", "1908278"])
def test_the_real_zeiss_frames_say_what_is_known_of_them(shared: Any, name: str) -> None:
    sem = read_sem_metadata(shared / f"fixtures/zeiss-tiff/{name}.tif")
    assert sem.pixel_size_nm == (7.344, 7.344)
    assert (sem.magnification, sem.voltage_kv, sem.detector, sem.model) == (50_000, 20, "InLens", "Supra 40")
    assert sem.working_distance_mm == {"1908248": 2.8, "1908278": 2.9}[name]
    assert sem.acquired is not None
    assert sem.acquired.date() == datetime(2019, 7, 18).date()
    assert sem.warnings == ()
    assert known(read_sem_metadata(shared / f"fixtures/zeiss-tiff/{name}_m.tif")) == {}


def test_another_reader_gives_the_same_size_of_a_pixel(shared: Any) -> None:
    tiff_reader = pytest.importorskip("rsciio.tiff", reason="rosettasciio is not installed")
    path = shared / "fixtures/zeiss-tiff/1908248.tif"
    axes = tiff_reader.file_reader(str(path))[0]["axes"]
    sizes = [axis["scale"] * {"m": 1e9, "nm": 1.0, "\u00b5m": 1e3, "um": 1e3}[axis["units"]] for axis in axes]
    assert sizes == pytest.approx(read_sem_metadata(path).pixel_size_nm, rel=1e-3)


def test_no_frame_is_an_error() -> None:
    with pytest.raises(FrameError, match="is not a readable"):
        read_sem_metadata(b"no image")


@pytest.mark.parametrize("maker", MAKERS)
def test_a_tag_of_metadata_that_is_damaged_itself_never_costs_the_frame(maker: str) -> None:
    """Its type, count and place are changed, in the table of the page."""
    data = MAKERS[maker][0]
    code = next(code for code in (34118, 34682, 34683, 50431) if struct.pack("<HH", code, 2) in data or code == 50431)
    entry = data.index(struct.pack("<H", code), int.from_bytes(data[4:8], "little"))
    rng = random.Random(3)
    for _ in range(60):
        hostile = bytearray(data)
        for place in rng.sample(range(entry + 2, entry + 12), rng.randrange(1, 5)):
            hostile[place] = rng.choice((0, 1, 2, 4, 7, 12, 16, 127, 255))
        sem = read_sem_metadata(bytes(hostile))
        assert sem.pixel_size_nm is None or min(sem.pixel_size_nm) > 0
        assert sem.source or sem.warnings
        np.testing.assert_array_equal(read_frame(bytes(hostile)), grey())
