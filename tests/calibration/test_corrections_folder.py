"""Corrections as a data folder, and `sem-clip corrections`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from calibration_frames import command
from PIL import Image

from calibration.class_names import folder_fault
from calibration.corrections import CorrectionLog
from calibration.corrections_command import Corrections
from calibration.corrections_folder import export_folder
from calibration.dataset import load_dataset
from calibration.errors import CorrectionError
from runtime.frames import checksum_of, read_frame
from runtime.recipe import FrameOptions

OPTIONS = FrameOptions()
Capture = pytest.CaptureFixture[str]


def frame(path: Path, seed: int, kind: type = np.uint8) -> Path:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (12, 16)).astype(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask() -> np.ndarray:
    marked = np.zeros((12, 16), np.bool_)
    marked[2:5, 3:9] = True
    return marked


@pytest.fixture
def log(tmp_path: Path) -> CorrectionLog:
    """Frames of two lots, two of one name, a page of a stack; one correction was taken back."""
    found = CorrectionLog(tmp_path / "c.jsonl")
    found.add(frame(tmp_path / "lot1/a.png", 1), "hole", "good", checksum=sum_of(tmp_path / "lot1/a.png"))
    found.add(frame(tmp_path / "lot2/a.png", 2), "good", "good")
    found.add(frame(tmp_path / "lot2/b_mask.png", 3), "good", "pin hole", mask=mask())
    with tifffile.TiffWriter(tmp_path / "stack.tif") as writer:
        for seed in (4, 5):
            pixels = np.random.default_rng(seed).integers(0, 4095, (12, 16)).astype(np.uint16)
            writer.write(pixels, photometric="minisblack", metadata=None, contiguous=False)
    found.add(f"{tmp_path}/stack.tif#2", "good", "pin hole")
    found.add(frame(tmp_path / "lot2/c.png", 6), "good", "pin hole")
    found.undo()
    found.close()
    return CorrectionLog(tmp_path / "c.jsonl", write=False)


def sum_of(path: Path, options: FrameOptions = OPTIONS) -> int:
    return checksum_of(read_frame(path, options))


def test_a_frame_of_an_odd_ending_is_in_the_data_set(tmp_path: Path) -> None:
    path = frame(tmp_path / "lot1/a.png", 1).rename(tmp_path / "lot1/a.img")
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        log.add(path, "good", "hole", checksum=sum_of(path))
        export_folder(log, tmp_path / "out", OPTIONS)
    assert sum_of(tmp_path / "out/images/hole/a.png") == sum_of(path)


def test_the_folder_is_a_data_set_of_the_corrected_frames(log: CorrectionLog, tmp_path: Path) -> None:
    done = export_folder(log, tmp_path / "out", OPTIONS)
    assert (done.counts, done.masks) == ({"good": 2, "pin hole": 2}, 1)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.stray == ()
    assert dataset.classes == ("good", "pin hole")
    assert len({sample.path.name for sample in dataset.of_class("good")}) == 2
    assert {sample.group for sample in dataset.samples} == {str(tmp_path / name) for name in ("lot1", "lot2")} | {
        str(tmp_path)
    }
    (masked,) = [sample for sample in dataset.samples if sample.mask is not None]
    found = masked.read_mask((12, 16))
    assert found is not None
    assert (found == mask()).all()
    with (tmp_path / "out/groups.csv").open(newline="") as stream:
        rows = {row["frame"]: row for row in csv.DictReader(stream)}
    assert rows[f"{tmp_path}/lot1/a.png"]["old"] == "hole"
    assert (tmp_path / "out" / rows[f"{tmp_path}/lot1/a.png"]["path"]).read_bytes() == (
        tmp_path / "lot1/a.png"
    ).read_bytes()
    page = tmp_path / "out" / rows[f"{tmp_path}/stack.tif#2"]["path"]
    for options in (OPTIONS, FrameOptions(white_level=4095)):  # all 16 bits are kept
        assert (read_frame(page, options) == read_frame(f"{tmp_path}/stack.tif#2", options)).all()


def test_frames_that_are_gone_or_changed_are_all_named_and_nothing_is_written(
    log: CorrectionLog, tmp_path: Path
) -> None:
    frame(tmp_path / "lot1/a.png", 77)
    (tmp_path / "lot2/a.png").unlink()
    next((tmp_path / "c.masks").iterdir()).unlink()
    with pytest.raises(CorrectionError) as caught:
        export_folder(log, tmp_path / "out", OPTIONS)
    assert len(caught.value.faults) == 3
    for part in ("lot1/a.png: is not the picture that was judged", "lot2/a.png: ", "the mask of"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_checksum_is_of_the_white_level_that_judged(tmp_path: Path) -> None:
    path = frame(tmp_path / "a.png", 1, np.uint16)
    options = FrameOptions(white_level=4095)
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        log.add(path, "hole", "good", checksum=sum_of(path, options))
        export_folder(log, tmp_path / "out", options)
        with pytest.raises(CorrectionError, match="another --white-level"):
            export_folder(log, tmp_path / "other", OPTIONS)


def test_one_picture_of_two_classes_is_refused_and_of_one_class_written_once(tmp_path: Path) -> None:
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        for name in ("a", "b"):
            log.add(frame(tmp_path / f"{name}.png", 1), "hole", "good")
        assert export_folder(log, tmp_path / "one", OPTIONS).counts == {"good": 1}
        log.add(tmp_path / "b.png", "good", "hole")
        with pytest.raises(CorrectionError, match=r"b\.png is hole, and the same picture .*a\.png good"):
            export_folder(log, tmp_path / "two", OPTIONS)


ODD = ["a/b", "..", "a\\b", ".hidden", "c:", "ends.", "lost+found", "CON", "nul.x", "ü" * 101]


@pytest.mark.parametrize("name", ODD)
def test_a_class_that_no_folder_can_be_called_is_refused(name: str, tmp_path: Path) -> None:
    assert folder_fault(name)
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        with pytest.raises(CorrectionError):
            log.add(frame(tmp_path / "a.png", 1), "hole", name)
        log.add(frame(tmp_path / "a.png", 1), "hole", "new")
    line = json.dumps(name)  # a file of another program
    (tmp_path / "c.jsonl").write_text((tmp_path / "c.jsonl").read_text().replace('"new": "new"', f'"new": {line}'))
    with CorrectionLog(tmp_path / "c.jsonl") as log, pytest.raises(CorrectionError):
        export_folder(log, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["<img src=x>", 'say "ah"', "{{ 1 }}", "a, b; c", "über"])
def test_a_class_with_markup_or_separators_is_a_folder_of_that_name(name: str, tmp_path: Path) -> None:
    assert folder_fault(name) == ""
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        log.add(frame(tmp_path / "a.png", 1), "hole", name)
        log.add(frame(tmp_path / "b.png", 2), "hole", "good")
        export_folder(log, tmp_path / "out", OPTIONS)
    assert load_dataset(tmp_path / "out").classes == ("good", name)


def test_the_command_lists_and_writes(log: CorrectionLog, tmp_path: Path, capsys: Capture) -> None:
    assert command(Corrections, log.path) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[-1] == "4 frames are corrected or confirmed"
    assert any("good -> pin hole with a mask" in line for line in listed)
    assert command(Corrections, log.path, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written {tmp_path / 'out'}: 4 frames, 1 masks"
    assert command(Corrections, log.path, "--out", tmp_path / "out") == 2
    assert "exists: choose another --out" in capsys.readouterr().err
    assert command(Corrections, log.path, "--klarf", "lot.klarf") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--codes", "codes.toml"),
        ("--column", "MANSEMCLASS"),
        ("--replace-classes",),
        ("--no-lookup",),
        ("--encoding", "utf-8"),
        ("--force",),
    ],
)
def test_options_of_a_lot_are_not_passed_over_without_one(
    words: tuple[str, ...], log: CorrectionLog, tmp_path: Path, capsys: Capture
) -> None:
    assert command(Corrections, log.path, "--out", tmp_path / "out", *words) == 2
    assert f"{words[0]} is for a lot alone: add --klarf, or leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_log_without_corrections_writes_nothing(tmp_path: Path) -> None:
    with CorrectionLog(tmp_path / "c.jsonl") as log, pytest.raises(CorrectionError, match="nothing to write"):
        export_folder(log, tmp_path / "out", OPTIONS)
