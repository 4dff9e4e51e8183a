"""`sem-clip predict`: which frames it judges, its JSON lines, its statuses, and outputs that are whole or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import lines_of, names_in, predict, sources_of, three_frames, write_frame, write_stack
from conftest import make_recipe, write_bundle
from PIL import Image

from runtime import FakeBackend, FrameError, Predictor
from runtime import commands as commands_module
from runtime import predictor as predictor_module
from runtime.manifest import Manifest

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames, the second a defect."""
    return three_frames(tmp_path / "frames")


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


def test_lines_equal_the_predictions_of_the_predictor(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
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


def test_a_place_that_cannot_be_written_is_an_error_before_a_frame_is_read(
    fake_bundle: Path, frames: Path, capsys: Capture
) -> None:
    for option, place in (("--json", frames / "a.png" / "v.jsonl"), ("--overlays", frames / "a.png" / "o")):
        assert predict(fake_bundle, frames, option, place) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "a.png is a file, so nothing can be written below it" in err


def test_hidden_files_of_a_folder_are_left_out(fake_bundle: Path, frames: Path, capsys: Capture) -> None:
    (frames / "._a.png").write_bytes(b"what macOS leaves on shares")
    assert predict(fake_bundle, frames) == 0
    assert len(lines_of(capsys.readouterr().out)) == 3


def test_a_class_called_not_read_keeps_its_own_line_in_the_summary(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", recipe=make_recipe(("good", "bridge", "not read")))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert predict(bundle, write_frame(tmp_path / "a.png", 2, defect=True), tmp_path / "broken.png") == 1
    err = capsys.readouterr().err
    assert "2 frames\n" in err
    assert [line.split() for line in err.splitlines()].count(["not", "read", "1"]) == 2


def test_a_folder_that_cannot_be_read_is_an_error_line_and_status_1(
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
