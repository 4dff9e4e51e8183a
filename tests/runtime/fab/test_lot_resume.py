"""A lot that is killed at any point and run again gives the bytes of one run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import posix
from lots import LotCase, contents, make_case
from numpy.typing import NDArray

from runtime import FakeBackend, Outputs, Predictor, Recipe
from runtime.fab.codes import Codes
from runtime.fab.lot import LotClassifier
from runtime.fab.lot_journal import Journal, same_header
from runtime.fab.lot_run import Engine
from runtime.manifest import load_bundle

pytest.importorskip("pyarrow")
Capture = pytest.CaptureFixture[str]
NAME = "lot7.klarf"
KILLED = """
import os, signal, sys
from runtime.cli import main
from runtime.fab import lot_results
from runtime.fab.lot_journal import Journal
where, number, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
add, write, calls = Journal.add, lot_results.write_atomically, [0]
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def adding(self, record):
    calls[0] += 1
    if calls[0] == number:
        self._file.write(b'{"lot": "torn')
        self._file.flush()
        die()
    add(self, record)
def writing(path, content):
    calls[0] += 1
    if calls[0] == number:
        die()
    write(path, content)
if where == "answer":
    Journal.add = adding
else:
    lot_results.write_atomically = writing
sys.exit(main(words))
"""


def killed(case: LotCase, where: str, number: int) -> None:
    """Run the command in a process that is killed at its answer, or file, of this number."""
    words = [sys.executable, "-c", KILLED, where, str(number), *case.words()]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@posix
def test_500_defects_killed_in_the_middle_and_run_again_give_the_bytes_of_one_run(tmp_path: Path) -> None:
    case = make_case(tmp_path, 500)
    whole = tmp_path / "whole"
    assert case.run(out=whole) == 0
    expected = contents(whole)
    assert len(expected) == 5
    for where, number in (("answer", 1), ("answer", 260), ("answer", 9), ("file", 1), ("file", 2), ("file", 3)):
        killed(case, where, number)  # each goes on where the one before was killed
        assert NAME not in contents(case.out) or (where, number) == ("file", 3)
    assert case.run() == 0
    assert contents(case.out) == expected


class BatchBackend(FakeBackend):
    """Answers differ with the frame's place in its batch, as an engine's last digits may."""

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        answers = super().run(frames, recipe)
        return Outputs(answers.probabilities, answers.defect_map, answers.features + np.arange(len(frames))[:, None])


def classifier(case: LotCase, predictor: Predictor, out: Path, batch: int) -> LotClassifier:
    codes = Codes.load(case.folder / "codes.toml", predictor.recipe.classes)
    return LotClassifier(predictor, Engine.of(predictor, batch, {}), codes, case.lot.parent, out)


class Interrupted(Exception):
    """Ends a run in a test."""


@pytest.mark.parametrize("stop", [1, 7, 8, 20, 29])
def test_a_run_goes_on_with_the_same_batches(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that engines whose last digits depend on the batch give the same answers."""
    case = make_case(tmp_path)
    backend = BatchBackend(load_bundle(case.bundle)[0].encoder, max_batch=4)
    with Predictor(case.bundle, backend=backend, batch_size=4) as predictor:
        classifier(case, predictor, tmp_path / "whole", 4).classify(case.lot)
        begun = len(backend.batches)
        add, count = Journal.add, [0]

        def adding(self: Journal, record: dict[str, Any]) -> None:
            if count[0] == stop:
                raise Interrupted
            count[0] += 1
            add(self, record)

        monkeypatch.setattr(Journal, "add", adding)
        with pytest.raises(Interrupted):
            classifier(case, predictor, case.out, 4).classify(case.lot)
        monkeypatch.undo()
        before = len(backend.batches)
        classifier(case, predictor, case.out, 4).classify(case.lot)
    assert contents(case.out) == contents(tmp_path / "whole")
    assert len(backend.batches) - before <= begun  # never more work than a whole run
    if stop >= 20:
        assert len(backend.batches) - before < begun / 2


