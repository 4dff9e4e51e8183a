"""Images of a KLARF file are found below one folder, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from klarfs import flat, flat_row, nested, nested_row, read

from runtime.errors import FrameError
from runtime.fab.klarf_images import ImageFolder, ImageMissing, image_files
from runtime.fab.klarf_model import KlarfImage


def image(name: str | None) -> KlarfImage:
    return KlarfImage(name, 1, "0", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("lot.tif", "a/1.jpg", "b/1.jpg", "data/lot/c/2.jpg", "CASE.TIF", "two.tif", "TWO.tif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "outside.tif").touch()
    return root


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("lot.tif", "lot.tif"),
        ("./a//1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        ("C:\\data\\lot\\c\\2.jpg", "data/lot/c/2.jpg"),
        ("/data/lot/c/2.jpg", "data/lot/c/2.jpg"),
        ("case.tif", "CASE.TIF"),
        ("A\\1.JPG", "a/1.jpg"),
        ("two.tif", "two.tif"),
    ],
)
def test_names_as_tools_write_them(folder: Path, name: str, place: str) -> None:
    assert ImageFolder(folder, [name, "other.tif"]).find(image(name)) == folder / place


def test_the_folder_that_all_images_share_may_be_left_out(folder: Path) -> None:
    names = ["\\\\server\\share\\lot7\\a\\1.jpg", "\\\\server\\share\\lot7\\b\\1.jpg"]
    places = ImageFolder(folder, names)
    assert [places.find(image(name)) for name in names] == [folder / "a/1.jpg", folder / "b/1.jpg"]
    alone = ImageFolder(folder, ["D:\\x\\lot.tif"])
    assert alone.find(image("D:\\x\\lot.tif")) == folder / "lot.tif"
    with pytest.raises(FrameError, match="is not in"):  # not of this file, so what it shares is unknown
        alone.find(image("D:\\y\\lot.tif"))


def test_equal_names_in_two_folders_are_never_confused(folder: Path) -> None:
    places = ImageFolder(folder, ["x/lot.tif", "y/lot.tif"])
    for name in ("x/lot.tif", "y/lot.tif"):
        with pytest.raises(FrameError, match="is not in"):
            places.find(image(name))


def test_every_ending_of_a_path_is_tried_and_the_longest_wins(folder: Path) -> None:
    names = [f"D:\\LOT\\{lot}\\w1\\{name}" for lot, name in (("A", "a.tif"), ("B", "b.tif"), ("C", "c.tif"))]
    for place in ("w1/a.tif", "a.tif", "A/w1/a.tif", "b.tif"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    places = ImageFolder(folder, names)
    assert places.find(image(names[0])) == folder / "A/w1/a.tif"
    assert places.find(image(names[1])) == folder / "b.tif"
    with pytest.raises(ImageMissing, match=r"any of 4 endings of its path, from 'LOT/C/w1/c.tif' to 'c.tif'") as caught:
        places.find(image(names[2]))
    assert f"is not in {folder}" in str(caught.value)


def test_an_ending_of_two_images_stands_for_neither(folder: Path) -> None:
    names = ["D:\\x\\w1\\LOT.tif", "D:\\x\\w2\\lot.tif", "D:\\y\\w2\\other.tif"]
    places = ImageFolder(folder, names)  # lot.tif is there, and may be of w1 or of w2
    for name in names[:2]:
        with pytest.raises(ImageMissing, match=r"(?i)to 'w./lot\.tif'; shorter ones are those of other images too"):
            places.find(image(name))


def test_a_shorter_ending_never_leads_out_nor_decides_a_case(folder: Path, tmp_path: Path) -> None:
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    for name, said in (("D:\\x\\link.tif", "a link that leads out"), ("D:\\x\\Two.tif", "may be any of")):
        with pytest.raises(FrameError, match=said):
            ImageFolder(folder, [name, "other.tif"]).find(image(name))


@pytest.mark.parametrize(
    "name",
    ["../outside.tif", "a/../../outside.tif", "..\\outside.tif", "C:\\..\\outside.tif", "", "/", "C:", "a/b:c",
     "x\0.tif", "a/b\n.tif", "x" * 5000],
)  # fmt: skip
def test_names_that_lead_out_or_are_none_are_refused(folder: Path, name: str) -> None:
    for files in ([name], ["lot.tif", name]):
        with pytest.raises(FrameError, match="is no name of an image below a folder"):
            ImageFolder(folder, files).find(image(name))


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    (folder / "up").symlink_to(tmp_path)
    (folder / "within.tif").symlink_to(folder / "lot.tif")
    places = ImageFolder(folder, ["link.tif", "up/outside.tif", "within.tif"])
    for name in ("link.tif", "up/outside.tif"):
        with pytest.raises(FrameError, match="a link that leads out"):
            places.find(image(name))
    assert places.find(image("within.tif")) == folder / "within.tif"


def test_missing_unclear_and_unnamed_images(folder: Path) -> None:
    places = ImageFolder(folder, ["no.tif"])
    for name in ("no.tif", "a", "lot.tif/x", "none/x.tif", "y" * 300):
        with pytest.raises(FrameError, match="is not in"):
            places.find(image(name))
    with pytest.raises(FrameError, match=r"may be any of TWO\.tif, two\.tif"):
        places.find(image("Two.TIF"))
    with pytest.raises(FrameError, match="names no image file"):
        places.find(image(None))
    with pytest.raises(FrameError, match="is not in"):
        ImageFolder(folder / "nowhere", []).find(image("lot.tif"))


def test_names_are_collected_from_all_versions() -> None:
    rows = [nested_row(1, 'Images 2 { "a\\1" "JPG" 1 "P", "b" "JPG" 1 "P" }'), nested_row(2)]
    assert image_files(read(nested(rows))) == {"a\\1", "b"}
    assert image_files(read(flat([flat_row(1, [(1, 0)]), flat_row(2)]))) == {"lot.tif"}
    assert image_files(read(flat([flat_row(1, [(1, 0)])], tiff=""))) == set()


def test_a_folder_that_cannot_be_looked_through_is_a_fault_of_the_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FrameError, match=r"cannot be looked for in .* \(Permission denied\)") as caught:
        ImageFolder(folder, []).find(image("LOT.tif"))
    assert not isinstance(caught.value, ImageMissing)
