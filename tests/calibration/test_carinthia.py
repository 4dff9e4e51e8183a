"""calibration.carinthia: the set as its authors distribute it."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from calibration.dataset import load_dataset
from calibration.errors import DatasetError

HEAD = "image_path;mask_path;filename;label"


def write(folder: Path, rows: list[str], head: str = HEAD) -> Path:
    for name in ("images/a.jpg", "images/b.jpg", "images/c.jpg", "masks/a.png", "masks/b.png", "masks/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / name)
    (folder / "carinthia-s.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


ROWS = [
    "images/a.jpg;masks/a.png;a.jpg;3",
    "images/b.jpg;masks/b.png;b.jpg;6",
    "images/c.jpg;masks/c.png;c.jpg;1",
]


def test_six_numbers_become_good_and_five_types(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, ROWS))
    assert dataset.classes == ("good", "type-1", "type-3")
    assert [(s.label, s.path.name) for s in dataset.samples] == [
        ("good", "b.jpg"),
        ("type-1", "c.jpg"),
        ("type-3", "a.jpg"),
    ]
    assert len({s.group for s in dataset.samples}) == 3
    good, hole, _ = dataset.samples
    assert good.mask is None, "class 6 shows nothing, whatever its mask marks"
    assert hole.read_mask((8, 8)).all()  # type: ignore[union-attr]


def test_paths_with_backslashes_are_read(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, [row.replace("/", "\\") for row in ROWS]))
    assert len(dataset.samples) == 3


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    rows = [*ROWS, "images/a.jpg;;a.jpg;2", "images/z.jpg;;z.jpg;1", "images/b.jpg;;b.jpg;7", "../x.jpg;;x.jpg;1"]
    with pytest.raises(DatasetError) as caught:
        load_dataset(write(tmp_path, rows))
    assert caught.value.faults == (
        "carinthia-s.csv line 5: images/a.jpg appears twice",
        "carinthia-s.csv line 6: images/z.jpg is not there",
        'carinthia-s.csv line 7: label "7" is none of 1 ... 6',
        "carinthia-s.csv line 8: ../x.jpg is not there",
    )


def test_a_table_without_a_column_is_refused_and_names_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="lacks the columns label, mask_path"):
        load_dataset(write(tmp_path, [], head="image_path;filename"))


def test_files_that_no_row_names_are_left_out_and_named(tmp_path: Path) -> None:
    stray = [write(tmp_path, ROWS) / name for name in ("images/d.jpg", "masks/d.png", "masks/notes.txt")]
    for path in stray:
        path.touch()
    assert load_dataset(tmp_path).stray == tuple(stray), "and not the mask of a good frame, which is known"


@pytest.mark.parametrize(("stored", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_every_unicode_form_are_the_same_name(
    stored: Literal["NFC", "NFD"], listed: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    folder = write(tmp_path, [*ROWS, *(f"images/{unicodedata.normalize(listed, 'é')}.jpg;;é.jpg;2",)])
    (folder / "images/a.jpg").rename(place := folder / f"images/{unicodedata.normalize(stored, 'é')}.jpg")
    (folder / "carinthia-s.csv").write_text(
        "\n".join([HEAD, *ROWS[1:], f"images/{unicodedata.normalize(listed, 'é')}.jpg;;x;2"])
    )
    assert [sample.path for sample in load_dataset(folder).of_class("type-2")] == [place]
