"""export/build_engine.py and `sem-clip build`: what they write, and what they refuse."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import errors_in, files_in, sem_clip
from PIL import Image
from places import ROOT

from export import teach
from export.model.graph import SemClipGraph
from export.options import METHOD_NAMES
from export.teaching.settings import TeachSettings
from export.teaching.support_cache import SupportCache
from runtime import Predictor
from runtime.cli import main
from runtime.manifest import load_bundle
from runtime.recipe import Recipe

SCRIPT = ROOT / "export/build_engine.py"

SCRIPT = ROOT / "export/build_engine.py"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script in this process; gives its exit status and what it wrote to stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "path", list(sys.path))  # the script changes it
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return int(left.value.code or 0), capsys.readouterr().err

    return run


@pytest.fixture
def never_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """For builds that must stop before the export: it takes long."""

    def export(*_: object) -> None:
        raise AssertionError("the export was reached")

    monkeypatch.setattr(teach, "onnx_from_graph", export)


@pytest.mark.parametrize("argument", ["--help", "--arch=toy"])
def test_script_runs_from_any_folder(tmp_path: Path, argument: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), argument], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in done.stderr
    if argument == "--help":
        assert (done.returncode, done.stderr) == (0, "")
        for word in ("--data", "--shots", "--arch", "--weights", "--out", "--force", "example:"):
            assert word in done.stdout
    else:
        assert done.returncode == 2
        assert done.stderr.startswith("error: toy needs weights from exactly one source: ")
        assert done.stderr.count("\n") == 1
    assert files_in(tmp_path) == []


def no_good(frames: Path) -> list[object]:
    shutil.rmtree(frames / "images/good")
    shutil.rmtree(frames / "masks/good")
    rows = [line for line in (frames / "groups.csv").read_text().splitlines() if "/good/" not in line]
    (frames / "groups.csv").write_text("\n".join(rows))
    return []


def too_many_shots(_: Path) -> list[object]:
    return ["--shots", 5]


def no_shots(_: Path) -> list[object]:
    return ["--shots", 0]


def mask_of_another_size(frames: Path) -> list[object]:
    for path in (frames / "masks/hole").iterdir():
        Image.fromarray(np.zeros((7, 9), np.uint8)).save(path)
    return []


def damaged_frame(frames: Path) -> list[object]:
    for path in (frames / "images/hole").iterdir():
        path.write_bytes(b"not a frame")
    return []


def all_rows_ignored(_: Path) -> list[object]:
    return ["--ignore-top", 50, "--ignore-bottom", 46]


def no_rows_left_of_the_frame_size(_: Path) -> list[object]:
    return ["--frame-size", "96x96", "--ignore-bottom", 96]


def negative_seed(_: Path) -> list[object]:
    return ["--seed", -1]


def negative_rows(_: Path) -> list[object]:
    return ["--ignore-top", -1]


def no_views(_: Path) -> list[object]:
    return ["--views", 0]


def no_prompts_file(frames: Path) -> list[object]:
    return ["--prompts", frames / "absent.toml"]


def no_folder(frames: Path) -> list[object]:
    shutil.rmtree(frames)
    return []


FAULTS: list[tuple[Callable[[Path], list[object]], str]] = [
    (no_good, "there is no class good"),
    (too_many_shots, "class good has 4 frames to draw from, fewer than the 5 shots asked for"),
    (no_shots, "shots must be at least 1"),
    (mask_of_another_size, "the mask is 7x9"),
    (damaged_frame, "is not a readable PNG"),
    (all_rows_ignored, "all of them would be ignored"),
    (no_rows_left_of_the_frame_size, "all of them would be ignored"),
    (negative_seed, "--seed must not be negative"),
    (negative_rows, "--ignore-top must lie in [0, 1000000], not -1"),
    (no_views, "--views must be at least 1"),
    (no_prompts_file, "there is no prompt file"),
    (no_folder, "there is no folder images/"),
]


@pytest.mark.usefixtures("never_exports")
@pytest.mark.parametrize(("spoil", "says"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_a_fault_is_one_message_with_status_2_and_writes_nothing(
    script: Run, toy_frames: Path, tmp_path: Path, spoil: Callable[[Path], list[object]], says: str
) -> None:
    frames = tmp_path / "frames"
    shutil.copytree(toy_frames, frames)
    arguments = spoil(frames)
    before = files_in(tmp_path)
    out = tmp_path / "out/bundle"
    given = ["--arch", "toy", "--random-weights", "--data", frames, "--out", out, "--shots", 1, *arguments]
    status, stderr = script(*given)
    assert status == 2
    (message,) = errors_in(stderr)
    assert says in stderr[stderr.index(message) :]
    assert files_in(tmp_path) == before


@pytest.mark.usefixtures("never_exports")
def test_tiles_and_a_frame_size_exclude_each_other(script: Run, toy_frames: Path, tmp_path: Path) -> None:
    given = ["--arch", "toy", "--random-weights", "--data", toy_frames, "--out", tmp_path / "b", "--shots", 1]
    status, stderr = script(*given, "--frame-size", "96x96", "--tile", "native")
    assert status == 2
    (message,) = errors_in(stderr)
    assert "the recipe to teach: reads frames in tiles of 64 pixels" in message
    assert " views" not in stderr, "said before the supports are encoded"
    assert files_in(tmp_path) == []


@pytest.mark.usefixtures("never_exports")
@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("manifest.json", [], "exists; add --force to replace it"),
        ("thesis.tex", [], "exists; add --force to replace it"),
        ("thesis.tex", ["--force"], "is not a bundle (no manifest.json); --force replaces bundles only"),
    ],
)
def test_an_existing_folder_is_refused_without_force(
    script: Run, toy_frames: Path, tmp_path: Path, content: str, options: list[str], says: str
) -> None:
    (tmp_path / content).write_text("keep")
    status, stderr = script("--arch", "toy", "--random-weights", "--data", toy_frames, "--out", tmp_path, *options)
    assert status == 2
    (message,) = errors_in(stderr)
    assert says in message
    assert stderr == f"error: {message}\n", "said before any work is done"
    assert (tmp_path / content).read_text() == "keep"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--arch", "vit_b_16_plus_240"],
        ["--arch", "unheard_of", "--random-weights"],
        ["--arch", "toy", "--weights", "absent.pt"],
        ["--arch", "toy", "--pretrained", "laion400m_e32"],
    ],
)
@pytest.mark.usefixtures("never_exports")
def test_an_encoder_without_its_weights_is_one_message(
    script: Run, toy_frames: Path, tmp_path: Path, arguments: Sequence[str]
) -> None:
    status, stderr = script(*arguments, "--data", toy_frames, "--out", tmp_path / "bundle")
    assert status == 2
    assert len(errors_in(stderr)) == 1
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("size", ["96", "96x", "x96", "0x96", "96x99999", "96x-1", "9.6x96"])
def test_frame_size_must_be_height_x_width(script: Run, size: str) -> None:
    status, stderr = script("--frame-size", size)
    assert status == 2
    assert "--frame-size" in stderr
    assert "not HEIGHTxWIDTH" in stderr


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--batch", "sem-clip build-engine BUNDLE --engine NAME --batch"),
        ("--most-classes", "sem-clip build-engine BUNDLE --engine NAME --most-classes"),
        ("--accumulate", "sem-clip build-engine BUNDLE --engine NAME --accumulate"),
        ("--redundancy", "bundles use cls_weight"),
    ],
)
def test_an_option_of_an_earlier_version_names_the_new_way(script: Run, option: str, instead: str) -> None:
    status, stderr = script(option, "1")
    assert status == 2
    assert f"{option} is gone: " in stderr
    assert instead in stderr


def test_without_torch_the_extra_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    status, stderr = sem_clip(capsys, "build", "--out", tmp_path / "bundle")
    assert status == 2
    assert 'pip install "sem-clip[export,cpu]"' in errors_in(stderr)[0]


@pytest.mark.parametrize("command", ["build", "quantize"])
def test_an_old_onnx_runtime_is_an_error_before_the_work(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.backends.ort.LEAST_VERSION", {"cpu": "1000"})
    arguments = {"build": ["--data", "nowhere"], "quantize": [str(tmp_path / "nowhere"), "nowhere"]}[command]
    assert main([command, *arguments]) == 2
    assert capsys.readouterr().err.startswith('error: backend "cpu" needs ONNX Runtime 1000 or newer')


@pytest.mark.slow
def test_no_fp16_leaves_out_that_file_and_changes_no_other(
    script: Run, toy_bundle: Path, toy_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    arguments = ["--arch", "toy", "--random-weights", "--data", toy_frames, "--shots", 2, "--out", out, "--no-fp16"]
    status, _ = script(*arguments)
    assert status == 0
    names = ["golden.safetensors", "manifest.json", "model.onnx", "recipe.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "recipe.safetensors").read_bytes() == (toy_bundle / "recipe.safetensors").read_bytes()
    with Predictor(out, threads=1) as predictor:
        assert predictor(next((toy_frames / "images/hole").iterdir())).label in predictor.recipe.classes
    status, stderr = sem_clip(capsys, "build-engine", out, "--engine", "tensorrt-rtx", "--compute-capability", "8.9")
    assert status == 2
    assert errors_in(stderr) == [
        f"{out} holds no fp16 ONNX artifact to build an engine from; build it without --no-fp16"
    ]


@pytest.mark.usefixtures("never_exports")
def test_an_engine_needs_the_fp16_file(script: Run, toy_frames: Path, tmp_path: Path) -> None:
    status, stderr = script(
        *("--arch", "toy", "--random-weights", "--data", toy_frames, "--out", tmp_path / "b"),
        *("--no-fp16", "--engine", "tensorrt-rtx"),
    )
    assert status == 2
    assert errors_in(stderr) == ["--engine is built from the fp16 file; leave out --no-fp16"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ([], (64, 64)),
        (["--frame-size", "96x80"], (96, 80)),
        (["--frame-size", "96x96", "--ignore-top", "6", "--ignore-bottom", "10"], (80, 96)),
    ],
)
def test_options_reach_the_graph_and_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
    script: Run,
    toy_frames: Path,
    tmp_path: Path,
    toy_bundle: Path,
    options: list[str],
    size: tuple[int, int],
) -> None:
    """Teaching and writing are replaced; the test reads their arguments."""
    given: dict[str, Any] = {}

    def teach_recipe(
        model: object, graph: SemClipGraph, request: teach.TeachRequest, stages: object, cache: SupportCache
    ) -> Recipe:
        given.update(graph=graph, request=request, cache=cache.folder)
        return load_bundle(toy_bundle)[1]

    def build_bundle(*arguments: Any, **named: Any) -> Any:
        given.update(out=arguments[4], **named)
        return load_bundle(toy_bundle)[0]

    monkeypatch.setattr(teach, "teach_recipe", teach_recipe)
    monkeypatch.setattr(teach, "build_bundle", build_bundle)
    arguments = ["--arch", "toy", "--random-weights", "--data", toy_frames, "--out", tmp_path / "b", "--white-level", 9]
    status, _ = script(
        *arguments, "--shots", 3, "--seed", 5, "--views", 2, "--force", "--support-cache", tmp_path / "kept", *options
    )
    assert status == 0
    assert given["cache"] == tmp_path / "kept"
    assert (given["graph"].input_size, given["graph"].redundancy) == (size, "cls_weight")
    request = given["request"]
    assert (request.shots, request.seed, request.views, request.options.white_level) == (3, 5, 2, 9)
    assert request.options.ignore_top + request.options.ignore_bottom == (16 if "--ignore-top" in options else 0)
    assert (given["out"], given["force"]) == (tmp_path / "b", True)
    assert "UNTRAINED" in given["notes"][0]


@pytest.mark.parametrize(("method", "at_240"), [("default", 6.0), ("paper", 4.0)])
def test_the_method_sets_teaching_and_smoothing(
    monkeypatch: pytest.MonkeyPatch,
    script: Run,
    toy_frames: Path,
    tmp_path: Path,
    toy_bundle: Path,
    method: str,
    at_240: float,
) -> None:
    given: dict[str, Any] = {}

    def teach_recipe(model: object, graph: object, request: teach.TeachRequest, *rest: object) -> Recipe:
        given.update(request=request)
        return load_bundle(toy_bundle)[1]

    def build_bundle(*arguments: Any, **named: Any) -> Any:
        given.update(named)
        return load_bundle(toy_bundle)[0]

    monkeypatch.setattr(teach, "teach_recipe", teach_recipe)
    monkeypatch.setattr(teach, "build_bundle", build_bundle)
    arguments = ["--arch", "toy", "--random-weights", "--data", toy_frames, "--out", tmp_path / "b"]
    assert script(*arguments, "--method", method)[0] == 0
    assert given["request"].settings == (TeachSettings.paper() if method == "paper" else TeachSettings())
    assert given["request"].smoothing_px == given["smoothing"] == pytest.approx(at_240 * 64 / 240)
    assert tuple(teach.METHODS) == METHOD_NAMES
