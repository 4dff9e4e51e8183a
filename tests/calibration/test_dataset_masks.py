"""calibration.dataset: masks of frames, and masks that cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from data_folders import (
    faults_of,
    labelled_folder,
    save,
)
from PIL import Image

from calibration.dataset import Sample, load_dataset
from calibration.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelled_folder(tmp_path)


def test_a_missing_mask_is_empty_for_a_good_frame_and_none_for_a_defect(tmp_path: Path) -> None:
    clean = Sample(tmp_path / "f.png", "good", "g", None).read_mask((2, 3))
    assert clean is not None
    assert clean.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert Sample(tmp_path / "f.png", "hole", "g", None).read_mask((2, 3)) is None


def test_a_mask_that_shows_a_defect_in_ignored_rows_alone_shows_none(tmp_path: Path) -> None:
    marked = np.zeros((8, 6), np.uint8)
    marked[1], marked[6] = 255, 255
    Image.fromarray(marked).save(tmp_path / "m.png")
    sample = Sample(tmp_path / "f.png", "hole", "g", tmp_path / "m.png")
    assert sample.read_mask((8, 6), (2, 2)) is None
    for ignored in ((0, 0), (1, 2), (2, 1)):
        found = sample.read_mask((8, 6), ignored)
        assert found is not None
        assert found.tolist() == (marked // 255).tolist()


def test_a_mask_of_another_size_is_refused_and_both_files_are_named(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", (8, 6))
    with pytest.raises(DatasetError, match=r"m\.png: the mask is 8x6, its frame .*f\.png 6x8"):
        Sample(tmp_path / "f.png", "hole", "g", mask).read_mask((6, 8))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_mask_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    mask = tmp_path / "m.png"
    mask.write_bytes(content)
    with pytest.raises(DatasetError, match=r"m\.png: the mask cannot be read: "):
        Sample(tmp_path / "f.png", "hole", "g", mask).read_mask((6, 8))


def test_masks_outside_the_class_folders_are_a_fault(folder: Path) -> None:
    save(folder / "masks" / "0.png", value=255)
    assert faults_of(folder) == ("masks/ holds 1 files such as 0.png; expected masks/<class>/<frame>.png",)


def test_a_mask_may_have_the_suffix_mask(folder: Path) -> None:
    for number in range(2):
        (folder / f"masks/hole/{number}.png").rename(folder / f"masks/hole/{number}_mask.png")
    found = [sample.mask.name for sample in load_dataset(folder).of_class("hole") if sample.mask]
    assert found == ["0_mask.png", "1_mask.png", "2.png"]


def test_two_masks_of_a_frame_one_with_the_suffix_mask_are_a_fault(folder: Path) -> None:
    save(folder / "masks/hole/0_mask.png")
    assert any("0.png and 0_mask.png are for one frame" in fault for fault in faults_of(folder))


def test_a_mask_among_the_frames_is_a_fault_and_not_a_frame(folder: Path) -> None:
    save(folder / "images/hole/0_mask.png")
    assert faults_of(folder) == (
        "images/hole/0_mask.png is named like the mask of a frame in its folder; masks belong in masks/hole/",
    )


@pytest.mark.parametrize("name", ["0_Mask.png", "0_MASK.PNG"])
def test_a_mask_among_the_frames_is_a_fault_in_any_letter_case(folder: Path, name: str) -> None:
    shutil.copy(folder / "masks/hole/0.png", folder / "images/hole" / name)
    with pytest.raises(DatasetError, match=f"{name} is named like the mask of a frame in its folder"):
        load_dataset(folder)
