"""Which frames an archive holds: paths, folders, URIs, and Parquet files of bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from commandline import posix, three_frames, write_frame, write_stack

from runtime.errors import FrameError, PredictorError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
archive = pytest.importorskip("runtime.serving.archive")


def listed(*paths: object) -> list[str]:
    """Names of the frames; nothing must be unread."""
    unread: list[FrameError] = []
    found: list[str] = archive.list_archive([str(path) for path in paths], unread).column("source").to_pylist()
    assert unread == []
    return found


def write_packed(path: Path, names: list[str | None], **columns: Any) -> Path:
    """A Parquet file of frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"path": names, "bytes": [b"x"] * len(names), **columns}), path)
    return path


def test_folders_files_and_pages_are_named_by_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_frames(tmp_path / "lot")
    write_stack(tmp_path / "stack.tif", 2)
    monkeypatch.chdir(tmp_path)
    names = ["lot/a.png", "lot/b.png", "lot/c.png", "stack.tif#1", "stack.tif#2"]
    assert listed("lot", "stack.tif", "lot/a.png") == [str(tmp_path / name) for name in names]


def test_a_table_says_what_to_open(tmp_path: Path) -> None:
    frame = write_frame(tmp_path / "a.png")
    packed = write_packed(tmp_path / "b.parquet", ["one", "two"])
    table = archive.list_archive([str(frame), str(packed)], [])
    assert sorted(zip(*(table.column(name).to_pylist() for name in ("source", "path", "row")), strict=True)) == [
        (str(frame), os.fsencode(frame), None),
        ("one", os.fsencode(packed), 0),
        ("two", os.fsencode(packed), 1),
    ]


def test_a_folder_with_parquet_files_stands_for_these(tmp_path: Path) -> None:
    write_packed(tmp_path / "b.Parquet", ["two"])
    write_packed(tmp_path / "a.parquet", ["one"])
    write_frame(tmp_path / "preview.png")
    write_packed(tmp_path / ".hidden.parquet", ["three"])
    assert listed(tmp_path) == ["one", "two"]
    assert listed(tmp_path.as_uri()) == ["one", "two"]


@posix
def test_a_name_need_not_be_utf_8(tmp_path: Path) -> None:
    frame = write_frame(tmp_path / os.fsdecode(b"\xff.png"))
    table = archive.list_archive([str(frame)], [])
    assert table.column("path").to_pylist() == [os.fsencode(frame)]
    assert table.column("source").to_pylist() == [f"{tmp_path}/\\udcff.png"]


