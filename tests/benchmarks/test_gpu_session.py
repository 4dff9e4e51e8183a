"""benchmarks/gpu_session.sh: rehearsed without a GPU, and with a script in place of Python."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_facts import obstacles_here, packages_missing
from runtime.host import Gpu, find_gpu
from runtime.packages import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_session.sh"
PARTS = ["install", "facts", "tiny-bundle", "verify-tiny", "tests", "full-bundle", "engines", "verify-full"]
PARTS += ["benchmark", "benchmark-compiled", "second-gpu"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("bash") is None, reason="the session is a script for bash on Linux"
    ),
]


def session(
    *arguments: str | Path, python: str | Path = sys.executable, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        env={**os.environ, "PYTHON": str(python), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def outcomes(out: Path) -> dict[str, tuple[str, str, str]]:
    """Outcome, status and reason by part."""
    rows = [line.split("\t") for line in (out / "summary.tsv").read_text().splitlines()]
    return {name: (outcome, status, why) for name, outcome, status, _, why in rows}


def stand_in(
    folder: Path, facts: str = "project=\ngpu=\ncuda=\ntensorrt=absent\ntensorrt-rtx=absent\n", **said: str
) -> Path:
    """A "python" that runs the shell command in `said` for each kind of call; other calls succeed."""
    cases = {"facts": f"printf {facts!r}"} | said
    patterns = {"facts": "benchmarks.gpu_facts", "benchmark": "'benchmarks.gpu '", "tests": "'-m pytest'"}
    lines = [f"    *{patterns.get(name, name.replace('_', '-'))}*) {command} ;;" for name, command in cases.items()]
    file = folder / "python"
    file.write_text("\n".join(["#!/usr/bin/env bash", 'case "$*" in', *lines, "esac", ""]))
    file.chmod(0o755)
    return file


def empty_bundle(folder: Path, name: str = "bundle") -> Path:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "manifest.json").touch()
    return folder / name


def write_wheel(folder: Path, size: int) -> Path:
    """A wheel that installs the module `cut_here` and `size` bytes of data."""
    wheel = folder / "cut_here-1.0-py3-none-any.whl"
    about = "cut_here-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cut_here.py", "WHOLE = True\n")
        archive.writestr("cut_here.bin", np.random.default_rng(0).bytes(size))
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: cut-here\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel


@pytest.mark.skipif(find_gpu()[0] is not None, reason="there is a GPU here, so nothing to rehearse")
def test_a_rehearsal_runs_every_part_up_to_its_first_cuda_call(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bundles = ("--tiny", toy_bundle, "--full", toy_bundle, "--arch", "toy")
    parts = "facts,verify-tiny,tests,engines,verify-full,benchmark,second-gpu"
    done = session("--rehearse", *bundles, "--only", parts, "--work", tmp_path / "work", out, VERIFY_SECONDS="2")
    found = outcomes(out)
    assert list(found) == parts.split(",")
    assert found["facts"][:2] == ("passed", "0")
    assert found["tests"][:2] == ("rehearsed", "0")
    assert "skipped" in found["tests"][2]
    assert "deselected" not in found["tests"][2]  # files without GPU tests are not even collected
    assert found["engines"][:2] == ("rehearsed", "1")
    assert "has no GPU here to build for" in found["engines"][2]
    assert found["benchmark"][:2] == ("rehearsed", "2")
    assert "there is no GPU to measure: no NVIDIA" in found["benchmark"][2]
    assert found["second-gpu"][:2] == ("rehearsed", "2")
    known = {point.name for point in metadata.entry_points(group="sem_clip.commands")}
    outcome = "rehearsed" if "verify" in known else "failed"
    assert {found[name][0] for name in ("verify-tiny", "verify-full")} == {outcome}
    assert done.returncode == (outcome == "failed"), done.stderr
    assert "A rehearsal: no figure here is of a GPU." in done.stdout
    facts = json.loads((out / "facts.json").read_text())
    assert facts["machine"]["versions"]["sem-clip"]
    with tarfile.open(out / "session.tar.gz") as archive:
        assert {"summary.txt", "summary.tsv", "facts.json", "tests.log", "nvidia-smi.txt"} <= set(archive.getnames())


def test_without_a_gpu_every_part_is_reported_with_the_reason(tmp_path: Path) -> None:
    facts = "project=\ngpu=no card\ncuda=no card\ntensorrt=no card\ntensorrt-rtx=no card\n"
    bundle, out = empty_bundle(tmp_path), tmp_path / "out"
    done = session("--tiny", bundle, "--full", bundle, "--work", tmp_path, out, python=stand_in(tmp_path, facts))
    found = outcomes(out)
    assert set(found) == set(PARTS) - {"tiny-bundle", "full-bundle"}
    ran = {name for name, (outcome, _, _) in found.items() if outcome == "passed"}
    assert ran == {"install", "facts"}
    assert {row for name, row in found.items() if name not in ran} == {("not possible", "-", "because no card")}
    assert done.returncode == 1
    assert "no gpu: no card" in (out / "summary.txt").read_text()


def test_a_part_that_hangs_or_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    python = stand_in(
        tmp_path,
        benchmark="echo measuring; sleep 600",
        verify='echo "error: cuda: not qualified: map is off by 0.3"; exit 1',
        tests='echo "7 passed"',
    )
    bundle, out = empty_bundle(tmp_path), tmp_path / "out"
    limits = {"LIMIT_BENCHMARK": "3", "LIMIT_BENCHMARK_COMPILED": "3"}
    done = session("--tiny", bundle, "--full", bundle, "--work", tmp_path, out, python=python, **limits)
    found = outcomes(out)
    assert found["tests"] == ("passed", "0", "7 passed")
    assert found["verify-tiny"] == ("failed", "1", "error: cuda: not qualified: map is off by 0.3")
    assert found["verify-full"][0] == "failed"
    assert found["engines"] == ("not possible", "-", "because absent")
    for name in ("benchmark", "benchmark-compiled"):
        assert found[name] == ("timed out", "124", "after 3 s; last: measuring")
    assert done.returncode == 1


def test_a_session_succeeds_when_all_possible_parts_pass(tmp_path: Path) -> None:
    bundle, out = empty_bundle(tmp_path), tmp_path / "out"
    done = session("--tiny", bundle, "--full", bundle, "--work", tmp_path, out, python=stand_in(tmp_path))
    assert {outcome for outcome, _, _ in outcomes(out).values()} == {"passed", "not possible"}
    assert done.returncode == 0, done.stdout


def test_the_second_gpu_is_tried_where_there_is_one(tmp_path: Path) -> None:
    facts, bundle = "project=\ngpu=\ncuda=\nsecond-gpu=%s", empty_bundle(tmp_path)
    for why, row in (
        ("there is no GPU 1", ("not possible", "-", "because there is no GPU 1")),
        ("", ("passed", "0", "on the second")),
    ):
        python = stand_in(tmp_path, facts % why, verify='[[ $* == *"--device 1"* ]] && echo on the second')
        out = tmp_path / f"out{len(why)}"
        session("--tiny", bundle, "--only", "second-gpu", "--work", tmp_path, out, python=python)
        assert outcomes(out)["second-gpu"] == row


def test_a_bundle_that_is_not_built_makes_its_parts_impossible_and_no_others(tmp_path: Path) -> None:
    python, out = stand_in(tmp_path, build="echo 'error: torch is too old'; exit 2"), tmp_path / "out"
    tiny = empty_bundle(tmp_path, "tiny")
    done = session("--tiny", tiny, "--full", tmp_path / "full", "--work", tmp_path, out, python=python)
    found = outcomes(out)
    assert found["full-bundle"] == ("failed", "2", "error: torch is too old")
    assert found["verify-tiny"][0] == "passed"
    for name in ("verify-full", "benchmark"):
        assert found[name] == ("not possible", "-", f"because there is no bundle at {tmp_path / 'full'}")
    assert done.returncode == 1


def test_a_terminated_session_leaves_a_summary(tmp_path: Path) -> None:
    python, bundle, out = stand_in(tmp_path, tests="sleep 600"), empty_bundle(tmp_path), tmp_path / "out"
    process = subprocess.Popen(
        ["bash", SCRIPT, "--tiny", bundle, "--full", bundle, "--work", tmp_path, out],
        env={**os.environ, "PYTHON": str(python)},
        stdout=subprocess.DEVNULL,
    )
    while not (out / "tests.log").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert outcomes(out)["tests"][0] == "interrupted"
    assert "verify-tiny" in (out / "summary.txt").read_text()


def test_a_wheel_in_parts_is_put_together_and_installed(tmp_path: Path) -> None:
    wheel, parts, work = write_wheel(tmp_path, 2_500_000), tmp_path / "parts", tmp_path / "work"
    assert session("--split", wheel, parts, PART_MB="1").returncode == 0
    assert len(list(parts.glob("*.whl.part-*"))) == 3
    done = session("--parts", parts, "--only", "install", "--work", work, tmp_path / "out")
    assert done.returncode == 0, done.stdout
    assert outcomes(tmp_path / "out")["install"][0] == "passed"
    data = (work / "site" / "cut_here.bin").read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        assert data == archive.read("cut_here.bin")
    assert session("--split", wheel, parts).returncode == 2  # there are parts already


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("missing", "is not whole: bring the parts named above again"),
        ("damaged", "is not whole: bring the parts named above again"),
        ("swapped", "was put together and is not the wheel that was cut"),
        ("elsewhere", "is no list of parts of"),
        ("no list", "next to it: bring that too"),
    ],
)
def test_parts_that_are_not_the_wheel_are_not_installed(harm: str, said: str, tmp_path: Path) -> None:
    wheel, parts, out = write_wheel(tmp_path, 1_500_000), tmp_path / "parts", tmp_path / "out"
    assert session("--split", wheel, parts, PART_MB="1").returncode == 0
    _, second = sorted(parts.glob("*.part-*"))
    sums = parts / f"{wheel.name}.parts.sha256"
    if harm == "missing":
        second.unlink()
    elif harm == "damaged":
        second.write_bytes(second.read_bytes()[:-1])
    elif harm == "swapped":
        sums.write_text("".join(reversed(sums.read_text().splitlines(keepends=True))))
    elif harm == "elsewhere":
        (tmp_path / "other").write_bytes(b"x")
        sums.write_text(f"{hashlib.sha256(b'x').hexdigest()}  ../other\n")
    else:
        sums.unlink()
    done = session("--parts", parts, "--only", "install", "--work", tmp_path / "work", out)
    outcome, status, why = outcomes(out)["install"]
    assert (done.returncode, outcome, status) == (1, "failed", "1")
    assert said in why
    assert not (tmp_path / "work" / "site" / "cut_here.py").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "everything", "new"], "there is no part everything"),
        (["--minutes", "1.5", "new"], "--minutes takes whole minutes"),
        (["--parts", "nowhere", "new"], "there is no folder nowhere"),
        (["--fast", "new"], "there is no option --fast"),
        (["new", "other"], "one folder for the results"),
        (["full"], "is not empty: name a new folder"),
        ([], "usage: gpu_session.sh"),
    ],
)
def test_wrong_usage_ends_at_once(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.log").touch()
    done = session("--work", tmp_path / "work", *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "new").exists()


def test_the_script_is_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed here")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == ""


def test_packages_that_a_host_lacks_are_named() -> None:
    project = {"name": "sem-clip", "dependencies": ["numpy>=1.26", "numpy>=999", "surely-not-there>=1"]}
    extras = {"export": ["sem-clip[tiff]", "pillow"]}
    found = packages_missing({"project": project | {"optional-dependencies": extras}})
    assert found == [f"numpy>=999, here is {np.__version__}", "surely-not-there>=1"]
    assert packages_missing(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("8.9", ""), ("9.0", "tensorrt-rtx builds for no GPU of compute capability 9.0")],
)
def test_a_gpu_without_an_engine_is_reported(capability: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    card = Gpu("Some GPU", capability, "13.0", 1 << 34, "0000:01:00.0")
    monkeypatch.setattr("runtime.host.find_gpu", lambda device=None: (card, ""))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = obstacles_here()
    assert (found["project"], found["gpu"], found["tensorrt-rtx"]) == ("", "", expected)
    assert found["tensorrt"].startswith("tensorrt is not installed")


def test_a_host_that_cannot_import_the_project_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.gpu", None)
    found = obstacles_here()
    assert len(set(found.values())) == 1
    assert found["gpu"].startswith("this project cannot be imported here")
