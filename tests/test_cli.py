"""`sem-clip inspect` and `sem-clip predict`: lines, pictures, exit statuses, and outputs that are whole or absent."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from PIL import Image
from places import ROOT

from runtime import FakeBackend, FrameError, Prediction, Predictor, SemClipError, cli
from runtime import commands as commands_module
from runtime import predictor as predictor_module
from runtime.cli import NO_MEMORY, main, run
from runtime.manifest import Manifest

Capture = pytest.CaptureFixture[str]


def write_frame(path: Path, number: int = 0, *, defect: bool = False) -> Path:
    """A frame that the fake backend calls class `number` modulo K; a defect has a bright square."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[0, 0] = number
    if defect:
        pixels[16:48, 16:48] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_stack(path: Path, pages: int) -> Path:
    first, *rest = (Image.fromarray(np.full((64, 64), number, np.uint8)) for number in range(pages))
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest)
    return path


def predict(bundle: Path, *arguments: object) -> int:
    return main(["predict", str(bundle), "--backend", "fake", *map(str, arguments)])


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def sources_of(text: str) -> list[str]:
    return [line["source"] for line in lines_of(text)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    folder = tmp_path / "frames"
    write_frame(folder / "a.png", 0)
    write_frame(folder / "b.png", 1, defect=True)
    write_frame(folder / "c.png", 2)
    return folder


# inspect


def test_inspect_says_what_a_bundle_holds(fake_bundle: Path, capsys: Capture) -> None:
    assert main(["inspect", str(fake_bundle)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "toy, weights: random, seed 0 (UNTRAINED)",
        "4 layers, width 32, levels after [1, 2, 3, 4]",
        "id abababababababab, checkpoint SHA-256 cdcdcdcdcdcdcdcd",
        "V path      in the graph",
        "any size, squashed to 64 x 64",
        "model.onnx: fp32, 0.0 MB, SHA-256 correct",
        "8 operators, 8 Attention",
        "recipe.safetensors: good, bridge, hole; text from anchors",
        "defect threshold 0.5000, pixel threshold 0.5000",
        "defect score: 1 x map + 0 x (1 - P(good))",
        "temperature 1; unknown: never",
        "cannot decide: below confidence good 0.000, bridge 0.000, hole 0.000; not where class and score disagree",
        "as taught, never calibrated",
        "alpha 0.8, lambda_v 1, lambda_m 0.3, tau 10, tau_v 10, tau_s 10",
        "made for tests",
    ):
        assert part in out


def test_inspect_says_that_the_v_path_is_left_out(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", encoder=make_encoder(value_path=False))
    assert main(["inspect", str(bundle)]) == 0
    assert "V path      left out of the graph: recipes need lambda_v 0\n" in capsys.readouterr().out


def test_inspect_says_where_the_resize_is(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", encoder=make_encoder(input_size=(768, 1024), trained=True))
    assert main(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "exactly 768 x 1024 (height x width)" in out
    assert "UNTRAINED" not in out


@pytest.mark.parametrize(
    "parity",
    [{}, {"frames": 3, "max_abs_probability": None, "max_abs_defect_map": "small"}, {"max_abs_probability": 1e-6}],
)
def test_inspect_takes_a_parity_report_as_it_is(parity: dict[str, Any], fake_bundle: Path, capsys: Capture) -> None:
    document = json.loads((fake_bundle / "manifest.json").read_text())
    document["artifacts"][0]["parity"] = parity
    (fake_bundle / "manifest.json").write_text(json.dumps(document))
    assert main(["inspect", str(fake_bundle)]) == 0
    assert ("1.0e-06" if parity == {"max_abs_probability": 1e-6} else "unknown") in capsys.readouterr().out


def test_inspect_checks_every_hash_and_lists_all_faults(fake_bundle: Path, capsys: Capture) -> None:
    (fake_bundle / "model.onnx").write_bytes(b"X" * 15)
    (fake_bundle / "recipe.safetensors").unlink()
    assert main(["inspect", str(fake_bundle)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {fake_bundle}: 2 faults:\n")
    assert "model.onnx does not have the SHA-256" in err
    assert "recipe.safetensors is missing" in err


def test_the_program_runs_as_a_module(fake_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "inspect", str(fake_bundle)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe.safetensors: good, bridge, hole" in done.stdout


# predict: lines


def test_each_frame_gives_one_json_line_on_stdout(fake_bundle: Path, frames: Path, capsys: Capture) -> None:
    assert predict(fake_bundle, frames) == 0
    out, err = capsys.readouterr()
    lines = lines_of(out)
    assert [line["source"] for line in lines] == [str(frames / name) for name in ("a.png", "b.png", "c.png")]
    assert [line["raw"]["head_class"] for line in lines] == ["good", "bridge", "hole"]
    assert [line["is_defect"] for line in lines] == [False, True, False]
    assert [len(line["regions"]) for line in lines] == [0, 1, 0]
    assert err.splitlines()[1:] == [
        "3 frames",
        "  good                2",
        "  bridge              1",
        "  hole                0",
        "  unknown             0",
        "  cannot decide       0",
    ]
    assert [line["verdict"] for line in lines] == ["good", "bridge", "good"]  # the third one's map is dark
    assert "fake backend" in err


def test_lines_are_what_the_predictor_says(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    assert predict(fake_bundle, frames, "--json", tmp_path / "new" / "verdicts.jsonl") == 0
    text = (tmp_path / "new" / "verdicts.jsonl").read_text()
    assert text.endswith("}\n")
    with Predictor(fake_bundle, backend="fake") as predictor:
        for line in lines_of(text):
            expected = predictor(line["source"]).to_dict()
            assert line.pop("timings_ms").keys() == expected.pop("timings_ms").keys()
            assert line == expected


def test_with_a_file_nothing_goes_to_stdout(fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture) -> None:
    assert predict(fake_bundle, frames, "--json", tmp_path / "v.jsonl") == 0
    assert capsys.readouterr().out == ""
    assert names_in(tmp_path) == ["bundle", "frames", "v.jsonl"]


def test_a_frame_that_cannot_be_read_is_an_error_line_and_status_1(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    (frames / "b.png").write_bytes(b"")
    assert predict(fake_bundle, frames, tmp_path / "absent.png", "--overlays", tmp_path / "overlays") == 1
    out, err = capsys.readouterr()
    first, second, third, fourth = lines_of(out)
    assert (first["raw"]["head_class"], third["raw"]["head_class"]) == ("good", "hole")
    assert second == {"source": str(frames / "b.png"), "error": "is empty (0 bytes)"}
    assert fourth == {"source": str(tmp_path / "absent.png"), "error": "no such file"}
    assert "4 frames\n" in err
    assert "  not read            2\n" in err
    assert f"  {frames / 'b.png'}: is empty (0 bytes)\n  {tmp_path / 'absent.png'}: no such file\n" in err
    assert names_in(tmp_path / "overlays") == ["a.png", "c.png"]


def test_of_many_frames_that_cannot_be_read_the_first_are_named(
    fake_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert predict(fake_bundle, *(tmp_path / f"{i}.png" for i in range(7))) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-7:] == [
        "  not read            7",
        *(f"  {tmp_path / f'{i}.png'}: no such file" for i in range(5)),
        "  and 2 more; the JSON lines give every reason",
    ]


def test_another_recipe_judges_if_given(fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture) -> None:
    make_recipe(("good", "scratch"), defect_threshold=0.0).save(tmp_path / "two.safetensors")
    assert predict(fake_bundle, frames, "--recipe", tmp_path / "two.safetensors", "--batch-size", 2) == 0
    lines = lines_of(capsys.readouterr().out)
    assert [line["raw"]["head_class"] for line in lines] == ["good", "scratch", "good"]
    assert all(line["is_defect"] for line in lines)


# predict: which frames


def test_a_folder_is_searched_for_frames_in_a_stable_order(fake_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "lot"
    for name in ("b/z.PNG", "a.jpg", "b/a.bmp", "c.TIFF", "d.jpeg", "e.tif"):
        write_frame(folder / name)
    (folder / "groups.csv").write_text("frame,group\n")
    (folder / "model.onnx").write_bytes(b"")
    (folder / "folder.png").mkdir()
    assert predict(fake_bundle, folder) == 0
    expected = [str(folder / name) for name in ("a.jpg", "b/a.bmp", "b/z.PNG", "c.TIFF", "d.jpeg", "e.tif")]
    assert sources_of(capsys.readouterr().out) == expected


def test_of_a_data_folder_only_the_images_are_taken(fake_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("images/good/1.png", "images/hole/2.png", "masks/hole/2.png", "overview.png"):
        write_frame(tmp_path / "data" / name)
    assert predict(fake_bundle, tmp_path / "data") == 0
    expected = [str(tmp_path / "data" / "images" / name) for name in ("good/1.png", "hole/2.png")]
    assert sources_of(capsys.readouterr().out) == expected


def test_each_page_of_a_stack_is_a_line(fake_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "lot"
    stack = write_stack(folder / "stack.tif", 3)
    single = write_stack(folder / "single.tif", 1)
    assert predict(fake_bundle, folder) == 0
    pages = [f"{stack}#1", f"{stack}#2", f"{stack}#3"]
    lines = lines_of(capsys.readouterr().out)
    assert [line["source"] for line in lines] == [str(single), *pages]
    assert [line["raw"]["head_class"] for line in lines[1:]] == ["good", "bridge", "hole"]
    assert predict(fake_bundle, stack, f"{stack}#2") == 0
    assert sources_of(capsys.readouterr().out) == pages


def test_a_frame_named_twice_is_one_line(fake_bundle: Path, frames: Path, capsys: Capture) -> None:
    assert predict(fake_bundle, frames / "c.png", frames, frames) == 0
    assert sources_of(capsys.readouterr().out) == [str(frames / name) for name in ("c.png", "a.png", "b.png")]


def test_a_damaged_stack_is_one_error_line(fake_bundle: Path, frames: Path, capsys: Capture) -> None:
    stack = write_stack(frames / "stack.tif", 3)
    content = stack.read_bytes()
    for length in (0, 100, 4400, len(content) - 20):
        stack.write_bytes(content[:length])
        assert predict(fake_bundle, frames) == 1
        lines = lines_of(capsys.readouterr().out)
        assert [("verdict" in line, line["source"]) for line in lines[:3]] == [
            (True, str(frames / name)) for name in ("a.png", "b.png", "c.png")
        ]
        assert any("error" in line for line in lines[3:])


def test_a_named_file_is_tried_whatever_its_suffix(fake_bundle: Path, frames: Path, capsys: Capture) -> None:
    (frames / "a.png").rename(frames / "a.dat")
    assert predict(fake_bundle, frames / "a.dat") == 0
    assert sources_of(capsys.readouterr().out) == [str(frames / "a.dat")]


# predict: overlays


def test_overlays_are_the_pictures_of_the_predictions(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    assert predict(fake_bundle, frames, "--overlays", tmp_path / "deep" / "overlays") == 0
    assert names_in(tmp_path / "deep" / "overlays") == ["a.png", "b.png", "c.png"]
    with Predictor(fake_bundle, backend="fake") as predictor:
        expected = np.asarray(predictor(frames / "b.png").overlay())
    with Image.open(tmp_path / "deep" / "overlays" / "b.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["a/x.png", "b/x.png"], ["a_x.png", "b_x.png"]),
        (["lot1/a/x.png", "lot2/a/x.png"], ["lot1_a_x.png", "lot2_a_x.png"]),
        (["x.png", "y/x.png"], ["x.png", "y_x.png"]),
        (["a/x.png", "b/y.png"], ["x.png", "y.png"]),
        (["x.png", "x.tif"], ["000000_x.png", "000001_x.png"]),
        (["a_b/c.png", "a/b/c.png", "x/b/c.png"], ["000000_a_b_c.png", "000001_a_b_c.png", "000002_x_b_c.png"]),
    ],
)
def test_each_frame_has_a_picture_of_its_own(
    names: list[str],
    pictures: list[str],
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for number, name in enumerate(names):
        write_frame(Path(name), number)
    assert predict(fake_bundle, *names, "--overlays", tmp_path / "overlays") == 0
    assert names_in(tmp_path / "overlays") == sorted(pictures)
    for number, picture in enumerate(pictures):
        with Image.open(tmp_path / "overlays" / picture) as image:
            assert image.getpixel((0, 0)) == (number, number, number)


def test_pages_have_pictures_of_their_own(fake_bundle: Path, tmp_path: Path) -> None:
    write_stack(tmp_path / "lot" / "stack.tif", 2)
    assert predict(fake_bundle, tmp_path / "lot", "--overlays", tmp_path / "overlays") == 0
    assert names_in(tmp_path / "overlays") == ["stack-1.png", "stack-2.png"]


# predict: what is refused


def bad_bundle(bundle: Path, frames: Path) -> list[object]:
    (bundle / "model.onnx").unlink()
    return [frames]


def no_frames(bundle: Path, frames: Path) -> list[object]:
    for path in frames.iterdir():
        path.unlink()
    (frames / "notes.txt").write_text("nothing here")
    return [frames]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (bad_bundle, "model.onnx is missing"),
        (no_frames, "the folder holds no frames (.png, .jpg, .jpeg, .bmp, .tif, .tiff)"),
        (lambda bundle, frames: [frames, "--backend", "tpu"], 'there is no backend "tpu" in this version'),
        (lambda bundle, frames: [frames, "--recipe", "absent.safetensors"], "absent.safetensors: does not exist"),
        (lambda bundle, frames: [frames, "--backend", "cpu", "--precision", "fp16"], "holds no fp16 ONNX artifact"),
        (lambda bundle, frames: [frames, "--json", frames], "is a folder; give the name of a file"),
        (lambda bundle, frames: [frames, "--json", frames, "--force"], "is a folder; give the name of a file"),
        (
            lambda bundle, frames: [frames, "--overlays", frames / "a.png", "--force"],
            "a.png is a file, so nothing can be written below it",
        ),
    ],
)
def test_an_error_is_one_message_and_status_2(
    arrange: Callable[[Path, Path], list[object]], message: str, fake_bundle: Path, frames: Path, capsys: Capture
) -> None:
    assert predict(fake_bundle, *arrange(fake_bundle, frames)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["predict"],
        ["predict", "bundle"],
        ["predict", "bundle", "x.png", "--batch-size", "0"],
        ["predict", "bundle", "x.png", "--batch-size", "many"],
        ["predict", "bundle", "x.png", "--threads", "-1"],
        ["inspect"],
    ],
)
def test_wrong_arguments_are_explained_with_status_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: sem-clip")
    assert "error: " in err


@pytest.mark.parametrize("option", ["--json", "--overlays"])
def test_outputs_that_exist_are_refused_without_force(
    option: str, fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    old = out if option == "--json" else out / "old.txt"
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    assert predict(fake_bundle, frames, option, out) == 2
    assert f"error: {out} exists; add --force to replace it, or choose another name" in capsys.readouterr().err
    assert old.read_text() == "old"
    assert predict(fake_bundle, frames, option, out, "--force") == 0
    if option == "--json":
        assert len(lines_of(out.read_text())) == 3
    else:
        assert names_in(out) == ["a.png", "b.png", "c.png", "old.txt"]


def test_an_empty_overlay_folder_may_be_there_already(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    assert predict(fake_bundle, frames, "--overlays", tmp_path / "overlays") == 0
    assert len(names_in(tmp_path / "overlays")) == 3


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("batches", [0, 1])
def test_a_run_that_fails_leaves_the_json_file_as_it_was_and_keeps_what_it_judged(
    existed: bool,
    batches: int,
    fake_bundle: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    out = tmp_path / "out" / "verdicts.jsonl"
    out.parent.mkdir()
    if existed:
        out.write_text("old\n")

    def failing(name: str, folder: Path, manifest: Manifest, **options: Any) -> FakeBackend:
        return FakeBackend(manifest.encoder, fail_after=batches)

    monkeypatch.setattr(predictor_module, "open_backend", failing)
    assert predict(fake_bundle, frames, "--json", out, "--force", "--batch-size", 1) == 2
    err = capsys.readouterr().err
    assert "error: fake backend: told to fail" in err
    kept = out.with_name("verdicts.jsonl.partial")
    assert names_in(out.parent) == [*(["verdicts.jsonl"] if existed else []), *([kept.name] if batches else [])]
    if existed:
        assert out.read_text() == "old\n"
    if batches:
        assert sources_of(kept.read_text()) == [str(frames / "a.png")]
        assert f"the lines of 1 frames that were done are kept in {kept}\n" in err


def test_a_run_with_failed_frames_still_writes_its_file(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    (frames / "a.png").write_bytes(b"not a picture")
    assert predict(fake_bundle, frames, "--json", tmp_path / "v.jsonl") == 1
    assert [("error" in line) for line in lines_of((tmp_path / "v.jsonl").read_text())] == [True, False, False]


# The program


def test_the_four_commands_are_registered() -> None:
    names = {point.name for point in entry_points(group="sem_clip.commands")}
    assert {"inspect", "predict", "teach", "build"} <= names


@pytest.mark.parametrize("command", ["inspect", "predict", "teach", "build"])
def test_the_help_of_each_command_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    (point,) = entry_points(group="sem_clip.commands", name=command)
    cls = point.load()
    assert f"usage: sem-clip {command}" in out
    assert cls.help in out
    assert f"example:\n  {cls.example}" in out
    first = cls.example.splitlines()[0]
    assert first.startswith((f"sem-clip {command} ", "python export/build_engine.py "))


def test_the_help_of_the_program_names_the_commands(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("inspect", "predict", "teach", "build"))


class Raises:
    """A command that ends in an exception."""

    help = "h"
    example = "e"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """None."""

    def run(self, args: argparse.Namespace) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (SemClipError("no room"), 2, "error: no room\n"),
        (SemClipError("2 faults:\n  - a\n  - b\nerror: forged"), 2, "error: 2 faults:\n  - a\n  - b\\nerror: forged\n"),
        (OSError(28, "No space left on device", "v.jsonl"), 2, "error: v.jsonl: No space left on device\n"),
        (OSError("odd"), 2, "error: input or output: odd\n"),
        (MemoryError(), 2, f"error: {NO_MEMORY}\n"),
        (RuntimeError("can't start new thread"), 2, f"error: can't start new thread: {NO_MEMORY}\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["error", "faults", "system", "odd", "memory", "threads", "interrupt"],
)
def test_expected_ends_are_said_without_a_traceback(
    error: BaseException, status: int, said: str, capsys: Capture
) -> None:
    assert run(Raises(error), argparse.Namespace()) == status
    assert capsys.readouterr().err == said


def test_what_a_warning_quotes_is_text() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: dark", ("a\nerror: forged\x1b[2J",), None)
    said = cli._Text("%(levelname)s: %(message)s").format(record)
    assert said == "WARNING: a\\nerror: forged\\x1b[2J: dark"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Raises(ZeroDivisionError()), argparse.Namespace())


def test_a_place_that_cannot_be_written_is_said_before_a_frame_is_read(
    fake_bundle: Path, frames: Path, capsys: Capture
) -> None:
    for option, place in (("--json", frames / "a.png" / "v.jsonl"), ("--overlays", frames / "a.png" / "o")):
        assert predict(fake_bundle, frames, option, place) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "a.png is a file, so nothing can be written below it" in err


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("a.png", "exists; add --force"),
        ("", "is a folder; give the name of a file"),
        ("a.png/r", "nothing can be written"),
    ],
)
def test_teach_says_before_it_teaches_that_its_recipe_has_no_place(
    place: str, says: str, fake_bundle: Path, frames: Path, capsys: Capture
) -> None:
    assert main(["teach", str(fake_bundle), "--data", str(frames), "--out", str(frames / place)]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert out == ""


def test_a_frame_that_is_gone_costs_its_overlay_and_nothing_else(
    fake_bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    drawn = Prediction.overlay

    def overlay(prediction: Prediction) -> Image.Image:
        if prediction.source.endswith("b.png"):
            Path(prediction.source).unlink()
        return drawn(prediction)

    monkeypatch.setattr(Prediction, "overlay", overlay)
    out, pictures = tmp_path / "v.jsonl", tmp_path / "o"
    assert predict(fake_bundle, frames, "--json", out, "--overlays", pictures) == 1
    assert [line["raw"]["head_class"] for line in lines_of(out.read_text())] == ["good", "bridge", "hole"]
    assert names_in(pictures) == ["a.png", "c.png"]
    assert f"no overlay: {frames / 'b.png'}: no such file" in capsys.readouterr().err


def test_hidden_files_of_a_folder_are_not_meant(fake_bundle: Path, frames: Path, capsys: Capture) -> None:
    (frames / "._a.png").write_bytes(b"what macOS leaves on shares")
    assert predict(fake_bundle, frames) == 0
    assert len(lines_of(capsys.readouterr().out)) == 3


def test_inspect_says_which_promises_were_voided_by_hand(tmp_path: Path, capsys: Capture) -> None:
    promise = {"rule": "conformal=0.05", "promise": "at most 5 %"}
    calibration = {"defect_threshold": promise, "novelty_threshold": promise, "changed_by_hand": ["defect_threshold"]}
    folder = write_bundle(tmp_path / "bundle", recipe=make_recipe(calibration=calibration))
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "defect_threshold changed by hand: no promise speaks of it" in out
    assert "defect_threshold by" not in out
    assert "novelty_threshold by conformal=0.05: at most 5 %" in out


def test_a_reader_that_leaves_ends_the_run_without_a_word(fake_bundle: Path, frames: Path) -> None:
    words = [sys.executable, "-m", "runtime.cli", "predict", str(fake_bundle), "--backend", "fake", *[str(frames)]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


# Streams, signals, names


def program(*words: object, shell: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own. shell: redirections, such as `>&-`."""
    line = [sys.executable, "-m", "runtime.cli", *map(str, words)]
    if shell:
        line = ["sh", "-c", f'exec "$@" {shell}', "sh", *line]
    settings = {"capture_output": True, "text": True, "check": False, "timeout": 120, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(line, **settings)
    assert "Traceback" not in done.stderr
    return done


posix = pytest.mark.skipif(os.name != "posix", reason="shells, pipes and signals of POSIX systems")


@posix
def test_without_a_stderr_lines_are_results_alone(fake_bundle: Path, frames: Path) -> None:
    done = program("predict", fake_bundle, "--backend", "fake", frames, shell="2>&-")
    assert done.returncode == 0
    assert [line["raw"]["head_class"] for line in lines_of(done.stdout)] == ["good", "bridge", "hole"]


@posix
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_a_stdout_a_file_takes_the_lines(closed: str, fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    words = ("predict", fake_bundle, "--backend", "fake", frames)
    done = program(*words, shell=closed)
    assert done.returncode == 2
    if "2>" not in closed:
        assert done.stderr == "error: there is no stdout to write to: name a file with --json\n"
    assert program(*words, "--json", tmp_path / "v", shell=closed).returncode == 0
    # Nothing that was meant for a closed stream went into a file that got its number.
    assert [line["raw"]["head_class"] for line in lines_of((tmp_path / "v").read_text())] == ["good", "bridge", "hole"]
    assert program("inspect", fake_bundle, shell=closed).returncode == 0
    assert program(*words, "--json", "/dev/stdout", shell=closed).returncode == 2, "a closed stdout takes nothing"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout_is_one_line(fake_bundle: Path, frames: Path) -> None:
    for words in (("predict", fake_bundle, "--backend", "fake", frames), ("inspect", fake_bundle)):
        done = program(*words, shell=">/dev/full")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "error: stdout: No space left on device"
    assert program("--help", shell=">/dev/full").stderr == "", "no complaint at exit"


@posix
def test_nobody_who_reads_stderr_is_no_end(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    words = ("predict", fake_bundle, "--backend", "fake", frames, "--json", tmp_path / "v")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", *map(str, words)], stderr=writer, check=False, timeout=120
    )
    os.close(writer)
    assert done.returncode == 0
    assert len(lines_of((tmp_path / "v").read_text())) == 3


@pytest.mark.parametrize("command", ["predict", "calibrate", "benchmark"])
def test_more_threads_than_can_be_are_one_message(command: str, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, str(tmp_path), str(tmp_path), "--threads", "100000"])
    assert caught.value.code == 2
    assert "--threads: must be at most 1024, not 100000" in capsys.readouterr().err


def test_a_class_may_be_called_what_the_summary_says_of_others(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(("good", "bridge", "not read")))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert predict(bundle, write_frame(tmp_path / "a.png", 2, defect=True), tmp_path / "broken.png") == 1
    err = capsys.readouterr().err
    assert "2 frames\n" in err
    assert [line.split() for line in err.splitlines()].count(["not", "read", "1"]) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_class_names_reach_every_stdout(encoding: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(("good", "größe", "桥接")))
    done = program("inspect", bundle, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert done.returncode == 0
    assert ("good, größe, 桥接" if encoding == "utf-8" else "\\u6865\\u63a5") in done.stdout


@posix
def test_json_goes_to_where_stdout_is(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    words = ("predict", fake_bundle, "--backend", "fake", frames, "--json", "/dev/stdout")
    assert program(*words, shell=f">> {tmp_path / 'log'}").returncode == 0
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first == "before"
    assert len(rest) == 3


@posix
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (getattr(signal, "SIGHUP", 1), 129, "terminated"),
    ],
)
def test_a_signal_keeps_what_was_judged(
    number: int,
    status: int,
    said: str,
    fake_bundle: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    request: pytest.FixtureRequest,
) -> None:
    streamed = Predictor.stream

    def stream(self: Predictor, *words: Any, **options: Any) -> Any:
        for count, result in enumerate(streamed(self, *words, **options)):
            if count == 2:
                os.kill(os.getpid(), number)
            yield result

    monkeypatch.setattr(Predictor, "stream", stream)
    ours = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    found = signal.signal(number, ours)  # a background job is born ignoring some of them
    request.addfinalizer(lambda: signal.signal(number, found))
    before = signal.getsignal(number)
    out = tmp_path / "v.jsonl"
    assert predict(fake_bundle, frames, "--json", out, "--overlays", tmp_path / "o") == status
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert names_in(tmp_path) == ["bundle", "frames", "o", "v.jsonl.partial"]
    assert sources_of(out.with_name("v.jsonl.partial").read_text()) == [str(frames / n) for n in ("a.png", "b.png")]
    assert names_in(tmp_path / "o") == ["a.png", "b.png"]


@posix
def test_a_signal_that_was_ignored_stays_so(fake_bundle: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(commands_module, "find_frames", lambda *_: os.kill(os.getpid(), signal.SIGHUP) or [])
        assert predict(fake_bundle, frames) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_name_holds_is_text(fake_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "lot"
    folder.mkdir()
    try:
        (folder / "x\x1b[2J\nerror: forged\u202e.png").write_bytes(b"no image")
    except OSError:
        pytest.skip("this system takes no such names")
    assert predict(fake_bundle, folder, "--json", tmp_path / "v.jsonl") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "lot/x\\x1b[2J\\nerror: forged\\u202e.png: " in last
    assert main(["inspect", str(folder / "no\x1b[2J\nsuch")]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {folder}/no\\x1b[2J\\nsuch: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(notes=["\x1b]0;owned\x07\nartifact    x: fp32, SHA-256 correct", "\u202e"]),
        lambda document: document["encoder"].update(weights="\x9b2J\nforged"),
        lambda document: document["artifacts"][0].update(parity={"max_abs_probability": 10**400, "frames": [["\n"]]}),
        lambda document: document["artifacts"][0].update(operators={"Add": 9 * 10**4298, "Mul": 9 * 10**4298}),
    ],
)
def test_what_a_manifest_holds_is_text(change: Callable[[Any], None], fake_bundle: Path, capsys: Capture) -> None:
    assert main(["inspect", str(fake_bundle)]) == 0
    lines = len(capsys.readouterr().out.splitlines())
    document = json.loads((fake_bundle / "manifest.json").read_text())
    change(document)
    (fake_bundle / "manifest.json").write_text(json.dumps(document))
    status = main(["inspect", str(fake_bundle)])  # shown, or refused
    out, err = capsys.readouterr()
    assert (status, err == "") in ((0, True), (2, False))
    assert all(line.isprintable() for line in (out + err).splitlines())
    if status == 0:
        assert len(out.splitlines()) == lines + len(document["notes"]) - 1


# predict: pictures that cannot be, and places for them


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device", "x"), FrameError("b.png", "is gone")])
def test_an_overlay_that_cannot_be_written_costs_itself_alone(
    failure: Exception,
    fake_bundle: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    saved = commands_module._save_overlay

    def save(result: Prediction, path: Path) -> None:
        if path.name == "b.png":
            raise failure
        saved(result, path)

    monkeypatch.setattr(commands_module, "_save_overlay", save)
    out = tmp_path / "v.jsonl"
    assert predict(fake_bundle, frames, "--json", out, "--overlays", tmp_path / "o") == 1
    assert [line["raw"]["head_class"] for line in lines_of(out.read_text())] == ["good", "bridge", "hole"]
    assert names_in(tmp_path / "o") == ["a.png", "c.png"]
    assert "  no overlay: " in capsys.readouterr().err


def test_a_frame_of_the_longest_name_has_its_overlay(fake_bundle: Path, tmp_path: Path) -> None:
    write_frame(tmp_path / "lot" / ("x" * 251 + ".png"))
    assert predict(fake_bundle, tmp_path / "lot", "--overlays", tmp_path / "o") == 0
    assert names_in(tmp_path / "o") == ["x" * 251 + ".png"]


@pytest.mark.parametrize("place", ["frames", "frames/../frames", "."])
def test_overlays_are_not_put_among_the_frames(
    place: str, fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert predict(fake_bundle, frames, "--overlays", tmp_path / place, "--force") == 2
    assert "holds frames that are judged" in capsys.readouterr().err
    assert names_in(frames) == ["a.png", "b.png", "c.png"]
    assert predict(fake_bundle, frames, "--overlays", frames / "overlays") == 0


def test_what_a_folder_did_not_let_read_is_a_line_and_status_1(
    fake_bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    found = commands_module.find_frames

    def find(paths: list[str], unread: list[FrameError]) -> list[str]:
        unread.append(FrameError("lot/closed", "may not be read"))
        return found(paths)

    monkeypatch.setattr(commands_module, "find_frames", find)
    assert predict(fake_bundle, frames, "--json", tmp_path / "v") == 1
    lines = lines_of((tmp_path / "v").read_text())
    assert {"source": "lot/closed", "error": "may not be read"} in lines
    assert len(lines) == 4
    assert capsys.readouterr().err.endswith("  not read            1\n  lot/closed: may not be read\n")


# The program, where it is not whole


def test_only_the_command_that_is_asked_for_is_loaded(fake_bundle: Path, capsys: Capture) -> None:
    code = (
        f"import sys; from runtime.cli import main; main(['inspect', {str(fake_bundle)!r}]); "
        "sys.exit(bool({'export', 'calibration', 'benchmarks', 'tqdm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120, stdout=-3).returncode == 0


def test_a_command_that_cannot_be_loaded_is_named_and_the_others_work(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "calibration.commands", None)
    assert main(["calibrate", "a", "b"]) == 2
    assert 'error: the command "calibrate" cannot be loaded' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert 'the command "calibrate" cannot be loaded' in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(fake_bundle)]) == 0


def test_a_copy_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda **_: ())
    assert main(["predict", "bundle", "frames"]) == 2
    assert capsys.readouterr().err.startswith("error: sem-clip is not installed, so it has no commands: python -m pip")


@pytest.mark.parametrize("what", ["frame", "page", "manifest"])
def test_results_do_not_replace_what_the_run_reads(fake_bundle: Path, frames: Path, capsys: Capture, what: str) -> None:
    if what == "page":
        pages = [Image.new("L", (64, 64), value) for value in (10, 200)]
        pages[0].save(frames / "s.tif", save_all=True, append_images=pages[1:])
    target = {"frame": frames / "a.png", "page": frames / "s.tif", "manifest": fake_bundle / "manifest.json"}[what]
    before = target.read_bytes()
    assert predict(fake_bundle, frames, "--json", target, "--force") == 2
    assert "choose another place for the results" in capsys.readouterr().err
    assert target.read_bytes() == before
