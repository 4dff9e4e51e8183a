"""`sem-clip teach --corrections`: an old recipe, corrected frames, and what they change."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commandline import errors_in, sem_clip
from PIL import Image

from calibration.contents import content_sha256
from calibration.corrections import CorrectionLog
from calibration.dataset import load_dataset
from calibration.relearning import CORRECTED, HELD, is_held_out
from export import teach_again as module
from export.commands import Teach
from export.errors import ExportError
from export.options import tiling
from export.teaching.prompts import RecordedPrompts, load_prompts
from runtime.cli import main
from runtime.manifest import load_bundle
from runtime.recipe import FrameOptions, Recipe
from runtime.recipe_history import read_history

Capture = pytest.CaptureFixture[str]


def new_frames(folder: Path, count: int, *, held_out: bool) -> Iterator[Path]:
    """Frames of a class that the toy set lacks: rings."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.ogrid[:96, :96]
    for number in range(1000):
        rng = np.random.default_rng(number)
        pixels = rng.integers(60, 100, (96, 96)).astype(np.uint8)
        away = np.hypot(rows - 30 - number % 30, columns - 40)
        pixels[(away > 12) & (away < 16)] = 240
        path = folder / f"{'held' if held_out else 'ring'}-{number}.png"
        Image.fromarray(pixels).save(path)
        if is_held_out(content_sha256(path)) == held_out:
            yield path
            count -= 1
            if not count:
                return
        else:
            path.unlink()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two rings to teach and one to judge; one that was taken back."""
    path = tmp_path / "c.jsonl"
    with CorrectionLog(path) as found:
        for frame in new_frames(tmp_path / "lot", 2, held_out=False):
            marked = np.asarray(Image.open(frame)) == 240
            found.add(frame, "hole", "ring", mask=marked)
        for frame in new_frames(tmp_path / "lot", 1, held_out=True):
            found.add(frame, "hole", "ring")
        found.add(tmp_path / "lot" / "nothing.png", "hole", "good")
        found.undo()
    return path


def test_a_new_class_is_taught_judged_accepted_and_taught_again(
    toy_bundle: Path, toy_frames: Path, log: Path, tmp_path: Path, capsys: Capture
) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    old = load_bundle(bundle)[1]
    out, figures = tmp_path / "again.safetensors", tmp_path / "figures.json"
    words = ["teach", bundle, "--data", toy_frames, "--corrections", log, "--views", 2]
    status, stderr = sem_clip(capsys, *words, "--out", out, "--json", figures)
    assert (status, errors_in(stderr)) == (0, [])
    new = Recipe.load(out)
    assert new.classes == (*old.classes, "ring")
    assert new.teaching["shots"] == 2
    assert new.teaching["seed"] == old.teaching["seed"]
    assert new.teaching["settings"] == old.teaching["settings"]
    assert new.teaching["supports"][: len(old.teaching["supports"])] == old.teaching["supports"]
    assert [entry["class"] for entry in new.teaching[CORRECTED]] == ["ring", "ring"]
    assert new.teaching[module.AGAIN] == old.sha256()
    document = json.loads(figures.read_text())
    assert (document["old_recipe"], document["new_recipe"]) == (old.sha256(), new.sha256())
    assert document["new_classes"] == ["ring"]
    assert document["warning"] is None
    assert len(new.teaching[HELD]) == 1
    assert document["judged"]["corrected"] == 1
    assert document["judged"]["frames"] == 1 + 7 * 4 - 7 * 2
    assert load_bundle(bundle)[1].sha256() == old.sha256()  # until the new one is accepted
    assert main(["recipes", str(bundle), "--accept", str(out), "--note", "rings"]) == 0
    assert [line.action for line in read_history(bundle)] == ["found", "accepted"]
    assert load_bundle(bundle)[1].sha256() == new.sha256()
    third = tmp_path / "third.safetensors"
    status, stderr = sem_clip(capsys, *words[:-2], "--out", third)
    assert (status, errors_in(stderr)) == (0, [])
    assert Recipe.load(third).teaching["views"] == 2
    assert Recipe.load(third).teaching["supports"] == new.teaching["supports"]
    assert Recipe.load(third).sha256() != new.sha256()  # its record names another recipe before it
    assert all(
        (Recipe.load(third).tensors[name] == tensor).all() for name, tensor in new.tensors.items()
    )  # nothing else changed


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--shots", "2", "--data", "DATA"], "--shots draws frames"),
        ([], "--corrections needs --data"),
        (["--data", "DATA", "--seed", "-1"], "--seed must be at least 0"),
        (["--data", "DATA", "--views", "0"], "--views must be at least 1"),
        (["--data", "DATA", "--ignore", "auto", "--ignore-top", "3"], "--ignore auto finds the rows"),
        (["--data", "DATA", "--json", "LOG", "--force"], "is read or written by this command already"),
        (["--data", "DATA", "--white-level", "0"], "--white-level must lie in"),
        (["--data", "DATA", "--method", "paper"], "has no V path, which --method paper reads"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    words: list[str],
    fault: str,
    toy_bundle: Path,
    toy_frames: Path,
    log: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    given = [{"DATA": str(toy_frames), "LOG": str(log)}.get(word, word) for word in words]
    out, before = tmp_path / "r.safetensors", log.read_bytes()
    status, stderr = sem_clip(capsys, "teach", toy_bundle, "--corrections", log, "--out", out, *given)
    assert status == 2
    assert fault in errors_in(stderr)[0]
    assert not out.exists()
    assert log.read_bytes() == before


@pytest.mark.parametrize("option", ["--recipe", "--json"])
def test_options_of_teaching_again_need_corrections(
    option: str, toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["teach", toy_bundle, "--data", toy_frames, "--out", tmp_path / "r.safetensors", option, tmp_path / "x"]
    status, stderr = sem_clip(capsys, *words)
    assert status == 2
    assert f"{option} is of teaching again: add --corrections" in errors_in(stderr)[0]


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Teach().add_arguments(parser)
    return parser.parse_args(["bundle", "--out", "r", *words])


def test_frame_options_are_those_of_the_old_recipe_unless_they_are_given(toy_bundle: Path, toy_frames: Path) -> None:
    recipe = load_bundle(toy_bundle)[1]
    frame = FrameOptions(3, 5, 4095, 7.5, tile=64, overlap=8)
    old, dataset = replace(recipe, frame=frame), load_dataset(toy_frames)
    assert module._frame_options(arguments(), old, dataset) == frame
    assert module._frame_options(arguments("--ignore-top", "0"), old, dataset) == replace(frame, ignore_top=0)
    changed = module._frame_options(arguments("--white-level", "65535", "--pixel-size", "2"), old, dataset)
    assert changed == replace(frame, white_level=65535, pixel_size_nm=2)


@pytest.mark.slow
def test_a_recipe_with_tiles_is_taught_again_without(
    toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    """One corrected defect without a mask cannot teach tiles, and --tile none is the way out."""
    old = load_bundle(toy_bundle)[1]
    tiled, out = tmp_path / "tiled.safetensors", tmp_path / "r.safetensors"
    replace(old, frame=FrameOptions(tile=64, overlap=8)).save(tiled)
    with CorrectionLog(tmp_path / "c.jsonl") as log:
        for frame in new_frames(tmp_path / "lot", 1, held_out=False):
            log.add(frame, "hole", "ring")
    words = ["teach", toy_bundle, "--data", toy_frames, "--corrections", tmp_path / "c.jsonl", "--recipe", tiled]
    words += ["--views", 2, "--support-cache", "none", "--out", out]
    status, stderr = sem_clip(capsys, *words)
    assert status == 2
    assert "has no mask" in errors_in(stderr)[0]
    assert "with --tile none" in errors_in(stderr)[0]
    assert not out.exists()
    status, stderr = sem_clip(capsys, *words, "--tile", "none")
    assert (status, errors_in(stderr)) == (0, [])
    assert Recipe.load(out).frame == FrameOptions()
    assert "no tiles: each frame as a whole" in stderr


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--tile", "none", "--tile-whole"], "are of tiles: add --tile native"),
        (["--tile", "none", "--tile-overlap", "3"], "are of tiles: add --tile native"),
        (["--tile-overlap", "3"], "are of tiles: add --tile native"),
        (["--tile", "64", "--tile-overlap", "64"], "--tile-overlap must be smaller than tile, which is 64, not 64"),
    ],
)
def test_options_of_tiles_that_cannot_be_are_refused(words: list[str], fault: str) -> None:
    with pytest.raises(ExportError, match=fault):
        tiling(arguments(*words))


@pytest.mark.parametrize(("text", "fault"), [("7", "at least 8"), ("16385", "at most 16384"), ("off", "whole number")])
def test_sizes_of_tiles_are_those_of_recipes(text: str, fault: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        arguments("--tile", text)
    assert fault in capsys.readouterr().err


def test_settings_and_numbers_are_those_of_the_old_recipe(toy_bundle: Path, capsys: Capture) -> None:
    old = load_bundle(toy_bundle)[1]
    moved = {**old.teaching, "settings": {**old.teaching["settings"], "alpha": 0.5}, "seed": 7}
    again = replace(old, teaching=moved)
    assert module._settings(arguments(), again).alpha == 0.5
    assert module._settings(arguments("--method", "default"), again).alpha == 0.8
    assert module._whole(None, again, "seed", 0, 0) == 7
    assert module._whole(3, again, "seed", 0, 0) == 3
    bare = replace(old, teaching={})
    assert module._whole(None, bare, "views", 1, 8) == 8
    assert "does not record its views: 8 is taken" in capsys.readouterr().err
    for settings in (None, {"alpha": 9}, {"temperatures": 3}):
        with pytest.raises(ExportError, match="name a method with --method"):
            module._settings(arguments(), replace(old, teaching={"settings": settings}))


def test_prompts_that_a_recipe_records_are_used_again_and_a_file_names_new_classes() -> None:
    shipped = load_prompts()
    found = RecordedPrompts.of({"good": ["mine"]}, shipped)
    assert found.for_class("good") == ["mine"]
    assert found.for_class("hole") == shipped.for_class("hole")
