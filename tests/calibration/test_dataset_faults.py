"""calibration.dataset: every fault of a data folder is named, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_folders import (
    COLUMNS,
    faults_of,
    good_alone,
    labelled_folder,
    remove,
    rows_of,
    save,
    write_groups,
)

from calibration.dataset import load_dataset
from calibration.errors import DatasetError
from runtime.recipe import MAX_CLASSES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelled_folder(tmp_path)


def without_good(folder: Path) -> None:
    remove(folder, "images/good")
    write_groups(folder, [row for row in rows_of(folder) if row[1] != "good"])


def empty_class(folder: Path) -> None:
    (folder / "images/void").mkdir()
    (folder / "images/void/notes.txt").touch()


def class_called_like_a_verdict(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    save(folder / "images/Cannot Decide/0.png")


def one_name_twice(folder: Path) -> None:
    save(folder / "images/Hole/0.png")
    write_groups(folder, [*rows_of(folder), ("images/Hole/0.png", "Hole", "site-0")])


def too_many_classes(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    for number in range(MAX_CLASSES):
        save(folder / f"images/class{number:02d}/a.png", (1, 1))


def unknown_row(folder: Path) -> None:
    write_groups(folder, [*rows_of(folder), ("images/hole/9.png", "hole", "site-0")])


def missing_row(folder: Path) -> None:
    write_groups(folder, rows_of(folder)[1:])


def row_without_group(folder: Path) -> None:
    write_groups(folder, [("images/good/0.png", "good", " "), *rows_of(folder)[1:]])


def short_row(folder: Path) -> None:
    write_groups(folder, [("images/good/0.png", "good"), *rows_of(folder)[1:]])


def repeated_row(folder: Path) -> None:
    write_groups(folder, [*rows_of(folder), rows_of(folder)[0]])


def wrong_class(folder: Path) -> None:
    write_groups(folder, [*rows_of(folder)[:-1], ("images/scratch/2.png", "hole", "site-0")])


def foreign_path(folder: Path) -> None:
    write_groups(folder, [*rows_of(folder), ("/data/images/good/0.png", "good", "site-0")])


def missing_column(folder: Path) -> None:
    write_groups(folder, [row[:2] for row in rows_of(folder)], COLUMNS[:2])


def empty_table(folder: Path) -> None:
    (folder / "groups.csv").write_bytes(b"")


def table_that_is_not_text(folder: Path) -> None:
    (folder / "groups.csv").write_bytes(b"path,class,group\n\xff\xfe,\0\n")


def table_that_is_a_folder(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    (folder / "groups.csv").mkdir()


def stray_mask(folder: Path) -> None:
    save(folder / "masks/scratch/9.png")


def masks_of_no_class(folder: Path) -> None:
    save(folder / "masks/crack/0.png")


def two_masks_of_one_frame(folder: Path) -> None:
    save(folder / "masks/hole/0.bmp")


def one_mask_of_two_frames(folder: Path) -> None:
    save(folder / "images/hole/0.bmp")
    write_groups(folder, [*rows_of(folder), ("images/hole/0.bmp", "hole", "site-0")])


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (without_good, "there is no class good"),
    (good_alone, "there is no defect class"),
    (empty_class, "images/void holds no frames (.png, .jpg"),
    (class_called_like_a_verdict, 'no class may be called "Cannot Decide": that is a verdict'),
    (one_name_twice, "two classes have one name: Hole, hole"),
    (too_many_classes, f"there are {MAX_CLASSES + 3} classes, more than {MAX_CLASSES}"),
    (unknown_row, "groups.csv names images/hole/9.png, which is not there"),
    (missing_row, "groups.csv has no group for images/good/0.png"),
    (row_without_group, "groups.csv has no group for images/good/0.png"),
    (short_row, "groups.csv has no group for images/good/0.png"),
    (repeated_row, "groups.csv line 11: images/good/0.png appears twice"),
    (wrong_class, "groups.csv line 10: images/scratch/2.png is labelled hole"),
    (foreign_path, 'groups.csv line 11: "/data/images/good/0.png" is not images/<class>/<file>'),
    (missing_column, "groups.csv lacks the columns group"),
    (empty_table, "groups.csv lacks the columns class, group, path"),
    (table_that_is_not_text, "groups.csv cannot be read"),
    (table_that_is_a_folder, "groups.csv cannot be read"),
    (stray_mask, "9.png belongs to no frame"),
    (masks_of_no_class, "masks/crack belongs to no class of images/"),
    (two_masks_of_one_frame, "0.bmp and 0.png are for one frame"),
    (one_mask_of_two_frames, "0.png belongs to several frames: 0.bmp, 0.png"),
]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        (fault,) = faults_of(path)
        assert "there is no folder images/ in it" in fault


@pytest.mark.parametrize(("spoil", "says"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_every_fault_of_a_folder_is_named(folder: Path, spoil: Callable[[Path], None], says: str) -> None:
    load_dataset(folder)
    spoil(folder)
    assert any(says in fault for fault in faults_of(folder)), says


def test_all_faults_are_listed_at_once(folder: Path) -> None:
    spoilers: list[Callable[[Path], None]] = [empty_class, unknown_row, repeated_row, stray_mask, masks_of_no_class]
    for spoil in spoilers:
        spoil(folder)
    faults = faults_of(folder)
    assert len(faults) == len(spoilers)
    for says in (says for spoil, says in FAULTS if spoil in spoilers and spoil is not repeated_row):
        assert any(says in fault for fault in faults), says
    with pytest.raises(DatasetError, match=f"{len(spoilers)} faults"):
        load_dataset(folder)


def test_a_long_list_of_faults_is_cut_and_counted(folder: Path) -> None:
    write_groups(folder, [*rows_of(folder), *((f"images/hole/x{n}.png", "hole", "g") for n in range(50))])
    assert len(faults_of(folder)) == 50
    with pytest.raises(DatasetError, match="and 30 more"):
        load_dataset(folder)
