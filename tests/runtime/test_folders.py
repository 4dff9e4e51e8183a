"""runtime.folders: which files of a folder are frames, and that nothing is lost without a word."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.cli import main
from runtime.commands import find_frames as the_commands_own
from runtime.errors import FrameError
from runtime.folders import OUTPUT_TEXT, find_frames, is_output, list_folder, output_info
from runtime.frames import read_frame

NFC, NFD = (unicodedata.normalize(form, "Ätzé") for form in ("NFC", "NFD"))


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 90, np.uint8)).save(path)


def names_below(folder: Path, unread: list[FrameError] | None = None) -> list[str]:
    return [Path(name).relative_to(folder).as_posix() for name in find_frames([str(folder)], unread)]


def link(place: Path, target: str | Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(target)
    except OSError:  # Windows, without the right to
        pytest.skip("links cannot be made here")
    return place


def test_the_commands_search_by_the_same_function() -> None:
    assert the_commands_own is find_frames


def test_a_tree_is_searched_in_the_order_of_its_parts(tmp_path: Path) -> None:
    write(*(tmp_path / name for name in ("b/z.PNG", "a.jpg", "b/a.bmp", "b-1/a.png", "c.TIFF")))
    (tmp_path / "notes.txt").touch()
    assert names_below(tmp_path) == ["a.jpg", "b/a.bmp", "b/z.PNG", "b-1/a.png", "c.TIFF"]


def test_the_current_folder_gives_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", tmp_path / "b/c.png")
    monkeypatch.chdir(tmp_path)
    assert find_frames(["."]) == ["a.png", str(Path("b/c.png"))]


def test_deep_folders_are_searched(tmp_path: Path) -> None:
    deep, made = tmp_path, Path()
    for _ in range(120):
        made /= "d"
    write(deep / made / "a.png")
    assert names_below(tmp_path) == [(made / "a.png").as_posix()]


# ---- links -----------------------------------------------------------------------------------------------------------


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "share/lotB/b.png", tmp_path / "run/a.png")
    link(tmp_path / "run/lotB", "../share/lotB")
    link(tmp_path / "run/c.png", "../share/lotB/b.png")
    unread: list[FrameError] = []
    assert names_below(tmp_path / "run", unread) == ["a.png", "c.png", "lotB/b.png"]
    assert unread == []


@pytest.mark.parametrize("name", ["b.png", "lotB", "lot.17"])
def test_a_link_that_leads_nowhere_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    dangling = link(tmp_path / name, "/nowhere/there")
    unread: list[FrameError] = []
    assert names_below(tmp_path, unread) == ["a.png"]
    assert [(error.source, error.reason) for error in unread] == [
        (str(dangling), "is a link that leads to no file and no folder")
    ]
    with pytest.raises(FrameError, match="leads to no file"):
        find_frames([str(tmp_path)])


def test_links_in_a_ring_are_named_and_end(tmp_path: Path) -> None:
    write(tmp_path / "run/a.png", tmp_path / "other/z.png")
    loops = [
        link(tmp_path / "run/again", "."),
        link(tmp_path / "run/b/up", "../.."),  # would reach folders that nobody named
        link(tmp_path / "run/self", "self"),
    ]
    unread: list[FrameError] = []
    assert names_below(tmp_path / "run", unread) == ["a.png"]
    assert {error.source for error in unread} == {str(path) for path in loops}


def test_a_folder_with_two_names_is_searched_once_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "lot/a.png")
    link(tmp_path / "also", "lot")
    unread: list[FrameError] = []
    assert names_below(tmp_path, unread) == ["lot/a.png"]
    assert unread == []
    assert f"1 already searched under another name ({tmp_path / 'also'})" in caplog.text


def test_folders_that_link_to_each_other_are_searched_once(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"{number}/a.png")
        for name in ("x", "y"):
            link(tmp_path / f"{number}/{name}", f"../{number + 1}" if number < 39 else "../0")
    unread: list[FrameError] = []
    assert len(names_below(tmp_path, unread)) == 40
    assert len(names_below(tmp_path / "0", unread)) == 40  # through links alone


def test_a_closed_folder_is_named_and_the_others_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "closed/b.png", tmp_path / "ok/a.png")
    real = os.scandir

    def scandir(folder: Path) -> object:
        if Path(folder).name == "closed":  # not by its mode: root may read everything
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    unread: list[FrameError] = []
    assert names_below(tmp_path, unread) == ["ok/a.png"]
    assert [str(error) for error in unread] == [f"{tmp_path / 'closed'}: the folder cannot be read (Permission denied)"]
    assert find_frames([str(tmp_path / "closed")], unread) == []
    assert len(unread) == 2, "and not: it holds no frames"
    with pytest.raises(FrameError, match="Permission denied"):
        find_frames([str(tmp_path)])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_with_the_name_of_a_frame_is_named_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "notes")
    unread: list[FrameError] = []
    assert names_below(tmp_path, unread) == ["a.png"]
    assert [error.reason for error in unread] == ["is a device or a pipe, not a file"]


# ---- what is no frame ------------------------------------------------------------------------------------------------

NOT_MEANT = (
    ".ipynb_checkpoints/a-checkpoint.png",
    ".Trash-1000/files/b.png",
    ".snapshot/hourly/a.png",
    "lot/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
    "lot/#recycle/a.png",
    "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png",
    "__MACOSX/a.png",
    "lost+found/a.png",
    "lot/._a.png",
    "ground_truth/hole/000_mask.png",
    "lot/a_mask.png",
)


@pytest.mark.parametrize("name", NOT_MEANT)
def test_hidden_and_system_files_and_masks_are_no_frames(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "lot/a.png", tmp_path / name)
    assert names_below(tmp_path) == ["lot/a.png"]
    assert "left out as no frames: 1 " in caplog.text


def test_a_hidden_folder_that_is_named_is_searched(tmp_path: Path) -> None:
    for name in (".snapshot", "@eaDir", "ground_truth"):
        write(tmp_path / name / "lot/a.png")
        assert names_below(tmp_path / name) == ["lot/a.png"]


def test_a_mask_counts_as_one_only_next_to_its_frame(tmp_path: Path) -> None:
    write(tmp_path / "a_mask.png", tmp_path / f"{NFC}.png", tmp_path / f"{NFD}_mask.jpg", tmp_path / "b/masks/1.png")
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.masks] == [f"{NFD}_mask.jpg"]
    assert names_below(tmp_path) == ["a_mask.png", "b/masks/1.png", f"{NFC}.png"]
    write(tmp_path / "b/images/1.png")
    assert names_below(tmp_path) == ["a_mask.png", "b/images/1.png", f"{NFC}.png"]


def test_pictures_next_to_images_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(*(tmp_path / name for name in ("images/good/a.png", "masks/good/a.png", "overview.png", "lot2/b.png")))
    assert names_below(tmp_path) == ["images/good/a.png"]
    assert f"2 next to images/ ({tmp_path / 'overview.png'}, ...)" in caplog.text


def test_a_plain_folder_is_searched_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "lot/a.png")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes.txt").touch()
    with caplog.at_level(logging.DEBUG):
        names_below(tmp_path)
    assert caplog.text == ""


# ---- this program's own pictures -------------------------------------------------------------------------------------


def test_pictures_of_this_program_are_never_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png", tmp_path / "overlays/a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.convert("RGB").save(tmp_path / "overlays/a.png", pnginfo=output_info())
    (tmp_path / "overlays/a.png").rename(tmp_path / "renamed.PNG")
    (tmp_path / "empty.png").touch()
    assert names_below(tmp_path) == ["a.png", "empty.png"]
    assert f"1 results of this program ({tmp_path / 'renamed.PNG'})" in caplog.text
    assert find_frames([str(tmp_path / "renamed.PNG")]) == [str(tmp_path / "renamed.PNG")], "it was named itself"


def test_overlays_between_the_frames_are_not_judged_in_the_next_run(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    write(run / "a.png", run / "lot/b.png")
    command = ["predict", str(fake_bundle), "--backend", "fake", str(run), "--overlays", str(run / "lot/overlays")]
    for again in ([], ["--force"]):
        assert main([*command, *again]) == 0
        judged = [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]
        assert judged == [str(run / "a.png"), str(run / "lot/b.png")]
    assert sorted(path.name for path in (run / "lot/overlays").iterdir()) == ["a.png", "b.png"]


def test_charts_carry_the_same_mark_and_stay_pictures(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.figure")
    path = tmp_path / "chart.png"
    pyplot.Figure(figsize=(1, 1)).savefig(path, metadata=dict([OUTPUT_TEXT]))
    assert is_output(path)
    assert read_frame(path).shape == (100, 100)


def test_a_file_that_cannot_be_read_is_no_picture_of_this_program(tmp_path: Path) -> None:
    assert not is_output(tmp_path / "absent.png")
    assert not is_output(tmp_path)


# ---- hosts that are in the way ---------------------------------------------------------------------------------------


def test_names_that_no_folder_can_have_are_left_to_the_reader_of_frames() -> None:
    names = ["x" * 5000, "a\0b", "/nowhere/a.png"]
    assert find_frames(names) == names


def test_a_folder_without_frames_is_refused(tmp_path: Path) -> None:
    write(tmp_path / ".snapshot/a.png")
    with pytest.raises(FrameError, match=r"the folder holds no frames \(\.png"):
        find_frames([str(tmp_path)])


def test_pictures_of_other_kinds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png")
    for name in ("b.webp", "c.dm3", "notes.txt"):
        (tmp_path / name).touch()
    assert names_below(tmp_path) == ["a.png"]
    assert f"2 pictures of kinds that are not read ({tmp_path / 'b.webp'}, ...)" in caplog.text


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FrameError, match="an empty name is no path"):
        find_frames([""])
    assert find_frames(["."]) == ["a.png"]
