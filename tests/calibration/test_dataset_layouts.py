"""calibration.dataset: MVTec's layout, other layouts, Unicode forms of names, and links."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from data_folders import (
    faults_of,
    labelled_folder,
    names,
    rows_of,
    save,
    write_groups,
)

from calibration.dataset import load_dataset, load_frames
from calibration.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelled_folder(tmp_path)


NFC, NFD = (unicodedata.normalize(form, "fléau") for form in ("NFC", "NFD"))


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
def test_other_layouts_are_refused_with_the_folders_found(name: str, tmp_path: Path) -> None:
    for place in (name, "test/ok", "train/good" if name == "train/hole" else name):
        save(tmp_path / place / "0.png")
    (fault,) = faults_of(tmp_path)
    assert fault == (
        "there is no folder images/ in it; expected images/<class>/<frame>.png; it holds "
        f"{', '.join(sorted({'test', Path(name).parts[0]}))}"
    )


def test_links_are_followed_and_dangling_links_are_faults(folder: Path, tmp_path: Path) -> None:
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
def test_dangling_links_to_masks_and_groups_are_faults(name: str, says: str, folder: Path) -> None:
    place = folder / name
    place.rename(folder / "moved")
    try:
        place.symlink_to("/nowhere/there")
    except OSError:
        pytest.skip("links cannot be made here")
    assert faults_of(folder) == (says,)


@pytest.mark.parametrize("name", ["Masks", "MASKS", "Groups.csv"])
def test_a_name_of_the_layout_in_another_letter_case_is_a_fault(folder: Path, name: str) -> None:
    (folder / name.lower()).rename(folder / name)
    if (folder / name.lower()).exists():
        pytest.skip("this file system does not tell cases apart")
    with pytest.raises(DatasetError, match=f"{name} is not used under this name; call it {name.lower()}"):
        load_dataset(folder)


def test_a_class_folder_linked_twice_is_a_fault(folder: Path) -> None:
    (folder / "images/void").symlink_to("hole")
    with pytest.raises(DatasetError, match=r"void and .*hole are one folder, by a link"):
        load_dataset(folder)
