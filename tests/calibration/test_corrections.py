"""calibration.corrections: what people say stays, and can be taken back."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.corrections import Correction, CorrectionLog, default_path
from calibration.errors import CorrectionError
from calibration.masks import defect_pixels, read_mask

ADD = """
import sys
from itertools import count
from calibration.corrections import CorrectionLog
import numpy as np
with CorrectionLog(sys.argv[1]) as log:
    for number in count():
        mask = np.zeros((8, 8), bool)
        mask[number % 8, number % 7] = True
        log.add(f"/frames/{number}.png", "good", "hole", mask=mask)
        print(number, flush=True)
"""


def mark(rows: slice = slice(1, 3), size: tuple[int, int] = (6, 8)) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[rows, 2:5] = True
    return mask


def png(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def news(log: CorrectionLog) -> dict[str, str]:
    return {frame: made.new for frame, made in log.current().items()}


def test_a_correction_holds_who_when_old_and_new(tmp_path: Path) -> None:
    path = tmp_path / "lot7.corrections.jsonl"
    site = SimpleNamespace(lot="L7", wafer="W1", defect_id="12", x_nm=1.0)
    with CorrectionLog(path) as log:
        made = log.add("/lot7/a.tif#2", "hole", "bridge", "eve", checksum=7, site=site)
        other = log.add("/lot7/b.png", "good", "good")
        assert len(log) == 2
    expected = Correction("/lot7/a.tif#2", 7, made.when, "eve", "hole", "bridge", None, "L7", "W1", "12")
    assert made == expected
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\+00:00", made.when)
    assert other.who
    assert (made.group, other.group) == ("L7, wafer W1", "/lot7")
    with CorrectionLog(path, write=False) as log:
        assert log.current() == {"/lot7/a.tif#2": made, "/lot7/b.png": other}


def test_undo_takes_back_the_newest_and_removes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with CorrectionLog(path) as log:
        log.add("/a.png", "hole", "bridge")
        log.add("/b.png", "hole", "good")
        log.add("/a.png", "bridge", "good")
        newest = log.newest()
        assert newest is not None
        assert (newest.frame, newest.new) == ("/a.png", "good")
        found = log.undo("eve")
        assert found is not None
        assert found.new == "bridge"
        assert log.undo() is None  # /b.png is as it was judged
        assert news(log) == {"/a.png": "bridge"}
        assert log.taken_back() == {"/b.png"}
        log.add("/b.png", "hole", "bridge")
    assert len(path.read_text().splitlines()) == 1 + 3 + 2 + 1
    with CorrectionLog(path) as log:
        assert news(log) == {"/a.png": "bridge", "/b.png": "bridge"}
        assert log.taken_back() == set()
        assert [log.undo() for _ in range(2)] == [None, None]
        assert len(log) == 0
        assert log.newest() is None
        with pytest.raises(CorrectionError, match="holds no correction that could be taken back"):
            log.undo()


@pytest.mark.parametrize("kind", ["array", "png"])
def test_a_mask_is_a_png_of_0_and_255_before_its_line_is_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "c.corrections.jsonl"
    mask = mark()
    with CorrectionLog(path) as log:
        made = log.add("/a.png", "good", "hole", mask=mask if kind == "array" else png(mask * 255))
        again = log.add("/b.png", "good", "hole", mask=mask)
        stored = log.mask_path(made)
        assert stored is not None
        assert stored.parent == tmp_path / "c.corrections.masks"
        assert made.mask == again.mask
        assert len(list(stored.parent.iterdir())) == 1
        assert log.mask_path(replace(made, mask=None)) is None
    pixels = np.asarray(Image.open(stored))
    assert np.unique(pixels).tolist() == [0, 255]
    assert (defect_pixels(read_mask(stored)) == mask).all()


@pytest.mark.parametrize(
    ("mask", "label", "fault"),
    [
        (mark(slice(0, 0)), "hole", "marks nothing"),
        (mark(), "good", "marks 6 pixels, and the class is good"),
        (~mark(slice(0, 1)), "hole", "as if drawn black on white"),
        (mark().astype(np.uint8), "hole", "a mask is bool"),
        (np.zeros((4, 4, 3), np.bool_), "hole", "a mask is bool"),
        (np.zeros((0, 4), np.bool_), "hole", "a mask is bool"),
        (b"no picture", "hole", "the mask cannot be read"),
        (png(mark() * 128), "hole", "must be grey, 0 and 255"),
    ],
)
def test_a_mask_that_shows_no_defect_is_refused_and_nothing_is_written(
    mask: Any, label: str, fault: str, tmp_path: Path
) -> None:
    with CorrectionLog(tmp_path / "c.jsonl") as log, pytest.raises(CorrectionError, match=fault):
        log.add("/a.png", "good", label, mask=mask)
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]
    assert len(CorrectionLog(tmp_path / "c.jsonl", write=False)) == 0


def test_a_mask_that_is_gone_or_changed_is_named(tmp_path: Path) -> None:
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        made = log.add("/a.png", "good", "hole", mask=mark())
        path = log.mask_path(made)
        assert path is not None
        path.write_bytes(png(mark(slice(3, 5)) * 255))
        with pytest.raises(CorrectionError, match=r"mask of /a\.png is not the one that was drawn"):
            log.mask_path(made)
        path.unlink()
        with pytest.raises(CorrectionError, match=r"mask of /a\.png cannot be read"):
            log.mask_path(made)
        again = log.add("/a.png", "good", "hole", mask=mark())
        assert log.mask_path(again) == path


@pytest.mark.parametrize("name", ["<script>alert('x')</script>", 'a "b" \\ c', "ünder", "a, b; c", "{{ 7 * 7 }}"])
def test_names_with_markup_and_quotes_stay_text(name: str, tmp_path: Path) -> None:
    frame = f"/lot/{name.replace('/', '-')}.png"
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        label = name.translate(str.maketrans("/\\", "--"))
        made = log.add(frame, "good", label, name)
    with CorrectionLog(tmp_path / "c.jsonl", write=False) as log:
        assert log.current() == {frame: made}
        assert (made.new, made.who) == (label, name)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"frame": "a.png"}, "must be an absolute path"),
        ({"frame": "/a\0.png"}, "must be an absolute path"),
        ({"frame": "/a\udcff.png"}, "must be an absolute path that is valid text"),
        ({"new": "two\nlines"}, "cannot be printed"),
        ({"new": " hole"}, "begins or ends with a blank"),
        ({"new": ""}, "must not be empty"),
        ({"new": "x" * 129}, "128 are the most"),
        ({"new": "../../etc"}, "is no name for a folder"),
        ({"new": "CON"}, "is a name of the system"),
        ({"new": "\ud800"}, "cannot be printed"),
        ({"new": "g\u043eod"}, "would be two classes"),
        ({"new": "Cannot  decide"}, "that is a verdict"),
        ({"new": "Bridge"}, '"Bridge" and "bridge" would be two classes'),
        ({"old": "\x1b[2J"}, "old must be 1 to 128 characters"),
        ({"who": "eve\nmallory"}, "who must be 1 to 128"),
        ({"checksum": -1}, "checksum must lie in"),
        ({"site": SimpleNamespace(lot="a\nb")}, "lot must be text that can be printed"),
    ],
)
def test_what_no_class_frame_or_person_can_be_called_is_refused(
    changed: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"frame": "/a.png", "old": "good", "new": "hole", **changed}
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        log.add("/b.png", "good", "bridge")
        with pytest.raises(CorrectionError, match=re.escape(fault)):
            log.add(**values)
        assert news(log) == {"/b.png": "bridge"}
    assert news(CorrectionLog(tmp_path / "c.jsonl", write=False)) == {"/b.png": "bridge"}


def test_names_are_kept_in_one_unicode_form(tmp_path: Path) -> None:
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        log.add("/a.png", "good", "u\u0308ber")
        log.add("/b.png", "good", "\u00fcber")
        assert set(news(log).values()) == {"\u00fcber"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"undo": 1, "when": "t", "who": "w"}', "takes back correction 1, which does not stand"),
        ('{"undo": 9, "when": "t", "who": "w"}', "undo must lie in [1, 2]"),
        ('{"undo": 2}', "who is missing"),
        ('{"frame": "/a.png"}', "correction.new is missing"),
        (
            '{"frame": "/a.png", "checksum": null, "when": "t", "who": "w", "old": "a", "new": "b", '
            '"mask": "../../x.png", "lot": null, "wafer": null, "defect_id": null}',
            "mask must be the name of a mask",
        ),
        (
            '{"frame": "/a.png", "checksum": null, "when": "t", "who": "w", "old": "a", "new": "b", '
            '"mask": null, "lot": null, "wafer": null, "defect_id": null, "extra": 1}',
            "extra is not known",
        ),
    ],
)
def test_a_line_that_means_nothing_is_a_fault_with_its_number(line: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f'{{"format": "sem-clip-corrections", "version": 1}}\n{line}\n{line}\n')
    for write in (True, False):
        with pytest.raises(CorrectionError, match=re.escape(fault)) as caught:
            CorrectionLog(path, write)
        assert "line 2" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.jsonl"]  # the lock is gone, too


def test_a_log_that_was_opened_to_read_takes_nothing(tmp_path: Path) -> None:
    CorrectionLog(tmp_path / "c.jsonl").close()
    with CorrectionLog(tmp_path / "c.jsonl", write=False) as log:
        for change in (lambda: log.add("/a.png", "a", "b"), log.undo):
            with pytest.raises(CorrectionError, match="was opened to read"):
                change()


def test_a_killed_writer_loses_no_correction_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with subprocess.Popen([sys.executable, "-c", ADD, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        reported = [int(writer.stdout.readline()) for _ in range(20)]
        writer.kill()
        reported += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    with CorrectionLog(path) as log:
        found = list(log.current().values())
        assert [made.frame for made in found][: len(reported)] == [f"/frames/{n}.png" for n in reported]
        assert all(log.mask_path(made) for made in found)


def test_the_corrections_of_a_store_lie_beside_it() -> None:
    assert default_path(Path("lots/verdicts.db")) == Path("lots/verdicts.corrections.jsonl")
