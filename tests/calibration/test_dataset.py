"""calibration.dataset: the classes, frames and groups that are listed, and the files that are left out."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_folders import (
    faults_of,
    good_alone,
    labelled_folder,
    names,
    save,
)
from PIL import Image

from calibration.dataset import Sample, load_dataset, load_frames
from calibration.errors import DatasetError
from runtime.errors import FrameError
from runtime.folders import output_info
from runtime.recipe import FrameOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelled_folder(tmp_path)


def test_a_data_folder_is_listed_with_classes_masks_and_groups(folder: Path) -> None:
    dataset = load_dataset(str(folder))
    assert dataset.classes == ("good", "hole", "scratch")
    assert names(dataset.samples) == [f"{c}/{n}.png" for c in dataset.classes for n in range(3)]
    assert [sample.group for sample in dataset.of_class("hole")] == ["site-0", "site-1", "site-0"]
    assert {sample.label for sample in dataset.samples if sample.mask} == {"hole"}
    assert dataset.stray == ()


def test_good_is_the_first_class(tmp_path: Path) -> None:
    for label in ("zebra", "bridge", "good"):
        save(tmp_path / "images" / label / "a.png")
    assert load_dataset(tmp_path).classes == ("good", "bridge", "zebra")


def test_classes_can_be_left_out(folder: Path) -> None:
    data = load_dataset(folder)
    fewer = data.only(["scratch", "good"])
    assert (fewer.folder, fewer.classes) == (folder, ("good", "scratch"))
    assert list(fewer.samples) == data.of_class("good") + data.of_class("scratch")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["good", "crack"], 'there is no class "crack"; there are: good, hole, scratch'),
        (["hole", "scratch"], "there is no class good"),
        (["good", "good"], "there is no defect class"),
    ],
)
def test_a_choice_of_classes_without_good_or_a_defect_is_refused(folder: Path, names: list[str], says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        load_dataset(folder).only(names)


def test_a_lone_defect_class_lacks_good_frames_and_nothing_else(folder: Path) -> None:
    with pytest.raises(DatasetError, match="there is no class good") as caught:
        load_dataset(folder).only(["hole"])
    assert "no defect class" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPEG", ".bmp", ".tif", ".tiff"])
def test_frames_of_every_format_are_found_and_their_masks_may_be_of_another(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "images/good/a.png")
    frame = save(tmp_path / f"images/hole/a{suffix}")
    mask = save(tmp_path / "masks/hole/a.bmp")
    (sample,) = load_dataset(tmp_path).of_class("hole")
    assert (sample.path, sample.mask) == (frame, mask)


def test_files_that_are_not_frames_are_left_out_and_reported(folder: Path) -> None:
    stray = [folder / "images" / name for name in ("notes.txt", "good/Thumbs.db", "good/._0.png", "hole/.DS_Store")]
    for path in stray:
        path.write_bytes(b"not a frame")
    (folder / "images/hole/folder.png").mkdir()
    (folder / "images/.cache").mkdir()
    for name in ("masks/readme.txt", "masks/hole/0.xcf", "masks/hole/._0.png", "masks/.old.png"):
        (folder / name).write_bytes(b"")
        stray.append(folder / name)
    (folder / "images/@eaDir").mkdir()
    dataset = load_dataset(folder)
    assert len(dataset.samples) == 9
    assert set(dataset.stray) == {*stray, folder / "images/hole/folder.png"}
    assert dataset.of_class("hole")[0].mask == folder / "masks/hole/0.png"


def test_frames_are_read_with_the_options_of_their_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 5), 2000, np.uint16)).save(path)
    sample = Sample(path, "hole", "g", None)
    assert np.unique(sample.read(FrameOptions(white_level=4000))) == [128]
    with pytest.raises(FrameError, match="no such file"):
        Sample(tmp_path / "absent.png", "hole", "g", None).read(FrameOptions())


def test_entries_outside_images_and_masks_are_reported(folder: Path) -> None:
    (folder / "masks").rename(folder / "labels")
    shutil.copy(folder / "images/hole/0.png", folder / "lost.png")
    (folder / "README.md").touch()
    dataset = load_dataset(folder)
    assert set(dataset.stray) == {folder / "labels", folder / "lost.png"}
    assert all(sample.mask is None for sample in dataset.samples)


def test_pictures_written_by_this_program_are_left_out_and_reported(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    written = folder / "images/hole/a.png"
    Image.new("RGB", (4, 4)).save(written, pnginfo=output_info())
    dataset = load_dataset(folder)
    assert len(dataset.of_class("hole")) == 3
    assert dataset.stray == (written,)
    assert load_frames(folder / "images/hole").stray == (written,)


def test_a_stack_of_frames_is_refused_with_a_remedy(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    page = Image.fromarray(np.zeros((4, 4), np.uint8))
    page.save(folder / "images/hole/z.tif", save_all=True, append_images=[page])
    (folder / "images/good/broken.tif").write_bytes(b"II")  # found when it is read
    (fault,) = faults_of(folder)
    assert fault == f"{folder / 'images/hole/z.tif'} holds 2 pages; save each page that is a frame as a file of its own"
    with pytest.raises(DatasetError, match="holds 2 pages"):
        load_frames(folder / "images/hole")


def test_a_data_folder_of_good_frames_alone_is_enough_to_calibrate_on(folder: Path) -> None:
    good_alone(folder)
    dataset = load_frames(folder)
    assert (dataset.classes, len(dataset.samples), dataset.flat) == (("good",), 3, False)
    assert [sample.group for sample in dataset.samples] == ["site-0", "site-1", "site-0"]


def test_a_flat_folder_is_taken_to_hold_good_frames(tmp_path: Path) -> None:
    for name in ("b.png", "a.TIF"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    dataset = load_frames(tmp_path)
    assert dataset.flat
    assert names(dataset.samples) == ["good/a.TIF", "good/b.png"]
    assert len({sample.group for sample in dataset.samples}) == 2
    assert dataset.stray == (tmp_path / "notes.txt",)


def test_load_frames_reads_a_labelled_folder_as_load_dataset_does(folder: Path) -> None:
    assert load_frames(folder) == load_dataset(folder)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "holds neither images/<class>/ nor, as a flat folder of good frames, any .png"),
        (lambda folder: folder.rmdir(), "there is no folder images/ in it"),
        (lambda folder: save(folder / "images/hole/a.png"), "there is no class good"),
    ],
    ids=["empty", "absent", "defects alone"],
)
def test_folders_without_good_frames_are_refused(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    make(folder)
    with pytest.raises(DatasetError, match=says):
        load_frames(folder)


@pytest.mark.parametrize("name", ["emps-particles", "magnetic-tile", "nanofiber-sem"])
def test_real_data_sets_load(shared: Path, name: str) -> None:
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip("this data set is not there")
    dataset = load_dataset(folder)
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert dataset.classes[0] == "good"
    assert Counter(sample.label for sample in dataset.samples) == Counter(row["class"] for row in rows)
    assert sum(sample.mask is not None for sample in dataset.samples) == sum(row["has_mask"] == "1" for row in rows)
    assert {sample.group for sample in dataset.samples} == {row["group"] for row in rows}
    fractions = {row["path"]: row["mask_fraction"] for row in rows}
    for label in dataset.classes:
        sample = dataset.of_class(label)[0]
        frame = sample.read(FrameOptions())
        mask = sample.read_mask((frame.shape[0], frame.shape[1]))
        if sample.mask is not None:
            assert mask is not None
            fraction = fractions[sample.path.relative_to(folder).as_posix()]
            assert mask.mean() == pytest.approx(float(fraction or 0), abs=1e-4)
