"""runtime.fab.sem_bars: text bars are found where there are any, and nowhere else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sem_files import grey, with_bar

from runtime.errors import BarsError
from runtime.fab.sem_bars import Bars, bars_of, find_bars, look
from runtime.frames import read_frame
from runtime.jsonfields import Fields

SIZE = (240, 320)


def frames(count: int = 4, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return [grey(*size, seed=seed) for seed in range(count)]


def found(*pictures: np.ndarray, told: tuple[int, int] | None = None) -> Bars:
    return find_bars([look(f"{number}.tif", picture, told) for number, picture in enumerate(pictures)])


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "bright"])
@pytest.mark.parametrize("rows", [20, 40, 56])
@pytest.mark.parametrize("left_over", [0, 2])
def test_a_bar_at_the_bottom_is_found_to_the_row(rows: int, dark: bool, left_over: int) -> None:
    pictures = [with_bar(one, rows, dark=dark, left_over=left_over) for one in frames()]
    bars = found(*pictures)
    assert (bars.top, bars.bottom, bars.how, bars.sure) == (0, rows + left_over, "pixels", 1)
    assert (bars.seen, bars.height) == (4, 240)
    assert bars.levels == (None, 0 if dark else 255)
    assert bars.summary() == f"text bars: {rows + left_over} rows at the bottom, by the pixels of 4 of 4 frames"
    assert all(bars.disagreement(picture, None) == "" for picture in pictures)


@pytest.mark.parametrize("quality", [75, 90])
def test_jpeg_moves_no_row(quality: int) -> None:
    assert found(*(jpeg(with_bar(one, 40), quality) for one in frames())).bottom == 40


def test_a_bar_at_the_top_and_one_at_both_edges() -> None:
    top = [with_bar(one, 24, edge="top", dark=False) for one in frames()]
    assert (found(*top).top, found(*top).bottom) == (24, 0)
    both = found(*(with_bar(one, 40) for one in top))
    assert (both.top, both.bottom, both.levels) == (24, 40, (255, 0))
    assert both.summary().startswith("text bars: 24 rows at the top and 40 rows at the bottom")


@pytest.mark.parametrize("line", [1, 2])
def test_a_line_along_the_bar_belongs_to_it(line: int) -> None:
    assert found(*(with_bar(one, 40, line=line) for one in frames())).bottom == 40


@pytest.mark.parametrize("dark", [True, False])
def test_lines_across_a_bar_do_not_end_it(dark: bool) -> None:
    bars = found(*(with_bar(one, 60, dark=dark, cells=True) for one in frames()))
    assert bars.bottom == 60


def test_frames_of_several_sizes_may_have_one_bar() -> None:
    bars = found(*(with_bar(grey(height, 320, height), 40) for height in (240, 256, 300)))
    assert (bars.bottom, bars.height) == (40, None)
    assert bars.disagreement(with_bar(grey(500, 320), 40), None) == ""


def test_a_dark_image_next_to_a_dark_bar_does_not_deny_it() -> None:
    dark = np.zeros(SIZE, np.uint8)
    dark[40:60, 40:60] = 200
    bars = found(*(with_bar(one, 40) for one in frames()), with_bar(dark, 40))
    assert (bars.bottom, bars.seen, bars.agree, bars.sure) == (40, 5, 4, 0.8)


def test_no_bar_is_an_answer_too() -> None:
    bars = found(*frames())
    assert (bars.top, bars.bottom, bars.levels, bars.agree) == (0, 0, (None, None), 4)
    assert bars.summary() == "text bars: none, by the pixels of 4 of 4 frames"


def lines_and_spaces(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.where(np.arange(SIZE[0]) // 30 % 2, 170.0, 0.0)[:, None]
    return np.clip(rows + np.where(rows > 0, rng.normal(0, 6, SIZE), 0), 0, 255).astype(np.uint8)


def crossed(seed: int) -> np.ndarray:
    frame = grey(*SIZE, seed=seed)
    frame[-50:] = 0
    frame[-50:, ::12] = frame[-50:, 1::12] = 200
    return frame


def particles(seed: int) -> np.ndarray:
    frame, rng = grey(*SIZE, seed=seed), np.random.default_rng(seed)
    frame[-50:] = 0
    for y, x in rng.integers((SIZE[0] - 48, 0), (SIZE[0] - 4, SIZE[1] - 8), (12, 2)):
        frame[y : y + 4, x : x + 6] = 220
    return frame


@pytest.mark.parametrize("picture", [lines_and_spaces, crossed, lambda _: np.zeros(SIZE, np.uint8)])
def test_structures_of_a_wafer_are_no_bar(picture: object) -> None:
    bars = found(*(picture(seed) for seed in range(4)))  # type: ignore[operator]
    assert (bars.top, bars.bottom) == (0, 0)


def test_what_differs_from_frame_to_frame_is_no_text() -> None:
    pictures = [picture for seed in range(120) if bars_of(picture := particles(seed)) == (0, 50)][:3]
    assert len(pictures) == 3
    with pytest.raises(BarsError, match="what is on them differs from frame to frame"):
        found(*pictures)


def test_disagreement_and_too_few_frames_are_refused() -> None:
    plain = frames()
    with pytest.raises(BarsError, match=r"at least 3 frames.*there are 2 frames: give the rows with --ignore-top"):
        found(*(with_bar(one, 40) for one in plain[:2]))
    with pytest.raises(BarsError, match="there are 0 frames"):
        found()
    with pytest.raises(BarsError, match=r"different text bars: 0 rows at the top and 40 at the bottom in 3 \(0.tif"):
        found(*(with_bar(one, 40) for one in plain[:3]), with_bar(plain[3], 56))
    with pytest.raises(BarsError, match=r"1 of 4 frames do not have the text bar of the others.*\(3.tif\)"):
        found(*(with_bar(one, 40) for one in plain[:3]), plain[3])
    with pytest.raises(BarsError, match=r"1 of 4 frames show a text bar \(0.tif\), too few"):
        found(with_bar(plain[0], 40), *plain[1:])


def test_the_tools_word_counts_and_is_enough_for_one_frame() -> None:
    bars = found(with_bar(frames()[0], 40), told=(0, 40))
    assert (bars.top, bars.bottom, bars.how, bars.sure, bars.levels) == (0, 40, "metadata", 1, (None, 0))
    assert bars.summary() == "text bars: 40 rows at the bottom, by the tool's metadata of 1 of 1 frames"
    doubtful = found(*frames(2), told=(0, 40))
    assert (doubtful.bottom, doubtful.levels) == (40, (None, None))
    assert doubtful.summary().endswith("; the pixels show no background of one grey value there: look at a frame")
    looks = [look("a", with_bar(grey(*SIZE), 40), (0, 40)), look("b", grey(*SIZE), (0, 0))]
    with pytest.raises(BarsError, match=r"1 of 2 frames do not have the text bar of the others.*\(b\)"):
        find_bars(looks)
    mixed = [look("a", with_bar(grey(*SIZE), 40), (0, 40)), *(look("b", with_bar(one, 40)) for one in frames(2))]
    assert (find_bars(mixed).bottom, find_bars(mixed).how) == (40, "pixels")


def test_later_frames_may_deny_the_bars() -> None:
    bars = found(*(with_bar(one, 40) for one in frames()))
    assert (
        bars.disagreement(grey(*SIZE, seed=9), None)
        == "has no text bar in its 40 bottom rows, which the recipe ignores"
    )
    assert "has 200 rows, and the text bars of the recipe are those of frames of 240" in bars.disagreement(
        grey(200, 320), None
    )
    assert "0 rows at the top and 30 at the bottom" in bars.disagreement(with_bar(grey(*SIZE), 40), (0, 30))
    assert bars.disagreement(with_bar(grey(*SIZE), 40), (0, 40)) == ""


def test_bars_are_written_and_read() -> None:
    for bars in (found(*(with_bar(one, 40) for one in frames())), Bars(3, 4, "metadata", 7, 6)):
        faults: list[str] = []
        assert Bars.read(Fields(json.loads(json.dumps(bars.to_dict())), "bars", faults)) == bars
        assert faults == []


@pytest.mark.parametrize("size", [(1, 1), (8, 500), (26, 26), (300, 1), (30, 40)])
def test_small_frames_have_none(size: tuple[int, int]) -> None:
    assert bars_of(grey(*size)) == bars_of(np.zeros(size, np.uint8)) == (0, 0)


def test_the_real_zeiss_frames_have_one_bar(shared: Path) -> None:
    names = ("1908248", "1908278")
    looks = [look(name, read_frame(shared / f"fixtures/zeiss-tiff/{name}.tif")) for name in names]
    assert [one.shown for one in looks] == [(0, 56), (0, 56)]  # the bar itself, and two rows of the image below it
    bars = find_bars([*looks, looks[0]])
    assert (bars.top, bars.bottom) == (0, 768 - 712)
    assert bars.disagreement(looks[1].grey, None) == ""


def test_frames_of_a_few_rows_are_no_fault() -> None:
    """Metadata tell a bar of half the frame, and the lines beyond it would lie outside."""
    tiny = np.zeros((4, 5), np.uint8)
    for told in ((2, 0), (0, 2)):
        bars = find_bars([look("a.tif", tiny, told), look("b.tif", tiny, told), look("c.tif", tiny)])
        assert (bars.top > 0, bars.bottom > 0) == (told[0] > 0, told[1] > 0)
        assert bars.top + bars.bottom == 4


def test_emps_frames_with_a_whole_bar_are_those(shared: Path) -> None:
    """Windows of figures, each of another tool: bars that are cut off at the window's edge are no whole ones."""
    folder = shared / "data/emps-particles/images"
    paths = sorted(folder.glob("*/*.png"))
    assert len(paths) == 174
    shown = {str(path.relative_to(folder)): rows for path in paths if (rows := bars_of(read_frame(path))) != (0, 0)}
    assert shown == {
        "good/1b3c6536a3-0.png": (0, 50),
        "particle/4628753cd8-1.png": (0, 47),
        "particle/555eb05b4c-1.png": (0, 35),
    }
    with pytest.raises(BarsError, match="different text bars"):
        find_bars([look(str(path), read_frame(path)) for path in paths])


@pytest.mark.parametrize(("folder", "count"), [("magnetic-tile", 385), ("nanofiber-sem", 52)])
def test_frames_without_bars_have_none(shared: Path, folder: str, count: int) -> None:
    paths = sorted(path for path in (shared / f"data/{folder}/images").rglob("*") if path.is_file())
    assert len(paths) == count
    bars = find_bars([look(str(path), read_frame(path)) for path in paths])
    assert (bars.top, bars.bottom, bars.agree) == (0, 0, count)