def test_another_engine_or_other_images_begin_anew(tmp_path: Path, capsys: Capture) -> None:
    case = make_case(tmp_path)
    case.out.mkdir()
    journal = case.out / f"{NAME}.journal"
    journal.write_text('{"of": "another run"}\n{"wafer": "W1"}\n')
    assert case.run() == 0
    assert "it begins anew" in capsys.readouterr().err
    assert len(case.lines()) == 30
    assert not journal.exists()


def test_lines_that_do_not_follow_the_lot_end_a_journal(tmp_path: Path) -> None:
    path, header = tmp_path / "journal", {"of": "this run"}
    keys = [("W", number, None) for number in range(5)]
    lines = [b'{"wafer": "W", "defect_id": %d, "test": null}\n' % number for number in range(5)]
    head = b'{"of": "this run"}\n'
    for content, expected in (
        (head, 0),
        (head + lines[0] + lines[1], 2),
        (head + lines[0] + lines[2], 1),
        (head + lines[0] + b"[1]\n" + lines[1], 1),
        (head + lines[0] + b"\xff\n", 1),
        (head + lines[0] + lines[1][:-1], 1),
        (head + b"".join(lines) + lines[4], 5),
        (b"", 0),
        (head[:-1], 0),
    ):
        path.write_bytes(content)
        with Journal(path, header, keys) as journal:
            assert journal.resumed == expected
            assert journal.other == (not content.startswith(head))
            for key in keys[expected:]:
                journal.add({"wafer": key[0], "defect_id": key[1], "test": key[2]})
            assert [record["defect_id"] for record in journal.records()] == [0, 1, 2, 3, 4]
        assert same_header(path, header)
        assert path.read_bytes() == head + b"".join(lines)


def test_an_interrupted_run_says_that_its_answers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    case = make_case(tmp_path)

    def interrupt(self: Journal, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", interrupt)
    assert case.run() == 130
    assert f"{case.lot}: what was judged is kept; the same command goes on" in capsys.readouterr().err


def test_a_run_that_was_killed_at_its_very_end_leaves_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        assert case.run() == 0
    whole = contents(case.out)
    assert f"{NAME}.journal" in whole
    assert case.run() == 0
    assert contents(case.out) == {name: content for name, content in whole.items() if name != f"{NAME}.journal"}


def test_results_that_are_being_replaced_are_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    case = make_case(tmp_path)
    assert case.run() == 0
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", lambda self, record: (_ for _ in ()).throw(KeyboardInterrupt))
        assert case.run("--force") == 130
    capsys.readouterr()
    assert case.run() == 0
    assert "was judged before" not in capsys.readouterr().err


def test_texts_of_another_encoding_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    case = make_case(tmp_path)
    case.lot.write_bytes(case.lot.read_bytes().replace(b"L7", "Lé".encode()))
    add, count = Journal.add, [0]

    def adding(self: Journal, record: dict[str, Any]) -> None:
        add(self, record)
        count[0] += 1
        if count[0] == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", adding)
        assert case.run() == 130
    assert case.run("--encoding", "latin-1") == 0
    assert "it begins anew" in capsys.readouterr().err
    assert {line["lot"] for line in case.lines()} == {"LÃ©"}
    assert case.run() == 2
    assert "of other settings" in capsys.readouterr().err


@pytest.mark.parametrize("summary", ['{"format": "sem-clip-lot", "version": 1, "status": 0}', "{}", "[]", "{", ""])
def test_a_damaged_summary_is_no_sign_of_finished_results(tmp_path: Path, summary: str, capsys: Capture) -> None:
    case = make_case(tmp_path)
    assert case.run() == 0
    (case.out / f"{NAME}.lot.json").write_text(summary)
    capsys.readouterr()
    assert case.run() == 2
    assert "add --force to replace it" in capsys.readouterr().err
