"""calibration.dataset: groups.csv."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_folders import (
    Rows,
    labelled_folder,
    rows_of,
)

from calibration.dataset import load_dataset
from calibration.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelled_folder(tmp_path)


def test_without_groups_every_frame_is_its_own_group(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    dataset = load_dataset(folder)
    assert len({sample.group for sample in dataset.samples}) == 9


def test_groups_saved_by_a_spreadsheet_are_read(folder: Path) -> None:
    """With a byte order mark, Windows line ends, more columns and blanks around the names."""
    lines = ["path,class,note,group", *(f"{p},{c},x, {g} " for p, c, g in rows_of(folder))]
    (folder / "groups.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [sample.group for sample in load_dataset(folder).of_class("good")] == ["site-0", "site-1", "site-0"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_groups_between_semicolons_or_tabs_are_read(mark: str, folder: Path) -> None:
    lines = [mark.join(row) for row in [("path", "note, with a comma", "class", "group"), *rows_with_note(folder)]]
    (folder / "groups.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert [sample.group for sample in load_dataset(folder).of_class("good")] == ["site-0", "site-1", "site-0"]


def rows_with_note(folder: Path) -> Rows:
    return [(path, "a, b", label, group) for path, label, group in rows_of(folder)]


def test_an_unquoted_comma_in_a_group_is_refused(folder: Path) -> None:
    lines = [
        f"images/{path.parent.name}/{path.name},{path.parent.name},Lot 1" for path in folder.glob("images/*/*.png")
    ]
    table = folder / "groups.csv"
    table.write_text("\n".join(["path,class,group", lines[0] + ", site 2", *lines[1:]]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"groups.csv line 2 has more values than there are columns"):
        load_dataset(folder)
    table.write_text("\n".join(["path,class,group,group", *(f"{line},B" for line in lines)]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"groups.csv has two columns group"):
        load_dataset(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_groups_csv_as_a_named_pipe_is_refused_without_waiting(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    os.mkfifo(folder / "groups.csv")
    with pytest.raises(DatasetError, match=r"groups.csv cannot be read"):
        load_dataset(folder)
