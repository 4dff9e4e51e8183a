"""benchmarks.speed.feeding: every way streams every frame, and says how."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import feeding as module
from benchmarks.speed.engines import Subject
from benchmarks.speed.feeding import Feeding, feeding
from benchmarks.speed.frames import write_frames
from runtime import FrameError
from runtime.manifest import load_bundle


@pytest.fixture
def subject(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    manifest, recipe = load_bundle(fake_bundle)
    return Subject(fake_bundle, manifest, recipe, {}, write_frames(fake_bundle.parent / "frames", 3, (64, 64)), 1)


def test_ways_differ_in_processes_predictors_and_decoders(subject: Subject) -> None:
    rows = feeding(subject, batch=2, rounds=2, repeats=1)
    ways = [Feeding(row["processes"], row["predictors"], row["decoders"]) for row in rows]
    assert ways == [Feeding(1, 1, 1), Feeding(1, 1, 2), Feeding(1, 2, 1), Feeding(2, 1, 1)]
    assert rows[0]["times_one"] == 1
    assert all(row["frames_per_second"] > 0 and row["times_one"] > 0 for row in rows)


def test_a_frame_that_cannot_be_read_is_an_error_in_every_way(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed frame costs nothing, and would make a way look fast."""
    Path(subject.frames[1]).write_bytes(b"no picture")
    for way in (Feeding(1, 1, 1), Feeding(1, 2, 1), Feeding(2, 1, 1)):
        with module.ExitStack() as stack, pytest.raises(FrameError, match=r"0001\.png"):
            module._run(stack, str(subject.folder), way, 2, subject.frames)()


def test_the_frames_are_shared_out_without_rest(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed: list[str] = []
    monkeypatch.setattr(module, "_stream", lambda decoders, predictor, paths: streamed.extend(paths))
    with module.ExitStack() as stack:
        module._run(stack, str(subject.folder), Feeding(1, 2, 1), 2, subject.frames)()
    assert sorted(streamed) == subject.frames