def test_below_a_uri_the_rules_of_folders_hold(tmp_path: Path) -> None:
    for name in (
        *("lot/a.png", "lot/b.TIF", "lot/notes.txt", "lot/.hidden.png", "lot/.cache/c.png", "lot/@eaDir/d.png"),
        *("lot/a_mask.png", "lot/alone_mask.png", "lot/ground_truth/a.png", "x/images/e.png", "x/masks/e.png"),
        "y/masks/f.png",
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    uri = (tmp_path / "data").as_uri()
    kept = ["lot/a.png", "lot/alone_mask.png", "lot/b.TIF", "x/images/e.png", "y/masks/f.png"]
    assert listed(uri) == [f"{uri}/{name}" for name in kept]
    assert listed(f"{uri}/x/") == [f"{uri}/x/images/e.png"]


def test_the_folder_images_of_a_uri_goes_first(tmp_path: Path) -> None:
    write_frame(tmp_path / "images" / "a.png")
    write_frame(tmp_path / "other" / "b.png")
    assert listed(tmp_path.as_uri()) == [f"{tmp_path.as_uri()}/images/a.png"]


def test_a_uri_may_name_a_file_a_page_or_parquet_files(tmp_path: Path) -> None:
    packed = write_packed(tmp_path / "packed" / "a.parquet", ["one"])
    uri = tmp_path.as_uri()
    assert listed(f"{uri}/x.png", f"{uri}/y.tif#2") == [f"{uri}/x.png", f"{uri}/y.tif#2"]
    assert listed(packed.parent.as_uri()) == listed(packed.as_uri(), packed.as_uri()) == ["one"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [("nowhere://bucket/a.png", "is in a store that cannot be read here"), ("{}/empty", "holds no frames")],
)
def test_a_uri_without_frames_is_an_error(uri: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FrameError, match=message):
        listed(uri.format(tmp_path.as_uri()))


def test_a_uri_that_no_store_takes_is_not_read() -> None:
    unread: list[FrameError] = []
    assert archive.list_archive(["file:///a%00.png"], unread).num_rows == 0
    assert [(error.source, error.reason.split(" (")[0]) for error in unread] == [
        ("file:///a%00.png", "cannot be listed")
    ]


def test_an_empty_name_is_an_error() -> None:
    with pytest.raises(FrameError, match="an empty name is no path"):
        listed("")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (
            {"path": ["a"], "number": [1]},
            r"has the columns path, number; .* a binary column \(bytes or data or content\)",
        ),
        ({"path": [1], "bytes": [b"x"]}, r"a text column \(path or name or source\)"),
        ({"path": ["a", None], "bytes": [b"x", b"y"]}, "has 1 frames without a name in its column path"),
    ],
)
def test_other_parquet_files_are_not_read(table: dict[str, Any], reason: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    unread: list[FrameError] = []
    assert archive.list_archive([str(tmp_path / "a.parquet")], unread).num_rows == 0
    assert [error.source for error in unread] == [str(tmp_path / "a.parquet")]
    with pytest.raises(FrameError, match=reason):
        raise unread[0]


def test_long_names_of_a_small_parquet_file_are_never_all_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of 2 MB stands there once, however many rows have it."""
    file = tmp_path / "a.parquet"
    path = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 2**21])
    frames = pa.table({"path": path, "bytes": [b"x"] * 2000})
    parquet.write_table(frames, file, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**24)
    assert file.stat().st_size < 2**20
    unread: list[FrameError] = []
    monkeypatch.setattr("runtime.parquet._MAX_GROUP_BYTES", 2**25)
    names, rows = archive._names, []

    def look(found: Any, of: str) -> Any:
        rows.append(len(found))
        return names(found, of)

    monkeypatch.setattr(archive, "_names", look)
    assert archive.list_archive([str(file)], unread).num_rows == 0
    assert [error.reason for error in unread] == ["has a name of 2,097,152 bytes, more than the 32,768 allowed"]
    assert len(rows) == 1
    assert rows[0] <= 16


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no Parquet file, or one whose end is missing"),
        (b"PAR1 and no more", "is no Parquet file, or one whose end is missing"),
        (b"PAR1" + bytes(8) + (8).to_bytes(4, "little") + b"PAR1", "is damaged"),
        (None, "cannot be read as Parquet"),
    ],
)
def test_damaged_and_absent_parquet_files_are_not_read(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    if content is not None:
        file.write_bytes(content)
    unread: list[FrameError] = []
    archive.list_archive([str(file)], unread)
    assert [(error.source, error.reason.split(" (")[0]) for error in unread] == [(str(file), told)]


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "a.parquet", ["eins.png", "zwei.png"])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"zwei.png", b"zw\xffi.png"))
    unread: list[FrameError] = []
    archive.list_archive([str(tmp_path / "a.parquet")], unread)
    assert [error.reason for error in unread] == [
        "has names that are no UTF-8 text: it is damaged, or not a text column"
    ]


def test_a_name_for_two_frames_is_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "a.parquet", ["one", "two"])
    write_packed(tmp_path / "b.parquet", ["two", "one", "three"])
    with pytest.raises(PredictorError, match=r"2 names stand for two or more frames \((one, two|two, one)\)"):
        listed(tmp_path)
