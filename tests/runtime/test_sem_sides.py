"""runtime.fab.sem_sides: the texts that tools put beside their frames."""

from __future__ import annotations

import os
import random
from datetime import datetime
from pathlib import Path

import pytest
from commandline import posix
from pictures import encoded
from sem_files import FEI, HITACHI, JEOL, SIZE, TESCAN, grey, tiff

from runtime.fab.sem_metadata import SemMetadata, read_sem_metadata
from runtime.fab.sem_sides import MOST_BYTES, side_files


def beside(folder: Path, name: str, text: str | bytes, *, frame: str = "a.tif") -> SemMetadata:
    """The metadata of a plain frame with one text beside it."""
    (folder / frame).write_bytes(encoded(grey()) if frame.endswith("png") else tiff())
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_sem_metadata(folder / frame)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("frame", ["a.tif", "a.png"])
def test_hitachi_is_read_in_every_encoding(tmp_path: Path, encoding: str, frame: str) -> None:
    sem = beside(tmp_path, "a.txt", HITACHI.encode(encoding), frame=frame)
    assert sem == SemMetadata(
        pixel_size_nm=(9.921875, 9.921875),
        magnification=10_000,
        voltage_kv=15,
        working_distance_mm=pytest.approx(8.1),
        detector="SE(U)",
        maker="Hitachi",
        model="SU8230",
        acquired=datetime(2019, 3, 12, 10, 22, 13),
        source=sem.source,
    )
    assert set(sem.source.values()) == {"a.txt"}


def test_jeol_is_read_with_the_rows_of_its_bar(tmp_path: Path) -> None:
    sem = beside(tmp_path, "a.txt", JEOL)
    assert sem == SemMetadata(
        pixel_size_nm=(50, 50),
        magnification=5000,
        voltage_kv=15,
        working_distance_mm=pytest.approx(10),
        detector="SEI",
        maker="JEOL",
        model="JSM-7800F",
        acquired=datetime(2019, 3, 12, 10, 21, 55),
        bar_rows=(0, 16),
        source=sem.source,
    )


@pytest.mark.parametrize(("name", "frame"), [("a.hdr", "a.tif"), ("a-tif.hdr", "a.tif"), ("a-png.hdr", "a.png")])
def test_tescan_is_read_under_each_of_its_names(tmp_path: Path, name: str, frame: str) -> None:
    sem = beside(tmp_path, name, TESCAN, frame=frame)
    assert (sem.pixel_size_nm, sem.bar_rows, sem.model) == (pytest.approx((41, 42)), (0, 20), "MIRA3 LMH")
    assert sem.source["pixel_size_nm"] == name


def test_names_follow_the_case_of_the_frame() -> None:
    assert list(side_files("lot/a.tif")) == ["lot/a.txt", "lot/a.hdr", "lot/a-tif.hdr"]
    assert {"A.TXT", "A.HDR", "A-TIF.HDR", "A.txt"} <= set(side_files("A.TIF"))
    assert "b.Txt" in set(side_files("b.Tif"))
    assert list(side_files("frame")) == ["frame.txt", "frame.hdr"]


def test_a_page_of_a_stack_has_the_text_beside_the_file(tmp_path: Path) -> None:
    beside(tmp_path, "a.txt", HITACHI)
    assert read_sem_metadata(f"{tmp_path / 'a.tif'}#1").pixel_size_nm == (9.921875, 9.921875)


def test_content_without_a_file_has_nothing_beside_it(tmp_path: Path) -> None:
    beside(tmp_path, "a.txt", HITACHI)
    assert read_sem_metadata((tmp_path / "a.tif").read_bytes()).pixel_size_nm is None


@pytest.mark.parametrize("text", ["", "notes of the operator", "[section]\nPixelSize=3", b"\xff\xfe", b"\x00" * 50])
def test_other_texts_beside_a_frame_are_left_alone(tmp_path: Path, text: str | bytes) -> None:
    assert beside(tmp_path, "a.txt", text) == SemMetadata()


def test_file_and_side_file_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff((34682, FEI)))
    (tmp_path / "a.txt").write_text(HITACHI)
    sem = read_sem_metadata(tmp_path / "a.tif")
    assert sem.pixel_size_nm is sem.magnification is sem.voltage_kv is None
    assert (sem.maker, sem.model, sem.bar_rows) == ("FEI", "Helios G4 UX", (0, 16))
    told = "the size of a pixel in nm is 2.0345 x 2.5 by TIFF tag 34682 and 9.92188 x 9.92188 by a.txt; neither is used"
    assert told in sem.warnings
    (tmp_path / "a.txt").write_text(HITACHI.replace("9.921875", "2.04").replace("10000", "199500"))
    (tmp_path / "a.tif").write_bytes(tiff((34682, FEI.replace("2.5e-009", "2.0345e-009"))))
    sem = read_sem_metadata(tmp_path / "a.tif")
    assert sem.pixel_size_nm == pytest.approx((2.0345, 2.0345))
    assert sem.magnification == 200_000


@pytest.mark.parametrize(
    ("name", "text", "warning"),
    [
        ("a.txt", HITACHI.replace("128x96", "640x480"), "is for 640 columns, and the frame has 128"),
        ("a.txt", HITACHI.replace("9.921875", "9,92"), "pixel_size_nm is not read"),
        ("a.txt", HITACHI.replace("=15000 Volt", "=15000"), "voltage_kv is not read"),
        ("a.txt", JEOL.replace("MICRON_BAR 20", "MICRON_BAR 0"), "pixel_size_nm is not read"),
        ("a.txt", JEOL.replace("1um", "1"), "pixel_size_nm is not read"),
        ("a.txt", JEOL.replace("SIZE 128 80", "SIZE 128 10"), "a text bar of 86 rows is not possible"),
        ("a.hdr", TESCAN.replace("4.1e-008", "4.1"), "pixel_size_nm is not read"),
        ("a.txt", HITACHI + "[a]\n" * 20_000, "it has more than 20,000 lines"),
        ("a.txt", HITACHI + " " * MOST_BYTES, f"is longer than {MOST_BYTES:,} bytes"),
    ],
)
def test_what_is_not_plausible_is_unknown_with_a_warning(tmp_path: Path, name: str, text: str, warning: str) -> None:
    sem = beside(tmp_path, name, text)
    assert any(warning in told and told.startswith(f"{name}: ") for told in sem.warnings), sem.warnings


@posix
def test_what_is_no_file_is_a_warning(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")  # which would block whoever opens it to read
    (tmp_path / "a.hdr").mkdir()
    (tmp_path / "a.tif").write_bytes(tiff())
    sem = read_sem_metadata(tmp_path / "a.tif")
    assert [told.partition(":")[0] for told in sem.warnings] == ["a.txt", "a.hdr"]


@pytest.mark.parametrize("text", [HITACHI, JEOL, TESCAN])
def test_damaged_texts_never_cost_the_frame(tmp_path: Path, text: str) -> None:
    rng = random.Random(2)
    (tmp_path / "a.tif").write_bytes(tiff())
    for _ in range(100):
        hostile = bytearray(text.encode())
        for _ in range(rng.randrange(1, 30)):
            hostile[rng.randrange(len(hostile))] = rng.choice(b"\x00\xff=[]$\n0123456789eE.- ")
        (tmp_path / "a.txt").write_bytes(hostile)
        sem = read_sem_metadata(tmp_path / "a.tif")
        assert sem.pixel_size_nm is None or all(1e-3 <= side <= 1e6 for side in sem.pixel_size_nm)
        assert sem.bar_rows is None or sem.bar_rows[1] <= SIZE[0] // 2
