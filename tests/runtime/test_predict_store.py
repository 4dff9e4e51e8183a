"""`sem-clip predict --store`: the same answers as the JSON lines, added to what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commandline import lines_of, names_in, predict, three_frames, write_frame

from runtime import Prediction, Predictor
from runtime.manifest import load_bundle
from runtime.verdict_store import Query, VerdictStore

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    return three_frames(tmp_path / "frames")


def test_a_store_holds_the_answers_of_the_json_lines(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    (frames / "b2.png").write_bytes(b"")
    absent = tmp_path / "absent.png"
    words = ["--store", tmp_path / "v.sqlite", "--json", tmp_path / "v.jsonl"]
    assert predict(fake_bundle, frames, absent, *words) == 1
    assert capsys.readouterr().out == ""
    lines = {line["source"]: line for line in lines_of((tmp_path / "v.jsonl").read_text())}
    with VerdictStore(tmp_path / "v.sqlite") as store:
        entries = store.entries(Query(order="newest", descending=True))
        found: dict[str, Any] = {entry.source: store.result(entry.id) for entry in entries}
        assert {name: result.to_dict() for name, result in found.items()} == lines
        assert [entry.path for entry in entries] == [str(Path(entry.source).absolute()) for entry in entries]
        (run,) = store.runs()
    manifest, recipe = load_bundle(fake_bundle)
    assert (run.bundle, run.encoder_id, run.recipe_sha256) == (str(fake_bundle), manifest.encoder.id, recipe.sha256())
    assert (run.classes, run.operating_point) == (recipe.classes, recipe.operating_point.to_dict())


def test_stored_answers_draw_the_same_overlay(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    assert predict(fake_bundle, frames, "--store", tmp_path / "v.sqlite") == 0
    with Predictor(fake_bundle, backend="fake") as predictor, VerdictStore(tmp_path / "v.sqlite") as store:
        for entry in store.entries(Query()):
            again, wanted = store.result(entry.id), predictor(entry.source)
            assert isinstance(again, Prediction)
            assert again.features.tobytes() == wanted.features.tobytes()
            assert again.overlay().tobytes() == wanted.overlay().tobytes()


def test_with_a_store_alone_the_summary_is_all_that_is_printed(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    for number in range(6):
        (frames / f"broken{number}.png").write_bytes(b"")
    assert predict(fake_bundle, frames, "--store", tmp_path / "v.sqlite") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("  and 1 more; the entries of the store give every reason\n")
    assert names_in(tmp_path) == ["bundle", "frames", "v.sqlite"]


def test_a_second_run_is_added(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.sqlite"
    assert predict(fake_bundle, frames, "--store", file) == 0
    write_frame(frames / "b.png", 2, defect=True)
    write_frame(frames / "d.png")
    assert predict(fake_bundle, frames, "--store", file) == 0
    with VerdictStore(file) as store:
        assert {Path(entry.source).name: entry.run for entry in store.entries(Query())} == dict.fromkeys(
            ("a.png", "b.png", "c.png", "d.png"), 1
        )
        assert store.change_counter() == 7
        assert len(store.runs()) == 2


def test_another_file_is_not_touched(fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "v.sqlite"
    other.write_text("mine")
    for words in (["--store", other], ["--store", other, "--force"]):
        assert predict(fake_bundle, frames, *words) == 2
        assert "is no store of verdicts" in capsys.readouterr().err
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "v", "--store", "v"], "--json and --store are one file, v: give two names"),
        (["--parquet", "v", "--store", "./v"], "--parquet and --store are one file, v: give two names"),
        (["--store", "."], ".: is no file; name a file of `sem-clip predict --store`, or one that is not there yet"),
        (["--engine", "ray", "--parquet", "d", "--store", "v"], "--store is not for --engine ray"),
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
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    assert predict(fake_bundle, frames, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert names_in(tmp_path) == ["bundle", "frames"]


def test_a_run_that_fails_keeps_what_it_judged(
    fake_bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import BackendError, FakeBackend

    run, calls = FakeBackend.run, [0]

    def failing(self: FakeBackend, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            raise BackendError("failed")
        return run(self, *given)

    monkeypatch.setattr(FakeBackend, "run", failing)
    assert predict(fake_bundle, frames, "--store", tmp_path / "v.sqlite", "--batch-size", 1) == 2
    with VerdictStore(tmp_path / "v.sqlite") as store:
        assert [Path(entry.source).name for entry in store.entries(Query())] == ["a.png"]
