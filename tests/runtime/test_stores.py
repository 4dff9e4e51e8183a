"""URIs of files in object stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import FrameError

pytest.importorskip("pyarrow")
stores = pytest.importorskip("runtime.serving.stores")
Stored = stores.Stored


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket/lot/a.tif#2", ("s3://bucket", "/lot/a.tif", "", 2)),
        ("s3://bucket/a.tif?region=x&scheme=http#12", ("s3://bucket", "/a.tif", "?region=x&scheme=http", 12)),
        ("s3://bucket", ("s3://bucket", "", "", None)),
        ("file:///lot/a%20b.png", ("file://", "/lot/a%20b.png", "", None)),
        ("abfs://container@account/a.png", ("abfs://container@account", "/a.png", "", None)),
        ("gs://anonymous@bucket/key.png", ("gs://anonymous@bucket", "/key.png", "", None)),
    ],
)
def test_a_uri_has_parts_and_comes_back(uri: str, parts: tuple[object, ...]) -> None:
    stored = Stored.of(uri)
    assert (stored.store, stored.path, stored.query, stored.page) == parts
    assert str(stored) == uri


def test_a_file_below_a_folder_keeps_what_the_store_needs() -> None:
    folder = Stored.of("s3://bucket/lot/?endpoint_override=minio:9000")
    assert str(folder.below("x/a b#1.png")) == "s3://bucket/lot/x/a%20b%231.png?endpoint_override=minio:9000"
    assert str(Stored.of("s3://bucket").below("a.png")) == "s3://bucket/a.png"


@pytest.mark.parametrize("name", ["a b.png", "a#1.png", "100%.png", "a?b.png", "ä.png"])
def test_any_name_is_found_again(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    filesystem, path = Stored.of(str(Stored.of(tmp_path.as_uri()).below(name))).open()
    assert path == str(tmp_path / name)
    assert filesystem.get_file_info(path).is_file


@pytest.mark.parametrize("uri", ["://a", "1x://a/b", "s3://b/a.tif#0", "s3://b/a.tif#x", "a path://b"])
def test_other_text_is_no_uri(uri: str) -> None:
    with pytest.raises(FrameError, match="is no URI of a file"):
        Stored.of(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://user:hidden@bucket/a.png", "s3:...bucket/a.png"),
        ("abfs://c@a/a.png?client_secret=hidden&x=1", "abfs://c@a/a.png...&x=1"),
        ("abfs://c@a/a.png?x=1&SAS_token=hidden#2", "abfs://c@a/a.png?x=1...#2"),
    ],
)
def test_no_secret_goes_into_names(uri: str, shown: str) -> None:
    with pytest.raises(FrameError, match="set it in the environment") as caught:
        Stored.of(uri)
    assert caught.value.source == shown


def test_a_store_is_opened_once(tmp_path: Path) -> None:
    first, _ = Stored.of(f"{tmp_path.as_uri()}/a.png").open()
    assert Stored.of(f"{tmp_path.as_uri()}/b.png").open()[0] is first
