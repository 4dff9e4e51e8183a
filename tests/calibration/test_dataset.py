"""calibration.dataset: reading data folders, and every fault they can have."""

from __future__ import annotations

import csv
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.dataset import Sample, load_dataset, load_frames
from calibration.errors import DatasetError
from runtime.errors import FrameError
from runtime.folders import output_info
from runtime.recipe import MAX_CLASSES, FrameOptions

COLUMNS = ("path", "class", "group")
Rows = list[tuple[str, ...]]


def save(path: Path, size: tuple[int, int] = (8, 6), value: int = 100) -> Path:
    """A flat grey image of [height, width]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def write_groups(folder: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> None:
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """good, hole and scratch with 3 frames each, masks for hole, and a groups.csv with two sites."""
    rows = []
    for label in ("good", "hole", "scratch"):
        for number in range(3):
            save(tmp_path / "images" / label / f"{number}.png")
            rows.append((f"images/{label}/{number}.png", label, f"site-{number % 2}"))
    for number in range(3):
        save(tmp_path / "masks/hole" / f"{number}.png", value=255)
    write_groups(tmp_path, rows)
    return tmp_path


def rows_of(folder: Path) -> Rows:
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as stream:
        return [tuple(row) for row in csv.reader(stream)][1:]


def faults_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value)
    return caught.value.faults


def names(samples: Sequence[Sample]) -> list[str]:
    return [f"{sample.label}/{sample.path.name}" for sample in samples]


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_data_folder_is_listed_with_classes_masks_and_groups(folder: Path) -> None:
    dataset = load_dataset(str(folder))
    assert dataset.classes == ("good", "hole", "scratch")
    assert names(dataset.samples) == [f"{c}/{n}.png" for c in dataset.classes for n in range(3)]
    assert [sample.group for sample in dataset.of_class("hole")] == ["site-0", "site-1", "site-0"]
    assert {sample.label for sample in dataset.samples if sample.mask} == {"hole"}
    assert dataset.stray == ()


def test_good_is_first_whatever_the_alphabet_says(tmp_path: Path) -> None:
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
def test_classes_that_cannot_be_all_that_is_left(folder: Path, names: list[str], says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        load_dataset(folder).only(names)


def test_a_lone_defect_class_lacks_good_frames_and_nothing_else(folder: Path) -> None:
    with pytest.raises(DatasetError, match="there is no class good") as caught:
        load_dataset(folder).only(["hole"])
    assert "no defect class" not in str(caught.value)


def test_without_groups_every_frame_is_its_own_group(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    dataset = load_dataset(folder)
    assert len({sample.group for sample in dataset.samples}) == 9


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPEG", ".bmp", ".tif", ".tiff"])
def test_frames_of_every_format_are_found_and_their_masks_may_be_of_another(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "images/good/a.png")
    frame = save(tmp_path / f"images/hole/a{suffix}")
    mask = save(tmp_path / "masks/hole/a.bmp")
    (sample,) = load_dataset(tmp_path).of_class("hole")
    assert (sample.path, sample.mask) == (frame, mask)


def test_files_that_are_no_frames_are_left_out_and_reported(folder: Path) -> None:
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


def test_groups_saved_by_a_spreadsheet_are_read(folder: Path) -> None:
    """With a byte order mark, Windows line ends, more columns and blanks around the names."""
    lines = ["path,class,note,group", *(f"{p},{c},x, {g} " for p, c, g in rows_of(folder))]
    (folder / "groups.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [sample.group for sample in load_dataset(folder).of_class("good")] == ["site-0", "site-1", "site-0"]


def test_frames_are_read_with_the_options_of_their_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 5), 2000, np.uint16)).save(path)
    sample = Sample(path, "hole", "g", None)
    assert np.unique(sample.read(FrameOptions(white_level=4000))) == [128]
    with pytest.raises(FrameError, match="no such file"):
        Sample(tmp_path / "absent.png", "hole", "g", None).read(FrameOptions())


# ---- frames to calibrate on ------------------------------------------------------------------------------------------


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


def test_a_labelled_folder_is_read_as_for_teaching(folder: Path) -> None:
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


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_a_good_frame_without_mask_is_clean_and_a_defect_without_mask_is_unknown(tmp_path: Path) -> None:
    clean = Sample(tmp_path / "f.png", "good", "g", None).read_mask((2, 3))
    assert clean is not None
    assert clean.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert Sample(tmp_path / "f.png", "hole", "g", None).read_mask((2, 3)) is None


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


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        (fault,) = faults_of(path)
        assert "there is no folder images/ in it" in fault


def remove(folder: Path, name: str) -> None:
    for path in sorted((folder / name).iterdir()):
        path.unlink()
    (folder / name).rmdir()


def without_good(folder: Path) -> None:
    remove(folder, "images/good")
    write_groups(folder, [row for row in rows_of(folder) if row[1] != "good"])


def good_alone(folder: Path) -> None:
    for name in ("images/hole", "images/scratch", "masks/hole", "masks"):
        remove(folder, name)
    write_groups(folder, [row for row in rows_of(folder) if row[1] == "good"])


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


# ---- real frames -----------------------------------------------------------------------------------------------------


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


def test_masks_that_lie_beside_the_class_folders_are_a_fault(folder: Path) -> None:
    save(folder / "masks" / "0.png", value=255)
    assert faults_of(folder) == ("masks/ holds 1 files such as 0.png; expected masks/<class>/<frame>.png",)


# ---- names, links, other layouts -------------------------------------------------------------------------------------

NFC, NFD = (unicodedata.normalize(form, "fléau") for form in ("NFC", "NFD"))


def test_masks_may_have_mask_behind_their_name(folder: Path) -> None:
    for number in range(2):
        (folder / f"masks/hole/{number}.png").rename(folder / f"masks/hole/{number}_mask.png")
    found = [sample.mask.name for sample in load_dataset(folder).of_class("hole") if sample.mask]
    assert found == ["0_mask.png", "1_mask.png", "2.png"]


def test_a_frame_has_one_mask_with_that_behind_its_name_or_without(folder: Path) -> None:
    save(folder / "masks/hole/0_mask.png")
    assert any("0.png and 0_mask.png are for one frame" in fault for fault in faults_of(folder))


def test_masks_between_the_frames_are_a_fault_and_no_frames(folder: Path) -> None:
    save(folder / "images/hole/0_mask.png")
    assert faults_of(folder) == (
        "images/hole/0_mask.png is called as the mask of a frame beside it; masks belong in masks/hole/",
    )


@pytest.mark.parametrize("forms", [(NFC, NFD, NFC), (NFD, NFC, NFD), (NFD, NFD, NFC)], ids=["1", "2", "3"])
def test_names_in_every_unicode_form_are_the_same_name(forms: tuple[str, str, str], folder: Path) -> None:
    images, masks, table = forms
    frame = save(folder / f"images/{images}/{images}.png")
    mask = save(folder / f"masks/{masks}/{masks}.png")
    write_groups(folder, [*rows_of(folder), (f"images/{table}/{table}.png", table, "site-9")])
    dataset = load_dataset(folder)
    (sample,) = dataset.of_class(NFC)
    assert (sample.path, sample.mask, sample.group) == (frame, mask, "site-9")
    assert dataset.only(["good", NFD]).classes == ("good", NFC)


def test_two_classes_that_differ_in_their_unicode_form_alone_have_one_name(folder: Path) -> None:
    for name in (NFC, NFD):
        save(folder / "images" / name / "a.png")
    (folder / "groups.csv").unlink()
    if len(list((folder / "images").iterdir())) < 5:
        pytest.skip("this file system knows one form only")
    assert any("two classes have one name" in fault for fault in faults_of(folder))


def test_two_frames_that_differ_in_their_unicode_form_alone_have_one_name(folder: Path) -> None:
    for name in (NFC, NFD):
        save(folder / f"images/hole/{name}.png")
    (folder / "groups.csv").unlink()
    if len(list((folder / "images/hole").iterdir())) < 5:
        pytest.skip("this file system knows one form only")
    assert faults_of(folder) == (f"two frames have one name, in two Unicode forms: images/hole/{NFC}.png",)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_groups_between_semicolons_or_tabs_are_read(mark: str, folder: Path) -> None:
    lines = [mark.join(row) for row in [("path", "note, with a comma", "class", "group"), *rows_with_note(folder)]]
    (folder / "groups.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert [sample.group for sample in load_dataset(folder).of_class("good")] == ["site-0", "site-1", "site-0"]


def rows_with_note(folder: Path) -> Rows:
    return [(path, "a, b", label, group) for path, label, group in rows_of(folder)]


def mvtec(folder: Path) -> Path:
    for name in ("train/good/000", "train/good/001", "test/good/000", "test/hole/000", "test/cut/000"):
        save(folder / f"{name}.png")
    for name in ("hole", "cut"):
        save(folder / f"ground_truth/{name}/000_mask.png", value=255)
    (folder / "license.txt").touch()
    return folder


def test_the_layout_of_mvtec_is_read(tmp_path: Path) -> None:
    for dataset in (load_dataset(mvtec(tmp_path)), load_frames(tmp_path)):
        assert dataset.classes == ("good", "cut", "hole")
        assert not dataset.flat
        places = [sample.path.relative_to(tmp_path).as_posix() for sample in dataset.samples]
        assert places == [
            *("train/good/000.png", "train/good/001.png", "test/good/000.png"),
            *("test/cut/000.png", "test/hole/000.png"),
        ]
        assert len({sample.group for sample in dataset.samples}) == 5
        assert [sample.mask for sample in dataset.samples[3:]] == [
            tmp_path / f"ground_truth/{name}/000_mask.png" for name in ("cut", "hole")
        ]


def test_faults_of_the_layout_of_mvtec_name_its_own_folders(tmp_path: Path) -> None:
    save(mvtec(tmp_path) / "ground_truth/hole/001_mask.png")
    save(tmp_path / "ground_truth/bent/000_mask.png")
    write_groups(tmp_path, [("images/hole/000.png", "hole", "g")])
    faults = faults_of(tmp_path)
    assert any("001_mask.png belongs to no frame" in fault for fault in faults)
    assert "ground_truth/bent belongs to no class of train/ or test/" in faults
    assert 'groups.csv line 2: "images/hole/000.png" is not test/<class>/<file>' in faults


@pytest.mark.parametrize("name", ["train/ok", "Data/Images/Normal", "train/hole"])
def test_other_layouts_are_refused_with_what_there_is(name: str, tmp_path: Path) -> None:
    for place in (name, "test/ok", "train/good" if name == "train/hole" else name):
        save(tmp_path / place / "0.png")
    (fault,) = faults_of(tmp_path)
    assert fault == (
        "there is no folder images/ in it; expected images/<class>/<frame>.png; it holds "
        f"{', '.join(sorted({'test', Path(name).parts[0]}))}"
    )


def test_links_are_followed_and_those_that_lead_nowhere_are_faults(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    save(elsewhere / "burst/a.png")
    (folder / "groups.csv").unlink()
    try:
        (folder / "images/burst").symlink_to(elsewhere / "burst")
    except OSError:
        pytest.skip("links cannot be made here")
    assert names(load_dataset(folder).of_class("burst")) == ["burst/a.png"]
    for name in ("images/gone", "images/hole/gone.png", "masks/hole/0_mask.png"):
        (folder / name).symlink_to("/nowhere/there")
    faults = faults_of(folder)
    assert len(faults) == 3
    assert all("is a link that leads to no file and no folder" in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("masks", "masks is not a folder, or a link that leads to none"),
        ("groups.csv", "groups.csv is a link that leads to no file"),
    ],
)
def test_masks_and_groups_that_are_linked_and_not_there_are_faults(name: str, says: str, folder: Path) -> None:
    place = folder / name
    place.rename(folder / "moved")
    try:
        place.symlink_to("/nowhere/there")
    except OSError:
        pytest.skip("links cannot be made here")
    assert faults_of(folder) == (says,)


def test_a_stack_of_frames_is_refused_with_what_to_do(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    page = Image.fromarray(np.zeros((4, 4), np.uint8))
    page.save(folder / "images/hole/z.tif", save_all=True, append_images=[page])
    (folder / "images/good/broken.tif").write_bytes(b"II")  # left to whoever reads it
    (fault,) = faults_of(folder)
    assert fault == f"{folder / 'images/hole/z.tif'} holds 2 pages; save each page that is a frame as a file of its own"
    with pytest.raises(DatasetError, match="holds 2 pages"):
        load_frames(folder / "images/hole")


def test_pictures_of_this_program_are_left_out_and_named(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    written = folder / "images/hole/a.png"
    Image.new("RGB", (4, 4)).save(written, pnginfo=output_info())
    dataset = load_dataset(folder)
    assert len(dataset.of_class("hole")) == 3
    assert dataset.stray == (written,)
    assert load_frames(folder / "images/hole").stray == (written,)


@pytest.mark.parametrize("name", ["Masks", "MASKS", "Groups.csv"])
def test_what_is_called_by_the_layouts_name_in_another_case_is_a_fault(folder: Path, name: str) -> None:
    (folder / name.lower()).rename(folder / name)
    if (folder / name.lower()).exists():
        pytest.skip("this file system does not tell cases apart")
    with pytest.raises(DatasetError, match=f"{name} is not used under this name; call it {name.lower()}"):
        load_dataset(folder)


def test_what_lies_beside_images_and_masks_is_named(folder: Path) -> None:
    (folder / "masks").rename(folder / "labels")
    shutil.copy(folder / "images/hole/0.png", folder / "lost.png")
    (folder / "README.md").touch()
    dataset = load_dataset(folder)
    assert set(dataset.stray) == {folder / "labels", folder / "lost.png"}
    assert all(sample.mask is None for sample in dataset.samples)


def test_one_folder_is_not_two_classes(folder: Path) -> None:
    (folder / "images/void").symlink_to("hole")
    with pytest.raises(DatasetError, match=r"void and .*hole are one folder, by a link"):
        load_dataset(folder)


@pytest.mark.parametrize("name", ["0_Mask.png", "0_MASK.PNG"])
def test_a_mask_among_frames_is_one_in_any_case(folder: Path, name: str) -> None:
    shutil.copy(folder / "masks/hole/0.png", folder / "images/hole" / name)
    with pytest.raises(DatasetError, match=f"{name} is called as the mask of a frame beside it"):
        load_dataset(folder)


def test_a_group_with_a_comma_and_without_quotes_is_refused(folder: Path) -> None:
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
def test_groups_are_not_waited_for_in_a_pipe(folder: Path) -> None:
    (folder / "groups.csv").unlink()
    os.mkfifo(folder / "groups.csv")
    with pytest.raises(DatasetError, match=r"groups.csv cannot be read"):
        load_dataset(folder)
