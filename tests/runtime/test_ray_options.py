"""Options of `predict --engine ray`, and what is found before Ray starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commandline import errors_in, files_in, predict, sem_clip, write_frame
from conftest import make_recipe

from runtime.serving import ray_session

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder with one frame."""
    return write_frame(tmp_path / "frames" / "00.png").parent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray"], "--engine ray writes a folder of Parquet files: name it with --parquet DIR"),
        (["--engine", "ray", "--parquet", "{}/out", "--json", "v"], "--json is not for --engine ray, which writes"),
        (["--engine", "ray", "--parquet", "{}/out", "--force"], "--force is not for --engine ray, which writes"),
        (["--engine", "ray", "--parquet", "{}/frames/00.png"], "frames/00.png is a file; --engine ray writes a folder"),
        (["--engine", "ray", "--parquet", "s3://b/out"], "s3:/b/out is a URI, and --parquet writes a folder of this"),
        (["--engine", "ray", "--parquet", "{}/frames"], "frames holds other files (00.png): choose an empty folder"),
        (
            ["--engine", "ray", "--parquet", "{}/out", "--precision", "int8", "--address", "ray://x:1"],
            "ray://x:1: Ray ",
        ),
        (
            ["--engine", "ray", "--parquet", "{}/out", "--address", "127.0.0.1:1"],
            "127.0.0.1:1: no Ray cluster answers (",
        ),
        (["--engine", "ray", "--parquet", "{}/out", "--address", "host"], "host: is no address of a Ray cluster; give"),
        (["--engine", "ray", "--parquet", "{}/out", "--device", "0"], "--device is not for --engine ray, which gives"),
        (["--engine", "ray", "--parquet", "{}/out", "--backend", "triton"], "--backend triton is not for --engine ray"),
        (["--engine", "ray", "--parquet", "{}/out", "--url", "x:1"], "--url belongs to --backend triton: add that"),
        (["--workers", "2"], "--workers is an option of --engine ray alone: add that, or leave it out"),
        (["--address", "auto"], "--address is an option of --engine ray alone: add that, or leave it out"),
    ],
)
def test_options_that_do_not_go_together_are_errors(
    words: Sequence[str], message: str, fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = [word.format(tmp_path) for word in words]
    status, err = sem_clip(capsys, "predict", fake_bundle, frames, "--backend", "fake", *words)
    (error,) = errors_in(err)
    assert status == 2
    assert message in error


@pytest.mark.parametrize(("path", "kind"), [("file:///lot/a.png", "a URI"), ("lot.parquet", "a Parquet file")])
def test_archives_lead_to_the_engine_that_reads_them(path: str, kind: str, fake_bundle: Path, capsys: Capture) -> None:
    status, err = sem_clip(capsys, "predict", fake_bundle, path, "--backend", "fake")
    (error,) = errors_in(err)
    assert status == 2
    assert f"{path} is {kind}: --engine ray reads frames from there; add --engine ray --parquet DIR" in error


def test_without_ray_the_error_names_the_extra(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "find_spec", lambda _: None)
    words = ["--backend", "fake", "--engine", "ray", "--parquet", tmp_path / "out"]
    assert sem_clip(capsys, "predict", fake_bundle, frames, *words) == (
        2,
        'error: Ray is not installed: pip install "sem-clip[ray]"\n',
    )
    assert not (tmp_path / "out").exists()


def test_a_run_with_nothing_left_to_judge_starts_no_ray(fake_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    from runtime.serving import answer_folder

    write_frame(tmp_path / "a.png")
    out, words = tmp_path / "out", ["--backend", "fake", "--engine", "ray", "--parquet", tmp_path / "out"]
    predict(fake_bundle, tmp_path / "a.png", "--parquet", tmp_path / "v.parquet")
    status, err = sem_clip(capsys, "predict", fake_bundle, tmp_path / "a.png", *words, "--address", "ray://x:1")
    assert status == 2
    shutil.copy(tmp_path / "v.parquet", out / "part-000001.parquet")
    status, err = sem_clip(capsys, "predict", fake_bundle, tmp_path / "a.png", *words, "--address", "ray://x:1")
    assert status == 0
    assert err.startswith(f"{out} holds the answers of 1 of these frames\n0 frames\n")
    assert answer_folder.SETTINGS in files_in(out)


def test_another_recipe_is_refused_in_the_same_folder(
    fake_bundle: Path, frames: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "other.safetensors").write_bytes(make_recipe(defect_threshold=0.75).to_bytes())
    words = ["predict", fake_bundle, frames, "--backend", "fake", "--engine", "ray", "--parquet", tmp_path / "out"]
    assert sem_clip(capsys, *words, "--address", "ray://x:1")[0] == 2
    status, err = sem_clip(capsys, *words, "--address", "ray://x:1", "--recipe", tmp_path / "other.safetensors")
    assert status == 2
    assert "holds answers by other settings (recipe_sha256 was" in errors_in(err)[0]


def test_ray_on_this_machine_counts_the_gpus_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of none, it would have no room for a worker of a GPU backend."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray_session, "_guarded", False)
    monkeypatch.setattr(ray_session, "import_ray", lambda: SimpleNamespace(shutdown=lambda: None))
    monkeypatch.setattr(ray_session, "_connect", lambda ray, address, here: given.update(here))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with ray_session.ray_session(None, 3):
        assert given["num_cpus"] == 4
        assert "num_gpus" not in given
