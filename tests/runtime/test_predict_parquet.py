"""`sem-clip predict --parquet`: the same answers as the JSON lines, by the same rules."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import lines_of, names_in, predict, three_frames

from runtime import FakeBackend, Prediction, Predictor
from runtime import predictor as predictor_module
from runtime.cli import main
from runtime.manifest import Manifest, load_bundle
from runtime.parquet import read_results, read_rows

pytest.importorskip("pyarrow")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    return three_frames(tmp_path / "frames")


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "timings_ms"}


def test_rows_equal_the_json_lines(fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture) -> None:
    (frames / "b2.png").write_bytes(b"")
    file, lines = tmp_path / "v.parquet", tmp_path / "v.jsonl"
    assert predict(fake_bundle, frames, tmp_path / "absent.png", "--parquet", file, "--json", lines) == 1
    results = list(read_results(file))
    assert [result.to_dict() for result in results] == lines_of(lines.read_text())
    assert [result.ok for result in results] == [True, True, False, True, False]
    assert capsys.readouterr().out == ""


def test_with_parquet_alone_the_summary_is_all_that_is_printed(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    for number in range(6):
        (frames / f"broken{number}.png").write_bytes(b"")
    assert predict(fake_bundle, frames, "--parquet", tmp_path / "v.parquet") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "9 frames\n" in err
    assert err.endswith("  and 1 more; the rows give every reason\n")
    assert names_in(tmp_path) == ["bundle", "frames", "v.parquet"]


def test_rows_equal_the_predictions_of_the_predictor(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    assert predict(fake_bundle, frames, "--parquet", tmp_path / "v.parquet", "--features") == 0
    manifest, recipe = load_bundle(fake_bundle)
    with Predictor(fake_bundle, backend="fake") as predictor:
        for row in read_rows(tmp_path / "v.parquet"):
            wanted = predictor(row["source"])
            assert untimed(row) == untimed(wanted.to_row(features=True))
            assert (row["encoder_id"], row["recipe_sha256"]) == (manifest.encoder.id, recipe.sha256())
            again = Prediction.from_row(row)
            assert again.defect_map().tobytes() == wanted.defect_map().tobytes()
            assert np.asarray(again.overlay(again.source)).tobytes() == np.asarray(wanted.overlay()).tobytes()


def test_features_are_left_out_unless_asked_for(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    assert predict(fake_bundle, frames, "--parquet", tmp_path / "v.parquet") == 0
    assert [row["features"] for row in read_rows(tmp_path / "v.parquet")] == [None] * 3


def test_a_recipe_of_its_own_is_named_in_the_rows(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    recipe = load_bundle(fake_bundle)[1]
    recipe.save(tmp_path / "other.safetensors")
    words = ["--recipe", tmp_path / "other.safetensors", "--white-level", 4095]
    assert predict(fake_bundle, frames / "a.png", "--parquet", tmp_path / "v.parquet", *words) == 0
    (row,) = read_rows(tmp_path / "v.parquet")
    assert (row["recipe_sha256"], row["white_level"]) == (recipe.sha256(), 4095)


def test_a_file_that_exists_is_refused_without_force(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "v.parquet"
    file.write_text("old")
    assert predict(fake_bundle, frames, "--parquet", file) == 2
    assert f"error: {file} exists; add --force to replace it" in capsys.readouterr().err
    assert file.read_text() == "old"
    assert predict(fake_bundle, frames, "--parquet", file, "--force") == 0
    assert len(list(read_rows(file))) == 3


@pytest.mark.parametrize("what", ["frame", "manifest"])
def test_rows_do_not_replace_what_the_run_reads(fake_bundle: Path, frames: Path, capsys: Capture, what: str) -> None:
    target = {"frame": frames / "a.png", "manifest": fake_bundle / "manifest.json"}[what]
    before = target.read_bytes()
    assert predict(fake_bundle, frames, "--parquet", target, "--force") == 2
    assert "choose another place for the results" in capsys.readouterr().err
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--features"], "--features fills a column of a Parquet file: name one with --parquet"),
        (["--json", "v", "--parquet", "v"], "--json and --parquet are one file, v: give two names"),
        (["--parquet", "."], ". is a folder; give the name of a file"),
    ],
)
def test_an_error_is_one_message_before_a_frame_is_read(
    words: list[str],
    message: str,
    fake_bundle: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict(fake_bundle, frames, *words) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert names_in(tmp_path) == ["bundle", "frames"]


def test_two_names_of_one_file_are_refused(fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "v")
    assert predict(fake_bundle, frames, "--json", tmp_path / "v", "--parquet", tmp_path / "link") == 2
    assert "give two names" in capsys.readouterr().err


def test_without_pyarrow_the_extra_is_named_before_a_frame_is_read(
    fake_bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert predict(fake_bundle, frames, "--parquet", tmp_path / "v.parquet") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith('pip install "sem-clip[parquet]"\n')
    assert names_in(tmp_path) == ["bundle", "frames"]
    assert predict(fake_bundle, frames, "--json", tmp_path / "v.jsonl") == 0


@pytest.mark.parametrize("batches", [0, 1])
def test_a_run_that_fails_keeps_what_it_judged(
    batches: int, fake_bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def failing(name: str, folder: Path, manifest: Manifest, **options: Any) -> FakeBackend:
        return FakeBackend(manifest.encoder, fail_after=batches)

    monkeypatch.setattr(predictor_module, "open_backend", failing)
    out = tmp_path / "out"
    words = ["--parquet", out / "v.parquet", "--json", out / "v.jsonl", "--batch-size", 1]
    assert predict(fake_bundle, frames, *words) == 2
    err = capsys.readouterr().err
    assert "error: fake backend: told to fail" in err
    assert names_in(out) == (["v.jsonl.partial", "v.parquet.partial"] if batches else [])
    if batches:
        assert f"the rows of 1 frames that were done are kept in {out / 'v.parquet.partial'}\n" in err
        (kept,) = read_results(out / "v.parquet.partial")
        assert [kept.to_dict()] == lines_of((out / "v.jsonl.partial").read_text())


def test_the_help_names_both_options(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--parquet FILE write one row per frame to a Parquet FILE" in text
    assert "--features fill the column of features" in text


@pytest.mark.skipif(os.name != "posix", reason="file names of POSIX systems")
def test_a_frame_whose_name_is_no_utf8_has_its_row(fake_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lot"
    three_frames(folder)
    (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    assert predict(fake_bundle, folder, "--parquet", tmp_path / "v.parquet") == 0
    assert rf"{folder}/\udcff.png" in [row["source"] for row in read_rows(tmp_path / "v.parquet")]
